//! `send_stall`: a connection has data to send, none of it in flight, and probes instead (the persist timer).
//!
//! **Rule.** `receiver_stalled` at [`Thresholds::probes`] window probes in a row that
//! left this host while the peer's window has no room for a segment, and that it answers: the peer is there, and
//! its application does not read. `local_drop` at [`Thresholds::failed_probes`] that did not
//! leave this host although the window is open: what an output firewall or a full queue drops is never in
//! flight, so that nothing is retransmitted, and `ss` calls it persist. Resolves when the connection sends again (`resumed`),
//! is gone (`closed`), or when the peer answers no more (`unanswered`), which is a dead peer's doing. A connection
//! that the eBPF side has no room for is `forgotten` when it shows neither probes nor its end any more.
//!
//! **Count.** Probes since the stall began, as the kernel counts them in `icsk_backoff`; those that a queue dropped are
//! not among these (`tcp_send_probe0`), and a record each.
//!
//! **False positives.** A peer that is paused on purpose. Nothing is retransmitted and nothing is lost: this is
//! never a `retransmit_storm`.

#[cfg(test)]
pub(crate) mod claims;
mod stall;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::time::Duration;

use conntracer_common::stats::hook;

use self::stall::{Cause, Stage, Stall, has_room, is_stalled};
pub(super) use self::thresholds::Thresholds;
use super::dropped_here;
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{
    event::{Body, Close, Event, Probe, SocketNow, State, Tcp, TcpState},
    finding::{FindingKind, Severity},
    id::SocketId,
    table::connection::{Change, ConnectionKey},
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "send_stall",
    kind: FindingKind::new(4, "send_stall"),
    causes: &[
        ("local_drop", Severity::Critical),
        ("receiver_stalled", Severity::Warning),
        (dropped_here::CAUSE, Severity::Critical),
    ],
    hooks: &[hook::PROBE],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// A stall that nobody asks about, and without a probe for twice as long as probes can be apart (`TCP_RTO_MAX`), is
/// over.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(4);

/// `icsk_backoff` at the first probe that the eBPF side tells of, which is the second one.
const FIRST_TOLD: u8 = 1;

/// Probes before the last that may be without an answer while the peer counts as there: one is easily lost.
const LOST_ANSWERS: u8 = 1;

impl Case for Stall {
    type Key = ConnectionKey;
    type Rules = Thresholds;

    fn draft(&self, _: &ConnectionKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::draft(&SPEC, self, at.cx))
    }

    fn news(&self) -> u64 {
        self.probes
    }

    fn is_over(&mut self, key: &ConnectionKey, _: &Thresholds, cx: &Context<'_>) -> bool {
        let is_over = key.is_untracked() && cx.now.since(self.last) > FORGOTTEN_AFTER;
        if is_over {
            self.forget();
        }
        is_over
    }

    fn is_idle(&self, _: &Thresholds, now: Ktime) -> bool {
        now.since(self.last) > FORGOTTEN_AFTER
    }

    fn forget(&mut self) {
        self.stage = Stage::Forgotten;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SendStall {
    stalls: Cases<Stall>,
}

impl SendStall {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            stalls: Cases::new(limits.connections, thresholds),
        }
    }

    /// Connections whose resumption no record tells.
    pub(crate) fn watched(&self) -> impl Iterator<Item = SocketId> {
        let all = self.stalls.iter();
        let watched =
            all.filter(|(key, stall)| !key.is_untracked() && (stall.is_open() || stall.older));
        watched.map(|(key, _)| key.id)
    }

    pub(crate) fn change(&mut self, event: &Event, change: &Change<'_>, cx: &mut Context<'_>) {
        let key = change.connection.key;
        match &event.body {
            Body::Probe(body) if !body.keepalive => self.probe(body, change, cx),
            Body::Snapshot(body) if body.socket.state == TcpState::Close => {
                self.end(key, Stage::Closed, cx);
            }
            Body::Snapshot(body) if !is_stalled(&body.tcp) => self.end(key, Stage::Resumed, cx),
            Body::Snapshot(body) => self.looked_at(&body.tcp, body.about.as_ref(), change, cx),
            Body::Seed(body) if is_stalled(&body.tcp) => {
                self.looked_at(&body.tcp, None, change, cx);
            }
            Body::Retransmit(_) => self.end(key, Stage::Resumed, cx),
            _ => {}
        }
    }

    fn probe(&mut self, body: &Probe, change: &Change<'_>, cx: &mut Context<'_>) {
        let key = change.connection.key;
        if body.tcp.packets_out > 0 {
            // It carried data: the window is small, and not shut.
            self.end(key, Stage::Resumed, cx);
            return;
        }
        let cause = match (body.has_left(), has_room(&body.tcp)) {
            (false, true) => Cause::LocalDrop,
            (true, false) if body.tcp.probes_out > LOST_ANSWERS => {
                self.end(key, Stage::Unanswered, cx);
                return;
            }
            (true, false) => Cause::ReceiverStalled,
            _ => return,
        };
        if self
            .stalls
            .get(&key)
            .is_some_and(|stall| stall.cause != cause)
        {
            self.end(key, Stage::Resumed, cx);
        }
        let now = cx.now;
        // Its first probes were before anybody looked: of a window that is shut, a look tells since when.
        let is_older =
            cause == Cause::ReceiverStalled && body.tcp.backoff > FIRST_TOLD && !key.is_untracked();
        let new = || Stall::new(change.connection, cause, is_older, now);
        let Some(stall) = self.stalls.begin(key, cx, new) else {
            return;
        };
        stall.connection = *change.connection;
        // The kernel raises it once the probe is sent.
        stall.probes = stall
            .probes
            .max(u64::from(body.tcp.backoff))
            .saturating_add(1);
        stall.last = now;
        // Of one from before, the next look tells since when.
        let (probes, is_dated) = (stall.probes, !stall.older);
        let enough = match cause {
            Cause::ReceiverStalled => self.stalls.rules.probes,
            Cause::LocalDrop => self.stalls.rules.failed_probes,
        };
        self.stalls
            .judge(&key, is_dated && probes >= u64::from(enough), cx);
    }

    /// A socket whose probes were all answered so far, which no record of a probe may have told of: since when data waits,
    /// a later look tells.
    fn looked_at(
        &mut self,
        tcp: &Tcp,
        about: Option<&SocketNow>,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) {
        let key = change.connection.key;
        let is_shut = !has_room(tcp) && tcp.backoff > 0 && tcp.probes_out <= LOST_ANSWERS;
        if !is_shut || about.is_some() && self.stalls.get(&key).is_none_or(|stall| !stall.older) {
            return;
        }
        let now = cx.now;
        let new = || Stall::new(change.connection, Cause::ReceiverStalled, true, now);
        let Some(stall) = self.stalls.begin(key, cx, new) else {
            return;
        };
        stall.connection = *change.connection;
        stall.probes = stall.probes.max(u64::from(tcp.backoff));
        stall.last = now;
        let Some(about) = about else { return };
        if let Some(sent_idle) = about.sent_idle {
            stall.since = stall.since.min(now.before(sent_idle));
        }
        stall.older = false;
        let is_worth = stall.probes >= u64::from(self.stalls.rules.probes);
        self.stalls.judge(&key, is_worth, cx);
    }

    /// The end of a socket.
    pub(crate) fn state(&mut self, body: &State, cx: &mut Context<'_>) {
        if body.new == TcpState::Close {
            self.end(ConnectionKey::of(&body.socket), Stage::Closed, cx);
        }
    }

    pub(crate) fn close(&mut self, body: &Close, cx: &mut Context<'_>) {
        self.end(ConnectionKey::of(&body.socket), Stage::Closed, cx);
    }

    fn end(&mut self, key: ConnectionKey, stage: Stage, cx: &mut Context<'_>) {
        if let Some(mut stall) = self.stalls.take(&key) {
            stall.stage = stage;
            self.stalls.close(&key, stall, cx);
        }
    }
}

impl Room for SendStall {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.stalls]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("stalls_evicted", self.stalls.evicted())
    }
}
