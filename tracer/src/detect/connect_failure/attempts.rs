//! Attempts to connect that failed alike.

use std::{net::SocketAddr, time::Duration};

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
    pub(super) const fn of(failure: &Failure) -> Option<Self> {
        Some(match failure.errno {
            0 if failure.how & failure_how::PATIENT != 0 => Self::Cancelled,
            0 => return None,
            errno::ECONNREFUSED => Self::Refused,
            errno::ETIMEDOUT => Self::TimedOut,
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
}

impl Attempts {
    pub(super) const fn new(latest: Failure, since: Ktime) -> Self {
        Self {
            count: 0,
            since,
            last: since,
            longest: Duration::ZERO,
            latest,
        }
    }

    pub(super) fn add(&mut self, more: u64, failure: &Failure) {
        self.count = self.count.saturating_add(more);
        self.last = self.last.max(failure.last);
        self.longest = self.longest.max(failure.longest);
        self.latest = *failure;
    }
}
