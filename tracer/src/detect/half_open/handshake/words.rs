//! What a `handshake` finding says: evidence, one sentence, advice.

use std::borrow::Cow;

use conntracer_common::record::syn_outcome;

use super::waiting::{Looks, Waiting};
use crate::{
    detect::{
        half_open::thresholds::Thresholds,
        room::{Context, Draft, Facts, Spec, plural, who},
    },
    finding::Subject,
    plan::HookType,
    table::listener::ListenerKey,
};

pub(super) fn draft(
    spec: &'static Spec,
    key: &ListenerKey,
    waiting: &Waiting,
    thresholds: &Thresholds,
    cx: &Context<'_>,
) -> Draft {
    let looks = waiting.looks(thresholds);
    Draft {
        spec,
        cause: "handshake",
        stage: None,
        doubt: cx.doubt_in(spec, key.netns),
        subject: Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        owner: waiting.owner,
        sample: None,
        since: waiting.since,
        last: waiting.last,
        count: waiting.retransmits.get(),
        summary: summary(key, waiting, looks),
        evidence: evidence(waiting, looks, cx),
        advice: advice(key, waiting, looks, cx),
    }
}

fn evidence(waiting: &Waiting, looks: Looks, cx: &Context<'_>) -> Facts {
    let totals = &waiting.totals;
    let arrivals = waiting.arrivals;
    let mut facts = Facts::default()
        .count("requests", waiting.requests.get())
        .count("sources", waiting.crowd.sources())
        .count("prefixes", waiting.crowd.prefixes())
        .count("repeats_unanswered", waiting.unanswered())
        .count("repeats_ack_discarded", waiting.discarded.get())
        .count("most_repeats_of_one_request", waiting.most_repeats)
        .count("completed_late", totals[syn_outcome::COMPLETED_LATE])
        .count("requests_aborted", totals[syn_outcome::ABORTED])
        .count("ack_overflow_clients", totals[syn_outcome::VICTIMS]);
    if cx.host.plan.hook_type("request") == HookType::Off {
        // Those of cookies complete, too, and cannot be told apart here.
        if arrivals.cookies == 0 {
            let gone = arrivals
                .added
                .saturating_sub(arrivals.completed)
                .saturating_sub(waiting.syn_qlen());
            facts = facts.count("requests_gone", gone);
        }
    } else {
        facts = facts
            .count("requests_expired", totals[syn_outcome::EXPIRED])
            .count("requests_reset", totals[syn_outcome::RESET]);
    }
    facts = facts
        .count("syn_added", arrivals.added)
        .count("syn_cookies_sent", arrivals.cookies)
        .count("syn_queue_drops", queue_drops(waiting))
        .count("completed", arrivals.completed);
    if let Some(completion) = arrivals.completion() {
        facts = facts.number("completion_ratio", completion);
    }
    facts = facts.count("syn_qlen", waiting.syn_qlen());
    if let Some(fullest) = waiting.fullest() {
        facts = facts
            .count("ack_backlog", fullest.ack_backlog)
            .count("max_ack_backlog", fullest.max_ack_backlog);
    }
    facts = facts.text("looks_like", looks.name());
    match waiting.last_remote {
        Some(remote) => facts.text("last_remote", remote.to_string()),
        None => facts,
    }
}

const fn queue_drops(waiting: &Waiting) -> u64 {
    waiting.totals[syn_outcome::SYN_QUEUE_FULL]
        .saturating_add(waiting.totals[syn_outcome::SYN_QUEUE_PRESSURE])
}

fn from(waiting: &Waiting) -> String {
    match waiting.crowd.only() {
        Some(only) => only.to_string(),
        None => format!("{} addresses", waiting.crowd.sources()),
    }
}

fn summary(key: &ListenerKey, waiting: &Waiting, looks: Looks) -> String {
    let local = key.local;
    let repeats = plural(waiting.retransmits.get(), "SYN-ACK");
    let requests = plural(waiting.requests.get(), "request");
    let from = from(waiting);
    let reading = match looks {
        Looks::OverflowVictims => {
            let why = if waiting.is_full() {
                "the accept queue is full"
            } else if waiting.totals[syn_outcome::ACK_OTHER] > 0 {
                "no socket was made of it, as for want of memory"
            } else {
                "the accept queue was full"
            };
            return format!(
                "{local} repeated {repeats} for {requests} from {from} whose third ACK did arrive and \
                 was discarded: {why}"
            );
        }
        Looks::Deferred => {
            return format!(
                "{local} repeated {repeats} for {requests} from {from} whose third ACK did arrive and \
                 was discarded: the accept queue has room, and the listener defers accept until data \
                 comes"
            );
        }
        Looks::Flood => {
            return format!(
                "{local} gets SYNs from about {from} and {} of {} handshakes completed: it looks like \
                 a SYN flood from forged addresses; {} were answered with cookies, {} dropped, and \
                 {repeats} repeated",
                waiting.arrivals.completed,
                waiting.arrivals.answered(),
                waiting.arrivals.cookies,
                queue_drops(waiting),
            );
        }
        Looks::OneClient => "one client, or the path to it, is broken",
        Looks::OnePrefix => "the path back to one network is broken",
        Looks::SeveralClients => "several clients, or the path back to them, are broken",
    };
    format!(
        "{local} repeated {repeats} for {requests} from {from}, and no third ACK came: {reading}"
    )
}

fn advice(
    key: &ListenerKey,
    waiting: &Waiting,
    looks: Looks,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let retries = cx.said_sysctl("net.ipv4.tcp_synack_retries", key.netns);
    match looks {
        Looks::OverflowVictims => {
            let now = waiting.fullest().map_or_else(String::new, |fullest| {
                format!(" (now {})", fullest.max_ack_backlog)
            });
            vec![
                format!(
                    "find out why {} does not call accept(), or raise the backlog of listen(){now}",
                    who(waiting.owner.as_ref()),
                )
                .into(),
            ]
        }
        Looks::Deferred => vec![
            "leave it if clients may connect and say nothing: TCP_DEFER_ACCEPT spares the process those, \
             and 'nstat -az TcpExtTCPDeferAcceptDrop' counts their ACKs"
                .into(),
            "where clients wait for the server to speak first, take TCP_DEFER_ACCEPT (nginx: deferred) off \
             the listener"
                .into(),
        ],
        Looks::Flood => vec![
            "keep net.ipv4.tcp_syncookies at 1, so that forged requests cannot fill the SYN queue"
                .into(),
            "filter upstream, or on this host before TCP: forged addresses cannot be blocked one by one"
                .into(),
        ],
        Looks::OneClient | Looks::OnePrefix | Looks::SeveralClients => vec![
            "look for a firewall or a route that loses the way back: SYN-ACKs leave this host, or the \
             client's ACKs do not reach it"
                .into(),
            format!(
                "on a return path over another interface, check net.ipv4.conf.*.rp_filter and \
                 stateful firewalls; how often a SYN-ACK is repeated is {retries}"
            )
            .into(),
        ],
    }
}
