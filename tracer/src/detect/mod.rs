//! The detectors: events and changes in, findings out. One finding a file.
//!
//! Time comes from records alone, order from the lists of [`crate::table::Bounded`] and from finding
//! ids, so that the same records make the same findings, byte for byte. What is shared by all is
//! here: the life of a finding, how certain it is, and how its figures are written.

mod alike;
mod connect_failure;
mod connection_drop;
mod detectors;
mod early_drop;
mod errno;
mod half_open;
mod path_mtu;
mod retransmit_storm;
mod send_stall;
mod syn_drop;
#[cfg(test)]
mod tests;
mod thresholds;

use std::{borrow::Cow, time::Duration};

use conntracer_common::stats::{HOOKS, hook};

pub(crate) use detectors::Detectors;
pub(crate) use syn_drop::summaries;
pub use thresholds::{
    ConnectFailure, ConnectionDrop, HalfOpen, Limits, RetransmitStorm, SendStall, SynDrop,
    Thresholds,
};

use crate::{
    count::Grow,
    event::{Owner, OwnerSource},
    finding::{Certainty, Evidence, Finding, FindingKind, Status, Subject, Value},
    host::Host,
    id::SocketId,
    plan::Coverage,
    reconcile::{EVIDENCE, Reconciler},
    table::listener::Listeners,
    time::Ktime,
};

/// Updates of one finding come no closer than this: what a person or an alert can follow.
const UPDATE_INTERVAL: Duration = Duration::from_secs(1);

/// What every detector is given with an event.
pub(crate) struct Context<'a> {
    pub(crate) now: Ktime,
    pub(crate) host: &'a Host,
    pub(crate) thresholds: &'a Thresholds,
    /// As the event left them.
    pub(crate) listeners: &'a Listeners,
    /// Records lost so far, hook by hook.
    pub(crate) lost: &'a [u64; HOOKS.len()],
    /// The kernel's own counters, against ours.
    pub(crate) reconciler: &'a Reconciler,
    pub(crate) last_id: &'a mut u64,
    /// Somebody asked how things stand: every open finding is said, whether it has news or not.
    pub(crate) says_all: bool,
    pub(crate) out: &'a mut dyn FnMut(&Finding),
}

/// An open finding: its name and what was last said of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) id: u64,
    said_at: Ktime,
    /// The count that the last line told; a detector that watches more than its count sets more.
    pub(crate) said_count: u64,
}

impl Life {
    /// Whether an update is worth a line: the count moved, and the last line is a second old.
    pub(crate) fn due(&self, now: Ktime, count: u64) -> bool {
        count != self.said_count && self.ripe(now)
    }

    /// Whether the last line is a second old.
    pub(crate) fn ripe(&self, now: Ktime) -> bool {
        now.since(self.said_at) >= UPDATE_INTERVAL
    }
}

/// What a detector has to say; [`Context`] adds id, status and time.
pub(crate) struct Draft {
    pub(crate) kind: FindingKind,
    pub(crate) cause: &'static str,
    pub(crate) stage: Option<&'static str>,
    pub(crate) doubt: Option<Cow<'static, str>>,
    pub(crate) subject: Subject,
    pub(crate) owner: Option<Owner>,
    /// See [`Finding::sample`].
    pub(crate) sample: Option<SocketId>,
    pub(crate) since: Ktime,
    pub(crate) last: Ktime,
    pub(crate) count: u64,
    pub(crate) summary: String,
    pub(crate) evidence: Facts,
    pub(crate) advice: Vec<Cow<'static, str>>,
}

impl Context<'_> {
    /// Opens a finding.
    pub(crate) fn open(&mut self, draft: Draft) -> Life {
        self.last_id.grow(1);
        let mut life = Life {
            id: *self.last_id,
            said_at: self.now,
            said_count: draft.count,
        };
        self.say(&mut life, Status::Open, draft);
        life
    }

    /// Whether the last line no longer tells the count, or the finding is to be said all the same.
    pub(crate) const fn owes(&self, life: &Life, count: u64) -> bool {
        self.says_all || count != life.said_count
    }

    pub(crate) fn update(&mut self, life: &mut Life, draft: Draft) {
        self.say(life, Status::Update, draft);
    }

    pub(crate) fn resolve(&mut self, mut life: Life, draft: Draft) {
        self.say(&mut life, Status::Resolved, draft);
    }

    fn say(&mut self, life: &mut Life, status: Status, draft: Draft) {
        life.said_at = self.now;
        life.said_count = draft.count;
        (self.out)(&Finding {
            id: life.id,
            kind: draft.kind,
            cause: draft.cause.into(),
            status,
            stage: draft.stage.map(Cow::Borrowed),
            certainty: if draft.doubt.is_none() {
                Certainty::Exact
            } else {
                Certainty::Inferred
            },
            because: draft.doubt,
            subject: draft.subject,
            owner: draft.owner.map(Into::into),
            owners: Vec::new(),
            holders: None,
            sample: draft.sample,
            since: draft.since,
            last: draft.last,
            at: self.now,
            count: draft.count,
            summary: draft.summary,
            evidence: draft.evidence.0,
            advice: draft.advice,
        });
    }

    /// Why a finding of `detector`, which stands on `hooks`, is not exact; `None` when it is.
    pub(crate) fn doubt(&self, detector: &str, hooks: &[u32]) -> Option<Cow<'static, str>> {
        for hook in hooks {
            let (Some(lost), Some(name)) =
                (self.lost.get(*hook as usize), HOOKS.get(*hook as usize))
            else {
                continue;
            };
            if *lost > 0 {
                return Some(format!("{lost} records of the {name} hook were lost").into());
            }
        }
        match self.host.plan.coverage(detector) {
            Some(plan) if plan.coverage == Coverage::Exact => None,
            Some(plan) => Some(plan.because.clone().map_or_else(
                || "a hook it stands on sees less than everything".into(),
                Cow::Owned,
            )),
            None => Some("the hook plan says nothing of this detector".into()),
        }
    }

    /// What the kernel's own `counters` say of a namespace at the last comparison: the residues, or that
    /// there is none. Nothing where they were not compared.
    pub(crate) fn reconciled(&self, facts: Facts, netns: u32, counters: &[usize]) -> Facts {
        let residue = |counter: &usize| {
            self.reconciler
                .residue(&self.host.plan, netns, *counter)
                .map(|residue| (EVIDENCE[*counter], residue))
        };
        let Some(residues) = counters.iter().map(residue).collect::<Option<Vec<_>>>() else {
            return facts;
        };
        let off: Vec<_> = residues.into_iter().filter(|(_, off)| *off != 0).collect();
        if off.is_empty() {
            return facts.text("reconciled", "yes");
        }
        off.into_iter()
            .fold(facts, |facts, (name, off)| facts.signed(name, off))
    }

    /// A sysctl of a network namespace; `None` of any but the one that conntracer runs in.
    fn sysctl(&self, name: &str, netns: u32) -> Option<&str> {
        let is_own = self.host.netns == Some(netns);
        let value = self.host.sysctls.get(name).filter(|_| is_own)?;
        Some(value.trim())
    }

    pub(crate) fn sysctl_number(&self, name: &str, netns: u32) -> Option<u64> {
        self.sysctl(name, netns)?.parse().ok()
    }

    /// A sysctl for a sentence: with its value now where that is known, otherwise with whose it is.
    pub(crate) fn said_sysctl(&self, name: &str, netns: u32) -> String {
        match self.sysctl(name, netns) {
            Some(value) => format!("{name} (now {value})"),
            None => format!("{name} of namespace {netns}"),
        }
    }
}

/// Evidence in the making.
#[derive(Default)]
pub(crate) struct Facts(Vec<Evidence>);

impl Facts {
    pub(crate) fn count(self, name: &'static str, value: impl Into<u64>) -> Self {
        self.push(name, Value::Count(value.into()))
    }

    pub(crate) fn signed(self, name: &'static str, value: i64) -> Self {
        match u64::try_from(value) {
            Ok(value) => self.count(name, value),
            Err(_) => self.number(name, value as f64),
        }
    }

    pub(crate) fn count_if_known(self, name: &'static str, value: Option<u64>) -> Self {
        match value {
            Some(value) => self.count(name, value),
            None => self,
        }
    }

    /// `name` ends in `_s`. To the millisecond, which is finer than what is judged by.
    pub(crate) fn seconds(self, name: &'static str, value: Duration) -> Self {
        self.push(name, Value::Number(value.as_millis() as f64 / 1e3))
    }

    pub(crate) fn number(self, name: &'static str, value: f64) -> Self {
        self.push(name, Value::Number((value * 1e3).round() / 1e3))
    }

    pub(crate) fn text(self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.push(name, Value::Text(value.into()))
    }

    fn push(mut self, name: &'static str, value: Value) -> Self {
        self.0.push(Evidence {
            name: name.into(),
            value,
        });
        self
    }
}

/// A duration for a sentence.
pub(crate) fn said_seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// "1 SYN", "2 SYNs".
pub(crate) fn plural(count: u64, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

/// Who should act: the owner by pid, or nobody in particular. The name is in the finding's owner,
/// where sinks escape it.
pub(crate) fn who(owner: Option<&Owner>) -> String {
    owner.map_or_else(
        || "the application".to_owned(),
        |owner| match owner.source {
            OwnerSource::Forked => format!("process {} or a descendant", owner.pid),
            _ => format!("process {}", owner.pid),
        },
    )
}

/// The hooks each detector stands on.
pub(crate) mod hooks {
    use super::hook;

    pub(crate) const SYN: [u32; 1] = [hook::SYN];
    pub(crate) const ACK: [u32; 1] = [hook::ACK];
    pub(crate) const EARLY_DROP: [u32; 1] = [hook::DROP];
    pub(crate) const HANDSHAKE: [u32; 2] = [hook::SYNACK, hook::REQUEST];
    pub(crate) const DEAD_PEER: [u32; 3] = [hook::RETRANSMIT, hook::PROBE, hook::STATE];
    pub(crate) const IDLE: [u32; 3] = [hook::CONNECT, hook::ACK, hook::SEED];
    pub(crate) const STALL: [u32; 1] = [hook::PROBE];
    pub(crate) const FAILURE: [u32; 2] = [hook::STATE, hook::FAILURE];
    pub(crate) const DROP: [u32; 2] = [hook::STATE, hook::RESET_RECEIVED];
    pub(crate) const STORM: [u32; 2] = [hook::RETRANSMIT, hook::SYNACK];
    pub(crate) const REORDERING: [u32; 3] = [hook::RETRANSMIT, hook::SYNACK, hook::UNDO];
}
