//! One life of a rail: its queue pair, and what is under way on it.
#![forbid(unsafe_code)]

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use transport_core::Instant;

use super::Work;
use crate::cut::Grain;
use crate::line::{GATHER, Line, MARKER, SILENCE};
use crate::nic::{Nic, Port};
use crate::outbox::Share;
use crate::staging::Staging;
use crate::sys::{Chain, Pair, PairSpec, Queue, errno};

/// A queue pair and what is under way on it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) pair: Pair,
    pub(super) sent: Arc<Queue>,
    pub(super) psn: u32,
    pub(super) line: Line,
    pub(super) connected: bool,
    /// Whether all that was posted has been reported.
    pub(super) drained: bool,
    /// Whether the device has said that nothing more comes.
    pub(super) silent: bool,
    /// Once nothing more comes: how far the device's news must be taken, so that none of it is lost.
    pub(super) leaves: Option<u64>,
    /// When the pair may be destroyed, if that failed before.
    pub(super) retry_at: Instant,
    pub(super) armed: Option<u64>,
    /// When it was made, the device last reported something, or was given something after it had
    /// nothing.
    pub(super) since: Instant,
}

impl Live {
    pub(super) fn new(now: Instant, nic: &Nic, port: &Port, depth: u32) -> io::Result<Self> {
        let depth = depth.min(nic.limits.max_requests).min(nic.limits.max_completions).max(4);
        let gather = nic.limits.max_gather.clamp(1, GATHER);
        let sent = Queue::new(&nic.channel, depth)?;
        let pair = Pair::new(&PairSpec {
            domain: &nic.domain,
            sent: &sent,
            received: &nic.received,
            receives: &nic.receives,
            depth,
            gather,
            inline: Chain::INLINE as u32,
        })?;
        if (pair.inline() as usize) < Chain::INLINE {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let message = port.max_message.clamp(4096, SILENCE);
        let grain = Grain { device: port.nic, message, gather: gather as usize };
        let line = Line::new(depth, grain, Some(Staging::new(&nic.domain)?));
        // Random, because numbers of queue pairs are used again: packets of the last pair that had
        // this one must not look like the next of this.
        let psn = RandomState::new().hash_one(pair.number()) as u32 & 0xff_ffff;
        Ok(Self {
            pair,
            sent,
            psn,
            line,
            connected: false,
            drained: false,
            silent: false,
            leaves: None,
            retry_at: Instant::ZERO,
            armed: None,
            since: now,
        })
    }

    /// Whether the failed pair reports nothing more, of what was posted and of what comes.
    pub(super) fn is_over(&self, nic: &Nic) -> bool {
        let comes = self.connected && nic.limits.tells_last && !self.silent;
        self.drained && !comes
    }

    /// Moves the pair to the error state. False when it will report nothing.
    pub(super) fn fail(&mut self) -> bool {
        let failed = self.pair.fail().is_ok();
        self.line.mark(&self.pair) && failed
    }

    /// Takes reports: how many, and the first failure.
    pub(super) fn poll(
        &mut self,
        work: &mut Work<'_>,
        ended: &mut impl FnMut(Share, Result<(), u32>),
    ) -> (usize, Option<u32>) {
        let mut failed = None;
        let came = match self.sent.poll(work.entries) {
            Ok(came) => came,
            Err(error) => return (1, Some(errno(&error) as u32)),
        };
        work.stats.completions += came as u64;
        for index in 0..came {
            let done = work.entries.at(index);
            if done.status != 0 {
                failed.get_or_insert(done.status);
            }
            if done.id == MARKER {
                self.drained = true;
                continue;
            }
            let mut bytes = 0;
            self.line.tally.completed(done.id, done.status, |share, result| {
                let range = work.outbox.get(share.write).map(|o| o.range(share.index));
                bytes += range.map_or(0, |range| range.end - range.start);
                ended(share, result);
            });
            self.line.ended(bytes);
            self.line.retired(done.id);
        }
        (came, failed)
    }
}
