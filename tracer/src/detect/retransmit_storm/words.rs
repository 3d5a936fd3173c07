//! What a storm is called: its cause, from the types of its segments and from what the peer still
//! acknowledged, and the sentences, evidence and advice that go with it.

use std::borrow::Cow;

use super::{
    activity::{Activity, Segments},
    course::Course,
    scope::{Scope, Wider},
};
use crate::{
    detect::{Context, Draft, Facts, hooks, plural},
    event::{Owner, RetransmitType},
    finding::{FindingKind, Subject},
    table::connection::Connection,
};

/// Why segments have to be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    PeerUnreachable,
    PathLoss,
    PathMtu,
    LocalDrop,
    ReceiverStalled,
    Reordering,
    Unknown,
}

impl Cause {
    /// From most to least certain. A segment that this host could not send needs no theory, nor one that
    /// was sent into a shut window. What the peer, or the kernel, says was repeated for nothing was not lost. Where the first segment that
    /// is not acknowledged is a full-sized one each time, and does not come through although the peer still
    /// talks, or has what came after it, size is what tells them apart, unless that is full-sized too. Where the
    /// peer acknowledges anything, or its duplicate ACKs called for the repeats, the path works and loses. Timeouts
    /// alone mean silence.
    pub(super) fn of(sum: &Segments) -> Self {
        if sum.failed > sum.count() {
            return Self::LocalDrop;
        }
        if sum.shut > sum.count() / 2 {
            return Self::ReceiverStalled;
        }
        if sum.spurious > 0 && sum.spurious >= sum.data().div_ceil(2) {
            return Self::Reordering;
        }
        let talks =
            sum.peer_spoke > 0 || sum.peer_has_later > 0 || sum.of_kind(RetransmitType::Fast) > 0;
        if talks && sum.carried == 0 && sum.is_stuck() && sum.heads == sum.full_heads {
            return Self::PathMtu;
        }
        if sum.progress > 0 || sum.of_kind(RetransmitType::Fast) > 0 {
            return Self::PathLoss;
        }
        let silent = [
            RetransmitType::Timeout,
            RetransmitType::Syn,
            RetransmitType::SynAck,
        ];
        if silent.iter().any(|kind| sum.of_kind(*kind) > 0) {
            return Self::PeerUnreachable;
        }
        Self::Unknown
    }

    /// What mends a storm reads like loss: what fitted is acknowledged, and the rest with it. Its cause stays
    /// what was told.
    const fn after(self, told: Option<Self>) -> Self {
        match (self, told) {
            (
                Self::PathLoss,
                Some(told @ (Self::LocalDrop | Self::ReceiverStalled | Self::PathMtu)),
            ) => told,
            _ => self,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::PeerUnreachable => "peer_unreachable",
            Self::PathLoss => "path_loss",
            Self::PathMtu => "path_mtu",
            Self::LocalDrop => "local_drop",
            Self::ReceiverStalled => "receiver_stalled",
            Self::Reordering => "reordering",
            Self::Unknown => "unknown",
        }
    }

    fn reading(self, sum: &Segments) -> &'static str {
        match self {
            Self::PeerUnreachable if sum.of_kind(RetransmitType::Syn) == sum.count() => {
                "connects go unanswered: the peer is gone or filtered, or its listener drops SYNs"
            }
            Self::PeerUnreachable => {
                "only timeouts, nothing is acknowledged: the peer cannot be reached"
            }
            Self::PathLoss => "the peer acknowledges the rest: packets are lost on the path",
            Self::PathMtu => {
                "only full-sized segments fail while the peer still talks: they are too large for the path"
            }
            Self::LocalDrop => "most never left this host: it drops them itself",
            Self::ReceiverStalled => "the peer's window is shut: its application does not read",
            Self::Reordering if sum.undone > sum.spurious / 2 => {
                "most had arrived before they were repeated, as their acknowledgements tell: they were late, \
                 not lost"
            }
            Self::Reordering => {
                "the peer says that most came twice: they were late or overtaken, not lost"
            }
            Self::Unknown => "their types do not tell why",
        }
    }

    fn doubt(self, cx: &Context<'_>) -> Option<Cow<'static, str>> {
        match self {
            Self::Reordering => cx.doubt("retransmit_storm.reordering", &hooks::REORDERING),
            Self::PathMtu => cx
                .doubt("retransmit_storm", &hooks::STORM)
                .or_else(|| Some("the cause was concluded from the sizes of the segments".into())),
            _ => cx.doubt("retransmit_storm", &hooks::STORM),
        }
    }

    fn advice(self, sum: &Segments, subject: &Subject, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
        match self {
            Self::PeerUnreachable => vec![
                "check that the peer is up and that no firewall drops its packets silently \
                 (ip route get, mtr --tcp)"
                    .into(),
            ],
            Self::PathLoss => vec![
                "look for drops here first (ip -s link, tc -s qdisc, ethtool -S), then along the path \
                 (mtr --tcp)"
                    .into(),
            ],
            Self::PathMtu => sum.sizes.advice(subject.netns(), cx),
            Self::LocalDrop => vec![
                "look at this host's output firewall, its qdisc (tc -s qdisc) and the link".into(),
            ],
            Self::ReceiverStalled => vec![
                "look at what the peer's process does instead of reading (ss -tnp there: Recv-Q is full)"
                    .into(),
            ],
            Self::Reordering => vec![
                "look for several paths to one place (bonded links, ECMP by packet, Wi-Fi), for queues that \
                 fill and empty (bufferbloat), and for ACKs that are delayed or lost on the way back"
                    .into(),
            ],
            Self::Unknown => {
                vec!["compare TcpExt counters (nstat -az 'TcpExt*') while it lasts".into()]
            }
        }
    }
}

pub(super) fn connection(
    connection: &Connection,
    course: &Course,
    activity: &Activity,
    stage: &'static str,
    cx: &Context<'_>,
) -> Draft {
    let to = connection.remote.to_string();
    let mut draft = draft(
        connection.subject(),
        connection.owner,
        &to,
        activity,
        stage,
        cx,
    );
    draft.evidence = course.facts(draft.evidence, &connection.tcp);
    draft
}

pub(super) fn wider(
    scope: &Wider,
    owner: Option<Owner>,
    activity: &Activity,
    stage: &'static str,
    cx: &Context<'_>,
) -> Draft {
    draft(scope.subject(), owner, &scope.said(), activity, stage, cx)
}

/// The cause that the next word tells.
pub(super) fn cause(activity: &Activity) -> Cause {
    Cause::of(&activity.total().sum).after(activity.told)
}

fn draft(
    subject: Subject,
    owner: Option<Owner>,
    to: &str,
    activity: &Activity,
    stage: &'static str,
    cx: &Context<'_>,
) -> Draft {
    let total = activity.total();
    let sum = &total.sum;
    let cause = cause(activity);
    let mut facts = Facts::default()
        .number("rate_per_s", activity.rate(cx.now))
        .number("onset_per_s", activity.onset_per_s)
        .number("usual_per_s", activity.usual(cx.now))
        .count("peak_per_s", activity.peak_per_s)
        .seconds("peak_after_s", activity.peak_at.since(activity.since()));
    if let Some(ratio) = sum.ratio() {
        facts = facts
            .number("ratio", ratio)
            .count("sent_segments", sum.sent);
    }
    for kind in RetransmitType::ALL {
        if sum.of_kind(kind) > 0 {
            facts = facts.count(kind_key(kind), sum.of_kind(kind));
        }
    }
    facts = facts
        .count("full_sized_segments", sum.full)
        .count("spurious_segments", sum.spurious)
        .count("segments_not_sent", sum.failed);
    if sum.undos > 0 {
        facts = facts.count("losses_undone", sum.undos);
    }
    if cause == Cause::PathMtu {
        facts = sum.sizes.facts(facts);
    }
    facts = sum.interfaces.facts(facts);
    if let Some(us) = sum.min_rtt_us {
        facts = facts.number("min_rtt_ms", f64::from(us) / 1e3);
    }
    if total.connections > 0 {
        facts = facts.count("connections", total.connections);
    }
    if let Some((Scope::Wider(top), count)) = activity.top() {
        facts = facts.text("top", top.said()).count("top_segments", count);
    }
    let segments = plural(sum.count(), "segment");
    let ratio = sum.ratio().map_or_else(String::new, |ratio| {
        format!(" ({:.1} % of what was sent)", ratio * 100.0)
    });
    let icmp = if cause == Cause::PathMtu {
        sum.sizes.icmp()
    } else {
        ""
    };
    let advice = cause.advice(sum, &subject, cx);
    Draft {
        kind: FindingKind::RetransmitStorm,
        cause: cause.name(),
        stage: Some(stage),
        doubt: cause.doubt(cx),
        subject,
        owner,
        sample: None,
        since: activity.since(),
        last: activity.last,
        count: sum.count(),
        summary: format!(
            "{segments} retransmitted to {to}{ratio}, at most {} a second: {}{icmp}",
            activity.peak_per_s,
            cause.reading(sum),
        ),
        evidence: facts,
        advice,
    }
}

const fn kind_key(kind: RetransmitType) -> &'static str {
    match kind {
        RetransmitType::Timeout => "timeout_segments",
        RetransmitType::Fast => "fast_segments",
        RetransmitType::TailLossProbe => "tail_loss_probe_segments",
        RetransmitType::Syn => "syn_segments",
        RetransmitType::SynAck => "syn_ack_segments",
        RetransmitType::Unknown => "unknown_segments",
    }
}
