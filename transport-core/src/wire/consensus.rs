//! The bodies of the messages among the ranks of one engine. Both begin with the attempt.

use super::codec::{Reader, Writer};
use super::{WireError, WireField, cause};
use crate::disagg::RoomId;
use crate::disagg::consensus::{Attempt, Decision, Report};

const PENDING: u8 = 0;
const READY: u8 = 1;
const WITHDRAWN: u8 = 2;
const FAILED: u8 = 3;

pub(super) fn write_report(writer: &mut Writer<'_>, attempt: Attempt, report: Report) {
    write_attempt(writer, attempt);
    match report {
        Report::Pending => writer.u8(PENDING),
        Report::Ready => writer.u8(READY),
        Report::Withdrawn(cause) => {
            writer.u8(WITHDRAWN);
            cause::write(writer, cause);
        }
        Report::Failed(cause) => {
            writer.u8(FAILED);
            cause::write(writer, cause);
        }
    }
}

pub(super) fn read_report(reader: &mut Reader<'_>) -> Result<(Attempt, Report), WireError> {
    let attempt = read_attempt(reader)?;
    let known = |number: u8| (number <= FAILED).then_some(number);
    let report = match reader.numbered(WireField::Report, known)? {
        PENDING => Report::Pending,
        READY => Report::Ready,
        WITHDRAWN => Report::Withdrawn(cause::read(reader)?),
        _ => Report::Failed(cause::read(reader)?),
    };
    Ok((attempt, report))
}

pub(super) fn write_decision(writer: &mut Writer<'_>, attempt: Attempt, decision: Decision) {
    write_attempt(writer, attempt);
    match decision {
        Decision::Success => writer.u8(1),
        Decision::Failed { rank, cause } => {
            writer.u8(0);
            writer.u32(rank);
            cause::write(writer, cause);
        }
    }
}

pub(super) fn read_decision(reader: &mut Reader<'_>) -> Result<(Attempt, Decision), WireError> {
    let attempt = read_attempt(reader)?;
    let decision = match reader.bool()? {
        true => Decision::Success,
        false => Decision::Failed { rank: reader.u32()?, cause: cause::read(reader)? },
    };
    Ok((attempt, decision))
}

fn write_attempt(writer: &mut Writer<'_>, attempt: Attempt) {
    writer.u64(attempt.room.0);
    writer.u32(attempt.number);
}

fn read_attempt(reader: &mut Reader<'_>) -> Result<Attempt, WireError> {
    Ok(Attempt { room: RoomId(reader.u64()?), number: reader.u32()? })
}
