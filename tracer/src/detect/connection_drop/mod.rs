//! `connection_drop`: how established connections died.
//!
//! **Rule.** Every connection that did not end with the FINs of both sides has a cause. Those of one
//! process that died alike, of connections to one remote end or of one listener, are one finding: it opens
//! at [`Thresholds::connections`] and resolves when none
//! followed for [`Thresholds::quiet_s`].
//!
//! **Causes.** `reset_received`; `reset_sent` (closed with unread data, `SO_LINGER` 0, a listener closed
//! before accept(), disconnected); `timed_out` (data, keepalive or window probes unanswered, a user
//! timeout); `unreachable` (timed out, and ICMP had said why); `aborted` (killed by `ss -K`, too many
//! orphans or too little memory). How exactly is the evidence `how`.
//!
//! **Pattern.** Three or more that were all idle for nearly the same time, of at least
//! [`Thresholds::idle_s`], were ended by somebody's idle timeout.
//!
//! **False positives.** Programs that end connections with a RST by design (health checks, load testers).
//! Not judged: a RST in answer to the last FIN, when the peer had acknowledged all data.

mod deaths;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use conntracer_common::stats::hook;

use self::deaths::{DeathKey, Deaths, How, Place};
pub(super) use self::thresholds::Thresholds;
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{
    event::{Close as Event, Role},
    finding::FindingKind,
};

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
}

impl ConnectionDrop {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            deaths: Cases::new(limits.drops, thresholds),
        }
    }

    pub(crate) fn close(&mut self, ending: &Event, cx: &mut Context<'_>) {
        let Some(how) = How::of(ending) else {
            return;
        };
        let socket = &ending.socket;
        let key = DeathKey {
            netns: socket.netns,
            pid: ending.owner.map_or(0, |owner| owner.pid),
            place: match socket.role {
                Role::Active => Place::Service(socket.remote),
                Role::Passive => Place::Listener(socket.local),
                Role::Unknown | Role::Listener => Place::Remote(socket.remote.ip()),
            },
            how,
        };
        let now = cx.now;
        let (quiet, worth) = (self.deaths.rules.quiet(), self.deaths.rules.connections);
        let Some(deaths) = self.deaths.begin(key, cx, || Deaths::new(ending, now)) else {
            return;
        };
        if !deaths.is_open() && now.since(deaths.last) >= quiet {
            **deaths = Deaths::new(ending, now);
        }
        deaths.add(ending, now);
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
