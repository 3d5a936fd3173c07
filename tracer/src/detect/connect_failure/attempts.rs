//! Attempts to connect that failed alike.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use conntracer_common::record::failure_how;

use crate::{detect::errno, event::Failure, time::Ktime};

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    Refused,
    TimedOut,
    Unreachable,
    Reset,
    Cancelled,
    NoPort,
    Denied,
    Other,
}

impl Cause {
    /// `None` for what is no failure: the application changed its mind.
    pub(super) fn of(failure: &Failure) -> Option<Self> {
        Some(match failure.errno {
            // The application took what the message left for it, and closed the socket.
            0 if is_prohibited(failure) => Self::Denied,
            0 if is_port_unreachable(failure) => Self::Refused,
            0 if failure.icmp.is_some() => Self::Unreachable,
            0 if failure.how & failure_how::PATIENT != 0 => Self::Cancelled,
            0 => return None,
            errno::ECONNREFUSED => Self::Refused,
            errno::ETIMEDOUT => Self::TimedOut,
            errno::ENETUNREACH | errno::EHOSTUNREACH if is_prohibited(failure) => Self::Denied,
            errno::ENETUNREACH
            | errno::EHOSTUNREACH
            | errno::ENETDOWN
            | errno::EHOSTDOWN
            | errno::ENONET => Self::Unreachable,
            errno::ECONNRESET | errno::EPIPE => Self::Reset,
            errno::EADDRNOTAVAIL => Self::NoPort,
            errno::EPERM | errno::EACCES => Self::Denied,
            _ => Self::Other,
        })
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Cancelled => "cancelled",
            Self::NoPort => "no_port",
            Self::Denied => "denied",
            Self::Other => "other",
        }
    }
}

/// Whether an ICMP message says that somebody forbids it: a firewall, and no router.
fn is_prohibited(failure: &Failure) -> bool {
    failure.icmp.is_some_and(|icmp| match icmp.from {
        IpAddr::V4(_) => icmp.kind == 3 && matches!(icmp.code, 9 | 10 | 13),
        IpAddr::V6(_) => icmp.kind == 1 && matches!(icmp.code, 1 | 5),
    })
}

/// TCP answers for a closed port with a RST: this one is a rule's.
fn is_port_unreachable(failure: &Failure) -> bool {
    failure.icmp.is_some_and(|icmp| match icmp.from {
        IpAddr::V4(_) => (icmp.kind, icmp.code) == (3, 3),
        IpAddr::V6(_) => (icmp.kind, icmp.code) == (1, 4),
    })
}

/// Who failed to reach whom, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct AttemptKey {
    pub(super) netns: u32,
    /// 0 when the owner is unknown.
    pub(super) pid: u32,
    pub(super) remote: SocketAddr,
    pub(super) cause: Cause,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Attempts {
    pub(super) count: u64,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    pub(super) longest: Duration,
    pub(super) latest: Failure,
    /// What became of the SYNs that the last one retransmitted.
    pub(super) syns: Syns,
    /// Some attempt's had to make room: those of the last one may be missing.
    pub(super) syns_forgotten: bool,
    /// What this host itself dropped of them, at the other end.
    pub(super) here: Option<Here>,
    /// The hook that sees RSTs was there when the last one failed.
    pub(super) resets_seen: bool,
}

/// An attempt, as the namespace that it was made in has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) netns: u32,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// The clients whose SYNs were dropped last at one place.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Remotes {
    last: [Option<SocketAddr>; 16],
    next: usize,
}

impl Remotes {
    pub(crate) const NONE: Self = Self {
        last: [None; 16],
        next: 0,
    };

    pub(crate) fn add(&mut self, remote: SocketAddr) {
        if remote.port() == 0 || self.last.contains(&Some(remote)) {
            return;
        }
        if let Some(place) = self.last.get_mut(self.next) {
            *place = Some(remote);
        }
        let next = self.next.wrapping_add(1);
        self.next = if next < self.last.len() { next } else { 0 };
    }

    /// Whether SYNs of an attempt were among them, dropped in namespace `netns`. In another namespace the same addresses
    /// may be others': the port tells, and a loopback is never that of another.
    pub(crate) fn met(&self, attempt: &Route, netns: u32) -> bool {
        let mut last = self.last.iter().flatten();
        if netns == attempt.netns {
            return last.any(|remote| remote.ip() == attempt.from.ip());
        }
        !attempt.to.ip().is_loopback() && last.any(|remote| *remote == attempt.from)
    }
}

/// Where SYNs to the same address and port were dropped on this host, and the finding that tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Here {
    pub(crate) netns: u32,
    pub(crate) finding: u64,
    pub(crate) cause: &'static str,
}

/// SYNs that one attempt retransmitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Syns {
    pub(super) sent: u32,
    /// Those that this host could not send, where the kernel tells of them.
    pub(super) failed: u32,
    pub(super) failures_traced: bool,
    /// `TCP_USER_TIMEOUT` at the last of them.
    pub(super) user_timeout: Option<Duration>,
}

impl Syns {
    /// Whether any was seen, and so what the socket had set.
    pub(super) const fn any(self) -> bool {
        self.sent > 0 || self.failed > 0
    }

    /// Whether every one of `syns` but the first failed on this host. Without the kernel's word, that none was seen to be
    /// sent says the same, where none was lost.
    pub(super) const fn all_failed(self, syns: u32, may_be_lost: bool) -> bool {
        let retransmitted = syns.saturating_sub(1);
        if retransmitted == 0 || self.sent > 0 {
            return false;
        }
        if self.failures_traced {
            self.failed >= retransmitted
        } else {
            !may_be_lost
        }
    }
}

impl Attempts {
    pub(super) const fn new(latest: Failure, since: Ktime) -> Self {
        Self {
            count: 0,
            since,
            last: since,
            longest: Duration::ZERO,
            latest,
            syns: Syns {
                sent: 0,
                failed: 0,
                failures_traced: false,
                user_timeout: None,
            },
            here: None,
            resets_seen: false,
            syns_forgotten: false,
        }
    }

    pub(super) fn add(&mut self, more: u64, failure: &Failure) {
        self.count = self.count.saturating_add(more);
        self.last = self.last.max(failure.last);
        self.longest = self.longest.max(failure.longest);
        self.latest = *failure;
    }
}
