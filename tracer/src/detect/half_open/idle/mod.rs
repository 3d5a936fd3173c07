//! `half_open` / `idle_without_keepalive`, `idle_without_timer`: connections that would not notice the death of
//! their peer, found by an audit (`--audit keepalive`).
//!
//! **Rule.** An audit tells of every connection on which no data has passed for
//! [`Thresholds::idle_after_s`], and which is established and has keepalive
//! off, or has bytes (or a FIN) to deliver and no timer that would try. They are grouped by process. Opens at the first; resolves when an audit
//! finds none. The count is how many there are; of a resolved finding, how many there were at most.
//!
//! **Reading.** `idle_without_keepalive` says nothing about the peers: they may be well. It says that this host
//! cannot know, which is how half-open connections last for days. `idle_without_timer` is a connection that the
//! kernel has forgotten to send on.
//!
//! **False positives.** Protocols that speak seldom and check their peers by themselves (a heartbeat slower than
//! the limit); raise the limit there.

#[cfg(test)]
pub(crate) mod claims;
mod group;
#[cfg(test)]
mod tests;
mod words;

use std::{mem, time::Duration};

use conntracer_common::stats::hook;

use self::group::{Found, Group, GroupKey};
use super::{KIND, thresholds::Thresholds};
use crate::{
    detect::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec},
    event::{Idle as Event, IdleTotals},
    finding::{Severity, Status},
};

pub(crate) static SPEC: Spec = Spec {
    detector: "half_open.idle",
    kind: KIND,
    causes: &[
        ("idle_without_keepalive", Severity::Notice),
        ("idle_without_timer", Severity::Notice),
    ],
    hooks: &[hook::STATE, hook::DESTROY, hook::SEED],
    // A connection that they had no room for is not looked at.
    losses: &[hook::CONNECT, hook::ACK],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

impl Case for Group {
    type Key = GroupKey;
    type Rules = Thresholds;

    fn draft(&self, key: &GroupKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        let count = if at.status == Status::Resolved {
            self.peak
        } else {
            self.found.count
        };
        Some(words::draft(&SPEC, key, self, count, at.cx))
    }

    fn news(&self) -> u64 {
        self.found.count
    }

    /// An audit tells, and not the time.
    fn is_over(&mut self, _: &GroupKey, _: &Thresholds, _: &Context<'_>) -> bool {
        false
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Idle {
    groups: Cases<Group>,
}

impl Idle {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            groups: Cases::new(limits.processes, thresholds),
        }
    }

    pub(crate) fn idle(&mut self, event: &Event, cx: &mut Context<'_>) {
        // A recording may be judged again by a longer limit.
        if event.idle < Duration::from_secs(self.groups.rules.idle_after_s) {
            return;
        }
        let key = GroupKey {
            netns: event.socket.netns,
            pid: event.owner.map_or(0, |owner| owner.pid),
            without_timer: event.without_timer,
        };
        let now = cx.now;
        let new = || Group {
            owner: event.owner,
            finding: Found::default(),
            found: Found::default(),
            limit: Duration::ZERO,
            peak: 0,
            since: now,
        };
        if let Some(group) = self.groups.begin(key, cx, new) {
            group.owner = event.owner.or(group.owner);
            group.finding.add(event);
        }
    }

    /// An audit ends: what it did not tell of is gone, unless it lost some.
    pub(crate) fn idle_totals(&mut self, event: &IdleTotals, cx: &mut Context<'_>) {
        let keys: Vec<GroupKey> = self.groups.iter().map(|(key, _)| *key).collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else {
                continue;
            };
            let found = mem::take(&mut group.finding);
            if found.count > 0 {
                group.limit = event.limit;
                group.peak = group.peak.max(found.count);
                group.found = found;
                self.groups.judge(&key, true, cx);
            } else if event.lost == 0 {
                self.groups.end(&key, cx);
            }
        }
    }
}

impl Room for Idle {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.groups]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("processes_evicted", self.groups.evicted())
    }
}
