//! `kvperf`: moves real-sized KV caches and proves every byte. See `kvperf --help`.
//!
//! Exit status: 0 when all went well, 1 when a byte was wrong or a request failed, 2 when there was
//! nothing to run because an argument or a file is unusable.

mod geometry;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use kvperf::args::{Cli, Command, OutputArgs};
use kvperf::raw;
use kvperf::report::Report;
use kvperf::run::chaos::ChaosReport;
use kvperf::run::link::{Line, say};
use kvperf::run::{RunError, bootstrap, chaos, decode, devices, gpu, loopback, prefill};
use kvperf::sweep;
use transport_tcp::raise_descriptor_limit;

fn main() -> ExitCode {
    let cli = Cli::parse_checked();
    // Without it there may still be enough; a rank that has too few says which call failed.
    let _ = raise_descriptor_limit();
    run(&cli.command).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::from(2)
    })
}

fn run(command: &Command) -> Result<ExitCode, Box<dyn Error>> {
    match command {
        Command::Bootstrap(args) => {
            bootstrap::run(args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Geometry(args) => {
            io::stdout().write_all(geometry::text(args)?.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Devices => {
            io::stdout().write_all(devices::text()?.as_bytes())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Gpu(args) => {
            let report = match gpu::run(args) {
                // A byte was wrong, or a copy failed: that is a finding, not a lack of something.
                Err(RunError::Check(found)) => {
                    eprintln!("WRONG: {found}");
                    return Ok(ExitCode::FAILURE);
                }
                other => other?,
            };
            writeln!(io::stdout(), "{}", serde_json::to_string(&report)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Raw(args) => Ok(raw::run(args)?),
        Command::Sweep(args) => {
            sweep::run(args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Loopback(args) => match args.chaos {
            Some(seconds) => show_chaos(&chaos::run(seconds, &args.run)?, args.run.output.json),
            None => show(&loopback::run(args)?, &args.run.output),
        },
        Command::ChaosNode(args) => {
            chaos::run_node(args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Decode(args) => show(&decode::run(&args.meeting, &args.run)?, &args.run.output),
        Command::Prefill(args) => show(&prefill::run(&args.meeting, &args.run)?, &args.run.output),
    }
}

/// Prints the report to whoever asked for it. The exit status is its verdict.
fn show(report: &Report, output: &OutputArgs) -> Result<ExitCode, Box<dyn Error>> {
    if output.child {
        say(&Line::Report(Box::new(report.clone())));
    } else if output.json {
        writeln!(io::stdout(), "{}", report.to_json())?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(ExitCode::from(report.exit_status()))
}

fn show_chaos(report: &ChaosReport, json: bool) -> Result<ExitCode, Box<dyn Error>> {
    if json {
        writeln!(io::stdout(), "{}", report.to_json())?;
    } else {
        write!(io::stdout(), "{report}")?;
    }
    Ok(ExitCode::from(report.exit_status()))
}
