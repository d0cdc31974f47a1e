//! Both sides as processes of their own on this machine.
//!
//! The parent only watches: the two meet through the real control plane, and report here.

use std::env;
use std::ffi::OsString;
use std::io::BufReader;
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};

use super::RunError;
use super::link::{Line, hear};
use crate::args::LoopbackArgs;
use crate::progress::Progress;
use crate::report::Report;
use crate::workload::Workload;

/// Runs both sides and merges their reports.
pub fn run(args: &LoopbackArgs) -> Result<Report, RunError> {
    // A bad model or trace is said once, here, and not by every child.
    let workload = Workload::load(&args.run)?;
    let groups = workload.groups();
    let (mut decode, mut prefill) =
        if args.bootstrap { through_directory(groups)? } else { by_address(groups)? };
    let mut bar = Progress::new(workload.requests.len() as u64);
    let received = decode.report(&mut bar);
    // Without a decode side the prefill side finds out by itself, within its deadlines; a person
    // should not have to wait for that.
    if received.is_err() {
        prefill.iter_mut().for_each(Side::kill);
    }
    let sent: Result<Vec<_>, _> = prefill.iter_mut().map(|side| side.report(&mut bar)).collect();
    bar.finish();
    Ok(sent?.into_iter().fold(received?, Report::merged))
}

/// The decode side waits, and each group of the prefill side is told where.
fn by_address(groups: u32) -> Result<(Side, Vec<Side>), RunError> {
    let mut decode = Side::spawn("decode", &["--listen", ANY])?;
    let addresses: Vec<String> = decode.listening()?.iter().map(SocketAddr::to_string).collect();
    let connect = addresses.join(",");
    let prefill = (0..groups).map(|group| Side::prefill(group, &["--connect", &connect]));
    Ok((decode, prefill.collect::<Result<_, _>>()?))
}

/// The prefill side waits and registers, at a directory that its first group serves; the others and
/// the decode side are told where that is, and nothing else.
fn through_directory(groups: u32) -> Result<(Side, Vec<Side>), RunError> {
    let mut first = Side::prefill(0, &["--listen", ANY, "--bootstrap-listen", ANY])?;
    let directory = first.directory()?.to_string();
    let others = (1..groups)
        .map(|group| Side::prefill(group, &["--listen", ANY, "--bootstrap", &directory]));
    let prefill = [Ok(first)].into_iter().chain(others).collect::<Result<_, _>>()?;
    Ok((Side::spawn("decode", &["--bootstrap", &directory])?, prefill))
}

/// A free port of this machine.
const ANY: &str = "127.0.0.1:0";

/// A child process; killed when dropped.
struct Side {
    name: &'static str,
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Side {
    fn prefill(group: u32, meeting: &[&str]) -> Result<Self, RunError> {
        let group = group.to_string();
        Self::spawn("prefill", &[meeting, &["--dp-rank", &group]].concat())
    }

    fn spawn(name: &'static str, meeting: &[&str]) -> Result<Self, RunError> {
        let this = env::current_exe().map_err(RunError::io("cannot find this program"))?;
        // The children take the very options of this process; only the subcommand differs, and how
        // they meet.
        let ours = |word: &OsString| word == "loopback" || word == "--bootstrap";
        let options = env::args_os().skip(1).filter(|word| !ours(word));
        let mut command = Command::new(this);
        command.arg(name).args(meeting).args(options).arg("--child");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(RunError::io("cannot start a process"))?;
        let out = child.stdout.take().expect("its output is a pipe");
        Ok(Self { name, child, lines: BufReader::new(out) })
    }

    fn listening(&mut self) -> Result<Vec<SocketAddr>, RunError> {
        match hear(&mut self.lines) {
            Some(Line::Listening(addresses)) => Ok(addresses),
            _ => Err(self.ended()),
        }
    }

    fn directory(&mut self) -> Result<SocketAddr, RunError> {
        match hear(&mut self.lines) {
            Some(Line::Directory(address)) => Ok(address),
            _ => Err(self.ended()),
        }
    }

    /// Follows the child until its report.
    fn report(&mut self, bar: &mut Progress) -> Result<Report, RunError> {
        loop {
            match hear(&mut self.lines) {
                Some(Line::Completed(bytes)) => bar.completed(bytes),
                Some(Line::Failed) => bar.failed(),
                Some(Line::Listening(_) | Line::Directory(_)) => {}
                Some(Line::Report(report)) => return Ok(*report),
                None => return Err(self.ended()),
            }
        }
    }

    fn ended(&mut self) -> RunError {
        let status = self.child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
        RunError::Child { side: self.name, status }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}
