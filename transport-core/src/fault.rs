//! Faults that a model may seed into the lock-free code, to prove that it would notice them.
//!
//! A model that has never failed proves little. So each place whose ordering or step matters asks
//! here, and a `#[should_panic]` model runs with that one place broken. Outside such a model both
//! functions are constants: the compiler sees the plain code.

use crate::sync::Ordering;

/// One way to break the code. The variant's doc says what is left out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Fault {
    /// A ring's item is published without releasing what was written into its slot.
    RingPublish,
    /// A ring's slot is given back without releasing the read of it.
    RingRelease,
    /// A ring goes on at its first slot while there are items in it.
    RingRewind,
    /// A ring goes on at its first slot without waiting for the read of what was there.
    RingRewindOrder,
    /// A submission is published without releasing what was written into its slot.
    SubmissionPublish,
    /// A submission is sent without looking whether there is room for it and its completion.
    SubmissionCredit,
    /// A submission is sent without looking whether there is a slot for it, if its completion has a place.
    SubmissionSlot,
    /// What one submitter learnt of free slots reaches the next one unordered.
    SubmissionLimit,
    /// What the port has left behind is not looked for.
    SubmissionLeft,
    /// The port parks without telling the next submitter.
    SubmissionPark,
    /// Who would park while a submitter is halfway does not have itself woken again.
    SubmissionHalfway,
    /// Credits come back before the places in the completion ring are free.
    CreditEarly,
    /// The slots of a batch come free only after its completions were published.
    BatchSlotsLate,
    /// A ticket dropped without a completion tells nobody.
    TicketSilent,
    /// The completions' end looks for one before it registers its waker, and not after.
    CompletionCheckedEarly,
    /// A wake-up looks whether anyone waits with a plain load.
    WakerLoad,
    /// A waker's cell is given up with a plain store.
    WakerStore,
    /// What was counted is not visible to the one who completes the gate.
    GateCount,
    /// Poison and completion overwrite each other.
    GatePoison,
    /// A delivery that was seen is counted again.
    GateDuplicate,
    /// A pin is taken without being counted.
    PinMissing,
    /// A pin ends without releasing the accesses made under it.
    PinExit,
    /// A pin is counted although the count was closed.
    PinAfterClose,
}

/// Whether a model has broken this place.
#[inline(always)]
pub(crate) fn seeded(fault: Fault) -> bool {
    current() == Some(fault)
}

/// The ordering a place needs, or `Relaxed` when a model has broken it.
#[inline(always)]
pub(crate) fn ordering(needed: Ordering, fault: Fault) -> Ordering {
    if seeded(fault) { Ordering::Relaxed } else { needed }
}

#[cfg(not(all(test, transport_loom)))]
#[inline(always)]
const fn current() -> Option<Fault> {
    None
}

#[cfg(all(test, transport_loom))]
use self::seed::current;
#[cfg(all(test, transport_loom))]
pub(crate) use self::seed::model_with;

#[cfg(all(test, transport_loom))]
mod seed {
    use core::cell::Cell;

    use super::Fault;

    std::thread_local! {
        // loom runs all threads of a model on the test's own thread.
        static CURRENT: Cell<Option<Fault>> = const { Cell::new(None) };
    }

    pub(super) fn current() -> Option<Fault> {
        CURRENT.get()
    }

    /// Runs a model with `fault` seeded; it is expected to panic.
    pub(crate) fn model_with(fault: Fault, body: impl Fn() + Send + Sync + 'static) {
        struct Reset;
        impl Drop for Reset {
            fn drop(&mut self) {
                CURRENT.set(None);
            }
        }
        let _reset = Reset;
        CURRENT.set(Some(fault));
        crate::model::model(body);
    }
}
