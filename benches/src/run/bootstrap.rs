//! The directory of a prefill instance, as a process of its own.
//!
//! For prefill nodes that do not embed the server, and for trying it out. Serves until the process
//! is ended.

use transport_tcp::bootstrap::{BootstrapConfig, BootstrapServer};

use super::{RunError, read_key};
use crate::args::BootstrapArgs;

/// Serves. Returns only when it cannot begin.
pub fn run(args: &BootstrapArgs) -> Result<(), RunError> {
    let key = args.key_file.as_deref().map(read_key).transpose()?;
    let config = BootstrapConfig { key, ..BootstrapConfig::default() };
    let busy = RunError::io(format!("listening at {}", args.listen));
    let server = BootstrapServer::bind(args.listen, config).map_err(busy)?;
    for warning in server.warnings() {
        eprintln!("warning: {warning}");
    }
    eprintln!("serving at {}", server.address());
    server.serve().map_err(RunError::io("serving"))
}
