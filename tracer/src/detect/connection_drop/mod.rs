//! `connection_drop`: how established connections died.
//!
//! **Rule.** Every connection that did not end with the FINs of both sides has a cause. Those of one
//! process that died alike, of connections to one remote end or of one listener, are one finding: it opens
//! at [`ConnectionDrop::connections`](crate::detect::ConnectionDrop::connections) and resolves when none
//! followed for [`ConnectionDrop::quiet_s`](crate::detect::ConnectionDrop::quiet_s).
//!
//! **Causes.** `reset_received`; `reset_sent` (closed with unread data, `SO_LINGER` 0, a listener closed
//! before accept(), disconnected); `timed_out` (data, keepalive or window probes unanswered, a user
//! timeout); `unreachable` (timed out, and ICMP had said why); `aborted` (killed by `ss -K`, too many
//! orphans or too little memory). How exactly is the evidence `how`.
//!
//! **Pattern.** Three or more that were all idle for nearly the same time, of at least
//! [`ConnectionDrop::idle_s`](crate::detect::ConnectionDrop::idle_s), were ended by somebody's idle timeout.
//!
//! **False positives.** Programs that end connections with a RST by design (health checks, load testers).
//! Not judged: a RST in answer to the last FIN, when the peer had acknowledged all data.

mod words;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use conntracer_common::record::close_flag;

use super::{
    Context, Life,
    alike::{self, Alike},
    errno,
};
use crate::{
    event::{Close as Event, Role},
    table::Bounded,
    time::Ktime,
};

/// How a connection died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum How {
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
    fn of(ending: &Event) -> Option<Self> {
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

    fn of_timeout(ending: &Event) -> Self {
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
    fn without_error(ending: &Event) -> Self {
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

    const fn cause(self) -> &'static str {
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

    const fn name(self) -> &'static str {
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
const fn is_unreachable(errno: u32) -> bool {
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
enum Place {
    Service(SocketAddr),
    Listener(SocketAddr),
    /// Who opened it was not seen.
    Remote(IpAddr),
}

/// Which deaths are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    netns: u32,
    /// 0 when the owner is unknown.
    pid: u32,
    place: Place,
    how: How,
}

#[derive(Clone, Copy, Debug)]
struct Deaths {
    life: Option<Life>,
    count: u64,
    since: Ktime,
    last: Ktime,
    /// Shortest and longest time without data before the end; `None` when one is not known.
    idle: Option<(Duration, Duration)>,
    latest: Event,
}

impl Alike for Deaths {
    fn count(&self) -> u64 {
        self.count
    }

    fn last(&self) -> Ktime {
        self.last
    }

    fn life(&mut self) -> &mut Option<Life> {
        &mut self.life
    }
}

impl Deaths {
    const fn new(latest: &Event, now: Ktime) -> Self {
        Self {
            life: None,
            count: 0,
            since: now,
            last: now,
            idle: None,
            latest: *latest,
        }
    }

    fn add(&mut self, ending: &Event, now: Ktime) {
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
    fn pattern(&self, cx: &Context<'_>) -> Option<Duration> {
        /// Two may be chance.
        const ALIKE: u64 = 3;
        let (shortest, longest) = self.idle?;
        let least = Duration::from_secs(cx.thresholds.connection_drop.idle_s);
        // Timeouts are often looked at once a second, and by some in steps of a few.
        let spread = shortest.checked_div(20).map_or(shortest, |share| {
            share.saturating_add(Duration::from_secs(1))
        });
        (self.count >= ALIKE && shortest >= least && longest <= shortest.saturating_add(spread))
            .then_some(shortest)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ConnectionDrop {
    deaths: Bounded<Key, Deaths>,
    /// Open findings by id.
    open: BTreeMap<u64, Key>,
}

impl ConnectionDrop {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            deaths: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.deaths.evicted()
    }

    pub(crate) fn close(&mut self, ending: &Event, cx: &mut Context<'_>) {
        let Some(how) = How::of(ending) else {
            return;
        };
        let socket = &ending.socket;
        let key = Key {
            netns: socket.netns,
            pid: ending.owner.map_or(0, |owner| owner.pid),
            place: match socket.role {
                Role::Active => Place::Service(socket.remote),
                Role::Passive => Place::Listener(socket.local),
                Role::Unknown | Role::Listener => Place::Remote(socket.remote.ip()),
            },
            how,
        };
        let quiet = cx.thresholds.connection_drop.quiet();
        match self.deaths.touch(&key) {
            Some(known) if known.life.is_none() && cx.now.since(known.last) >= quiet => {
                *known = Deaths::new(ending, cx.now);
            }
            Some(_) => {}
            None => {
                let gone = self.deaths.insert(key, Deaths::new(ending, cx.now));
                if let Some((key, gone)) = gone
                    && let Some(life) = gone.life
                {
                    self.open.remove(&life.id);
                    cx.resolve(life, words::draft(&key, &gone, cx));
                }
            }
        }
        let Some(deaths) = self.deaths.get_mut(&key) else {
            return;
        };
        deaths.add(ending, cx.now);
        match deaths.life {
            None if deaths.count >= cx.thresholds.connection_drop.connections => {
                let life = cx.open(words::draft(&key, deaths, cx));
                deaths.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(mut life) if life.due(cx.now, deaths.count) => {
                cx.update(&mut life, words::draft(&key, deaths, cx));
                deaths.life = Some(life);
            }
            _ => {}
        }
    }

    /// Says what grew since a second or more, and resolves what is quiet.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let quiet = cx.thresholds.connection_drop.quiet();
        alike::tick(&mut self.open, &mut self.deaths, quiet, words::draft, cx);
    }

    /// The last word on what is still open.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        alike::finish(&self.open, &mut self.deaths, words::draft, cx);
    }
}
