//! Calls that failed alike.

use std::net::{IpAddr, SocketAddr};

use crate::{
    detect::errno,
    event::{Bind, BindCall, BindHolder, BindHolders, Comm, TcpState},
    time::Ktime,
};

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    InUse,
    NoPort,
    NotLocal,
    Denied,
    Other,
}

impl Cause {
    pub(super) const fn of(bind: &Bind) -> Self {
        match bind.errno {
            _ if matches!(bind.call, BindCall::Security) => Self::Denied,
            errno::EADDRINUSE if bind.socket.local.port() == 0 && !bind.is_several => Self::NoPort,
            errno::EADDRINUSE => Self::InUse,
            errno::EADDRNOTAVAIL => Self::NotLocal,
            errno::EACCES | errno::EPERM => Self::Denied,
            _ => Self::Other,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::InUse => "in_use",
            Self::NoPort => "no_port",
            Self::NotLocal => "not_local",
            Self::Denied => "denied",
            Self::Other => "other",
        }
    }
}

/// Who failed to get what, and why. A program that is started again and again is one, whatever its pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FailureKey {
    pub(super) netns: u32,
    pub(super) local: SocketAddr,
    pub(super) program: Program,
    pub(super) call: BindCall,
    pub(super) cause: Cause,
}

/// What stays of a process when it is started again; nothing of one that is not known.
pub(super) type Program = Option<(Comm, u32)>;

pub(super) fn program(bind: &Bind) -> Program {
    bind.owner.map(|owner| (owner.comm, owner.uid))
}

impl FailureKey {
    pub(super) fn of(bind: &Bind) -> Self {
        Self {
            netns: bind.socket.netns,
            local: bind.socket.local,
            program: program(bind),
            call: bind.call,
            cause: Cause::of(bind),
        }
    }
}

/// How it went on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Failing,
    /// The program got what it asked for.
    Bound,
    /// It got another port.
    Elsewhere(u16),
    /// It asked no more.
    Quiet,
}

impl Stage {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Bound => "bound",
            Self::Elsewhere(_) => "bound_elsewhere",
            Self::Quiet => "quiet",
        }
    }
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failures {
    pub(super) count: u64,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    pub(super) latest: Bind,
    /// Processes that failed, one after the other.
    pub(super) processes: u64,
    /// Distinct ports that a search for a free one tried, from the first to the last.
    pub(super) ports: u64,
    pub(super) last_port: u16,
    /// Who held the port at the last look.
    pub(super) held: Option<BindHolders>,
    pub(super) stage: Stage,
}

impl Failures {
    pub(super) const fn new(latest: Bind, since: Ktime) -> Self {
        Self {
            count: 0,
            since,
            last: since,
            latest,
            processes: 1,
            ports: 1,
            last_port: latest.socket.local.port(),
            held: None,
            stage: Stage::Failing,
        }
    }

    pub(super) fn add(&mut self, more: u64, bind: &Bind) {
        let pid = |bind: &Bind| bind.owner.map(|owner| (owner.pid, owner.started_ms));
        if pid(bind) != pid(&self.latest) {
            self.processes = self.processes.saturating_add(1);
        }
        self.count = self.count.saturating_add(more);
        self.last = self.last.max(bind.last);
        self.latest = *bind;
    }

    /// What is in the way, as the last look found it.
    pub(super) fn holder(&self) -> Holder<'_> {
        let Some(held) = &self.held else {
            return Holder::Unknown;
        };
        let Some(first) = held.named().next() else {
            return Holder::Unknown;
        };
        match first.state {
            TcpState::Listen => Holder::Listener(first),
            TcpState::Close => Holder::Bound(first),
            TcpState::TimeWait => Holder::TimeWait(held.time_wait),
            _ if held.connected > 0 => Holder::Connection(first, held.connected),
            _ => Holder::Closing(first, held.closing),
        }
    }

    /// Whether a socket of the same process serves the address already: one for all addresses of IPv6 that takes IPv4 too,
    /// as servers make it that bind to both.
    pub(super) fn is_served(&self) -> bool {
        let (Holder::Listener(holder) | Holder::Bound(holder)) = self.holder() else {
            return false;
        };
        let asked = self.latest.socket.local;
        let pid = |owner: Option<crate::event::Owner>| owner.map(|owner| owner.pid);
        asked.is_ipv4()
            && holder.local.ip() == IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
            && !holder.sharing.v6_only
            && pid(holder.owner).is_some()
            && pid(holder.owner) == pid(self.latest.owner)
    }
}

/// What holds a port.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holder<'a> {
    Listener(&'a BindHolder),
    /// Bound, and neither listening nor connected.
    Bound(&'a BindHolder),
    /// The first of so many connections.
    Connection(&'a BindHolder, u32),
    /// Closed by its process, and not over.
    Closing(&'a BindHolder, u32),
    TimeWait(u32),
    Unknown,
}

/// Ports so close belong to one search: Jupyter tries up to 100 away.
const NEAR: u16 = 128;
/// Where searches begin to take any (`ip_local_port_range`), and where those for a privileged source port are (rresvport).
const EPHEMERAL: u16 = 32_768;
const RESERVED: std::ops::Range<u16> = 512..1024;

/// Whether a process that did not get one port and tries another searches for a free one. A server that needs several has
/// them further apart (80 and 443), and tries each again.
pub(super) fn is_search(first: u16, next: u16) -> bool {
    let both = |range: fn(u16) -> bool| range(first) && range(next);
    first != next
        && (first.abs_diff(next) <= NEAR
            || both(|port| port >= EPHEMERAL)
            || both(|port| RESERVED.contains(&port)))
}
