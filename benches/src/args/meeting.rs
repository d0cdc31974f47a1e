//! How the two sides of a run meet: which of them waits, and how the other finds it.
//!
//! For `decode` and `prefill`; `loopback` gives its processes these options itself.

use std::net::SocketAddr;

use clap::{ArgGroup, Args, ValueEnum};

use super::{CombinationError, Fault, HostPort, RunArgs};

/// How a decode side meets the prefill side: one of three ways.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Meeting")]
#[group(required = true, multiple = false)]
pub struct DecodeMeeting {
    /// Address to wait at, like `0.0.0.0:7420` or `[::]:7420`. Further ranks wait at the next ports
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Where the prefill side listens, as of `prefill --connect`
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    pub connect: Vec<HostPort>,
    /// Where the directory of the prefill side is served, like `10.0.0.7:8998`. Waits until it is
    /// complete, takes the prefill side's ranks from it, and dials those it has to do with
    #[arg(long, value_name = "HOST:PORT")]
    pub bootstrap: Option<HostPort>,
}

/// How a prefill side meets the decode side: it dials, or waits to be dialled.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Meeting")]
#[command(group = ArgGroup::new("meets").required(true))]
pub struct PrefillMeeting {
    /// Where the decode side listens, like `10.0.0.7:7420`, `[fe80::1]:7420` or `decode-host:7420`.
    /// For a side of several ranks the first one's, the others following at the next ports, or all
    /// in the order of ranks: `a:7420,b:7420`
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', group = "meets")]
    pub connect: Vec<HostPort>,
    /// Address to wait at, like `0.0.0.0:7430` or `[::]:7430`. Further ranks wait at the next ports
    #[arg(long, value_name = "ADDR", group = "meets")]
    pub listen: Option<SocketAddr>,
    /// Register at this directory, like `10.0.0.7:8998`, for as long as this runs
    #[arg(
        long,
        value_name = "HOST:PORT",
        group = "directory",
        requires = "listen",
        conflicts_with = "connect"
    )]
    pub bootstrap: Option<HostPort>,
    /// Serve the directory here, and register there: `0.0.0.0:8998`. Ends after all who registered
    #[arg(
        long,
        value_name = "ADDR",
        group = "directory",
        requires = "listen",
        conflicts_with = "connect"
    )]
    pub bootstrap_listen: Option<SocketAddr>,
    /// Host to register in place of --listen's; must be given where that is all addresses, unless
    /// --bootstrap tells by which of them this host is seen
    #[arg(long, value_name = "HOST", requires = "directory")]
    pub advertise: Option<String>,
    /// Which of the data-parallel groups this process is, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub dp_rank: u32,
}

/// Which data-parallel group gets a request: what a router in front of the prefill side does.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Routing {
    /// The one that its room's number gives: both sides know
    Follow,
    /// Any; the group that gets it says so in the directory, where the decode side asks
    Directory,
}

impl PrefillMeeting {
    /// Whether it has to do with a directory.
    pub const fn registers(&self) -> bool {
        self.bootstrap.is_some() || self.bootstrap_listen.is_some()
    }

    pub(super) fn check(&self, run: &RunArgs) -> Result<(), CombinationError> {
        let (rank, groups) = (self.dp_rank, run.ranks.prefill().dp);
        if rank >= groups {
            return Err(CombinationError::NoSuchGroup { rank, groups });
        }
        run.check_groups(self.registers())?;
        let nowhere = self.listen.filter(|listen| listen.ip().is_unspecified());
        match nowhere.filter(|_| self.bootstrap_listen.is_some() && self.advertise.is_none()) {
            Some(listen) => Err(CombinationError::Advertise { listen }),
            None => Ok(()),
        }
    }
}

impl RunArgs {
    /// Whether requests can be routed so, with a directory or without.
    pub(super) fn check_groups(&self, directory: bool) -> Result<(), CombinationError> {
        let follow = self.ranks.dp_policy == Routing::Follow;
        let can_contradict = directory && follow && self.ranks.prefill().dp > 1;
        match self.transfer.fault {
            _ if !follow && !directory => Err(CombinationError::NoDirectory),
            Some(Fault::Misroute) if !can_contradict => Err(CombinationError::Misroute),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::args::Command;
    use crate::args::tests::{assert_refused, parse};

    #[test]
    fn each_side_waits_dials_or_goes_by_the_directory() {
        for line in [
            "decode --listen [::]:7420",
            "decode --connect prefill-host:7430",
            "decode --bootstrap 10.0.0.7:8998",
            "prefill --connect a:7420,b:7420",
            "prefill --listen 0.0.0.0:7430",
            "prefill --listen 0.0.0.0:7430 --bootstrap a:8998",
            "prefill --listen 10.0.0.7:7430 --bootstrap-listen 0.0.0.0:8998",
            "prefill --listen 0.0.0.0:7430 --bootstrap-listen 0.0.0.0:8998 --advertise a",
            "prefill --connect a:1 --prefill-dp 2 --dp-rank 1",
            "loopback --bootstrap --prefill-dp 2 --dp-policy directory",
        ] {
            assert!(parse(&format!("kvperf {line}")).is_ok(), "{line}");
        }
        let Command::Prefill(prefill) = parse("kvperf prefill --connect a:1").unwrap().command
        else {
            panic!("it is prefill");
        };
        assert!(!prefill.meeting.registers());
    }

    #[test]
    fn ways_that_contradict_each_other_are_refused_by_name() {
        assert_refused("kvperf decode", &["--listen", "--connect", "--bootstrap"]);
        assert_refused("kvperf decode --listen [::]:1 --bootstrap a:1", &["cannot be used with"]);
        assert_refused("kvperf decode --connect a:1 --bootstrap a:1", &["cannot be used with"]);
        assert_refused("kvperf prefill", &["--connect"]);
        assert_refused("kvperf prefill --connect a:1 --listen [::]:1", &["cannot be used with"]);
        for dials in ["--bootstrap a:1", "--bootstrap-listen [::]:1"] {
            let line = format!("kvperf prefill --connect a:1 {dials}");
            assert_refused(&line, &["--connect", "cannot be used with"]);
            assert_refused(&format!("kvperf prefill {dials}"), &["--connect", "required"]);
        }
        let both = "kvperf prefill --listen 127.0.0.1:1 --bootstrap a:1 --bootstrap-listen [::]:1";
        assert_refused(both, &["--bootstrap", "--bootstrap-listen", "cannot be used with"]);
        assert_refused("kvperf prefill --listen [::]:1 --advertise a", &["--bootstrap"]);
    }

    #[test]
    fn what_nobody_could_dial_is_not_registered() {
        let line = "kvperf prefill --listen 0.0.0.0:7430 --bootstrap-listen 0.0.0.0:8998";
        assert_refused(line, &["--advertise", "0.0.0.0:7430"]);
    }

    #[test]
    fn groups_are_counted_from_zero_and_asked_for_where_somebody_answers() {
        let line = "kvperf prefill --connect a:1 --prefill-dp 2 --dp-rank 2";
        assert_refused(line, &["--dp-rank 2", "--prefill-dp 2"]);
        let line = "kvperf prefill --connect a:1 --dp-policy directory";
        assert_refused(line, &["--dp-policy directory", "--bootstrap"]);
        assert_refused("kvperf loopback --dp-policy directory", &["--bootstrap"]);
        let line = "kvperf loopback --bootstrap --fault misroute";
        assert_refused(line, &["misroute", "--prefill-dp"]);
        assert!(parse(&format!("{line} --prefill-dp 2")).is_ok());
    }
}
