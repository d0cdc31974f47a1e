//! `kvperf`: moves real-sized KV caches and proves every byte. See `kvperf --help`.
//!
//! Exit status: 0 when all went well, 1 when a byte was wrong or a request failed, 2 when there was
//! nothing to run because an argument or a file is unusable.

mod geometry;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use kvperf::args::{Cli, Command, HostPort, OutputArgs};
use kvperf::report::Report;
use kvperf::run::link::{Line, say};
use kvperf::run::{bootstrap, decode, devices, loopback, prefill};

fn main() -> ExitCode {
    let cli = Cli::parse_checked();
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
        Command::Loopback(args) => show(&loopback::run(args)?, &args.output),
        Command::Decode(args) => {
            show(&decode::run(args.listen, args.run.output.child, &args.run)?, &args.run.output)
        }
        Command::Prefill(args) => {
            // The first address that a name has.
            let address = |host: &HostPort| Ok(host.resolve()?[0]);
            let addresses = args.connect.iter().map(address).collect::<io::Result<_>>()?;
            let report = prefill::run(addresses, args.run.output.child, &args.run)?;
            show(&report, &args.run.output)
        }
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
