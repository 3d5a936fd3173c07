//! What can be used up: the local ports to one remote end, and conntrack's table.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::Path,
};

use foldhash::quality::RandomState;

use crate::{
    host::Host,
    owner::figures,
    sink::moment::{Store, Tight},
};

/// From which part of 100 on something is nearly used up: what is left goes in a burst.
const NEARLY: u64 = 90;

/// `net.ipv4.ip_local_port_range`: where connect() takes a port from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(RangeInclusive<u16>);

impl PortRange {
    /// That of conntracer's own namespace, where it is known.
    pub(super) fn of(host: &Host) -> Option<Self> {
        let text = host.sysctls.get("net.ipv4.ip_local_port_range")?;
        let mut ends = text.split_ascii_whitespace();
        let (first, last) = (ends.next()?.parse().ok()?, ends.next()?.parse().ok()?);
        Some(Self(first..=last))
    }
}

/// How many ports of the range are in use from each local address to each remote end. One port serves many remote ends.
#[derive(Debug)]
pub(super) struct Ports {
    range: Option<PortRange>,
    used: HashMap<(IpAddr, SocketAddr), u64, RandomState>,
}

impl Ports {
    pub(super) fn of(range: Option<PortRange>) -> Self {
        Self {
            range,
            used: HashMap::default(),
        }
    }

    pub(super) fn add(&mut self, local: SocketAddr, remote: SocketAddr) {
        let PortRange(range) = match &self.range {
            Some(range) if remote.port() != 0 => range,
            _ => return,
        };
        if range.contains(&local.port()) {
            let used = self.used.entry((local.ip(), remote)).or_insert(0);
            *used = used.saturating_add(1);
        }
    }

    pub(super) fn tight(&self, netns: u32) -> Vec<Tight> {
        let Some(PortRange(range)) = &self.range else {
            return Vec::new();
        };
        let limit = u64::from(range.end().saturating_sub(*range.start())).saturating_add(1);
        let nearly = self
            .used
            .iter()
            .filter(|(_, used)| is_nearly(**used, limit));
        nearly
            .map(|((local, remote), used)| Tight {
                what: Store::LocalPorts,
                netns,
                used: *used,
                limit,
                local: Some(*local),
                remote: Some(*remote),
            })
            .collect()
    }
}

/// Entries of conntrack's table in conntracer's own namespace, and how many there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conntrack {
    pub entries: u64,
    pub most: u64,
}

impl Conntrack {
    /// `None` where there is no conntrack.
    #[must_use]
    pub fn read(proc: &Path) -> Option<Self> {
        let columns = figures::conntrack(&proc.join("thread-self/net"))?;
        let entries = columns
            .into_iter()
            .find_map(|(name, value)| (name == figures::ENTRIES).then_some(value))?;
        Some(Self {
            entries,
            most: figures::conntrack_max(proc)?,
        })
    }

    pub(super) fn tight(self, host: &Host) -> Option<Tight> {
        is_nearly(self.entries, self.most).then(|| Tight {
            what: Store::Conntrack,
            netns: host.netns.unwrap_or_default(),
            used: self.entries,
            limit: self.most,
            local: None,
            remote: None,
        })
    }
}

const fn is_nearly(used: u64, limit: u64) -> bool {
    limit > 0 && used.saturating_mul(100) >= limit.saturating_mul(NEARLY)
}
