//! The parts of a room's transfer, and which of them are due when.

/// Most state components a model may have.
pub const MAX_COMPONENTS: usize = 16;

/// One kind of bytes. Each part has a table of its own and is gated by itself.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Part {
    /// KV pages, sent chunk by chunk.
    Kv,
    /// The aux record, sent once with the last chunk.
    Aux,
    /// One component of recurrent or windowed state (below [`MAX_COMPONENTS`]), sent once with the
    /// last chunk.
    State(u8),
}

impl Part {
    /// The part's number on the wire: 0 KV, 1 aux, 2 + k state component k.
    pub const fn to_wire(self) -> u8 {
        match self {
            Self::Kv => 0,
            Self::Aux => 1,
            Self::State(component) => component.saturating_add(2),
        }
    }

    /// The part of that number, if there is one.
    pub const fn from_wire(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Kv),
            1 => Some(Self::Aux),
            n if (n as usize) < MAX_COMPONENTS + 2 => Some(Self::State(n - 2)),
            _ => None,
        }
    }
}

/// A set of state components.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct StateMask(u16);

impl StateMask {
    /// No component.
    pub const EMPTY: Self = Self(0);

    /// The set of that bit pattern: bit `k` is component `k`.
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Bit `k` is component `k`.
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Components in the set.
    pub const fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `component` is in the set.
    pub const fn contains(self, component: u8) -> bool {
        (component as usize) < MAX_COMPONENTS && self.0 & (1 << component) != 0
    }

    /// The components in the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..MAX_COMPONENTS as u8).filter(move |component| self.contains(*component))
    }
}

impl FromIterator<u8> for StateMask {
    /// Numbers of [`MAX_COMPONENTS`] and above are left out.
    fn from_iter<I: IntoIterator<Item = u8>>(components: I) -> Self {
        let bit = |component: u8| 1u16.checked_shl(component.into()).unwrap_or(0);
        Self(components.into_iter().fold(0, |bits, component| bits | bit(component)))
    }
}

/// What goes with a chunk besides its KV pages.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct PartsDue {
    /// The aux record.
    pub aux: bool,
    /// These state components.
    pub state: StateMask,
}

/// Which parts go with a chunk (G1): aux always on the last chunk, state if and only if some
/// component's item list is not empty, and then those components. An empty list of components, and
/// a list of empty lists, are the same as no state. Both sides call this: the sender to know what
/// to send, the receiver to know what its grant asks for.
///
/// ```
/// use transport_core::transfer::{parts_due, StateMask};
///
/// let dense: [&[u32]; 0] = [];
/// assert!(parts_due(true, &dense).aux); // aux does not hang on state
/// assert_eq!(parts_due(true, &[&[][..], &[3]]).state, StateMask::from_bits(0b10));
/// assert!(!parts_due(false, &[&[3]]).aux && parts_due(false, &[&[3]]).state.is_empty());
/// ```
pub fn parts_due<L: AsRef<[u32]>>(is_last: bool, state_items: &[L]) -> PartsDue {
    if !is_last {
        return PartsDue::default();
    }
    let numbered = (0..=u8::MAX).zip(state_items);
    let state = numbered.filter(|(_, items)| !items.as_ref().is_empty()).map(|(k, _)| k).collect();
    PartsDue { aux: true, state }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g1_aux_always_goes_with_the_last_chunk_whatever_the_state() {
        let lists: [&[&[u32]]; 4] = [&[], &[&[]], &[&[], &[]], &[&[1], &[]]];
        for state in lists {
            assert!(parts_due(true, state).aux);
            assert_eq!(parts_due(false, state), PartsDue::default());
        }
    }

    #[test]
    fn g1_g2_empty_lists_are_no_state() {
        let none: [&[u32]; 0] = [];
        assert!(parts_due(true, &none).state.is_empty());
        assert!(parts_due(true, &[&[][..], &[]]).state.is_empty());
        assert_eq!(parts_due(true, &[&[7][..], &[], &[1, 2]]).state.bits(), 0b101);
    }

    #[test]
    fn parts_keep_their_numbers_and_strangers_have_none() {
        for number in 0..=u8::MAX {
            let part = Part::from_wire(number);
            assert_eq!(part.is_some(), usize::from(number) < MAX_COMPONENTS + 2);
            assert!(part.is_none_or(|part| part.to_wire() == number));
        }
    }
}
