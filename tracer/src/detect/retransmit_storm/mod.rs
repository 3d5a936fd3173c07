//! `retransmit_storm`: so many segments are sent again that it is a condition, not an accident.
//!
//! **Rule.** Per connection, remote address, network, listener, process, network namespace and host: the rate over the last 3 s reaches the scope's
//! floor and a multiple of what is usual there (learned outside of storms), retransmissions are at least [`Thresholds::ratio`] of what the connections sent, and
//! they come for longer than one burst. Opens at the segment that crosses (`onset`), updates as it
//! grows (`peak`), resolves when the rate stayed below half the floor for
//! [`Thresholds::quiet_s`] (`end`).
//!
//! A connection whose window loss alone keeps small (`costly`) is worth one whatever its rate and ratio.
//!
//! **Scope.** The narrowest of these, in this order, that explains it: a wider scope stays silent while one narrower scope
//! holds [`Thresholds::explained`] of its segments, and a narrower one once the wider is open.
//!
//! **Count.** Every segment the scope sent again since its activity began, from before the opening to
//! the end, so that it equals `Tcp RetransSegs` of a namespace that has just this storm. What did not
//! leave the host (`tcp_retransmit_skb` with an error, or before Linux 6.17 only `total_retrans`) is counted
//! apart, and in the count of `local_drop` alone, of which it is the matter. Apart is what was retransmitted unnecessarily, too, which is part of the count: the peer says that it came twice
//! (duplicate SACKs, RFC 2883), or the kernel finds out first and takes back what it did about the loss.
//! Connections are counted in the kernel, and their records cumulative: a record that is lost takes nothing
//! away. What the eBPF side missed is in the count by `total_retrans`, without a type; before Linux 6.17 it cannot be
//! told from what did not leave the host.
//! Retransmitted SYN-ACKs count, but open nothing: `half_open` / `handshake` tells what they mean. Those
//! of a flood, of which not every one is a record, are in the host's count from the listeners' totals, and
//! in no other.
//!
//! **Cause.** From the whole count so far (`cause`). One that is told apart by what fails outlasts the
//! repair, in which the rest comes through and reads like loss.
//!
//! **False positives.** A link that loses several percent by nature; raise the ratio there. A burst
//! that is repaired at once, stray tail loss probes and RTO backoff of a single dead peer open
//! nothing.

mod activity;
mod cause;
#[cfg(test)]
pub(crate) mod claims;
mod costly;
#[cfg(test)]
mod counted;
mod course;
mod interfaces;
mod scope;
mod scoped;
mod segments;
mod spurious;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::{iter, time::Duration};

use conntracer_common::{
    record::{RetransmitTotals, SynTotals, syn_outcome},
    stats::hook,
};

pub(super) use self::thresholds::Thresholds;
use self::{
    activity::Rates,
    cause::Cause,
    costly::Costly,
    course::Course,
    interfaces::Interfaces,
    scope::{LEVELS, Scope, Wider, levels},
    scoped::{OfConnection, Scoped},
    segments::Segments,
    spurious::{Spurious, Undone},
};
use super::dropped_here;
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{
    event::{Owner, Retransmit, RetransmitType, SynAck, TcpState, Undo},
    finding::{FindingKind, Severity},
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey},
    },
    time::Ktime,
};

const KIND: FindingKind = FindingKind::new(3, "retransmit_storm");

pub(super) static SPEC: Spec = Spec {
    detector: "retransmit_storm",
    kind: KIND,
    causes: &[
        ("peer_unreachable", Severity::Warning),
        ("path_loss", Severity::Warning),
        ("path_mtu", Severity::Critical),
        ("local_drop", Severity::Critical),
        ("receiver_stalled", Severity::Warning),
        ("reordering", Severity::Notice),
        ("unknown", Severity::Warning),
        ("syns_unanswered", Severity::Warning),
        (dropped_here::CAUSE, Severity::Critical),
    ],
    hooks: &[hook::RETRANSMIT, hook::SYNACK],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

pub(super) static REORDERING: Spec = Spec {
    detector: "retransmit_storm.reordering",
    kind: KIND,
    causes: &[("reordering", Severity::Notice)],
    hooks: &[hook::RETRANSMIT, hook::SYNACK, hook::UNDO],
    losses: &[],
    section: Thresholds::SECTION,
    explain: "",
};

/// Four times what the eBPF side keeps: what is still counted there is not forgotten here.
const MAX_TOTALS: usize = 32_768;

/// Up to this age everything a connection sent belongs to its first retransmission's ratio.
const YOUNG: Duration = Duration::from_secs(10);

/// Cumulative records of one connection as last told.
#[derive(Debug, Default)]
struct LastTotals {
    totals: RetransmitTotals,
    undone: Undone,
}

impl Case for Scoped {
    type Key = Scope;
    type Rules = Thresholds;

    fn draft(&self, key: &Scope, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        let spec = match self.activity.cause() {
            Cause::Reordering => &REORDERING,
            _ => &SPEC,
        };
        words::draft(spec, key, self, at.status, at.rules, at.cx)
    }

    fn news(&self) -> u64 {
        self.activity.news()
    }

    fn told(&mut self) {
        self.activity.told = Some(self.activity.cause());
    }

    fn is_over(&mut self, _: &Scope, rules: &Thresholds, cx: &Context<'_>) -> bool {
        self.activity.is_over(rules.quiet(), cx.now)
    }

    fn is_idle(&self, rules: &Thresholds, now: Ktime) -> bool {
        now.since(self.activity.last) >= rules.quiet()
    }

    fn begins_anew(&mut self, now: Ktime) -> bool {
        self.activity.renew(now);
        true
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RetransmitStorm {
    /// Kept when a connection's activity is over: what it retransmits later adds to them.
    totals: Bounded<ConnectionKey, LastTotals>,
    connections: Cases<Scoped>,
    wider: Cases<Scoped>,
    /// Retransmitted SYN-ACKs counted as records, and as the listeners' totals tell.
    syn_acks: [u64; 2],
}

impl RetransmitStorm {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            totals: Bounded::new(MAX_TOTALS),
            connections: Cases::new(limits.connections, thresholds.clone()),
            wider: Cases::new(limits.remotes, thresholds),
            syn_acks: [0; 2],
        }
    }

    pub(crate) fn retransmit(
        &mut self,
        at: Ktime,
        body: &Retransmit,
        change: Option<&Change<'_>>,
        cx: &mut Context<'_>,
    ) {
        // One that ended meanwhile is as its record says.
        let connection = &change.map_or_else(
            || Connection::seen(&body.socket, body.owner, body.tcp, at),
            |change| *change.connection,
        );
        let key = connection.key;
        let gained = self.gained(key, body);
        if gained.events == 0 {
            return;
        }
        let mut segments = Segments::of(&gained, body.failures_traced);
        segments.interfaces = Interfaces::of(body.socket.netns, body.egress, segments.moved());
        segments.peer_has_later = body.tcp.peer_has_later().into();
        segments.carried = body.tcp.peer_has_full_sized_later().into();
        let owner = connection.owner;
        let levels = levels(&body.socket, owner.as_ref());
        // Unanswered connects are many short-lived sockets: only wider scopes make sense of them.
        if matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv) {
            self.widen(&levels, owner, &segments, None, cx);
            return;
        }
        let known = self.connections.get_mut(&Scope::Connection(key));
        if let Some(of) = known.and_then(|entry| entry.connection.as_mut()) {
            of.since_last(body, &mut segments);
        } else if !connection.older && cx.now.since(key.id.born) <= YOUNG {
            segments.sent = body.tcp.data_segs_out.into();
        } else {
            // What a connection sent in an hour says nothing about now: of one that is not new, only what it
            // sent since its first retransmission is held against it.
            segments.sent = segments.moved();
        }
        let child = self.of_connection(&segments, connection, body.duplicates, cx);
        self.widen(&levels, owner, &segments, Some(child), cx);
    }

    /// What a record tells that none before it did.
    fn gained(&mut self, key: ConnectionKey, body: &Retransmit) -> RetransmitTotals {
        if !body.is_cumulative {
            return body.totals;
        }
        let Some(last) = self.last_totals(key) else {
            return body.totals;
        };
        let gained = body.totals.since(&last.totals);
        if gained.events > 0 {
            last.totals = body.totals;
        }
        gained
    }

    fn last_totals(&mut self, key: ConnectionKey) -> Option<&mut LastTotals> {
        if self.totals.touch(&key).is_none() {
            self.totals.insert(key, LastTotals::default());
        }
        self.totals.get_mut(&key)
    }

    /// The kernel found that it had retransmitted segments unnecessarily. That neither opens nor prolongs anything.
    pub(crate) fn undo(&mut self, body: &Undo, cx: &mut Context<'_>) {
        let key = ConnectionKey::of(&body.socket);
        let gained = self
            .last_totals(key)
            .map_or(body.totals, |last| last.undone.gained(body));
        let connection = Scope::Connection(key);
        let known = self.connections.get_mut(&connection);
        let Some(of) = known.and_then(|entry| entry.connection.as_mut()) else {
            return;
        };
        let doubled = of.spurious.doubled(body.duplicates);
        let undone = of.spurious.undone(gained.segments);
        let segments = Segments {
            spurious: doubled.saturating_add(undone),
            undone,
            undos: gained.undos(),
            ..Segments::default()
        };
        let levels = levels(&body.socket, of.connection.owner.as_ref());
        let wider = levels.into_iter().flatten().map(Scope::Wider);
        for scope in iter::once(connection).chain(wider) {
            let cases = self.cases_of(&scope);
            let quiet = cases.rules.quiet();
            if let Some(entry) = cases.get_mut(&scope) {
                let is_open = entry.is_open();
                entry.activity.learned(&segments, is_open, quiet, cx.now);
            }
        }
    }

    fn cases_of(&mut self, scope: &Scope) -> &mut Cases<Scoped> {
        match scope {
            Scope::Connection(_) => &mut self.connections,
            Scope::Wider(_) => &mut self.wider,
        }
    }

    pub(crate) fn syn_ack(&mut self, body: &SynAck, cx: &mut Context<'_>) {
        let segments = Segments::of_type(RetransmitType::SynAck, 1);
        let levels = levels(&body.socket, body.owner.as_ref());
        self.syn_acks[0] = self.syn_acks[0].saturating_add(1);
        self.widen(&levels, body.owner, &segments, None, cx);
    }

    /// What a listener's totals gained: retransmitted SYN-ACKs of which no record came.
    pub(crate) fn syn_acks(&mut self, gained: &SynTotals, cx: &mut Context<'_>) {
        let [counted, total] = &mut self.syn_acks;
        *total = total.saturating_add(gained[syn_outcome::REPEATED]);
        let uncounted = total.saturating_sub(*counted);
        if uncounted == 0 {
            return;
        }
        *counted = *total;
        let segments = Segments::of_type(RetransmitType::SynAck, uncounted);
        self.add(Scope::Wider(Wider::Host), None, &segments, false, cx);
    }

    /// Counts for the connection; says which it is and whether its activity just began.
    fn of_connection(
        &mut self,
        segments: &Segments,
        connection: &Connection,
        duplicates: u32,
        cx: &mut Context<'_>,
    ) -> (Scope, bool) {
        let (scope, now) = (Scope::Connection(connection.key), cx.now);
        let begun = self.add(scope, connection.owner, segments, false, cx);
        let course = Course::new(&connection.tcp, segments.min_rtt_us, now);
        let costly = self.connections.rules.costly();
        if let Some(entry) = self.connections.get_mut(&scope) {
            let of = entry.connection.get_or_insert_with(|| {
                Box::new(OfConnection {
                    connection: *connection,
                    course,
                    costly: Costly::default(),
                    spurious: Spurious::new(duplicates),
                })
            });
            of.connection = *connection;
            if begun {
                of.course = course;
            }
            of.course.goes_on(segments.progress > 0, now);
            of.costly
                .saw(&connection.tcp, segments.min_rtt_us, segments.moved(), now);
            let is_costly = of.costly.is_worth(costly);
            if is_costly {
                entry.activity.costs(now);
            }
        }
        (scope, begun)
    }

    /// Counts for one scope; says whether its activity just began.
    fn add(
        &mut self,
        scope: Scope,
        owner: Option<Owner>,
        segments: &Segments,
        first_of_connection: bool,
        cx: &mut Context<'_>,
    ) -> bool {
        let now = cx.now;
        let cases = self.cases_of(&scope);
        let rates = Rates {
            floor: scope.floor(&cases.rules),
            quiet: cases.rules.quiet(),
        };
        let Some(entry) = cases.begin(scope, cx, || Scoped::new(now)) else {
            return false;
        };
        if scope.is_owned() {
            entry.owner = owner.or(entry.owner);
        }
        let is_open = entry.is_open();
        entry
            .activity
            .add(segments, first_of_connection, is_open, rates, now)
    }

    /// Counts for all scopes that a connection is in, then opens or updates what crossed.
    fn widen(
        &mut self,
        levels: &[Option<Wider>; LEVELS],
        owner: Option<Owner>,
        segments: &Segments,
        child: Option<(Scope, bool)>,
        cx: &mut Context<'_>,
    ) {
        let first_of_connection = child.is_some_and(|(_, begun)| begun);
        // The narrower scope with the most segments; of equals the narrowest.
        let mut most = child.and_then(|(scope, _)| {
            let entry = self.connections.get(&scope)?;
            Some((scope, entry.activity.moved()))
        });
        for scope in levels.iter().flatten().copied().map(Scope::Wider) {
            self.add(scope, owner, segments, first_of_connection, cx);
            let Some(entry) = self.wider.get_mut(&scope) else {
                continue;
            };
            if let Some((narrower, count)) = most {
                entry.activity.contributed(narrower, count);
            }
            let moved = entry.activity.moved();
            if most.is_none_or(|(_, count)| moved > count) {
                most = Some((scope, moved));
            }
        }
        self.judge_all(levels, child.map(|(scope, _)| scope), cx);
    }

    /// A scope may open when nothing narrower explains it, and nothing wider is open or about to.
    fn judge_all(
        &mut self,
        levels: &[Option<Wider>; LEVELS],
        child: Option<Scope>,
        cx: &mut Context<'_>,
    ) {
        let now = cx.now;
        let storm = &self.wider.rules;
        let mut may_open = [false; LEVELS];
        let mut is_part = false;
        for (wider, may_open) in levels.iter().zip(&mut may_open).rev() {
            let Some(scope) = wider.map(Scope::Wider) else {
                continue;
            };
            if let Some(entry) = self.wider.get(&scope) {
                let storms = entry.activity.storms(scope.floor(storm), storm, now)
                    && !entry.activity.is_explained(storm.explained);
                *may_open = storms && !is_part;
                is_part |= storms || entry.is_open();
            }
        }
        if let Some(scope) = child
            && let Some(entry) = self.connections.get(&scope)
        {
            let storms = entry.activity.storms(scope.floor(storm), storm, now);
            let costs = entry
                .connection
                .as_ref()
                .is_some_and(|of| of.costly.is_worth(storm.costly()));
            self.judge_one(scope, (storms || costs) && !is_part, cx);
        }
        for (wider, may_open) in levels.iter().zip(may_open) {
            if let Some(wider) = wider {
                self.judge_one(Scope::Wider(*wider), may_open, cx);
            }
        }
    }

    fn judge_one(&mut self, scope: Scope, may_open: bool, cx: &mut Context<'_>) {
        let cases = self.cases_of(&scope);
        if may_open
            && let Some(entry) = cases.get_mut(&scope)
            && !entry.is_open()
        {
            entry.activity.onset_per_s = entry.activity.rate(cx.now);
        }
        cases.judge(&scope, may_open, cx);
    }
}

impl Room for RetransmitStorm {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.connections, &mut self.wider]
    }

    fn evicted(&self) -> (&'static str, u64) {
        let evicted = self
            .totals
            .evicted()
            .saturating_add(self.connections.evicted());
        (
            "storms_evicted",
            evicted.saturating_add(self.wider.evicted()),
        )
    }
}
