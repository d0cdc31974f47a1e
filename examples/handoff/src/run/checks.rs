//! What is tried, and what must come of it.

use std::collections::HashMap;

use super::cluster::{Cluster, Record};
use super::table::{self, Row};
use super::{prompts, timeline, word};
use crate::args::{Fault, Path, RunArgs};
use crate::error::{HandoffError, Result};
use crate::line::{IDENTICAL, Said};

/// The checks of one model.
pub(super) struct Checks<'a> {
    args: &'a RunArgs,
    /// Options of every process: which model.
    model: Vec<String>,
    /// A prompt that takes long to compute.
    long: String,
    /// What one process says to each prompt.
    reference: HashMap<String, (Record, Said)>,
}

/// How a request ended.
type End = std::result::Result<Said, String>;

impl<'a> Checks<'a> {
    /// Of the language model, or of the hybrid one.
    pub(super) fn new(args: &'a RunArgs, language: bool) -> Self {
        let gguf = args.gguf.iter().filter(|_| language);
        let model = gguf.flat_map(|path| words(&["--gguf", &path.to_string_lossy()])).collect();
        let long = if language { prompts::long() } else { prompts::long_bytes() };
        Self { args, model, long, reference: HashMap::new() }
    }

    /// Each prompt alone: the same text and the same bits; and how long it takes.
    pub(super) fn handed_over(&mut self, prompts: &[String]) -> Result<bool> {
        self.refer(prompts)?;
        let mut cluster = self.pair(&self.fault(self.args.fault))?;
        let (mut good, mut rows) = (true, Vec::new());
        for prompt in prompts {
            let room = cluster.serve(prompt, self.args.tokens)?;
            let end = cluster.end(room)?;
            good &= self.compare(prompt, &end);
            if let Ok(said) = end {
                let single = self.reference[prompt].clone();
                rows.push(Row { single, handed: (cluster.records[&room].clone(), said) });
            }
        }
        let page_bytes = cluster.page_bytes;
        good &= nothing_lost(cluster)?;
        if self.args.fault.is_none() {
            table::print(&rows, page_bytes);
            good &= self.timeline(&rows)?;
        }
        Ok(good)
    }

    /// Of the longest; whether computing and sending overlapped, if it had several chunks.
    fn timeline(&self, rows: &[Row]) -> Result<bool> {
        let longest = rows.iter().max_by_key(|row| row.handed.1.prompt_tokens);
        let Some(Row { handed: (record, said), .. }) = longest else { return Ok(true) };
        if record.computed.len() < 3 {
            return Ok(true);
        }
        let overlapped = timeline::print(record, said);
        if let Some(path) = self.args.svg.as_deref().filter(|_| !self.model.is_empty()) {
            timeline::draw(record, said, path)?;
            println!("  drawn in {}", path.display());
        }
        Ok(verdict("chunks crossed while others were computed", overlapped))
    }

    /// Several at once, one of which is aborted while it is computed.
    pub(super) fn together(&mut self) -> Result<bool> {
        println!(
            "\nSix requests at once, the longest of them aborted while its prompt is computed"
        );
        let prompts = prompts::short(5);
        self.refer(&prompts)?;
        let mut cluster = self.pair(&[])?;
        let long = cluster.serve(&self.long, self.args.tokens)?;
        let rooms = prompts.iter().map(|prompt| cluster.serve(prompt, self.args.tokens));
        let rooms = rooms.collect::<Result<Vec<_>>>()?;
        cluster.until("a chunk", |cluster| !cluster.records[&long].computed.is_empty())?;
        cluster.abort(long)?;
        let mut good = failed("the aborted one", &cluster.end(long)?, "cancelled");
        for (prompt, room) in prompts.iter().zip(rooms) {
            good &= self.is_same(prompt, &cluster.end(room)?);
        }
        cluster.until("prefill to be done", |cluster| cluster.records[&long].closed.is_some())?;
        let told = cluster.records[&long].closed.clone().flatten();
        let chunks = cluster.records[&long].computed.len();
        let told_as = told.as_deref().unwrap_or("success");
        println!("  the prefill side stopped after {chunks} chunks of it, and says: {told_as}");
        good &= told.is_some();
        Ok(verdict("the others as if they had been alone", good & nothing_lost(cluster)?))
    }

    /// The prefill process is killed while it computes, and started again.
    pub(super) fn killed(&mut self) -> Result<bool> {
        println!("\nThe prefill process is killed in the middle of a prompt, and started again");
        let prompt = prompts::short(1).remove(0);
        self.refer(std::slice::from_ref(&prompt))?;
        let mut cluster = self.pair(&[])?;
        let room = cluster.serve(&self.long, self.args.tokens)?;
        cluster.until("chunks", |cluster| cluster.records[&room].computed.len() >= 2)?;
        cluster.kill_prefill()?;
        let mut good = failed("the one that was computed", &cluster.end(room)?, "path");
        cluster.start_prefill(&self.options(&[]))?;
        let next = cluster.serve(&prompt, self.args.tokens)?;
        good &= self.is_same(&prompt, &cluster.end(next)?);
        Ok(verdict("the next one is served", good & nothing_lost(cluster)?))
    }

    /// More requests than the decode side has pages for.
    pub(super) fn crowded(&mut self) -> Result<bool> {
        println!("\nSix requests at once, and a decode side that has pages for two");
        let prompts = prompts::short(6);
        self.refer(&prompts)?;
        let kept = self.args.tokens.div_ceil(16) + 1;
        let pages = (10 + 2 * kept).to_string();
        let kept = kept.to_string();
        let small = ["--rooms", "2", "--pages", &pages, "--reserve", &kept];
        let mut cluster = self.pair(&words(&small))?;
        let rooms = prompts.iter().map(|prompt| cluster.serve(prompt, self.args.tokens));
        let rooms = rooms.collect::<Result<Vec<_>>>()?;
        let mut good = true;
        for (prompt, room) in prompts.iter().zip(rooms) {
            good &= self.is_same(prompt, &cluster.end(room)?);
        }
        let waited = cluster.records.values().filter(|record| record.waited).count();
        println!("  {waited} of them were told to wait before anything was computed");
        good &= waited > 0;
        Ok(verdict("all served, in turn", good & nothing_lost(cluster)?))
    }

    /// What this program would notice: it has to.
    pub(super) fn spoilt(&mut self) -> Result<bool> {
        println!("\nThe same with something wrong on the way, which must be noticed");
        let prompt = prompts::short(1).remove(0);
        self.refer(std::slice::from_ref(&prompt))?;
        let state = Some(Fault::WithholdState).filter(|_| self.model.is_empty());
        let mut good = true;
        for fault in [Fault::Withhold, Fault::Corrupt].into_iter().chain(state) {
            let mut cluster = self.pair(&self.fault(Some(fault)))?;
            let room = cluster.serve(&prompt, self.args.tokens)?;
            let (noticed, what) = match cluster.end(room)? {
                Err(reason) => (true, format!("failed: {reason}")),
                Ok(said) => {
                    let what = said.beside(&self.reference[&prompt].1);
                    // Decode must not even begin when something never came.
                    (fault == Fault::Corrupt && what != IDENTICAL, what.to_owned())
                }
            };
            println!("  {}: {what}", word(fault));
            good &= noticed & nothing_lost(cluster)?;
        }
        Ok(verdict("each noticed", good))
    }

    /// Has one process answer those that it has not answered yet.
    fn refer(&mut self, prompts: &[String]) -> Result<()> {
        let new = |prompt: &&String| !self.reference.contains_key(*prompt);
        let new: Vec<&String> = prompts.iter().filter(new).collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut cluster = Cluster::single(&self.model)?;
        for prompt in new {
            let room = cluster.serve(prompt, self.args.tokens)?;
            let said = cluster.end(room)?.map_err(HandoffError::Reference)?;
            self.reference.insert(prompt.clone(), (cluster.records[&room].clone(), said));
        }
        cluster.rest().map(drop)
    }

    fn pair(&self, decode: &[String]) -> Result<Cluster> {
        Cluster::pair(&self.options(&[]), &self.options(decode))
    }

    /// Options of one side.
    fn options(&self, further: &[String]) -> Vec<String> {
        let path = match self.args.path {
            Path::Auto => "auto",
            Path::Tcp => "tcp",
        };
        [&self.model[..], &words(&["--path", path]), further].concat()
    }

    fn fault(&self, fault: Option<Fault>) -> Vec<String> {
        fault.map_or(vec![], |fault| words(&["--fault", word(fault), "--stall-seconds", "2"]))
    }

    /// Shows both answers, and whether they are the same.
    fn compare(&self, prompt: &str, end: &End) -> bool {
        let (_, single) = &self.reference[prompt];
        println!("\nprompt ({} tokens): {}", single.prompt_tokens, shown(prompt));
        println!("  one process: {}", shown(&single.text));
        let verdict = match end {
            Err(reason) => {
                println!("  handed over: FAILED: {reason}");
                "DIFFERENT"
            }
            Ok(said) => {
                println!("  handed over: {}", shown(&said.text));
                said.beside(single)
            }
        };
        println!("  {verdict}");
        verdict == IDENTICAL
    }

    /// Whether a request among others has its answer; says so only if not.
    fn is_same(&self, prompt: &str, end: &End) -> bool {
        let same = end.as_ref().is_ok_and(|said| said.same(&self.reference[prompt].1));
        same || self.compare(prompt, end)
    }
}

/// Whether a request failed for a reason that has this word in it.
fn failed(which: &str, end: &End, word: &str) -> bool {
    match end {
        Ok(_) => println!("  {which}: was answered all the same"),
        Err(reason) => println!("  {which}: {reason}"),
    }
    end.as_ref().is_err_and(|reason| reason.contains(word))
}

/// Whether all pages were free again when the processes ended.
fn nothing_lost(cluster: Cluster) -> Result<bool> {
    let lost = cluster.rest()?;
    if lost > 0 {
        println!("  {lost} pages were never given back");
    }
    Ok(lost == 0)
}

fn verdict(what: &str, good: bool) -> bool {
    println!("  {what}: {}", if good { "yes" } else { "NO" });
    good
}

/// One line of at most 200 characters, whatever is in the text.
fn shown(text: &str) -> String {
    let line = text.chars().flat_map(char::escape_debug).collect::<String>().replace("\\'", "'");
    let start: String = line.chars().take(200).collect();
    if start == line { line } else { start + "..." }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
