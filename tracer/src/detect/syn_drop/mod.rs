//! `syn_drop` and `syn_cookies`: a listener turned clients away, and why.
//!
//! **Rule.** Opens at the first drop of a cause at a listener, stays open while that cause drops,
//! resolves after [`Thresholds::quiet_s`] without one. The count is the eBPF side's own total
//! of that cause since the finding began, so that rate-limited records lose nothing.
//!
//! **Causes.** `accept_queue_full` (the SYN found the accept queue full), `ack_overflow` (the third
//! ACK did: the client believes it is connected, and counts once however often it retransmits its ACK),
//! `abort_on_overflow` (the same where `tcp_abort_on_overflow` answers with a RST), `syn_queue_full`,
//! `syn_queue_pressure` (the last quarter of `tcp_max_syn_backlog`), `no_route` (back to the client),
//! `no_memory` (no socket was made of a third ACK that found room in the queue), `other` (a SYN refused by a
//! security module, or for want of memory). A listener is an address, with all the sockets that share it (`SO_REUSEPORT`): the worst of
//! them, which dropped the most, lends its queue to the words. A cookie in place of a stored request is `syn_cookies`: service goes on, without window
//! scaling and SACK where timestamps are off.
//!
//! **Flood.** What fills the SYN queue may be a flood: [`super::half_open::handshake`] says so, and a
//! finding about that queue points to its finding.
//!
//! **False positives.** None known for drops: each one cost a client at least a second. Cookies are
//! not reported where `tcp_syncookies` is 2, which asks for them always.

#[cfg(test)]
pub(crate) mod claims;
mod drops;
mod scene;
#[cfg(test)]
mod tests;
pub(crate) mod thresholds;
mod why;
mod words;

use std::time::Duration;

use conntracer_common::{record::syn_outcome, stats::hook};

pub(crate) use self::scene::summaries;
use self::{
    drops::{Cause, DropKey, Drops},
    scene::Scene,
};
pub(super) use self::{
    scene::{sees_accepts, tells_members_apart},
    why::Hindrance,
    words::processes,
};
pub(super) use self::{thresholds::Thresholds, why::Why};
use super::connect_failure::{Here, Route};
use super::room::{Case, Cases, Context, Draft, Entry, Limits, Open, Room, Saying, Spec};
use crate::{
    event::Syn,
    finding::{FindingKind, Severity},
    table::listener::{Applied, ListenerKey, Service},
};

/// Of a listener's drops, and of those before one.
pub(super) const KIND: FindingKind = FindingKind::new(0, "syn_drop");

pub(super) static SPEC: Spec = Spec {
    detector: "syn_drop",
    kind: KIND,
    causes: &[
        ("accept_queue_full", Severity::Critical),
        ("ack_overflow", Severity::Critical),
        ("abort_on_overflow", Severity::Critical),
        ("syn_queue_full", Severity::Critical),
        ("syn_queue_pressure", Severity::Critical),
        ("no_route", Severity::Critical),
        ("no_memory", Severity::Critical),
        ("other", Severity::Warning),
    ],
    hooks: &[hook::SYN, hook::ACK, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

pub(super) static COOKIES: Spec = Spec {
    detector: "syn_cookies",
    kind: FindingKind::new(1, "syn_cookies"),
    causes: &[("syn_queue_full", Severity::Warning)],
    // What they tell of the queues and of accept() is from all of these.
    hooks: &[hook::SYN, hook::ACK, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: "",
};

/// After a drop, a queue that nobody empties is taken for full this long: a look of a poll comes a second later.
const STILL_FULL: Duration = Duration::from_millis(1500);

impl Drops {
    /// What the last look at the processes of the socket that dropped the most showed.
    fn looked_at(&self, key: &ListenerKey, cx: &Context<'_>) -> Option<Why> {
        let (socket, _) = self.worst()?;
        cx.acceptors(key, socket).map(Why::of)
    }

    /// The words for it, with the listener as it is, or as it was when it had to make room.
    fn draft_at(&self, (key, cause): &DropKey, service: &Service, cx: &Context<'_>) -> Draft {
        let spec = match cause {
            Cause::Cookies => &COOKIES,
            _ => &SPEC,
        };
        words::draft(spec, &Scene::of(key, service, self, cx), *cause, cx)
    }
}

impl Case for Drops {
    type Key = DropKey;
    type Rules = Thresholds;

    fn draft(&self, key: &DropKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(self.draft_at(key, at.cx.listeners.get(&key.0)?, at.cx))
    }

    fn news(&self) -> u64 {
        self.moved()
    }

    fn has_other_news(&self) -> bool {
        self.flood != self.said_flood || self.hindrance() != self.said_why
    }

    fn told(&mut self) {
        self.said_flood = self.flood;
        self.said_why = self.hindrance();
    }

    fn is_over(&mut self, key: &DropKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        let silent = cx.now.since(self.last);
        if key.1.is_of_accept_queue() && silent < STILL_FULL {
            let why = self.looked_at(&key.0, cx);
            self.remember(None, why);
        }
        silent >= rules.quiet()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SynDrop {
    /// Only of listeners that are in the table, too, which bounds them.
    drops: Cases<Drops>,
}

impl SynDrop {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        let all = limits.listeners.saturating_mul(Cause::ALL.len());
        Self {
            drops: Cases::new(all, thresholds),
        }
    }

    /// A listener's record, what it changed in the table, the finding that says the listener is flooded, and the one
    /// that says why nobody accepts from it.
    pub(crate) fn syn(
        &mut self,
        syn: &Syn,
        applied: &Applied,
        (flood, delay): (Option<u64>, Option<u64>),
        cx: &mut Context<'_>,
    ) {
        if let Some((key, service)) = &applied.gone {
            for cause in Cause::ALL {
                let key = (*key, cause);
                if let Some(drops) = self.drops.take(&key) {
                    Cases::close_as(&drops, drops.draft_at(&key, service, cx), cx);
                }
            }
        }
        let listener = ListenerKey::of(&syn.socket);
        let met = cx.met;
        for cause in Cause::ALL {
            // The client of a SYN that was added is none of those whose SYNs were dropped before.
            cx.met = met.filter(|_| syn.outcome.is_none_or(|outcome| cause.is_told_by(outcome)));
            self.drop(
                syn,
                (listener, cause),
                applied,
                (
                    flood.filter(|_| cause.is_of_syn_queue()),
                    delay.filter(|_| cause.is_of_accept_queue()),
                ),
                cx,
            );
        }
        cx.met = met;
    }

    /// The open finding of the listener of this host that turned an attempt away.
    pub(super) fn turned_away(&self, attempt: &Route) -> Option<Here> {
        let (key, entry) = self.drops.open().find(|((listener, cause), drops)| {
            let at = listener.local;
            *cause != Cause::Cookies
                && at.port() == attempt.to.port()
                && (at.ip() == attempt.to.ip() || at.ip().is_unspecified())
                && drops.remotes.met(attempt, listener.netns)
        })?;
        Some(Here {
            netns: key.0.netns,
            finding: entry.id()?,
            cause: key.1.name(),
        })
    }

    /// Whether an open finding says why a listener's accept queue is full.
    pub(super) fn tells_of_queue(&self, listener: &ListenerKey) -> bool {
        Cause::ALL
            .into_iter()
            .filter(|cause| cause.is_of_accept_queue())
            .filter_map(|cause| self.drops.get(&(*listener, cause)))
            .any(Entry::is_open)
    }

    fn drop(
        &mut self,
        syn: &Syn,
        key: DropKey,
        applied: &Applied,
        (flood, delay): (Option<u64>, Option<u64>),
        cx: &mut Context<'_>,
    ) {
        let (_, cause) = key;
        let known = self.drops.get_mut(&key).map(|drops| drops.flood = flood);
        let more = cause.of(&applied.gained);
        let acks = if cause.is_of_ack() && (more > 0 || known.is_some()) {
            applied.gained[syn_outcome::ACK_OVERFLOW]
        } else {
            0
        };
        if (more == 0 && acks == 0) || (cause == Cause::Cookies && syn.syncookies == Some(2)) {
            return;
        }
        let now = cx.now;
        let new = || Drops {
            since: now,
            flood,
            ..Drops::default()
        };
        let Some(drops) = self.drops.begin(key, cx, new) else {
            return;
        };
        drops.delay = delay;
        drops.count = drops.count.saturating_add(more);
        drops.share(syn.socket.id, more);
        drops.acks = drops.acks.saturating_add(acks);
        drops.last = now;
        if cx.met.is_some() {
            drops.remotes.add(syn.socket.remote);
        }
        drops.by_fields |= !syn.by_counters;
        if cause.is_of_accept_queue() {
            let acceptor = cx
                .listeners
                .get(&key.0)
                .map(|service| scene::acceptor(service, cx));
            let why = drops.looked_at(&key.0, cx);
            drops.remember(acceptor, why);
        }
        self.drops.judge(&key, true, cx);
    }
}

impl Room for SynDrop {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.drops]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("listeners_evicted", self.drops.evicted())
    }
}
