//! `connect_failure`: a process wanted a connection and got an error.
//!
//! **Rule.** Opens at [`Thresholds::attempts`] failed attempts
//! of one process to one remote end for one cause, without a pause of
//! [`Thresholds::quiet_s`]; resolves after such a pause. The
//! count is the eBPF side's own total, so that rate-limited records lose nothing. What a server of this host refused
//! that was known before is told when nobody has begun to listen in its place for [`PATIENCE`].
//!
//! **Causes.** `refused`, `timed_out`, `unreachable`, `reset`, `no_port`, `denied`, `other` by the error
//! that the application is told; `cancelled` where it gave up first, after a second or more. Whether a
//! packet told it (a RST, or ICMP) or connect() itself did is evidence.
//!
//! **False positives.** A client that tries one address after another by design, of which some never
//! answer. Not judged: attempts dropped within a second, which is how clients race IPv6 against IPv4.

mod attempts;
#[cfg(test)]
pub(crate) mod claims;
mod icmp;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::{mem, net::SocketAddr, time::Duration};

use conntracer_common::{record::failure_how, stats::hook};

use self::attempts::{AttemptKey, Attempts, Cause, Syns};
pub(super) use self::attempts::{Here, Remotes, Route};
pub(super) use self::thresholds::Thresholds;
use super::{
    restart::PATIENCE,
    room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec},
};
use crate::{
    event::{Failure as Event, Retransmit, TcpState},
    finding::{FindingKind, Severity},
    id::SocketId,
    table::Bounded,
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "connect_failure",
    kind: FindingKind::new(5, "connect_failure"),
    causes: &[
        ("refused", Severity::Warning),
        ("timed_out", Severity::Warning),
        ("unreachable", Severity::Warning),
        ("reset", Severity::Warning),
        ("cancelled", Severity::Notice),
        ("no_port", Severity::Critical),
        ("denied", Severity::Warning),
        ("other", Severity::Warning),
    ],
    hooks: &[hook::STATE, hook::FAILURE, hook::RESET_RECEIVED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

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
            // Not what userspace adds of the last one.
            how: failure.how & !(failure_how::ICMP | failure_how::ANSWERED),
        }
    }
}

impl Case for Attempts {
    type Key = AttemptKey;
    type Rules = Thresholds;

    fn draft(&self, key: &AttemptKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::draft(&SPEC, key, self, at.cx))
    }

    fn news(&self) -> u64 {
        self.count
    }

    fn is_over(&mut self, _: &AttemptKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        cx.now.since(self.last) >= rules.quiet()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ConnectFailure {
    totals: Bounded<EntryKey, u64>,
    attempts: Cases<Attempts>,
    /// What each attempt under way retransmitted.
    syns: Bounded<SocketId, Syns>,
    /// When the first poll was: every hook is attached by then.
    began: Option<Ktime>,
    /// What a server of this host refused that may be about to start, each with the server's namespace.
    held: Vec<(AttemptKey, u32)>,
}

impl ConnectFailure {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            totals: Bounded::new(limits.failures),
            attempts: Cases::new(limits.failures, thresholds),
            syns: Bounded::new(limits.failures),
            began: None,
            held: Vec::new(),
        }
    }

    /// A SYN that was sent again, or was to be.
    pub(crate) fn retransmit(&mut self, retransmit: &Retransmit) {
        if retransmit.socket.state != TcpState::SynSent || retransmit.is_cumulative {
            return;
        }
        let id = retransmit.socket.id;
        if self.syns.touch(&id).is_none() {
            self.syns.insert(id, Syns::default());
        }
        let Some(syns) = self.syns.get_mut(&id) else {
            return;
        };
        syns.failures_traced |= retransmit.failures_traced;
        syns.user_timeout = retransmit.tcp.user_timeout;
        let count = if retransmit.errno == 0 {
            &mut syns.sent
        } else {
            &mut syns.failed
        };
        *count = count.saturating_add(1);
    }

    /// `here` is where this host itself dropped SYNs to the same address and port.
    pub(crate) fn failure(&mut self, failure: &Event, here: Option<Here>, cx: &mut Context<'_>) {
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
        let key = AttemptKey {
            netns: failure.socket.netns,
            pid: failure.owner.map_or(0, |owner| owner.pid),
            remote: failure.socket.remote,
            cause,
        };
        let syns = self.syns.remove(&failure.socket.id).unwrap_or_default();
        let resets_seen = self.sees_resets(failure, cx);
        let syns_forgotten = self.syns.evicted() > 0;
        let (quiet, worth) = (self.attempts.rules.quiet(), self.attempts.rules.attempts);
        let new = || Attempts::new(*failure, since);
        let Some(attempts) = self.attempts.begin(key, cx, new) else {
            return;
        };
        if !attempts.is_open() && since.since(attempts.last) >= quiet {
            **attempts = new();
        }
        attempts.add(more, failure);
        attempts.syns = syns;
        attempts.syns_forgotten = syns_forgotten;
        attempts.here = here.or(attempts.here);
        attempts.resets_seen = resets_seen;
        let is_worth = attempts.count >= worth;
        let server = match cause {
            Cause::Refused if !attempts.is_open() => cx.listeners.served(key.netns, key.remote),
            _ => None,
        };
        if let Some(netns) = server {
            if is_worth && !self.held.iter().any(|(held, _)| *held == key) {
                self.held.push((key, netns));
            }
            return;
        }
        self.attempts.judge(&key, is_worth, cx);
    }
}

impl ConnectFailure {
    /// Tells of attempts that were refused where a server of this host has ended, and nobody listens in its place.
    fn tell_refused(&mut self, patience: Duration, cx: &mut Context<'_>) {
        for (key, netns) in mem::take(&mut self.held) {
            let Some(attempts) = self.attempts.get(&key) else {
                continue;
            };
            let since = attempts.since;
            if cx.listeners.has_begun((netns, key.remote.port()), since) {
                self.attempts.take(&key);
            } else if cx.now.since(since) >= patience {
                self.attempts.raise(&key, cx);
            } else {
                self.held.push((key, netns));
            }
        }
    }

    /// Whether a RST that ended an attempt would have been seen: its hook was attached then, and nothing of it was lost.
    fn sees_resets(&self, failure: &Event, cx: &Context<'_>) -> bool {
        cx.hears(hook::RESET_RECEIVED) && self.began.is_some_and(|began| failure.last >= began)
    }
}

impl Room for ConnectFailure {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.attempts]
    }

    fn judge(&mut self, cx: &mut Context<'_>) {
        self.began = self.began.or(Some(cx.now));
        self.tell_refused(PATIENCE, cx);
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        self.tell_refused(Duration::ZERO, cx);
    }

    fn forget_netns(&mut self, netns: u32) {
        self.held
            .retain(|(key, server)| key.netns != netns && *server != netns);
    }

    fn evicted(&self) -> (&'static str, u64) {
        let evicted = self.totals.evicted();
        (
            "failures_evicted",
            evicted.saturating_add(self.attempts.evicted()),
        )
    }
}
