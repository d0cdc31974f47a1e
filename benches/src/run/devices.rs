//! The machine's RDMA devices and GPUs, for a person.

use std::fmt::Write as _;

use transport_gpu::topology::{PciTopology, Place};
use transport_gpu::{CudaDevice, NoDevice};

use super::RunError;

/// RDMA devices, then GPUs; why there are none of the one kind. Fails, with both reasons, when there
/// are none of either.
pub fn text() -> Result<String, RunError> {
    let topology = PciTopology::read();
    let driver = CudaDevice::count();
    // A GPU that a container is given need not be on the PCIe tree that it sees.
    let any = !topology.gpus.is_empty() || driver.as_ref().is_ok_and(|count| *count > 0);
    let gpus = gpu_text(&topology, driver);
    match rdma_text() {
        Ok(rdma) => Ok(rdma + &gpus),
        Err(why) if any => Ok(format!("{why}\n{gpus}")),
        Err(RunError::NoRdma(why)) => Err(RunError::NoRdma(why + "; " + gpus.trim_end())),
        Err(why) => Err(why),
    }
}

/// The GPUs on the PCIe tree, how far each is from each NIC, and what the driver says of them.
fn gpu_text(topology: &PciTopology, driver: Result<u32, NoDevice>) -> String {
    let mut text = match &driver {
        Err(why) => format!("GPU: not usable: {why}\n"),
        Ok(_) => String::new(),
    };
    for (gpu, preferred) in topology.gpus.iter().zip(topology.preferred()) {
        let numa = gpu.numa.map(|node| format!(", NUMA node {node}")).unwrap_or_default();
        let _ = writeln!(text, "GPU {}{numa}", gpu.address);
        for (index, nic) in topology.nics.iter().enumerate() {
            let use_it = if preferred == Some(index) { ", the one to use" } else { "" };
            let _ = writeln!(text, "  {}: {}{use_it}", nic.name, gpu.distance(nic));
        }
    }
    (0..driver.unwrap_or(0)).for_each(|ordinal| text += &cuda_text(ordinal, &topology.gpus));
    text
}

/// What a GPU's driver says of it.
fn cuda_text(ordinal: u32, gpus: &[Place]) -> String {
    let facts = match CudaDevice::open(ordinal).and_then(|device| device.facts()) {
        Ok(facts) => facts,
        Err(why) => return format!("CUDA {ordinal}: {why}\n"),
    };
    let (name, pci, rdma) = (facts.name, facts.pci, facts.rdma);
    let listed = if gpus.iter().any(|gpu| gpu.address == pci) { "" } else { ", not in sysfs" };
    let has = |word: &str, is: bool| format!("{}{word}", if is { "" } else { "no " });
    let (dma_buf, peer) = (has("DMA-BUF", rdma.dma_buf), has("peer memory", rdma.peer_memory));
    format!("CUDA {ordinal}: {name} at {pci}{listed}: {dma_buf}, {peer}\n")
}

/// Devices, ports, addresses, and which of them would be used. Fails when there is no RDMA.
#[cfg(feature = "verbs")]
fn rdma_text() -> Result<String, RunError> {
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
fn rdma_text() -> Result<String, RunError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_the_reason_is_said() {
        let text = gpu_text(&PciTopology::default(), Err(NoDevice::NoDriver));
        assert_eq!(text, "GPU: not usable: libcuda.so.1 is not on this machine\n");
    }
}
