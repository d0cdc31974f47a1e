//! Copying between memories that other processes, devices or threads may change meanwhile.
//!
//! Written in assembly where it can be: the compiler then knows nothing of the bytes, so a race
//! gives mixed bytes and no undefined behaviour. Elsewhere `memcpy` is called through the C library.
//!
//! A long copy of pages that nobody here reads soon goes past the caches ([`Copying::Streaming`]):
//! otherwise every line of the destination is first read, only to be overwritten, which costs a
//! third of the memory's bandwidth.

/// How bytes are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Copying {
    /// Into the caches: short, and read soon.
    Cached,
    /// Past the caches, where the machine can. [`finish`] makes the bytes visible.
    Streaming,
}

/// Shortest run that is streamed: below, its unaligned ends would cost more than is won.
#[cfg(target_arch = "x86_64")]
const SHORTEST: usize = 1024;
/// Bytes that the streaming loop moves at a time.
#[cfg(target_arch = "x86_64")]
const STEP: usize = 128;

/// Copies `len` bytes.
///
/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes, and they do not overlap. Both may be
/// changed by others meanwhile.
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, len: usize, how: Copying) {
    #[cfg(target_arch = "x86_64")]
    if how == Copying::Streaming && len >= SHORTEST && std::arch::is_x86_feature_detected!("avx") {
        let head = (to as usize).wrapping_neg() % (STEP / 2);
        let body = (len - head) / STEP * STEP;
        let tail = head + body;
        // SAFETY: the first `head` of the caller's bytes.
        unsafe { cached(to, from, head) };
        // SAFETY: the next `body` of them, a whole number of steps, at an aligned destination; AVX
        // was detected.
        unsafe { streaming(to.wrapping_add(head), from.wrapping_add(head), body) };
        // SAFETY: the rest.
        unsafe { cached(to.wrapping_add(tail), from.wrapping_add(tail), len - tail) };
        return;
    }
    let _ = how;
    // SAFETY: promised by the caller.
    unsafe { cached(to, from, len) }
}

/// Bytes that were streamed are visible to whoever sees what is stored after this.
pub(crate) fn finish() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: waits for stores, and does nothing else.
    unsafe {
        std::arch::asm!("sfence", options(nostack, preserves_flags));
    }
}

/// As [`copy`].
#[cfg(target_arch = "x86_64")]
unsafe fn cached(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: promised by the caller; the direction flag is clear, as the ABI demands.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rdi") to => _,
            inout("rsi") from => _,
            inout("rcx") len => _,
            options(nostack, preserves_flags),
        );
    }
}

/// As [`copy`].
#[cfg(not(target_arch = "x86_64"))]
unsafe fn cached(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: promised by the caller.
    unsafe { libc::memcpy(to.cast(), from.cast(), len) };
}

/// As [`copy`]; `len` is a multiple of [`STEP`], `to` of half of it, and the machine has AVX.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx")]
unsafe fn streaming(to: *mut u8, from: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    // SAFETY: promised by the caller; every step stays within `len`.
    unsafe {
        std::arch::asm!(
            "2:",
            "vmovdqu {a}, [{from}]",
            "vmovdqu {b}, [{from} + 32]",
            "vmovdqu {c}, [{from} + 64]",
            "vmovdqu {d}, [{from} + 96]",
            "vmovntdq [{to}], {a}",
            "vmovntdq [{to} + 32], {b}",
            "vmovntdq [{to} + 64], {c}",
            "vmovntdq [{to} + 96], {d}",
            "add {from}, 128",
            "add {to}, 128",
            "sub {len}, 128",
            "jnz 2b",
            "vzeroupper",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            len = inout(reg) len => _,
            a = out(ymm_reg) _,
            b = out(ymm_reg) _,
            c = out(ymm_reg) _,
            d = out(ymm_reg) _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_and_alignment_is_copied_and_nothing_beside_it() {
        let from: Vec<u8> = (0..9000u32).map(|i| (i * 7 + i / 256) as u8 | 1).collect();
        let lengths = [0, 1, 63, 64, 127, 1023, 1024, 1025, 1151, 1152, 4096, 4100, 8191];
        for how in [Copying::Cached, Copying::Streaming] {
            for (len, skew) in lengths.into_iter().flat_map(|l| [0, 1, 31, 64, 77].map(|s| (l, s)))
            {
                let mut to = vec![0u8; 9000];
                let (source, target) = (from[3..].as_ptr(), to[skew..].as_mut_ptr());
                // SAFETY: both buffers are longer than `skew + len`.
                unsafe { copy(target, source, len, how) };
                finish();
                assert_eq!(to[skew..skew + len], from[3..3 + len], "{how:?} {len} {skew}");
                assert!(to[..skew].iter().chain(&to[skew + len..]).all(|byte| *byte == 0));
            }
        }
    }
}
