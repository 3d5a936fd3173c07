//! `connection_drop`: how established connections died.
//!
//! **Rule.** Every connection that did not end with the FINs of both sides has a cause. Those of one
//! process that died alike, of connections to one remote end or of one listener, are one finding: it opens
//! at [`Thresholds::connections`] and resolves when none
//! followed for [`Thresholds::quiet_s`].
//!
//! **Causes.** `reset_received`; `reset_sent` (the process ended, closed with unread data, `SO_LINGER` 0, a listener
//! closed before accept(), disconnected, MPTCP); `timed_out` (data, keepalive or window probes unanswered, a user
//! timeout); `unreachable` (timed out, and ICMP had said why, or this host had no route); `aborted` (killed by `ss -K`,
//! too many orphans or too little memory). How exactly is the evidence `how`.
//!
//! **Claims.** What is said is what the fields exclude the look-alikes of; otherwise the candidates are named, with this
//! host's first, and the check that decides. Who sent a RST is asked of this host's own TCP (`ends`). An idle timeout is
//! named where three or more pauses of at least [`Thresholds::idle_s`] agree that one event does not explain, and by
//! whose (`group`); it adds to the advice, and replaces none.
//!
//! A server that ended as it was asked to (status 0, or SIGHUP, SIGINT or SIGTERM) may be a restart: its connections
//! are told of when nothing has begun to listen at its port for [`PATIENCE`]. So are those of clients that write to a server
//! which is gone.
//!
//! **False positives.** Programs that end connections with a RST by design (load testers). Not judged: a RST in answer
//! to the last FIN, when the peer had acknowledged all data; and checks whether somebody listens, which carry nothing
//! and are reset by who opened them within [`Thresholds::check_s`].

mod advice;
#[cfg(test)]
pub(crate) mod claims;
mod deaths;
mod ends;
mod group;
mod how;
mod phrase;
mod restart;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::{mem, time::Duration};

use conntracer_common::{record::close_flag, stats::hook};

pub(super) use self::thresholds::Thresholds;
use self::{
    deaths::{DeathKey, Place},
    ends::{By, End, Ends},
    group::Deaths,
    how::{How, Met},
    restart::{Held, Restarts},
};
use super::dropped_here;
use super::restart::PATIENCE;
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{
    event::{Close as Event, Side},
    finding::{FindingKind, Severity},
    table::dropped::Whose,
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "connection_drop",
    kind: FindingKind::new(6, "connection_drop"),
    causes: &[
        ("timed_out", Severity::Warning),
        ("unreachable", Severity::Warning),
        ("reset_received", Severity::Warning),
        ("reset_sent", Severity::Warning),
        ("aborted", Severity::Warning),
        (dropped_here::CAUSE, Severity::Critical),
    ],
    hooks: &[hook::STATE, hook::RESET_RECEIVED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

impl Case for Deaths {
    type Key = DeathKey;
    type Rules = Thresholds;

    fn draft(&self, key: &DeathKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::draft(&SPEC, key, self, at.rules, at.cx))
    }

    fn news(&self) -> u64 {
        self.count
    }

    fn is_over(&mut self, _: &DeathKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        cx.now.since(self.last) >= rules.quiet()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ConnectionDrop {
    deaths: Cases<Deaths>,
    ends: Ends,
    restarts: Restarts,
}

impl ConnectionDrop {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            deaths: Cases::new(limits.drops, thresholds),
            ends: Ends::new(),
            restarts: Restarts::default(),
        }
    }

    /// The end of a connection. `delay`: the finding that says why connections wait for accept() where it came to.
    pub(crate) fn close(&mut self, ending: &Event, delay: Option<u64>, cx: &mut Context<'_>) {
        let Some(how) = How::of(ending, cx.host) else {
            return;
        };
        let (now, rules) = (cx.now, &self.deaths.rules);
        if deaths::is_check(ending, how, rules) {
            return;
        }
        let is_received = how == How::ResetReceived;
        let key = DeathKey {
            netns: ending.socket.netns,
            pid: ending.owner.map_or(0, |owner| owner.pid),
            place: Place::of(&ending.socket),
            how,
            subflow: ending.has(close_flag::SUBFLOW),
            met: is_received.then(|| Met::of(ending, rules)),
            by: if is_received {
                self.ends.sender(ending, cx)
            } else {
                By::NotAsked
            },
        };
        let other = self.ends.other(ending, now).copied();
        self.ends.add(ending, how, now);
        let told = match Held::of(key, ending, other, cx.listeners, now) {
            Some(held) => self.restarts.hold(&held),
            None => return self.tell(key, ending, (other.as_ref(), delay), now, cx),
        };
        if let Some(held) = told {
            self.tell_held(&held, cx);
        }
    }

    fn tell_held(&mut self, held: &Held, cx: &mut Context<'_>) {
        self.tell(
            held.key,
            &held.ending,
            (held.other.as_ref(), None),
            held.at,
            cx,
        );
    }

    /// A death of `at`.
    fn tell(
        &mut self,
        key: DeathKey,
        ending: &Event,
        (other, delay): (Option<&End>, Option<u64>),
        at: Ktime,
        cx: &mut Context<'_>,
    ) {
        let (quiet, worth) = (self.deaths.rules.quiet(), self.deaths.rules.connections);
        let silent = ending.unanswered.unwrap_or_default();
        let here = cx.dropped_of(&Whose::seen(&ending.socket, &ending.tcp), at.before(silent));
        // Which may be another's than the event's, where it was held until now.
        let met = mem::replace(&mut cx.met, Side::of(&ending.socket));
        let begun = self.deaths.begin(key, cx, || Deaths::new(ending, at));
        cx.met = met;
        let Some(deaths) = begun else {
            return;
        };
        if !deaths.is_open() && at.since(deaths.last) >= quiet {
            **deaths = Deaths::new(ending, at);
        }
        deaths.add(ending, other, at);
        deaths.delay = delay.filter(|_| key.how == How::GaveUp);
        if key.how.cause() == "timed_out" {
            deaths.lost(here);
        }
        let is_worth = deaths.count >= worth;
        self.deaths.judge(&key, is_worth, cx);
    }

    fn tell_over(&mut self, patience: Duration, cx: &mut Context<'_>) {
        for held in self.restarts.take_over(cx.now, patience, cx.listeners) {
            self.tell_held(&held, cx);
        }
    }
}

impl Room for ConnectionDrop {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.deaths]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("drops_evicted", self.deaths.evicted())
    }

    fn judge(&mut self, cx: &mut Context<'_>) {
        self.tell_over(PATIENCE, cx);
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        self.tell_over(Duration::ZERO, cx);
    }

    fn forget_netns(&mut self, netns: u32) {
        self.restarts.forget_netns(netns);
    }
}
