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
#![forbid(unsafe_code)]

const MAGIC: [u8; 4] = *b"KVtc";
const VERSION: u16 = 1;

/// Most lanes to one peer.
pub const MAX_LANES: u16 = 16;

/// Lanes that suit a way inside one machine: more only compete for the same cores.
const LOCAL_LANES: u16 = 1;
/// Lanes that suit a network: one stream is one core of the receiver's and one queue of the NIC's.
const REMOTE_LANES: u16 = 4;

/// The blob that asks for `lanes` lanes.
pub(crate) fn encode(lanes: u16) -> Vec<u8> {
    [&MAGIC[..], &VERSION.to_le_bytes(), &lanes.min(MAX_LANES).to_le_bytes()].concat()
}

/// The lanes that a blob asks for; `None` when it is not one of ours.
pub(crate) fn decode(blob: &[u8]) -> Option<u16> {
    let [magic @ .., v0, v1, l0, l1] = *blob.first_chunk::<8>()?;
    let (version, lanes) = (u16::from_le_bytes([v0, v1]), u16::from_le_bytes([l0, l1]));
    (magic == MAGIC && version == VERSION && lanes <= MAX_LANES).then_some(lanes)
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

    #[test]
    fn no_more_lanes_are_asked_for_than_there_may_be() {
        assert_eq!(decode(&encode(99)), Some(MAX_LANES));
    }

    #[test]
    fn a_blob_that_is_not_ours_is_refused() {
        let good = encode(3);
        for at in 0..good.len() {
            assert_eq!(decode(&good[..at]), None);
            let mut bad = good.clone();
            bad[at] = 0xff;
            assert_eq!(decode(&bad), None, "byte {at}");
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
