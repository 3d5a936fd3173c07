//! `accept_delay`: connections that are complete wait for accept(), and why nobody takes them.
//!
//! **Rule.** Opens when the oldest connection in a listener's accept queue has waited for
//! [`Thresholds::wait_ms`], whatever the length of the queue: one that is never empty and moves is a busy server's. Stays
//! open while one waits half as long, resolves [`Thresholds::quiet_s`] after. The queues themselves are looked at, so that
//! a full one from before conntracer is seen at the start, without a SYN, and on every hook type. Nothing is opened while
//! [`super::syn_drop`] tells of the same listener's full queue: it says why by itself, and points here where this finding
//! is the older one.
//!
//! **Causes.** `no_descriptors` (the process has as many as it may: accept() fails), `stopped` (by a signal, a debugger, a
//! frozen control group, a CPU quota), `never_accepts` (nobody has accepted since it listens, and the process that holds
//! it is not the one that called listen(), or it has listened for [`Thresholds::begin_s`]), `slow` (all else: it accepts
//! too seldom, or nothing is known to hinder it).
//!
//! **Count.** The most that waited at one socket at once.
//!
//! **False positives.** A server that waits on purpose, with as many connections as it wants. Its clients wait all the
//! same.

#[cfg(test)]
pub(crate) mod claims;
mod delay;
mod queue;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use conntracer_common::stats::hook;

use self::delay::{Cause, Delay};
pub(super) use self::thresholds::Thresholds;
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{
    event::{AcceptQueue, Syn, TcpState},
    finding::FindingKind,
    id::SocketId,
    table::listener::ListenerKey,
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "accept_delay",
    kind: FindingKind::new(7, "accept_delay"),
    causes: Cause::ALL,
    // Which listeners there are; their queues are looked at.
    hooks: &[hook::STATE, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// Who holds a listener is searched for at once, and how they stand is looked at by the end of the same poll, unless there
/// is much else to look for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Without a look for so long, there is no listener any more: looks are 2 s apart at most.
const GONE: Duration = Duration::from_secs(10);

impl Case for Delay {
    type Key = ListenerKey;
    type Rules = Thresholds;

    fn draft(&self, key: &ListenerKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        words::draft(&SPEC, key, self, at.status, at.cx)
    }

    /// Each time that a figure has doubled, and once when something is accepted.
    fn news(&self) -> u64 {
        let (fins, resets) = self.ended();
        let steps = [
            u64::from(self.peak),
            fins.saturating_add(resets),
            self.longest.as_secs(),
        ]
        .map(|figure| {
            u64::from(
                figure
                    .checked_ilog2()
                    .map_or(0, |log| log.saturating_add(1)),
            )
        });
        steps.iter().sum::<u64>().saturating_add(self.takes.into())
    }

    fn has_other_news(&self) -> bool {
        self.cause != self.said_cause
    }

    fn told(&mut self) {
        self.said_cause = self.cause;
    }

    fn is_over(&mut self, _: &ListenerKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        // A slow host looks seldom. A listener that is gone is not looked at any more.
        let looked = self.looked();
        let is_calm = looked > self.last && cx.now.since(self.last) >= rules.quiet();
        is_calm || cx.now.since(looked) >= GONE.max(rules.quiet())
    }

    fn is_idle(&self, rules: &Thresholds, now: Ktime) -> bool {
        now.since(self.last) >= rules.quiet()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AcceptDelay {
    delays: Cases<Delay>,
    /// Worth a finding, which waits for a look at those who hold the listener.
    pending: BTreeSet<ListenerKey>,
}

impl AcceptDelay {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            delays: Cases::new(limits.listeners, thresholds),
            pending: BTreeSet::new(),
        }
    }

    /// Listeners whose queues are to be told of, however short the wait.
    pub(crate) fn watched(&self) -> Vec<SocketId> {
        self.delays
            .open()
            .flat_map(|(_, delay)| delay.queues.keys().copied())
            .collect()
    }

    /// The finding that tells of a listener's connections.
    pub(super) fn finding(&self, listener: &ListenerKey) -> Option<u64> {
        self.delays.get(listener)?.id()
    }

    /// The same of the listener that a connection came to.
    pub(super) fn finding_at(&self, netns: u32, local: SocketAddr) -> Option<u64> {
        let is_its = |key: &ListenerKey| {
            let ip = key.local.ip();
            key.netns == netns
                && key.local.port() == local.port()
                && (ip == local.ip() || ip.is_unspecified())
        };
        let mut open = self.delays.open().filter(|(key, _)| is_its(key));
        open.next().and_then(|(_, delay)| delay.id())
    }

    /// A look at a queue. `told`: another finding tells why this listener's queue is full.
    pub(crate) fn accept_queue(&mut self, look: &AcceptQueue, told: bool, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&look.socket);
        let now = cx.now;
        cx.met = look.side();
        let quiet = self.delays.rules.quiet();
        let is_stale = |delay: &Delay| now.since(delay.last) >= quiet;
        let known = self.delays.get(&key);
        if known.is_some_and(|delay| !delay.is_open() && is_stale(delay)) {
            self.delays.take(&key);
        }
        if !look.is_late && self.delays.get(&key).is_none() {
            return;
        }
        let rules = self.delays.rules.clone();
        let begun = self.delays.begin(key, cx, || Delay::new(look, now));
        let Some(delay) = begun else { return };
        delay.see(&key, look, &rules, cx);
        let is_open = delay.is_open();
        self.delays.judge(&key, false, cx);
        if is_open || told || !look.is_late {
            self.pending.remove(&key);
        } else {
            self.pending.insert(key);
            self.raise(PATIENCE, cx);
        }
    }

    /// Opens what is worth a finding, where it is known who holds the listener or has been asked for so long.
    fn raise(&mut self, patience: Duration, cx: &mut Context<'_>) {
        for key in std::mem::take(&mut self.pending) {
            let rules = self.delays.rules.clone();
            let Some(delay) = self.delays.get_mut(&key) else {
                continue;
            };
            delay.look_again(&key, &rules, cx);
            if delay.is_known() || cx.now.since(delay.begun) >= patience {
                self.delays.raise(&key, cx);
            } else {
                self.pending.insert(key);
            }
        }
    }

    /// A listener's record: one that closes has no queue any more.
    pub(crate) fn syn(&mut self, syn: &Syn, cx: &mut Context<'_>) {
        if syn.socket.state != TcpState::Close {
            return;
        }
        let key = ListenerKey::of(&syn.socket);
        let Some(delay) = self.delays.get_mut(&key) else {
            return;
        };
        self.pending.remove(&key);
        let is_last = delay.queues.keys().all(|id| *id == syn.socket.id);
        if is_last {
            self.delays.end(&key, cx);
        } else {
            delay.queues.remove(&syn.socket.id);
        }
    }
}

impl Room for AcceptDelay {
    fn judge(&mut self, cx: &mut Context<'_>) {
        self.raise(PATIENCE, cx);
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        self.raise(Duration::ZERO, cx);
    }

    fn forget_netns(&mut self, netns: u32) {
        self.pending.retain(|key| key.netns != netns);
    }

    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.delays]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("listeners_evicted", self.delays.evicted())
    }
}
