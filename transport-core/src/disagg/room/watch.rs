//! A gate for one writer, held by one machine, so that the machine is a value: it can be copied,
//! compared and hashed, which is what a model checker needs.

use core::hash::{Hash, Hasher};

use crate::transfer::ArrivalGate;

/// The gate of the writer of this name.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) writer: u32,
    pub(super) gate: ArrivalGate,
}

impl Watch {
    pub(super) fn new(writer: u32, deliveries: u32) -> Self {
        Self { writer, gate: ArrivalGate::new(&[writer], deliveries) }
    }
}

impl Clone for Watch {
    fn clone(&self) -> Self {
        // Reporting takes the machine that holds it, and so does copying: nobody reports meanwhile.
        Self { writer: self.writer, gate: self.gate.copy() }
    }
}

impl PartialEq for Watch {
    fn eq(&self, other: &Self) -> bool {
        self.writer == other.writer && self.gate.words().eq(other.gate.words())
    }
}

impl Eq for Watch {}

impl Hash for Watch {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.writer.hash(state);
        self.gate.words().for_each(|word| word.hash(state));
    }
}
