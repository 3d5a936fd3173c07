//! SYNs that were dropped before a listener: at one spot, or at all of a namespace that have no finding of their own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::cause::{Because, Cause, Why};
use crate::{
    detect::connect_failure::Remotes,
    event::{EarlyDrop, Owner},
    table::listener::{ListenerKey, Listeners},
    time::Ktime,
};

/// Where SYNs were to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SpotKey {
    pub(super) netns: u32,
    pub(super) local: SocketAddr,
    pub(super) cause: Cause,
}

impl SpotKey {
    /// Who listened there before, and was not seen to since a moment.
    pub(super) fn before<'a>(&self, listeners: &'a Listeners, since: Ktime) -> Option<&'a Owner> {
        if self.cause != Cause::NoListener {
            return None;
        }
        let unspecified: IpAddr = match self.local {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        [self.local.ip(), unspecified, Ipv6Addr::UNSPECIFIED.into()]
            .into_iter()
            .find_map(|address| {
                let key = ListenerKey {
                    netns: self.netns,
                    local: SocketAddr::new(address, self.local.port()),
                };
                let listens = listeners
                    .get(&key)
                    .is_some_and(|service| service.listens_after(since));
                listeners.last_owner(&key).filter(|_| !listens)
            })
    }

    /// Whether somebody has begun to listen at the port since a moment.
    pub(super) fn has_begun(&self, listeners: &Listeners, since: Ktime) -> bool {
        self.cause == Cause::NoListener
            && listeners.has_begun((self.netns, self.local.port()), since)
    }
}

/// All of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NetnsKey {
    pub(super) netns: u32,
    pub(super) cause: Cause,
}

/// What was dropped, at one spot or at all that have no finding of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drops {
    pub(super) count: u64,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// One bit by each remote address's hash.
    pub(super) remotes: u64,
    pub(super) because: Option<Because>,
    /// Filtered by netfilter, not by XDP or traffic control.
    pub(super) by_netfilter: bool,
    pub(super) latest: EarlyDrop,
    /// Who sent the last ones.
    pub(super) recent: Remotes,
    /// What a poll found out about them: which part of netfilter, or who listens for others; and what was said of it.
    pub(super) found: Option<&'static str>,
    pub(super) said_found: Option<&'static str>,
}

impl Drops {
    pub(super) const fn new(latest: EarlyDrop, since: Ktime) -> Self {
        Self {
            count: 0,
            since,
            last: since,
            remotes: 0,
            because: None,
            by_netfilter: false,
            latest,
            recent: Remotes::NONE,
            found: None,
            said_found: None,
        }
    }

    pub(super) fn add(&mut self, more: u64, early_drop: &EarlyDrop, why: &Why) {
        self.count = self.count.saturating_add(more);
        self.last = self.last.max(early_drop.last);
        self.remotes |= early_drop.remotes;
        self.because = why.because.or(self.because);
        self.by_netfilter = why.by_netfilter;
        let (remote, device) = (self.latest.socket.remote, self.latest.device);
        self.latest = *early_drop;
        self.recent.add(early_drop.socket.remote);
        if early_drop.socket.remote.port() == 0 {
            self.latest.socket.remote = remote;
        }
        self.latest.device = early_drop.device.or(device);
    }
}

/// The spots of a namespace that have no finding of their own, together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan {
    pub(super) drops: Drops,
    pub(super) spots: u64,
    /// The one address they share.
    pub(super) address: Option<IpAddr>,
    /// Others found no room in the eBPF side's map, whose addresses are not known.
    pub(super) has_more: bool,
}

impl Scan {
    /// From so many ports on it is one: where the eBPF side had no room for more, there were as many.
    pub(super) const fn is_many(&self, scan_ports: u64) -> bool {
        self.has_more || self.spots >= scan_ports
    }

    /// Whether a spot of it lost more than its share, because a scanner tries every port alike: as many SYNs as
    /// `scan_ports` others on average.
    pub(super) const fn is_outdone_by(&self, spot: &Drops, scan_ports: u64) -> bool {
        let known = if self.has_more && self.spots < scan_ports {
            scan_ports
        } else {
            self.spots
        };
        let others = known.saturating_sub(1);
        let theirs = self.drops.count.saturating_sub(spot.count);
        spot.count.saturating_mul(others) >= scan_ports.saturating_mul(theirs)
    }
}
