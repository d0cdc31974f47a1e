//! The blob by which a peer's fabric reaches ours: [`transport_core::fabric::Fabric::address`].
//!
//! It says how many lanes we want. Where to dial them the peer knows (the side that dialled the
//! link dials the lanes, to the same address), and what binds them to the link it knows too (the
//! key in the link's preface). Bytes behind the fixed part are left for later versions.
//!
//! | bytes | field   | meaning                                               |
//! |-------|---------|-------------------------------------------------------|
//! | 0..4  | magic   | `4b 56 74 63` ("KVtc")                                |
//! | 4..6  | version | 1                                                     |
//! | 6..8  | lanes   | lanes wanted, 0 (as many as suit the way) to 16       |
//! | 8..24 | nonce   | if there: we may share memory; stands in what we show  |
//! | 24..40| name    | where processes of our machine may connect; 0: nowhere |
#![forbid(unsafe_code)]

use crate::local::socket::NAME;

const MAGIC: [u8; 4] = *b"KVtc";
const VERSION: u16 = 1;

/// Most lanes to one peer.
pub const MAX_LANES: u16 = 16;

/// Lanes that suit a way inside one machine: more only compete for the same cores.
const LOCAL_LANES: u16 = 1;
/// Lanes that suit a network: one stream is one core of the receiver's and one queue of the NIC's.
const REMOTE_LANES: u16 = 4;

/// What a blob says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Address {
    /// Lanes wanted.
    pub(crate) lanes: u16,
    /// What a peer on this machine needs to know.
    pub(crate) local: Option<LocalAddress>,
}

/// How a process of the same machine reaches an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct LocalAddress {
    /// Stands in the memory that the endpoint shows its peers.
    pub(crate) nonce: [u8; 16],
    /// Where it waits; zeroes when it only dials.
    pub(crate) name: [u8; NAME],
}

impl Address {
    /// The blob.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let lanes = self.lanes.min(MAX_LANES).to_le_bytes();
        let mut blob = [&MAGIC[..], &VERSION.to_le_bytes(), &lanes].concat();
        if let Some(LocalAddress { nonce, name }) = self.local {
            blob.extend(nonce);
            blob.extend(name);
        }
        blob
    }

    /// What a blob says; `None` when it is not one of ours.
    pub(crate) fn decode(blob: &[u8]) -> Option<Self> {
        let (fixed, rest) = blob.split_first_chunk::<8>()?;
        let [magic @ .., v0, v1, l0, l1] = *fixed;
        let (version, lanes) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([l0, l1]));
        if magic != MAGIC || version != VERSION || lanes > MAX_LANES {
            return None;
        }
        Some(Self { lanes, local: LocalAddress::decode(rest) })
    }
}

impl LocalAddress {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (nonce, rest) = bytes.split_first_chunk()?;
        Some(Self { nonce: *nonce, name: *rest.first_chunk()? })
    }
}

/// How many lanes a path has, from what both sides want. Both compute the same.
pub(crate) fn lanes(ours: u16, theirs: u16, local: bool) -> u16 {
    let suits = if local { LOCAL_LANES } else { REMOTE_LANES };
    let want = |lanes| if lanes == 0 { suits } else { lanes };
    want(ours).min(want(theirs)).clamp(1, MAX_LANES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(lanes: u16) -> Address {
        Address { lanes, local: None }
    }

    #[test]
    fn no_more_lanes_are_asked_for_than_there_may_be() {
        assert_eq!(Address::decode(&blob(99).encode()), Some(blob(MAX_LANES)));
    }

    #[test]
    fn a_blob_that_is_not_ours_is_refused() {
        let good = blob(3).encode();
        for at in 0..good.len() {
            assert_eq!(Address::decode(&good[..at]), None);
            let mut bad = good.clone();
            bad[at] = 0xff;
            assert_eq!(Address::decode(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn where_to_meet_reads_back_and_a_blob_without_it_is_good_as_well() {
        let local = Some(LocalAddress { nonce: [7; 16], name: [9; 16] });
        let whole = Address { lanes: 2, local };
        assert_eq!(Address::decode(&whole.encode()), Some(whole));
        for cut in 8..whole.encode().len() {
            assert_eq!(Address::decode(&whole.encode()[..cut]), Some(blob(2)), "{cut}");
        }
    }

    #[test]
    fn both_sides_agree_on_the_lanes() {
        for (ours, theirs, local, expected) in
            [(0, 0, true, 1), (0, 0, false, 4), (8, 0, false, 4), (8, 2, true, 2), (0, 2, true, 1)]
        {
            assert_eq!(lanes(ours, theirs, local), expected);
            assert_eq!(lanes(theirs, ours, local), expected);
        }
    }
}
