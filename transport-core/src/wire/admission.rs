//! The bodies of the messages about admission: what a room needs, and what is said to that.

use super::codec::{Reader, Writer, check_limit};
use super::{MAX_ITEMS, Verdict, WireError, WireField, cause, hello};
use crate::disagg::admission::Amounts;
use crate::transfer::MAX_COMPONENTS;

/// Components behind the last one of which anything is needed are left out.
pub(super) fn write_need(writer: &mut Writer<'_>, need: &Amounts) -> Result<(), WireError> {
    let named = need.state.iter().rposition(|slots| *slots > 0).map_or(0, |last| last + 1);
    let mut total = Total::default();
    writer.u32(total.add(need.pages, writer.at())?);
    writer.u32(total.add(need.aux, writer.at())?);
    writer.u8(hello::component_count(named, writer.at())?);
    for slots in &need.state[..named] {
        writer.u32(total.add(*slots, writer.at())?);
    }
    Ok(())
}

pub(super) fn read_need(reader: &mut Reader<'_>) -> Result<Amounts, WireError> {
    let mut total = Total::default();
    let pages = total.read(reader)?;
    let aux = total.read(reader)?;
    let at = reader.at();
    let named = hello::component_count(reader.u8()?.into(), at)?;
    let mut state = [0; MAX_COMPONENTS];
    for slots in &mut state[..usize::from(named)] {
        *slots = total.read(reader)?;
    }
    Ok(Amounts { pages, aux, state })
}

/// All kinds together: no more than a grant can name.
#[derive(Debug, Default)]
struct Total(u32);

impl Total {
    /// Counts an amount, which then is below 2^32.
    fn add(&mut self, amount: u64, at: usize) -> Result<u32, WireError> {
        let sum = amount.saturating_add(self.0.into());
        let before =
            core::mem::replace(&mut self.0, check_limit(WireField::Items, sum, MAX_ITEMS, at)?);
        Ok(self.0 - before)
    }

    fn read(&mut self, reader: &mut Reader<'_>) -> Result<u64, WireError> {
        let at = reader.at();
        self.add(reader.u32()?.into(), at).map(u64::from)
    }
}

const ACCEPTED: u8 = 1;
const QUEUED: u8 = 2;
const BUSY: u8 = 3;
const EXPIRED: u8 = 4;
const REFUSED: u8 = 5;

pub(super) fn write_verdict(writer: &mut Writer<'_>, verdict: Verdict) {
    match verdict {
        Verdict::Accepted => writer.u8(ACCEPTED),
        Verdict::Queued { position, retry_ms } => {
            writer.u8(QUEUED);
            writer.u32(position);
            writer.u32(retry_ms);
        }
        Verdict::Busy { retry_ms } => {
            writer.u8(BUSY);
            writer.u32(retry_ms);
        }
        Verdict::Expired => writer.u8(EXPIRED),
        Verdict::Refused(reason) => {
            writer.u8(REFUSED);
            cause::write(writer, reason);
        }
    }
}

pub(super) fn read_verdict(reader: &mut Reader<'_>) -> Result<Verdict, WireError> {
    let known = |number| (ACCEPTED..=REFUSED).contains(&number).then_some(number);
    Ok(match reader.numbered(WireField::Verdict, known)? {
        ACCEPTED => Verdict::Accepted,
        QUEUED => Verdict::Queued { position: reader.u32()?, retry_ms: reader.u32()? },
        BUSY => Verdict::Busy { retry_ms: reader.u32()? },
        EXPIRED => Verdict::Expired,
        _ => Verdict::Refused(cause::read(reader)?),
    })
}
