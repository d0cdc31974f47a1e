//! Hands a language model's requests over in the middle: see README.md beside `src`.
#![forbid(unsafe_code)]

mod args;
mod cache;
mod decode;
mod embed;
mod engine;
mod error;
mod line;
mod model;
mod pool;
mod prefill;
mod process;
mod run;
mod single;
mod tokenizer;

use std::process::ExitCode;

use clap::Parser;
use transport_core::wire::Role;

use args::{Cli, What};

fn main() -> ExitCode {
    let done = match Cli::parse().what {
        What::Run(args) => match run::run(&args) {
            Ok(good) => return if good { ExitCode::SUCCESS } else { ExitCode::FAILURE },
            Err(error) => Err(error),
        },
        What::Single(args) => single::run(&args.size()),
        What::Prefill(args) => prefill::run(&args.size(), args.settings(Role::Prefill)),
        What::Decode(args) => {
            decode::run((&args.size(), args.for_rooms()), args.settings(Role::Decode), args.fault())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("handoff: {error}");
            ExitCode::from(2)
        }
    }
}
