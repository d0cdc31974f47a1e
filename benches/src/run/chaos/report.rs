//! The result of a chaos run.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

/// What happened, and what of it must not have. `Display` is the table,
/// [`ChaosReport::to_json`] the line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ChaosReport {
    /// What the run was drawn from.
    pub seed: u64,
    /// For how long nodes were harmed, seconds.
    pub seconds: u32,
    /// Nodes killed.
    pub kills: u64,
    /// Nodes stopped and, later, continued.
    pub stops: u64,
    /// Nodes told to leave with all that was under way.
    pub leaves: u64,
    /// Nodes started again, after either.
    pub restarts: u64,
    /// Requests.
    pub rooms: u64,
    /// Those that arrived, every byte of them looked at.
    pub succeeded: u64,
    /// Those that did not, by the name of the cause.
    pub failed: BTreeMap<String, u64>,
    /// Bytes of those that arrived.
    pub bytes: u64,
    /// Of those that arrived, how many were begun after the last fault.
    pub succeeded_after_last_fault: u64,
    /// Whether some arrived between each prefill and each decode node after the last fault.
    pub recovered: bool,
    /// Seconds from the last fault until then.
    pub recovery_s: f64,
    /// Pages, state items and aux records with a byte that is not what it must be.
    pub wrong_bytes: u64,
    /// Pages and state items that went into a node and never came back.
    pub lost_pages: u64,
    /// Requests that a living node did not end within the sum of its deadlines.
    pub endless_rooms: u64,
    /// Requests that succeeded for the prefill side and failed for the decode side.
    pub contradictions: u64,
    /// Nodes whose process ended by itself.
    pub crashes: u64,
    /// What must not have happened, in words; the first of it.
    pub problems: Vec<String>,
    /// What was done to whom and when.
    #[serde(skip)]
    pub history: Vec<String>,
}

impl ChaosReport {
    /// Whether nothing happened that must not.
    pub fn is_good(&self) -> bool {
        let bad = self.wrong_bytes + self.lost_pages + self.endless_rooms;
        bad + self.contradictions + self.crashes == 0 && self.recovered
    }

    /// The process's exit status: 0 for a good run, else 1.
    pub fn exit_status(&self) -> u8 {
        u8::from(!self.is_good())
    }

    /// One line of JSON.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, texts and lists are always JSON")
    }

    fn faults_in_words(&self) -> String {
        let Self { kills, stops, leaves, restarts, seconds, .. } = self;
        format!("{kills} kills, {stops} stops, {leaves} leaves, {restarts} restarts in {seconds} s")
    }

    fn recovery_in_words(&self) -> String {
        match self.recovered {
            true => format!("all pairs, {:.2} s after the last fault", self.recovery_s),
            false => "NOT all pairs of nodes".to_owned(),
        }
    }

    /// What was done is of interest only when it had consequences.
    fn fmt_problems(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.problems.iter().try_for_each(|problem| writeln!(f, "  {problem}"))?;
        let history = self.history.iter().filter(|_| !self.is_good());
        history.into_iter().try_for_each(|deed| writeln!(f, "  {deed}"))
    }
}

impl fmt::Display for ChaosReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |label: &str, value: String| writeln!(f, "{label:<19} {value}");
        line("seed", self.seed.to_string())?;
        line("faults", self.faults_in_words())?;
        line("rooms", format!("{}, {} of them succeeded", self.rooms, self.succeeded))?;
        line("verified", format!("every byte of {:.2} GB", self.bytes as f64 / 1e9))?;
        for (cause, count) in &self.failed {
            line(&format!("  {cause}"), count.to_string())?;
        }
        line("recovered", self.recovery_in_words())?;
        line("wrong bytes", self.wrong_bytes.to_string())?;
        line("lost pages", self.lost_pages.to_string())?;
        line("endless rooms", self.endless_rooms.to_string())?;
        if self.contradictions + self.crashes > 0 {
            let (contradictions, crashes) = (self.contradictions, self.crashes);
            line("besides", format!("{contradictions} contradictions, {crashes} crashes"))?;
        }
        self.fmt_problems(f)
    }
}
