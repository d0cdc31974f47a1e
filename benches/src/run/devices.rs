//! The machine's RDMA devices, for a person.

use super::RunError;

/// Devices, ports, addresses, and which of them would be used. Fails when there is no RDMA.
#[cfg(feature = "verbs")]
pub fn text() -> Result<String, RunError> {
    use std::fmt::Write;

    let devices = transport_verbs::devices().map_err(|why| RunError::NoRdma(why.to_string()))?;
    let mut text = String::new();
    for device in devices {
        let numa = device.numa_node.map(|node| format!(", NUMA node {node}")).unwrap_or_default();
        let _ = writeln!(text, "{}{numa}", device.name);
        match device.ports {
            Ok(ports) => ports.iter().for_each(|port| text += &port_text(port)),
            Err(why) => _ = writeln!(text, "  cannot be opened: {why}"),
        }
    }
    Ok(text)
}

/// Without RDMA in this program there is nothing to list.
#[cfg(not(feature = "verbs"))]
pub fn text() -> Result<String, RunError> {
    Err(RunError::NoRdma(crate::endpoint::NOT_BUILT.to_owned()))
}

#[cfg(feature = "verbs")]
fn port_text(port: &transport_verbs::PortInfo) -> String {
    let layer = if port.ethernet { "Ethernet" } else { "InfiniBand" };
    let state = match port.state {
        1 => "down",
        2 => "initializing",
        3 => "armed",
        4 => "active",
        _ => "in an unknown state",
    };
    let verdict = match port.usable {
        Ok(gid) => format!("usable, as address {}", port.gids[gid].index),
        Err(why) => format!("not usable: {why}"),
    };
    let head = format!("  port {}: {layer}, {state}, MTU {}, {verdict}\n", port.port, port.mtu);
    port.gids.iter().fold(head, |text, gid| text + &format!("    {gid}\n"))
}
