//! Writes the corpus, or tries one input: what a failed run printed, or a file that `cargo fuzz`
//! left.

use std::process::ExitCode;

use fuzz_entry::campaign::{attempt, from_hex};
use fuzz_entry::{TARGETS, corpus, target};

const USAGE: &str = "fuzz-entry --write-corpus | TARGET HEX | TARGET FILE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--write-corpus"] => ended(corpus::write().map(|files| format!("{files} files"))),
        [name, input] => attempted(name, input),
        _ => {
            let names = TARGETS.map(|target| target.name).join(" ");
            ended(Err::<&str, _>(format!("usage: {USAGE}\ntargets: {names}")))
        }
    }
}

fn attempted(name: &str, input: &str) -> ExitCode {
    let Some(target) = target(name) else { return ended(Err::<&str, _>("no such target")) };
    let bytes = match from_hex(input) {
        Some(bytes) => Ok(bytes),
        None => std::fs::read(input),
    };
    match bytes {
        Ok(bytes) => {
            ended(attempt(target, &bytes).map(|()| format!("{} bytes: fine", bytes.len())))
        }
        Err(error) => ended(Err::<&str, _>(format!("neither hex nor a file: {error}"))),
    }
}

fn ended(outcome: Result<impl std::fmt::Display, impl std::fmt::Display>) -> ExitCode {
    match outcome {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
