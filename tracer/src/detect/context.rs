//! What every detector is given with an event, and how it says a finding.

use std::borrow::Cow;

use conntracer_common::stats::HOOKS;

use super::{dropped_here::here::Here, facts::Facts, spec::Spec};
use crate::{
    count::Grow,
    event::{Loss, Owner, Side},
    finding::{Certainty, Finding, Severity, Status, Subject},
    host::Host,
    id::SocketId,
    plan::Coverage,
    reconcile::{EVIDENCE, Reconciler},
    table::{
        acceptor::{Acceptors, Look},
        dropped::DroppedHere,
        listener::{ListenerKey, Listeners},
        netns_facts::{Known, NetnsTroubles},
    },
    time::Ktime,
};

/// See the module.
pub(crate) struct Context<'a> {
    pub(crate) now: Ktime,
    pub(crate) host: &'a Host,
    /// As the event left them.
    pub(crate) listeners: &'a Listeners,
    pub(crate) acceptors: &'a Acceptors,
    pub(crate) netns_facts: &'a NetnsTroubles,
    pub(crate) dropped: &'a DroppedHere,
    /// Records lost so far, hook by hook.
    pub(crate) lost: &'a [u64; HOOKS.len()],
    pub(crate) missed: &'a Missed,
    /// See [`Context::traces_failures`]; `None` before a record tells.
    pub(crate) failures_traced: Option<bool>,
    /// The kernel's own counters, against ours.
    pub(crate) reconciler: &'a Reconciler,
    pub(crate) last_id: &'a mut u64,
    /// The connection that the event is about.
    pub(crate) met: Option<Side>,
    /// Findings that are about a connection, too.
    pub(crate) meetings: &'a mut Vec<(u64, Side)>,
    /// What the detectors say.
    pub(crate) said: &'a mut Vec<Finding>,
}

/// Of the records lost, the events that no program saw, hook by hook, and when the last were told of.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Missed {
    events: [u64; HOOKS.len()],
    at: [Ktime; HOOKS.len()],
}

impl Missed {
    pub(crate) fn told(&mut self, loss: &Loss, now: Ktime) {
        if let (Some(events), Some(at)) =
            (self.events.get_mut(loss.hook), self.at.get_mut(loss.hook))
        {
            events.grow(loss.missed);
            *at = now;
        }
    }
}

/// What a detector has to say; [`Context`] adds id, status and time.
pub(crate) struct Draft {
    pub(crate) spec: &'static Spec,
    pub(crate) cause: &'static str,
    pub(crate) stage: Option<&'static str>,
    /// Where it is not what its cause is by itself ([`Spec::causes`]).
    pub(crate) severity: Option<Severity>,
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
    /// What this host dropped of the connections it is about.
    pub(crate) here: Option<Here>,
}

impl Context<'_> {
    /// Opens a finding, and says its id.
    pub(super) fn open(&mut self, draft: Draft) -> u64 {
        self.last_id.grow(1);
        let id = *self.last_id;
        self.say(id, Status::Open, draft);
        id
    }

    pub(super) fn say(&mut self, id: u64, status: Status, draft: Draft) {
        let severity = draft.spec.severity(draft.cause);
        debug_assert!(
            severity.is_some(),
            "{} is no cause of {}",
            draft.cause,
            draft.spec.detector
        );
        self.said.push(Finding {
            id,
            kind: draft.spec.kind,
            cause: draft.cause.into(),
            status,
            severity: draft.severity.or(severity).unwrap_or(Severity::Warning),
            incident: id,
            explained_by: None,
            related: Vec::new(),
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
            evidence: draft.evidence.into_evidence(),
            advice: draft.advice,
        });
    }

    /// Records of a hook that were lost so far.
    pub(crate) fn lost_of(&self, hook: u32) -> u64 {
        self.lost.get(hook as usize).copied().unwrap_or_default()
    }

    /// Whether the silence of a hook means anything: the plan does not say that it is off, and nothing of it was lost.
    pub(crate) fn hears(&self, hook: u32) -> bool {
        let name = HOOKS.get(hook as usize);
        name.is_some_and(|name| !self.host.plan.is_off(name)) && self.lost_of(hook) == 0
    }

    /// The same of all that happened since a moment: the hook was attached by then.
    pub(crate) fn hears_since(&self, hook: u32, moment: Ktime) -> bool {
        self.hears(hook) && moment.0 >= self.host.attached_ns
    }

    /// Why a finding of a detector is not exact: records of a hook that it needs were lost, or the hooks see less than
    /// everything; `None` when it is.
    pub(crate) fn doubt(&self, spec: &Spec) -> Option<Cow<'static, str>> {
        self.doubt_by(spec, spec.hooks.iter().chain(spec.losses))
    }

    /// The same of a finding in one network namespace: what was lost elsewhere is none of its concern.
    pub(crate) fn doubt_in(&self, spec: &Spec, netns: u32) -> Option<Cow<'static, str>> {
        self.doubt_of(spec, spec.hooks.iter().chain(spec.losses), Some(netns))
    }

    /// The same of a finding that only the losses of some of its detector's hooks concern.
    pub(crate) fn doubt_by<'s>(
        &self,
        spec: &Spec,
        losses: impl IntoIterator<Item = &'s u32>,
    ) -> Option<Cow<'static, str>> {
        self.doubt_of(spec, losses, None)
    }

    /// The same of both.
    pub(crate) fn doubt_of<'s>(
        &self,
        spec: &Spec,
        losses: impl IntoIterator<Item = &'s u32>,
        netns: Option<u32>,
    ) -> Option<Cow<'static, str>> {
        if let Some(lost) = self.doubt_by_losses(losses, netns) {
            return Some(lost);
        }
        match self.host.plan.coverage(spec.detector) {
            Some(plan) if plan.coverage == Coverage::Exact => None,
            Some(plan) => Some(plan.because.clone().map_or_else(
                || "a hook it stands on sees less than everything".into(),
                Cow::Owned,
            )),
            None => Some("the hook plan says nothing of this detector".into()),
        }
    }

    /// The same of a finding that no missing hook could have made another: only what was lost of these may have.
    pub(crate) fn doubt_by_losses<'s>(
        &self,
        losses: impl IntoIterator<Item = &'s u32>,
        netns: Option<u32>,
    ) -> Option<Cow<'static, str>> {
        for hook in losses {
            let (Some(lost), Some(name)) =
                (self.lost.get(*hook as usize), HOOKS.get(*hook as usize))
            else {
                continue;
            };
            if *lost > 0 && !self.is_elsewhere(*hook as usize, netns) {
                return Some(format!("{lost} records of the {name} hook were lost").into());
            }
        }
        None
    }

    /// Whether all that a hook lost are events that no program saw, and none of them was in the namespace, as the kernel's
    /// counters tell.
    fn is_elsewhere(&self, hook: usize, netns: Option<u32>) -> bool {
        let (Some(netns), Some(name)) = (netns, HOOKS.get(hook)) else {
            return false;
        };
        let Missed { events, at } = self.missed;
        events[hook] == self.lost[hook]
            && self
                .reconciler
                .excludes(&self.host.plan, netns, name, at[hook])
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

    /// Whether the kernel tells of a retransmission that failed, as records say; before the first of them, by its
    /// version: `tcp_retransmit_skb` has the error from 6.17 on.
    pub(crate) fn traces_failures(&self) -> bool {
        if let Some(told) = self.failures_traced {
            return told;
        }
        let mut numbers = self
            .host
            .kernel
            .split(|of: char| !of.is_ascii_digit())
            .map(|number| number.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        version >= (6, 17)
    }

    /// How the processes stood that may accept the connections of a listening socket, at the last look of a poll. There
    /// is one soon after a listener turned clients away.
    pub(crate) fn acceptors(&self, listener: &ListenerKey, socket: SocketId) -> Option<&Look> {
        self.acceptors.of(listener, socket)
    }

    /// What /proc showed of a namespace in which something failed, at the last look of a poll: figures by
    /// [`conntracer_common::record::netns_fact`].
    pub(crate) fn netns_facts(&self, netns: u32) -> Option<&Known> {
        self.netns_facts.of(netns)
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
