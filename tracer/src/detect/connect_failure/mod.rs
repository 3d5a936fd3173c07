//! `connect_failure`: a process wanted a connection and got an error.
//!
//! **Rule.** Opens at [`ConnectFailure::attempts`](crate::detect::ConnectFailure::attempts) failed attempts
//! of one process to one remote end for one cause, without a pause of
//! [`ConnectFailure::quiet_s`](crate::detect::ConnectFailure::quiet_s); resolves after such a pause. The
//! count is the eBPF side's own total, so that rate-limited records lose nothing.
//!
//! **Causes.** `refused`, `timed_out`, `unreachable`, `reset`, `no_port`, `denied`, `other` by the error
//! that the application is told; `cancelled` where it gave up first, after a second or more. Whether a
//! packet told it (a RST, or ICMP) or connect() itself did is evidence.
//!
//! **False positives.** A client that tries one address after another by design, of which some never
//! answer. Not judged: attempts dropped within a second, which is how clients race IPv6 against IPv4.

mod words;

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use conntracer_common::record::failure_how;

use super::{
    Context, Life,
    alike::{self, Alike},
    errno,
};
use crate::{event::Failure as Event, table::Bounded, time::Ktime};

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cause {
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
    const fn of(failure: &Event) -> Option<Self> {
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

    const fn name(self) -> &'static str {
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

/// Which of the eBPF side's counts: an entry that was removed for being idle and came again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct EntryKey {
    netns: u32,
    pid: u32,
    remote: SocketAddr,
    first: Ktime,
    errno: u32,
    how: u8,
}

impl EntryKey {
    fn of(failure: &Event) -> Self {
        Self {
            netns: failure.socket.netns,
            pid: failure.owner.map_or(0, |owner| owner.pid),
            remote: failure.socket.remote,
            first: failure.first,
            errno: failure.errno,
            how: failure.how,
        }
    }
}

/// Who failed to reach whom, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    netns: u32,
    /// 0 when the owner is unknown.
    pid: u32,
    remote: SocketAddr,
    cause: Cause,
}

#[derive(Clone, Copy, Debug)]
struct Attempts {
    life: Option<Life>,
    count: u64,
    since: Ktime,
    last: Ktime,
    longest: Duration,
    latest: Event,
}

impl Alike for Attempts {
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

impl Attempts {
    const fn new(latest: Event, since: Ktime) -> Self {
        Self {
            life: None,
            count: 0,
            since,
            last: since,
            longest: Duration::ZERO,
            latest,
        }
    }

    fn add(&mut self, more: u64, failure: &Event) {
        self.count = self.count.saturating_add(more);
        self.last = self.last.max(failure.last);
        self.longest = self.longest.max(failure.longest);
        self.latest = *failure;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ConnectFailure {
    totals: Bounded<EntryKey, u64>,
    attempts: Bounded<Key, Attempts>,
    /// Open findings by id.
    open: BTreeMap<u64, Key>,
}

impl ConnectFailure {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            totals: Bounded::new(limit),
            attempts: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.totals
            .evicted()
            .saturating_add(self.attempts.evicted())
    }

    pub(crate) fn failure(&mut self, failure: &Event, cx: &mut Context<'_>) {
        let Some(cause) = Cause::of(failure) else {
            return;
        };
        let more = self.totals.gained(EntryKey::of(failure), failure.count);
        if more == 0 {
            return;
        }
        // A first record may come late, and tell of attempts since the first was counted.
        let since = if more == failure.count {
            failure.first
        } else {
            failure.last
        };
        let key = Key {
            netns: failure.socket.netns,
            pid: failure.owner.map_or(0, |owner| owner.pid),
            remote: failure.socket.remote,
            cause,
        };
        let quiet = cx.thresholds.connect_failure.quiet();
        match self.attempts.touch(&key) {
            Some(known) if known.life.is_none() && since.since(known.last) >= quiet => {
                *known = Attempts::new(*failure, since);
            }
            Some(_) => {}
            None => {
                let gone = self.attempts.insert(key, Attempts::new(*failure, since));
                if let Some((key, gone)) = gone
                    && let Some(life) = gone.life
                {
                    self.open.remove(&life.id);
                    cx.resolve(life, words::draft(&key, &gone, cx));
                }
            }
        }
        let Some(attempts) = self.attempts.get_mut(&key) else {
            return;
        };
        attempts.add(more, failure);
        match attempts.life {
            None if attempts.count >= cx.thresholds.connect_failure.attempts => {
                let life = cx.open(words::draft(&key, attempts, cx));
                attempts.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(mut life) if life.due(cx.now, attempts.count) => {
                cx.update(&mut life, words::draft(&key, attempts, cx));
                attempts.life = Some(life);
            }
            _ => {}
        }
    }

    /// Says what grew since a second or more, and resolves what is quiet.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let quiet = cx.thresholds.connect_failure.quiet();
        alike::tick(&mut self.open, &mut self.attempts, quiet, words::draft, cx);
    }

    /// The last word on what is still open.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        alike::finish(&self.open, &mut self.attempts, words::draft, cx);
    }
}
