//! A process of this program, started and listened to by another.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::Sender;

use crate::error::{HandoffError, Result};
use crate::line::{Command, Line};

/// Which of the processes.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Who {
    Single,
    Prefill,
    Decode,
}

impl Who {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Killed when dropped.
#[derive(Debug)]
pub(super) struct Child {
    /// It has read its model.
    pub(super) up: bool,
    /// It is connected to the other side.
    pub(super) met: bool,
    /// It says nothing more.
    pub(super) ended: bool,
    /// It may end: it was told to, or killed.
    pub(super) let_go: bool,
    who: Who,
    process: std::process::Child,
    /// `None`: there will be no more commands.
    commands: Option<ChildStdin>,
}

impl Child {
    /// Starts it; what it says goes into `lines`, and `None` when it has ended. One thread computes: more would only
    /// take the processor from the other side, which is on this machine too.
    pub(super) fn start(
        who: Who,
        options: &[String],
        lines: Sender<(Who, Option<Line>)>,
    ) -> Result<Self> {
        let this = std::env::current_exe().map_err(HandoffError::io("this program"))?;
        let mut process = Process::new(this)
            .arg(who.name())
            .args(options)
            .env("RAYON_NUM_THREADS", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(HandoffError::io("cannot start a process"))?;
        let commands = process.stdin.take();
        let out = process.stdout.take().expect("its output is a pipe");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(std::result::Result::ok) {
                let said = serde_json::from_str(&line).ok();
                said.into_iter().for_each(|line| _ = lines.send((who, Some(line))));
            }
            let _ = lines.send((who, None));
        });
        let (up, met, ended, let_go) = (false, false, false, false);
        Ok(Self { up, met, ended, let_go, who, process, commands })
    }

    pub(super) fn command(&mut self, command: &Command) -> Result<()> {
        let json = serde_json::to_string(command)?;
        let ended = HandoffError::Child(self.who.name());
        let Some(commands) = &mut self.commands else { return Err(ended) };
        writeln!(commands, "{json}").map_err(|_| ended)
    }

    /// There will be no more commands: it ends when it has done what it does at present.
    pub(super) fn rest(&mut self) {
        (self.let_go, self.commands) = (true, None);
    }

    /// As a machine that loses its power.
    pub(super) fn kill(&mut self) {
        self.let_go = true;
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
