//! Links `transport-core` into a library that has a panic handler and an allocator of its own.
//!
//! If any crate in the core's graph pulls std in, its panic handler and ours collide and the build fails (E0152). The
//! result is never run: it only has to link. Build it with `--profile no-std`.
//!
//! Invariant: all of it exists under `panic = "abort"` only, which that profile sets. Under the profiles that unwind,
//! where a panic handler needs std, it is an empty crate, so that commands over the whole workspace work.
#![cfg_attr(panic = "abort", no_std)]

#[cfg(panic = "abort")]
mod probe {
    use core::alloc::{GlobalAlloc, Layout};
    use core::panic::PanicInfo;
    use core::ptr;

    use transport_core::memory::MemoryRegion;
    use transport_core::transfer::ArrivalGate;

    #[cfg(feature = "prove")]
    extern crate std;

    #[global_allocator]
    static ALLOCATOR: NoMemory = NoMemory;

    struct NoMemory;

    // SAFETY: it never hands out memory, so there is none that could be misused.
    unsafe impl GlobalAlloc for NoMemory {
        unsafe fn alloc(&self, _: Layout) -> *mut u8 {
            ptr::null_mut()
        }

        unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
    }

    #[panic_handler]
    fn halt(_: &PanicInfo<'_>) -> ! {
        loop {}
    }

    /// Reaches into the core, so that its code is linked and not just its name.
    /// No other symbol in the graph has its name, which is all that `no_mangle` asks for.
    #[unsafe(no_mangle)]
    extern "C" fn transport_core_probe(len: usize) -> bool {
        let gate = ArrivalGate::new(&[0], 1);
        let region = MemoryRegion::allocate(len);
        gate.poison() && region.is_some_and(|region| region.write(0, &[1]).is_ok())
    }
}
