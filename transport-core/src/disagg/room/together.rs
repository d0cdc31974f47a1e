//! How the legs of one room end it together (R3).
//!
//! A decode room waits for everything of each writer, a prefill room for the grant of each reader.
//! Both follow the same rule: only what has come from all of them lets the room go on, and the first
//! failure is the room's and takes the other legs with it.

/// What a room still waits for, and why it fails, if it does. `F` is the reason of a failure.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Together<F> {
    awaited: usize,
    failed: Option<F>,
}

impl<F> Together<F> {
    /// A room of so many legs, each of which it waits for.
    pub const fn new(legs: usize) -> Self {
        Self { awaited: legs, failed: None }
    }

    /// It is known now how many legs there are. For before the first of them is there.
    pub fn set_legs(&mut self, legs: usize) {
        self.awaited = legs;
    }

    /// Legs that the room waits for.
    pub fn awaited(&self) -> usize {
        self.awaited
    }

    /// Why the room fails: the first reason.
    pub fn failed(&self) -> Option<&F> {
        self.failed.as_ref()
    }

    /// Whether a further leg would be welcome.
    pub fn waits(&self) -> bool {
        self.awaited > 0 && self.failed.is_none()
    }

    /// Whether all are there and none has failed: the room may go on.
    pub fn is_complete(&self) -> bool {
        self.awaited == 0 && self.failed.is_none()
    }

    /// What the room waited for from one of its legs has come. Call it once for each. Whether that
    /// was the last and the room may go on.
    pub fn arrived(&mut self) -> bool {
        let waited = self.waits();
        self.awaited = self.awaited.saturating_sub(1);
        waited && self.is_complete()
    }

    /// A leg, or the room itself, has failed. Whether it is the first to do so: then all legs are to
    /// be told.
    pub fn fail(&mut self, reason: F) -> bool {
        let first = self.failed.is_none();
        self.failed.get_or_insert(reason);
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r3_a_room_goes_on_when_the_last_leg_is_there_and_only_then() {
        let mut room: Together<&str> = Together::new(1);
        room.set_legs(2);
        assert!(!room.arrived() && !room.is_complete() && room.waits());
        assert!(room.arrived() && room.is_complete() && !room.waits());
        assert!(!room.arrived(), "it goes on once");
    }

    #[test]
    fn r3_the_first_failure_is_the_rooms_and_nothing_undoes_it() {
        let mut room = Together::new(1);
        assert!(room.fail("first") && !room.fail("second"));
        assert!(!room.arrived() && !room.is_complete());
        assert_eq!((room.failed(), room.awaited()), (Some(&"first"), 0));
    }
}
