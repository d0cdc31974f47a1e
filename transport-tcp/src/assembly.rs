//! Deliveries that come in several pieces, until all their bytes have landed.
//!
//! A delivery in one piece never gets here. The table is bounded: a peer that begins more
//! deliveries at once than [`MOST`] is refused the next one ([`Refusal::TooMany`]).
//!
//! Bytes are counted, not mapped. A peer that sends one range twice, and another range never, has
//! its delivery announced all the same; it has spoilt only what it alone was allowed to write, and
//! might as well have sent rubbish.
#![forbid(unsafe_code)]

use transport_core::fabric::Refusal;
use transport_core::transfer::{GrantId, Part};

use crate::frame::Piece;

/// Deliveries of one path under assembly at once. A sender begins no more that need a place here.
pub(crate) const MOST: usize = 256;

/// The deliveries of one path that are under way.
#[derive(Debug, Default)]
pub(crate) struct Assemblies {
    /// Few, so searched from the front.
    open: Vec<Assembly>,
}

#[derive(Debug)]
struct Assembly {
    cookie: u64,
    grant: GrantId,
    part: Part,
    sequence: u32,
    total: u64,
    /// Bytes of pieces that were accepted.
    begun: u64,
    /// Bytes that have landed.
    landed: u64,
}

impl Assemblies {
    /// Accepts a piece, which the grant allows, before its bytes are read.
    pub(crate) fn begin(&mut self, piece: &Piece) -> Result<(), Refusal> {
        let length = u64::from(piece.length);
        if length == piece.total {
            return Ok(());
        }
        let Some(found) = self.find(piece.cookie) else { return self.open(piece) };
        let delivery = &mut self.open[found];
        if !delivery.is_of(piece) || delivery.begun + length > piece.total {
            return Err(Refusal::OutOfGrant);
        }
        delivery.begun += length;
        Ok(())
    }

    /// Counts a piece that has landed. True when its whole delivery has.
    pub(crate) fn land(&mut self, piece: &Piece) -> bool {
        let length = u64::from(piece.length);
        if length == piece.total {
            return true;
        }
        let Some(found) = self.find(piece.cookie) else { return false };
        self.open[found].landed += length;
        let whole = self.open[found].landed == piece.total;
        if whole {
            self.open.swap_remove(found);
        }
        whole
    }

    /// Forgets the deliveries of a withdrawn grant.
    pub(crate) fn revoke(&mut self, grant: GrantId) {
        self.open.retain(|delivery| delivery.grant != grant);
    }

    fn open(&mut self, piece: &Piece) -> Result<(), Refusal> {
        if self.open.len() == MOST {
            return Err(Refusal::TooMany);
        }
        self.open.push(Assembly {
            cookie: piece.cookie,
            grant: piece.grant,
            part: piece.part,
            sequence: piece.sequence,
            total: piece.total,
            begun: u64::from(piece.length),
            landed: 0,
        });
        Ok(())
    }

    fn find(&self, cookie: u64) -> Option<usize> {
        self.open.iter().position(|delivery| delivery.cookie == cookie)
    }
}

impl Assembly {
    fn is_of(&self, piece: &Piece) -> bool {
        let ours = (self.grant, self.part, self.sequence, self.total);
        ours == (piece.grant, piece.part, piece.sequence, piece.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(cookie: u64, offset: u64, length: u32) -> Piece {
        Piece {
            cookie,
            grant: GrantId { slot: 1, generation: 1 },
            tag: 0,
            part: Part::Kv,
            sequence: 0,
            first: 0,
            items: 1,
            buffers: 0..1,
            offset,
            total: 100,
            length,
        }
    }

    #[test]
    fn g3_a_delivery_has_landed_once_when_its_last_byte_has_in_any_order() {
        let mut table = Assemblies::default();
        let (a, b) = (piece(1, 0, 60), piece(1, 60, 40));
        table.begin(&b).unwrap();
        table.begin(&a).unwrap();
        assert!(!table.land(&b));
        assert!(table.land(&a));
        assert!(table.open.is_empty());
    }

    #[test]
    fn one_piece_needs_no_place_in_the_table() {
        let mut table = Assemblies::default();
        table.begin(&piece(1, 0, 100)).unwrap();
        assert!(table.open.is_empty() && table.land(&piece(1, 0, 100)));
    }

    #[test]
    fn more_bytes_than_the_delivery_has_and_pieces_of_another_are_refused() {
        let mut table = Assemblies::default();
        table.begin(&piece(1, 0, 60)).unwrap();
        assert_eq!(table.begin(&piece(1, 0, 60)), Err(Refusal::OutOfGrant));
        let other = Piece { sequence: 1, ..piece(1, 60, 40) };
        assert_eq!(table.begin(&other), Err(Refusal::OutOfGrant));
    }

    #[test]
    fn the_table_is_bounded_and_a_withdrawn_grant_leaves_it() {
        let mut table = Assemblies::default();
        for cookie in 0..MOST as u64 {
            table.begin(&piece(cookie, 0, 60)).unwrap();
        }
        assert_eq!(table.begin(&piece(MOST as u64, 0, 60)), Err(Refusal::TooMany));
        table.revoke(piece(0, 0, 60).grant);
        table.begin(&piece(0, 0, 60)).unwrap();
        assert!(!table.land(&piece(5, 60, 40)), "its delivery was forgotten");
    }
}
