//! How connections died, and which deaths are alike.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use conntracer_common::record::close_flag;

use super::thresholds::Thresholds;
use crate::{detect::errno, event::Close, time::Ktime};

/// How a connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum How {
    ResetReceived,
    /// close() with data that nobody read.
    Unread,
    /// close() with `SO_LINGER` 0.
    Linger,
    /// The listener went before accept().
    NotAccepted,
    /// connect() to AF_UNSPEC, or a protocol above.
    Disconnect,
    Data,
    Keepalive,
    WindowProbe,
    UserTimeout,
    /// Data or the FIN, after the application had closed.
    OrphanTimeout,
    Icmp,
    Killed,
    /// Too many orphans, or no memory for them.
    Orphan,
    Error,
}

impl How {
    /// `None` for an orderly end, and for a RST that cost nobody anything.
    pub(super) fn of(ending: &Close) -> Option<Self> {
        if ending.is_orderly() {
            return None;
        }
        let orphan = ending.has(close_flag::ORPHAN);
        Some(match ending.errno {
            errno::ETIMEDOUT if orphan => Self::OrphanTimeout,
            errno::ETIMEDOUT => Self::of_timeout(ending),
            errno if is_unreachable(errno) => Self::Icmp,
            errno::ECONNABORTED => Self::Killed,
            errno::ECONNRESET | errno::EPIPE => {
                if orphan && ending.tcp.unacked_bytes() <= 1 {
                    return None;
                }
                Self::ResetReceived
            }
            0 if orphan => Self::Orphan,
            0 => Self::without_error(ending),
            _ => Self::Error,
        })
    }

    pub(super) fn of_timeout(ending: &Close) -> Self {
        let tcp = &ending.tcp;
        if tcp.user_timeout.is_some() {
            Self::UserTimeout
        } else if tcp.retransmits > 0 || tcp.probes_out == 0 {
            Self::Data
        } else if tcp.waiting_bytes() > 0 {
            Self::WindowProbe
        } else {
            // Probes are a keepalive's where there is nothing to deliver (`tcp_keepalive_timer`).
            Self::Keepalive
        }
    }

    /// A living connection ends without an error: closed by its application, or by an error that the application took
    /// first. Before 6.10 the kernel wakes it (`sk_error_report`) before it changes the state.
    pub(super) fn without_error(ending: &Close) -> Self {
        let tcp = &ending.tcp;
        if ending.has(close_flag::RST_SENT) {
            // The application's own RST follows the change of state.
            if tcp.probes_out > 0 {
                Self::of_timeout(ending)
            } else {
                Self::Killed
            }
        } else if ending.has(close_flag::NOT_ACCEPTED) {
            Self::NotAccepted
        } else if ending.unread_bytes > 0 {
            Self::Unread
        } else if ending.has(close_flag::NO_LINGER) {
            Self::Linger
        } else if tcp.retransmits == 0 && tcp.probes_out == 0 {
            Self::Disconnect
        } else if is_unreachable(ending.soft_errno) {
            Self::Icmp
        } else {
            Self::of_timeout(ending)
        }
    }

    pub(super) const fn cause(self) -> &'static str {
        match self {
            Self::ResetReceived => "reset_received",
            Self::Unread | Self::Linger | Self::NotAccepted | Self::Disconnect => "reset_sent",
            Self::Data
            | Self::Keepalive
            | Self::WindowProbe
            | Self::UserTimeout
            | Self::OrphanTimeout => "timed_out",
            Self::Icmp => "unreachable",
            Self::Killed | Self::Orphan | Self::Error => "aborted",
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ResetReceived => "reset_by_peer",
            Self::Unread => "closed_with_unread_data",
            Self::Linger => "closed_without_linger",
            Self::NotAccepted => "closed_before_accept",
            Self::Disconnect => "disconnected",
            Self::Data => "data",
            Self::Keepalive => "keepalive",
            Self::WindowProbe => "window_probe",
            Self::UserTimeout => "user_timeout",
            Self::OrphanTimeout => "orphan_timeout",
            Self::Icmp => "icmp",
            Self::Killed => "killed",
            Self::Orphan => "orphan",
            Self::Error => "error",
        }
    }
}

/// ICMP said so, and the kernel kept it in mind until it gave up.
pub(super) const fn is_unreachable(errno: u32) -> bool {
    matches!(
        errno,
        errno::EHOSTUNREACH
            | errno::ENETUNREACH
            | errno::EHOSTDOWN
            | errno::ENETDOWN
            | errno::ENONET
    )
}

/// The end of a connection that others share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Service(SocketAddr),
    Listener(SocketAddr),
    /// Who opened it was not seen.
    Remote(IpAddr),
}

/// Which deaths are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DeathKey {
    pub(super) netns: u32,
    /// 0 when the owner is unknown.
    pub(super) pid: u32,
    pub(super) place: Place,
    pub(super) how: How,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Deaths {
    pub(super) count: u64,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// Shortest and longest time without data before the end; `None` when one is not known.
    pub(super) idle: Option<(Duration, Duration)>,
    pub(super) latest: Close,
}

impl Deaths {
    pub(super) const fn new(latest: &Close, now: Ktime) -> Self {
        Self {
            count: 0,
            since: now,
            last: now,
            idle: None,
            latest: *latest,
        }
    }

    pub(super) fn add(&mut self, ending: &Close, now: Ktime) {
        self.idle = match (self.count, self.idle, ending.idle) {
            (0, _, Some(idle)) => Some((idle, idle)),
            (_, Some((shortest, longest)), Some(idle)) => {
                Some((shortest.min(idle), longest.max(idle)))
            }
            _ => None,
        };
        self.count = self.count.saturating_add(1);
        self.last = now;
        self.latest = *ending;
    }

    /// The idle time that all had in common before they died.
    pub(super) fn pattern(&self, thresholds: &Thresholds) -> Option<Duration> {
        /// Two may be chance.
        const ALIKE: u64 = 3;
        let (shortest, longest) = self.idle?;
        let least = Duration::from_secs(thresholds.idle_s);
        // Timeouts are often looked at once a second, and by some in steps of a few.
        let spread = shortest.checked_div(20).map_or(shortest, |share| {
            share.saturating_add(Duration::from_secs(1))
        });
        (self.count >= ALIKE && shortest >= least && longest <= shortest.saturating_add(spread))
            .then_some(shortest)
    }
}
