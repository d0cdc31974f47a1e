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
            "vmovdqu ymm0, [{from}]",
            "vmovdqu ymm1, [{from} + 32]",
            "vmovdqu ymm2, [{from} + 64]",
            "vmovdqu ymm3, [{from} + 96]",
            "vmovntdq [{to}], ymm0",
            "vmovntdq [{to} + 32], ymm1",
            "vmovntdq [{to} + 64], ymm2",
            "vmovntdq [{to} + 96], ymm3",
            "add {from}, 128",
            "add {to}, 128",
            "sub {len}, 128",
            "jnz 2b",
            // Clears the upper halves of all sixteen, so that what follows without AVX is not slowed.
            "vzeroupper",
            from = inout(reg) from => _,
            to = inout(reg) to => _,
            len = inout(reg) len => _,
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
            out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
            out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With optimizations the loop stands in the midst of this, and the numbers in wide registers.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx")]
    fn numbers_across_a_copy(to: &mut [u8], from: &[u8]) -> [[u64; 4]; 4] {
        use std::arch::x86_64::{__m256i, _mm256_set1_epi64x, _mm256_storeu_si256};
        use std::hint::black_box;
        let numbers: [__m256i; 4] = [1, 2, 3, 4].map(|n| _mm256_set1_epi64x(black_box(n)));
        // SAFETY: both are as long as the shorter.
        unsafe { streaming(to.as_mut_ptr(), from.as_ptr(), to.len().min(from.len())) };
        numbers.map(|number| {
            let mut words = [0; 4];
            // SAFETY: 32 writable bytes.
            unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), number) };
            words
        })
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_copy_keeps_the_numbers_of_whoever_copies() {
        if !std::arch::is_x86_feature_detected!("avx") {
            return;
        }
        #[repr(align(64))]
        struct Aligned([u8; 4096]);
        let (from, mut to) = (Aligned([7; 4096]), Aligned([0; 4096]));
        // SAFETY: AVX was detected.
        let numbers = unsafe { numbers_across_a_copy(&mut to.0, &from.0) };
        assert_eq!(numbers, [1, 2, 3, 4].map(|n| [n; 4]));
        assert_eq!(from.0, to.0);
    }

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
