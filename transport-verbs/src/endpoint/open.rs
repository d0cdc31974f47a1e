//! Opening devices and choosing ports.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use transport_core::Instant;
use transport_tcp::{SameHost, TcpConfig, TcpEndpoint};

use super::holders::Holders;
use super::{OpenError, VerbsEndpoint};
use crate::address::{MAX_PORTS, PortAddress};
use crate::devices::{PortInfo, ports};
use crate::memory::Memory;
use crate::nic::{Nic, Port};
use crate::sys::{Context, DeviceList, Entries, Gid, Poller};
use crate::{NoDevice, VerbsConfig, VerbsStats};

/// Completions taken at once from one queue pair.
const ENTRIES: usize = 64;

impl VerbsEndpoint {
    /// Opens devices and the links' port. Fails when there is no device to use, and says why; or
    /// when the port cannot be opened.
    pub fn new(config: VerbsConfig) -> Result<Self, OpenError> {
        let (nics, ports) = open(&config)?;
        // Writes are not the links' to carry, so no way within the host is opened for them.
        let link = TcpConfig { same_host: SameHost::Never, ..config.link.clone() };
        let links = TcpEndpoint::new(link).map_err(OpenError::Link)?;
        let poller = poller(&links, &nics).map_err(NoDevice::from)?;
        let limit = nics.iter().map(|nic| nic.limits.max_registration).min().unwrap_or(u64::MAX);
        let domains = nics.iter().map(|nic| Arc::clone(&nic.domain)).collect();
        let piece = config.max_registration.min(limit);
        let memory = Memory::new(domains, piece, config.relaxed_ordering);
        Ok(Self {
            peers: HashMap::new(),
            nics,
            ports,
            memory,
            exported: Vec::new(),
            tables: None,
            config,
            links,
            poller,
            pairs: HashMap::new(),
            holders: Holders::default(),
            events: VecDeque::new(),
            held: None,
            message: Vec::new(),
            entries: Entries::new(ENTRIES),
            stats: VerbsStats::default(),
            armed: false,
            notices_seen: Instant::ZERO,
            posted: false,
            unsaid: false,
            links_due: true,
            links_seen: Instant::ZERO,
            links_pause: Duration::ZERO,
            unread: true,
            ended: Vec::new(),
            now: Instant::ZERO,
        })
    }
}

fn poller(links: &TcpEndpoint, nics: &[Nic]) -> std::io::Result<Poller> {
    let poller = Poller::new()?;
    poller.add(links.as_fd())?;
    for nic in nics {
        poller.add(nic.channel.fd())?;
        poller.add(nic.context.async_fd())?;
    }
    Ok(poller)
}

/// The devices of all ports that the configuration means, and those ports in its order.
fn open(config: &VerbsConfig) -> Result<(Vec<Nic>, Vec<Port>), NoDevice> {
    let list = DeviceList::new()?;
    if list.len() == 0 {
        return Err(NoDevice::None);
    }
    let mut found = vec![];
    let mut failure = None;
    for index in 0..list.len() {
        match usable(&list, index) {
            Ok(usable) => found.push(usable),
            Err(error) => failure = Some(error),
        }
    }
    let chosen = choose(config, &found)?;
    if chosen.is_empty() {
        return Err(failure.unwrap_or(NoDevice::Unusable { devices: list.len() }));
    }
    let mut nics: Vec<Nic> = vec![];
    let mut ports = vec![];
    for (device, at) in chosen.into_iter().take(MAX_PORTS) {
        let (context, candidates) = &found[device];
        let known = nics.iter().position(|nic| nic.context.name() == context.name());
        let nic = known.unwrap_or(nics.len());
        if known.is_none() {
            nics.push(Nic::new(Arc::clone(context), config)?);
        }
        ports.push(Port { nic, ..candidates[at].clone() });
    }
    Ok((nics, ports))
}

type Candidates = (Arc<Context>, Vec<Port>);

/// A device and its usable ports.
fn usable(list: &DeviceList, index: usize) -> Result<Candidates, NoDevice> {
    let context = list.open(index)?;
    let infos = ports(&context)?;
    let gids = context.gids()?;
    let port = |info: &PortInfo| {
        let gid = info.gids.get(info.usable.ok()?)?.index;
        let gid = gids.iter().find(|g| g.port == info.port && g.index == gid)?;
        candidate(&context, info, *gid)
    };
    let usable = infos.iter().filter_map(port).collect();
    Ok((context, usable))
}

fn candidate(context: &Context, info: &PortInfo, gid: Gid) -> Option<Port> {
    let state = context.port(info.port).ok()?;
    let (ethernet, lid, mtu) = (state.ethernet, state.lid, state.mtu);
    let address = PortAddress { gid: gid.bytes, lid, ethernet, kind: gid.kind, mtu };
    let max_message = u64::from(state.max_message);
    Some(Port { nic: 0, number: info.port, gid, address, max_message, active: true })
}

/// Devices and ports by their places in `found`: all of them, or those that are configured.
fn choose(config: &VerbsConfig, found: &[Candidates]) -> Result<Vec<(usize, usize)>, NoDevice> {
    let every = || {
        let of = |(device, (_, ports)): (usize, &Candidates)| {
            (0..ports.len()).map(move |port| (device, port)).collect::<Vec<_>>()
        };
        found.iter().enumerate().flat_map(of)
    };
    if config.ports.is_empty() {
        return Ok(every().collect());
    }
    let mut chosen = vec![];
    for (index, name) in config.ports.iter().enumerate() {
        let (device, port) = name.split_once(':').unwrap_or((name, ""));
        let is_it = |(d, p): &(usize, usize)| {
            let (context, ports) = &found[*d];
            let number = port.is_empty() || port.parse() == Ok(ports[*p].number);
            context.name() == device && number
        };
        let before = chosen.len();
        chosen.extend(every().filter(is_it));
        if chosen.len() == before {
            return Err(NoDevice::NotThere { index });
        }
    }
    Ok(chosen)
}
