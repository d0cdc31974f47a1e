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
use crate::args::RunArgs;
use crate::progress::Progress;
use crate::report::Report;
use crate::workload::Workload;

/// Runs both sides and merges their reports.
pub fn run(args: &RunArgs) -> Result<Report, RunError> {
    // A bad model or trace is said once, here, and not by both children.
    let requests = Workload::load(args)?.requests.len() as u64;
    let listen = [OsString::from("decode"), "--listen".into(), "127.0.0.1:0".into()];
    let mut decode = Side::spawn("decode", listen)?;
    let addresses: Vec<String> = decode.listening()?.iter().map(SocketAddr::to_string).collect();
    let connect = [OsString::from("prefill"), "--connect".into(), addresses.join(",").into()];
    let mut prefill = Side::spawn("prefill", connect)?;
    let mut bar = Progress::new(requests);
    let received = decode.report(&mut bar);
    // Without a decode side the prefill side finds out by itself, within its deadlines; a person
    // should not have to wait for that.
    if received.is_err() {
        prefill.kill();
    }
    let sent = prefill.report(&mut bar);
    bar.finish();
    Ok(received?.merged(sent?))
}

/// A child process; killed when dropped.
struct Side {
    name: &'static str,
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Side {
    fn spawn(name: &'static str, role: [OsString; 3]) -> Result<Self, RunError> {
        let this = env::current_exe().map_err(RunError::io("cannot find this program"))?;
        // The children take the very options of this process; only the subcommand differs.
        let options = env::args_os().skip(1).filter(|word| word != "loopback");
        let mut command = Command::new(this);
        command.args(role).args(options).arg("--child").stdin(Stdio::null()).stdout(Stdio::piped());
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

    /// Follows the child until its report.
    fn report(&mut self, bar: &mut Progress) -> Result<Report, RunError> {
        loop {
            match hear(&mut self.lines) {
                Some(Line::Completed(bytes)) => bar.completed(bytes),
                Some(Line::Failed) => bar.failed(),
                Some(Line::Listening(_)) => {}
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
