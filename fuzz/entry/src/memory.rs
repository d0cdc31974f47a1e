//! How much memory a decoder may take.

/// Does `work`, which never has more than `most` bytes allocated at a time, on this thread.
pub(crate) fn within<T>(most: u64, work: impl FnOnce() -> T) -> T {
    let mut result = None;
    let allocated = allocation_counter::measure(|| result = Some(work()));
    let bytes = allocated.bytes_max;
    assert!(bytes <= most, "{bytes} bytes allocated at a time; the most allowed is {most}");
    result.expect("work that was measured was done")
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn a_byte_more_than_allowed_is_noticed() {
        let take = |bytes: usize| move || drop(Vec::<u8>::with_capacity(bytes));
        within(1000, take(1000));
        assert!(std::panic::catch_unwind(|| within(999, take(1000))).is_err());
    }
}
