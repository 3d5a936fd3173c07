//! `receive_stall`: a process of this host does not read what its peer sends, and the window is shut.
//!
//! **Rule.** Looks at the socket that all show a shut window and unread data, and the same next byte to be read, for
//! [`Thresholds::unread_s`] open a finding. It is over when the process has read anything or the window opens
//! (`resumed`), or when the connection can receive no more (`closed`). The sockets themselves are looked at, so that one
//! from before conntracer is seen at the start, and on every hook type.
//!
//! **Causes.** `stopped` (the only process that holds the connection cannot run: stopped by a signal or a debugger, its
//! control group frozen or out of its CPU quota), `not_reading` (all else).
//!
//! **Count.** Bytes that wait to be read.
//!
//! **False positives.** A process that pauses on purpose (a player whose own buffer is full). Its peer waits all the same.

#[cfg(test)]
pub(crate) mod claims;
mod stall;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::time::Duration;

use conntracer_common::stats::hook;

use self::stall::{Cause, Stage, Stall};
pub(super) use self::thresholds::Thresholds;
use super::{
    room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec},
    syn_drop::Why,
};
use crate::{
    event::{Receive, Side},
    finding::{FindingKind, Severity},
    id::SocketId,
    table::{connection::ConnectionKey, listener::ListenerKey},
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "receive_stall",
    kind: FindingKind::new(10, "receive_stall"),
    causes: &[
        (Cause::Stopped.name(), Severity::Critical),
        (Cause::NotReading.name(), Severity::Warning),
    ],
    // Which connections there are; their sockets are looked at.
    hooks: &[hook::STATE, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// Without a look for so long, a connection can receive nothing any more: what is watched is looked at by every poll.
const GONE: Duration = Duration::from_secs(4);

impl Case for Stall {
    type Key = ConnectionKey;
    type Rules = Thresholds;

    fn draft(&self, _: &ConnectionKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::draft(&SPEC, self, at.status, at.cx))
    }

    /// Each time that it has gone on for twice as long, and another cause.
    fn news(&self) -> u64 {
        let seconds = self.unread_for().as_secs();
        let doubled = seconds.checked_ilog2().map_or(0, u64::from);
        doubled | u64::from(self.cause() == Cause::Stopped) << 32
    }

    fn is_over(&mut self, _: &ConnectionKey, _: &Thresholds, cx: &Context<'_>) -> bool {
        let is_over = cx.now.since(self.last) >= GONE;
        if is_over {
            self.stage = Stage::Over;
        }
        is_over
    }

    fn is_idle(&self, _: &Thresholds, now: Ktime) -> bool {
        now.since(self.last) >= GONE
    }

    fn forget(&mut self) {
        self.stage = Stage::Forgotten;
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct ReceiveStall {
    stalls: Cases<Stall>,
}

impl ReceiveStall {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            stalls: Cases::new(limits.connections, thresholds),
        }
    }

    /// Connections whose receiving side is to be looked at by every poll.
    pub(crate) fn watched(&self) -> impl Iterator<Item = SocketId> {
        let all = self.stalls.iter().map(|(key, _)| key);
        all.filter(|key| !key.is_untracked()).map(|key| key.id)
    }

    pub(crate) fn receive(&mut self, look: &Receive, cx: &mut Context<'_>) {
        let key = ConnectionKey::of(&look.socket);
        let now = cx.now;
        cx.met = Side::of(&look.socket);
        if let Some(stall) = self.stalls.get(&key)
            && stall.is_resumed_by(look)
            && let Some(mut stall) = self.stalls.take(&key)
        {
            stall.stage = Stage::Resumed;
            self.stalls.close(&key, stall, cx);
        }
        if !look.is_shut {
            return;
        }
        let why = cx
            .acceptors(&ListenerKey::of(&look.socket), look.socket.id)
            .map(|look| Why::of(look).of_holders());
        let Some(stall) = self.stalls.begin(key, cx, || Stall::new(look, now)) else {
            return;
        };
        stall.see(look, why, now);
        let is_worth = stall.unread_for() >= self.stalls.rules.unread();
        self.stalls.judge(&key, is_worth, cx);
    }
}

impl Room for ReceiveStall {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.stalls]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("stalls_evicted", self.stalls.evicted())
    }
}
