//! The bootstrap server and client over real sockets: SGLang's routes byte for byte, the
//! directory's promises, the shared key, and strangers at the port.

mod client;
mod hostile;
mod proof;
mod raw;
mod server;
mod transcript;

use std::time::Duration;

use transport_core::disagg::directory::{Endpoint, Prefill, Rank, Registration, Shape};
use transport_tcp::bootstrap::{
    BootstrapClient, BootstrapConfig, BootstrapServer, ClientConfig, RunningBootstrap,
};

fn server(config: BootstrapConfig) -> RunningBootstrap {
    let server = BootstrapServer::bind("127.0.0.1:0".parse().unwrap(), config).unwrap();
    server.spawn().unwrap()
}

fn client(server: &RunningBootstrap) -> BootstrapClient {
    BootstrapClient::new(server.address(), ClientConfig::default())
}

/// Rank `tp` of `size` in life `life`.
fn registration(tp: u32, size: u32, life: u64) -> Registration {
    let shape = Shape { dp: 1, cp: 1, tp: size, pp: 1 };
    Registration {
        rank: Rank { dp: 0, cp: 0, tp, pp: 0 },
        endpoint: Endpoint { host: "10.0.0.7".into(), port: 4000 + life as u16 },
        incarnation: Some(life),
        lease: Some(Duration::from_secs(60)),
        prefill: Prefill { kv_dtype: Some("auto".into()), ..Prefill::new(shape, 64) },
    }
}
