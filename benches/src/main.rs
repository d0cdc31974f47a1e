//! `kvperf`: moves real-sized KV caches and proves every byte. See `kvperf --help`.
//!
//! Exit status: 0 when all went well, 1 when a byte was wrong or a request failed, 2 when there was
//! nothing to run because an argument or a file is unusable.

mod geometry;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use kvperf::args::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse_checked();
    run(&cli.command).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

fn run(command: &Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Geometry(args) => {
            io::stdout().write_all(geometry::text(args)?.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Loopback(_) | Command::Decode(_) | Command::Prefill(_) => {
            Err("this build moves no bytes: it has no transport yet".into())
        }
    }
}
