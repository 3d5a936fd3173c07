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
//! **False positives.** Programs that end connections with a RST by design (load testers). Not judged: a RST in answer
//! to the last FIN, when the peer had acknowledged all data; and checks whether somebody listens, which carry nothing
//! and are reset by who opened them within [`Thresholds::check_s`].

mod advice;
#[cfg(test)]
mod claims;
mod deaths;
mod ends;
mod group;
mod how;
mod phrase;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use conntracer_common::{record::close_flag, stats::hook};

pub(super) use self::thresholds::Thresholds;
use self::{
    deaths::{DeathKey, Place},
    ends::{By, Ends},
    group::Deaths,
    how::{How, Met},
};
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{event::Close as Event, finding::FindingKind};

pub(super) static SPEC: Spec = Spec {
    detector: "connection_drop",
    kind: FindingKind::new(6, "connection_drop"),
    causes: &[
        "timed_out",
        "unreachable",
        "reset_received",
        "reset_sent",
        "aborted",
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
}

impl ConnectionDrop {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            deaths: Cases::new(limits.drops, thresholds),
            ends: Ends::new(),
        }
    }

    pub(crate) fn close(&mut self, ending: &Event, cx: &mut Context<'_>) {
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
        let (quiet, worth) = (rules.quiet(), rules.connections);
        let Some(deaths) = self.deaths.begin(key, cx, || Deaths::new(ending, now)) else {
            return;
        };
        if !deaths.is_open() && now.since(deaths.last) >= quiet {
            **deaths = Deaths::new(ending, now);
        }
        deaths.add(ending, other.as_ref(), now);
        let is_worth = deaths.count >= worth;
        self.deaths.judge(&key, is_worth, cx);
    }
}

impl Room for ConnectionDrop {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.deaths]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("drops_evicted", self.deaths.evicted())
    }
}
