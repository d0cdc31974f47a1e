//! The router, and the judge: starts the processes, gives both sides the same requests, and compares what they say
//! with what one process says that does both.

mod checks;
mod child;
mod cluster;
mod prompts;
mod table;
mod timeline;

use self::checks::Checks;
use crate::args::{Fault, RunArgs};
use crate::error::Result;

/// Runs everything that is asked for. Whether all was as it should be.
pub(crate) fn run(args: &RunArgs) -> Result<bool> {
    let mut good = true;
    if args.gguf.is_some() {
        println!("== A language model, handed over in the middle");
        good &= check(&mut Checks::new(args, true), prompts::prompts(most(args)), args)?;
    }
    println!("\n== A hybrid model, with recurrent state");
    good &= check(&mut Checks::new(args, false), prompts::bytes(most(args)), args)?;
    println!("\n{}", if good { "all identical" } else { "NOT identical" });
    Ok(good)
}

/// Once something has gone wrong, the rest would only take time.
fn most(args: &RunArgs) -> usize {
    args.fault.map_or(args.prompts, |_| args.prompts.min(3))
}

fn check(checks: &mut Checks<'_>, prompts: Vec<String>, args: &RunArgs) -> Result<bool> {
    let mut good = checks.handed_over(&prompts)?;
    if args.fault.is_none() && !args.brief {
        good &= checks.together()?;
        good &= checks.killed()?;
        good &= checks.crowded()?;
        good &= checks.spoilt()?;
    }
    Ok(good)
}

/// The words of the command line for it.
fn word(fault: Fault) -> &'static str {
    match fault {
        Fault::Withhold => "withhold",
        Fault::Corrupt => "corrupt",
        Fault::WithholdState => "withhold-state",
    }
}
