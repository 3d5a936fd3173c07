//! One listener, its sockets, and the acceptor that drains their queues.

use std::time::Duration;

use conntracer_common::record::{SynTotals, syn_outcome};

use crate::{
    event::{Owner, Syn},
    id::SocketId,
    time::Ktime,
};

/// A rate is taken over this long at least, and less than twice as long: shorter is noise, longer
/// would tell a stall late.
const PACE_INTERVAL: Duration = Duration::from_secs(1);

/// One listening socket.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    pub owner: Option<Owner>,
    /// The newest record of it; no counter goes back.
    pub latest: Syn,
    /// Completions less the queue at first coverage, where that is below zero: what was in the queue of a
    /// socket older than the tracer.
    queued_before: i64,
    pub(super) is_closed: bool,
}

impl Member {
    pub(super) const fn new(syn: &Syn) -> Self {
        let drained = drained(syn);
        Self {
            owner: syn.owner,
            latest: *syn,
            queued_before: if drained < 0 { drained } else { 0 },
            is_closed: false,
        }
    }

    /// Longest accept queue seen.
    #[must_use]
    pub fn peak(&self) -> u32 {
        self.latest.peak_ack_backlog.max(self.latest.ack_backlog)
    }

    /// Whether its queue was fuller than that of `other`, by its own limit.
    #[must_use]
    pub fn is_fuller_than(&self, other: &Self) -> bool {
        let full = |queue: &Self, limit: &Self| {
            u64::from(queue.peak()).saturating_mul(limit.latest.max_ack_backlog.max(1).into())
        };
        full(self, other) > full(other, self)
    }

    pub(super) fn drained(&self) -> u64 {
        u64::try_from(drained(&self.latest).saturating_sub(self.queued_before)).unwrap_or(0)
    }
}

/// What left the queue, as far as two numbers of one record tell.
const fn drained(syn: &Syn) -> i64 {
    // Totals of real listeners are far below 2^62; those of a damaged recording may be anything.
    (syn.totals[syn_outcome::COMPLETED] & (u64::MAX >> 2))
        .cast_signed()
        .saturating_sub(syn.ack_backlog as i64)
}

/// A count against time: how fast it grows, and when it last did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    pub(super) total: u64,
    grew: Option<Ktime>,
    before: (Ktime, u64),
    mark: (Ktime, u64),
}

impl Pace {
    const fn new(now: Ktime, total: u64) -> Self {
        Self {
            total,
            grew: None,
            before: (now, total),
            mark: (now, total),
        }
    }

    pub(super) fn at(&mut self, now: Ktime, total: u64) {
        if total > self.total {
            self.grew = Some(now);
        }
        // What is inferred may go back a little: two numbers of one record can be a moment apart.
        self.total = total;
        if now.since(self.mark.0) >= PACE_INTERVAL {
            self.before = self.mark;
            self.mark = (now, self.total);
        }
    }

    /// Per second over the last interval; `None` before there was one.
    fn per_s(&self, now: Ktime) -> Option<f64> {
        let interval = now.since(self.before.0);
        (interval >= PACE_INTERVAL)
            .then(|| self.total.saturating_sub(self.before.1) as f64 / interval.as_secs_f64())
    }
}

/// How calls of accept() are known, on the hook types that the hooks got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptCoverage {
    /// Each is counted.
    Seen,
    /// Concluded from completed handshakes and the length of the queue they join.
    Inferred,
    /// Not for a group of sockets, whose queues cannot be told apart.
    Unknown,
}

/// The acceptor of a listener: how much it took, how fast, and since when it takes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Acceptor {
    pub coverage: AcceptCoverage,
    /// Connections accepted since the listener is known.
    pub accepted: u64,
    pub per_s: Option<f64>,
    /// Since the last accept(), or since the queue was last seen to shrink; `None` where neither was
    /// seen yet.
    pub idle: Option<Duration>,
}

/// One listener with all its sockets.
#[derive(Clone, Debug)]
pub struct Service {
    pub owner: Option<Owner>,
    /// The newest record of any of its sockets, with the last peer that one named.
    pub latest: Syn,
    /// When the newest record of it was taken in.
    pub told: Ktime,
    /// What was counted since the listener was first seen, closed sockets included.
    pub totals: SynTotals,
    /// Sockets that listen now, in the order in which they were first seen.
    pub members: Vec<SocketId>,
    pub(super) last_accept: Option<Ktime>,
    /// When the last SYN or third ACK came.
    pub(super) observed: Ktime,
    pub(super) seen: Pace,
    pub(super) inferred: Pace,
    /// What was drained from sockets that are closed.
    pub(super) drained_before: u64,
}

impl Service {
    pub(super) fn new(syn: &Syn, now: Ktime) -> Self {
        Self {
            owner: syn.owner,
            latest: *syn,
            told: now,
            totals: [0; syn_outcome::COUNT],
            members: Vec::new(),
            last_accept: None,
            observed: now,
            seen: Pace::new(now, 0),
            inferred: Pace::new(now, 0),
            drained_before: 0,
        }
    }

    /// SYNs that reached it: those that a request was made for, those answered with a cookie, and
    /// those dropped.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        sum(&self.totals[..syn_outcome::SYNS])
    }

    /// SYNs it dropped.
    #[must_use]
    pub fn drops(&self) -> u64 {
        sum(&self.totals[syn_outcome::ACCEPT_QUEUE_FULL..syn_outcome::SYNS])
    }

    /// Whether a record told after a moment that it listens. The last record of a closed one may have been lost.
    #[must_use]
    pub fn listens_after(&self, moment: Ktime) -> bool {
        !self.members.is_empty() && self.told > moment
    }

    /// Whether it is one address of possibly many sockets.
    #[must_use]
    pub const fn is_group(&self) -> bool {
        self.members.len() > 1
    }

    /// What is known of its acceptor. `seen` and `told_apart`: whether calls of accept(), and the
    /// queues of one group, are.
    #[must_use]
    pub fn acceptor(&self, now: Ktime, seen: bool, told_apart: bool) -> Acceptor {
        if seen || self.last_accept.is_some() {
            return Acceptor {
                coverage: AcceptCoverage::Seen,
                accepted: self.seen.total,
                per_s: self.seen.per_s(now),
                idle: self.last_accept.map(|last| now.since(last)),
            };
        }
        if self.is_group() && !told_apart {
            return Acceptor {
                coverage: AcceptCoverage::Unknown,
                accepted: 0,
                per_s: None,
                idle: None,
            };
        }
        Acceptor {
            coverage: AcceptCoverage::Inferred,
            accepted: self.inferred.total,
            per_s: self.inferred.per_s(now),
            // What was not looked at is not known to stand still.
            idle: self.inferred.grew.map(|grew| self.observed.since(grew)),
        }
    }
}

fn sum(totals: &[u64]) -> u64 {
    totals
        .iter()
        .fold(0, |sum: u64, total| sum.saturating_add(*total))
}
