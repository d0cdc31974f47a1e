//! Both sides as processes of their own on this machine.
//!
//! The parent only watches: the two meet through the real control plane, and report here.

use std::env;
use std::ffi::OsString;
use std::io::BufReader;
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

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
    let sides = if args.bootstrap { through_directory(groups)? } else { by_address(groups)? };
    let reports = follow(sides, workload.requests.len() as u64)?;
    Ok(reports.into_iter().reduce(Report::merged).expect("two sides at least"))
}

/// Follows all children until their reports. The first that ends without one takes the others with it:
/// they would find out by themselves, within their deadlines, but a person should not have to wait for
/// that.
fn follow(mut sides: Vec<Side>, requests: u64) -> Result<Vec<Report>, RunError> {
    let mut bar = Progress::new(requests);
    let mut reports: Vec<Option<Report>> = sides.iter().map(|_| None).collect();
    let said = listen(&mut sides)?;
    while reports.iter().any(Option::is_none) {
        let (at, line) = said.recv().expect("every side's last word is that it has ended");
        match line {
            Some(Line::Completed(bytes)) => bar.completed(bytes),
            Some(Line::Failed) => bar.failed(),
            Some(Line::Listening(_) | Line::Directory(_)) => {}
            Some(Line::Report(report)) => reports[at] = Some(*report),
            None if reports[at].is_none() => return Err(sides[at].ended()),
            None => {}
        }
    }
    bar.finish();
    Ok(reports.into_iter().flatten().collect())
}

/// What the children say from now on, each by its place, and at last that it has ended.
fn listen(sides: &mut [Side]) -> Result<Receiver<(usize, Option<Line>)>, RunError> {
    let (sender, receiver) = sync_channel(LINES);
    for (at, side) in sides.iter_mut().enumerate() {
        let (sender, mut lines) = (sender.clone(), side.lines.take().expect("heard once"));
        let pass_on = move || {
            loop {
                let line = hear(&mut lines);
                let ended = line.is_none();
                // Without a receiver there is nobody to tell.
                if sender.send((at, line)).is_err() || ended {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name(format!("hears {}", side.name));
        thread.spawn(pass_on).map_err(RunError::io("cannot start a thread"))?;
    }
    Ok(receiver)
}

/// The decode side waits, and each group of the prefill side is told where.
fn by_address(groups: u32) -> Result<Vec<Side>, RunError> {
    let mut decode = Side::spawn("decode", &["--listen", ANY])?;
    let addresses: Vec<String> = decode.listening()?.iter().map(SocketAddr::to_string).collect();
    let connect = addresses.join(",");
    let prefill = (0..groups).map(|group| Side::prefill(group, &["--connect", &connect]));
    [Ok(decode)].into_iter().chain(prefill).collect()
}

/// The prefill side waits and registers, at a directory that its first group serves; the others and
/// the decode side are told where that is, and nothing else.
fn through_directory(groups: u32) -> Result<Vec<Side>, RunError> {
    let mut first = Side::prefill(0, &["--listen", ANY, "--bootstrap-listen", ANY])?;
    let directory = first.directory()?.to_string();
    let others = (1..groups)
        .map(|group| Side::prefill(group, &["--listen", ANY, "--bootstrap", &directory]));
    let prefill: Vec<Side> = [Ok(first)].into_iter().chain(others).collect::<Result<_, _>>()?;
    let decode = Side::spawn("decode", &["--bootstrap", &directory])?;
    Ok([decode].into_iter().chain(prefill).collect())
}

/// Lines of the children that may wait for this process.
const LINES: usize = 64;
/// A free port of this machine.
const ANY: &str = "127.0.0.1:0";

/// A child process; killed when dropped.
struct Side {
    name: &'static str,
    child: Child,
    /// Its output, until all of them are listened to.
    lines: Option<BufReader<ChildStdout>>,
}

impl Side {
    fn prefill(group: u32, meeting: &[&str]) -> Result<Self, RunError> {
        let group = group.to_string();
        Self::spawn("prefill", &[meeting, &["--dp-rank", &group]].concat())
    }

    fn spawn(name: &'static str, meeting: &[&str]) -> Result<Self, RunError> {
        let this = env::current_exe().map_err(RunError::io("cannot find this program"))?;
        let mut command = Command::new(this);
        command.arg(name).args(meeting).args(childrens(env::args_os().skip(1))).arg("--child");
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(RunError::io("cannot start a process"))?;
        let out = child.stdout.take().expect("its output is a pipe");
        Ok(Self { name, child, lines: Some(BufReader::new(out)) })
    }

    fn listening(&mut self) -> Result<Vec<SocketAddr>, RunError> {
        match self.hear() {
            Some(Line::Listening(addresses)) => Ok(addresses),
            _ => Err(self.ended()),
        }
    }

    fn directory(&mut self) -> Result<SocketAddr, RunError> {
        match self.hear() {
            Some(Line::Directory(address)) => Ok(address),
            _ => Err(self.ended()),
        }
    }

    fn hear(&mut self) -> Option<Line> {
        hear(self.lines.as_mut()?)
    }

    fn ended(&mut self) -> RunError {
        let status = self.child.wait().map_or_else(|error| error.to_string(), |s| s.to_string());
        RunError::Child { side: self.name, status }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What children are told of this process's arguments: its very options. Only the subcommand differs,
/// which is the first word that is called so, and how they meet.
fn childrens(arguments: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    let mut subcommand = Some("loopback");
    arguments.filter(move |word| {
        let named = subcommand.take_if(|name| word == name).is_some();
        !named && word != "--bootstrap"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_told_all_options_also_a_value_that_is_called_as_the_subcommand() {
        let line = "loopback --bootstrap --key-file loopback --seed 3";
        let told: Vec<_> = childrens(line.split(' ').map(OsString::from)).collect();
        assert_eq!(told, ["--key-file", "loopback", "--seed", "3"]);
    }
}
