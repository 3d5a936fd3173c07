//! What is said of a storm: sentences, evidence and advice.

use std::borrow::Cow;

use super::{
    cause::Cause,
    scope::{Scope, Wider},
    scoped::{OfConnection, Scoped},
    segments::Segments,
    thresholds::Thresholds,
};
use crate::{
    detect::{
        dropped_here::Here,
        room::{Context, Draft, Facts, Spec, plural},
    },
    event::RetransmitType,
    finding::{Status, Subject},
    table::dropped::Whose,
    time::Ktime,
};

pub(super) fn draft(
    spec: &'static Spec,
    scope: &Scope,
    scoped: &Scoped,
    status: Status,
    rules: &Thresholds,
    cx: &Context<'_>,
) -> Option<Draft> {
    let activity = &scoped.activity;
    let of = scoped.connection.as_deref();
    let (subject, owner, to) = match (scope, of) {
        (Scope::Wider(wider), _) => (wider.subject(), scoped.owner, wider.said()),
        (Scope::Connection(_), of) => {
            let connection = &of?.connection;
            let to = connection.remote.to_string();
            (connection.subject(), connection.owner, to)
        }
    };
    let total = activity.total();
    let sum = &total.sum;
    let cause = activity.cause();
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
    if let Some(of) = of {
        facts = of.course.facts(facts, &of.connection.tcp);
    }
    let costly = of
        .map(|of| &of.costly)
        .filter(|costly| cause == Cause::PathLoss && costly.is_worth(rules.costly()));
    if let Some(costly) = costly {
        facts = costly.facts(facts);
    }
    let mut summary = summary(cause, sum, &to, activity.peak_per_s);
    if let Some(costly) = costly {
        summary.push_str(&costly.said());
    }
    let advice = advice(cause, sum, &subject, cx);
    let count = if cause == Cause::LocalDrop {
        sum.moved()
    } else {
        sum.count()
    };
    let here = here(scope, of, activity.since(), cx).against(sum.moved());
    Some(Draft {
        here: Some(here),
        spec,
        cause: cause.name(),
        stage: Some(match status {
            Status::Open => "onset",
            Status::Update => "peak",
            Status::Resolved => "end",
        }),
        doubt: doubt(spec, cause, &subject, cx),
        subject,
        owner,
        severity: None,
        sample: None,
        since: activity.since(),
        last: activity.last,
        count,
        summary,
        evidence: facts,
        advice,
    })
}

/// What this host dropped of all that is in the scope. Of a process and a network only their connections' own findings
/// tell.
fn here(scope: &Scope, of: Option<&OfConnection>, since: Ktime, cx: &Context<'_>) -> Here {
    match scope {
        Scope::Connection(_) => of.map_or_else(Here::default, |of| {
            cx.dropped_of(&Whose::of(&of.connection), since)
        }),
        Scope::Wider(Wider::Remote { netns, remote }) => cx.dropped_where(
            Some(*netns),
            |ends| ends.iter().any(|end| end.ip() == *remote),
            since,
        ),
        Scope::Wider(Wider::Listener { netns, local }) => {
            cx.dropped_where(Some(*netns), |ends| ends.contains(local), since)
        }
        Scope::Wider(Wider::Netns { netns }) => cx.dropped_where(Some(*netns), |_| true, since),
        Scope::Wider(Wider::Host) => cx.dropped_where(None, |_| true, since),
        Scope::Wider(Wider::Process { .. } | Wider::Prefix { .. }) => Here::default(),
    }
}

fn summary(cause: Cause, sum: &Segments, to: &str, peak_per_s: u64) -> String {
    let reading = reading(cause, sum);
    if cause == Cause::LocalDrop {
        let failed = plural(sum.failed, "segment");
        let left = sum.count();
        let others = if left > 0 {
            format!(", {left} others did")
        } else {
            String::new()
        };
        return format!(
            "{failed} that were to be retransmitted to {to} did not leave this host{others}, at most {peak_per_s} a \
             second: {reading}"
        );
    }
    let noun = if cause == Cause::SynsUnanswered && sum.data() == 0 {
        "SYN"
    } else {
        "segment"
    };
    let segments = plural(sum.count(), noun);
    let ratio = sum.ratio().map_or_else(String::new, |ratio| {
        format!(" ({:.1} % of what was sent)", ratio * 100.0)
    });
    let icmp = if cause == Cause::PathMtu {
        sum.sizes.icmp()
    } else {
        ""
    };
    format!(
        "{segments} retransmitted to {to}{ratio}, at most {peak_per_s} a second: {reading}{icmp}"
    )
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

fn reading(cause: Cause, sum: &Segments) -> &'static str {
    match cause {
        Cause::SynsUnanswered if sum.data() == 0 => {
            "each for one that no SYN-ACK answered in time; candidates are a filter, here or on the way, that drops \
             SYNs or SYN-ACKs, a peer that is down, and a listener that drops them"
        }
        Cause::SynsUnanswered => {
            "most are SYNs that no SYN-ACK answered in time, and nothing of the rest is acknowledged; candidates are a \
             filter, here or on the way, a path that loses them, and a peer that is down"
        }
        Cause::PeerUnreachable => {
            "timeouts, and nothing is acknowledged; candidates are a filter, here or on the way, a path that loses the \
             packets or all that answers them, and a peer that is down"
        }
        Cause::PathLoss => {
            "the peer acknowledges the rest: packets are lost on the way, from this host's queues to the peer's"
        }
        Cause::PathMtu => {
            "only full-sized segments fail while the peer still talks: they are too large for the path"
        }
        Cause::LocalDrop => "this host drops them itself, or has no way for them",
        Cause::ReceiverStalled => {
            "the peer's window is shut: its application does not read, or its kernel has no memory for what comes"
        }
        Cause::Reordering if sum.undone > sum.spurious / 2 => {
            "most had arrived before they were sent again, as their acknowledgements say: the segments or the \
             acknowledgements were late, not lost"
        }
        Cause::Reordering => {
            "the peer reports that it received most of them twice (DSACK): they were late or out of order, not lost; or \
             their acknowledgements were late or lost"
        }
        Cause::Unknown => "their types do not tell why",
    }
}

fn doubt(
    spec: &Spec,
    cause: Cause,
    subject: &Subject,
    cx: &Context<'_>,
) -> Option<Cow<'static, str>> {
    let of_all = match subject.netns() {
        Some(netns) => cx.doubt_in(spec, netns),
        None => cx.doubt(spec),
    };
    of_all.or_else(|| {
        (cause == Cause::PathMtu)
            .then(|| "the cause was concluded from the sizes of the segments".into())
    })
}

fn advice(
    cause: Cause,
    sum: &Segments,
    subject: &Subject,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    match cause {
        Cause::PeerUnreachable => vec![
            "check that the peer is up and that no firewall, this host's own among them, drops its packets silently \
             (nft list ruleset, ip route get, mtr --tcp)"
                .into(),
        ],
        Cause::SynsUnanswered => vec![
            "see what leaves this host and what comes back (tcpdump -ni any 'tcp[13] & 2 != 0 or icmp'): SYNs that do \
             not leave are dropped here, and only SYNs mean that a filter, a dead host or a listener drops them"
                .into(),
            "on the peer, 'nstat -az TcpExtListenDrops' rises where its listener drops them".into(),
        ],
        Cause::PathLoss => vec![
            "look for drops here first (ip -s link, tc -s qdisc, ethtool -S), then along the path \
             (mtr --tcp)"
                .into(),
        ],
        Cause::PathMtu => sum.sizes.advice(subject.netns(), cx),
        Cause::LocalDrop => vec![
            "look at this host's output firewall (nft list ruleset), its qdisc (tc -s qdisc), the link and the route \
             (ip route get)"
                .into(),
        ],
        Cause::ReceiverStalled => vec![
            "look at what the peer's process does instead of reading (ss -tnp there: Recv-Q is full); where Recv-Q is \
             small, memory is short there (nstat -az 'TcpExtTCPMemoryPressures*' TcpExtPruneCalled)"
                .into(),
        ],
        Cause::Reordering => vec![
            "look for several paths to one place (bonded links, ECMP by packet, Wi-Fi), for queues that \
             fill and empty (bufferbloat), and for ACKs that are delayed or lost on the way back"
                .into(),
        ],
        Cause::Unknown => {
            vec!["compare TcpExt counters (nstat -az 'TcpExt*') while it lasts".into()]
        }
    }
}
