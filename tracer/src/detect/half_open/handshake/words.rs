//! What a `handshake` finding says: evidence, one sentence, advice.

use std::borrow::Cow;

use conntracer_common::{record::syn_outcome, stats::hook};

use super::waiting::{Arrivals, LOOKBACK, Looks, Waiting};
use crate::{
    detect::{
        half_open::thresholds::Thresholds,
        room::{Context, Draft, Facts, Spec, plural, who},
        syn_drop::Why,
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
        here: None,
        spec,
        cause: "handshake",
        stage: None,
        doubt: cx.doubt_in(spec, key.netns),
        subject: Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        owner: waiting.owner,
        severity: None,
        sample: None,
        since: waiting.since,
        last: waiting.last,
        count: waiting.retransmits.get(),
        summary: summary(key, waiting, looks, cx),
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

fn summary(key: &ListenerKey, waiting: &Waiting, looks: Looks, cx: &Context<'_>) -> String {
    let local = key.local;
    let repeats = plural(waiting.retransmits.get(), "SYN-ACK");
    let requests = plural(waiting.requests.get(), "request");
    let from = from(waiting);
    let candidates = match looks {
        Looks::OverflowVictims | Looks::Deferred => {
            return format!(
                "{local} repeated {repeats} for {requests} from {from} whose third ACK did arrive and was discarded: {}",
                discarded(waiting, looks, cx)
            );
        }
        Looks::Flood => {
            // Where some complete, SYN-ACKs reach who asks for them.
            let unless = if waiting.arrivals.completed == 0 {
                ", or as if no SYN-ACK of this host came through"
            } else {
                ""
            };
            return format!(
                "{local} gets SYNs from about {from} and {} of {} handshakes completed: it looks like \
                 a SYN flood from forged addresses{unless}; {} were answered with cookies, {} dropped, and \
                 {repeats} repeated",
                waiting.arrivals.completed,
                waiting.arrivals.answered(),
                waiting.arrivals.cookies,
                queue_drops(waiting),
            );
        }
        Looks::OneClient => {
            "a client that does not answer, the way to it and back, and a filter of this host"
        }
        Looks::OnePrefix => {
            "the way to that network and back, a filter of this host, and forged addresses"
        }
        Looks::SeveralClients => {
            "the way to them and back, a filter of this host, and forged addresses"
        }
    };
    format!(
        "{local} repeated {repeats} for {requests} from {from}, and no third ACK came through: candidates are {candidates}"
    )
}

/// Why a third ACK that did arrive was discarded.
fn discarded(waiting: &Waiting, looks: Looks, cx: &Context<'_>) -> String {
    if looks == Looks::Deferred {
        return if sees_refusals(waiting, cx) {
            "the accept queue has room, and the listener defers accept until data comes".to_owned()
        } else {
            "the accept queue has room now; candidates are a listener that defers accept until data comes, and a queue \
             that was full before"
                .to_owned()
        };
    }
    let Arrivals {
        refused, unmade, ..
    } = waiting.arrivals;
    let was_full = refused > 0 || waiting.was_full;
    let why = match (waiting.is_full(), was_full, unmade > 0) {
        (true, ..) => "the accept queue is full",
        (false, false, true) => "no socket was made of it, as for want of memory",
        (false, true, true) => "the accept queue was full, or no socket was made of it",
        (false, ..) => "the accept queue was full",
    };
    match waiting.why.as_ref().and_then(Why::said) {
        Some(hindered) if was_full => format!("{why}; {hindered}"),
        _ => why.to_owned(),
    }
}

/// Whether a refusal that may have led to it would have been seen: its hook was attached long enough, and lost nothing.
fn sees_refusals(waiting: &Waiting, cx: &Context<'_>) -> bool {
    cx.hears_since(hook::ACK, waiting.since.before(LOOKBACK))
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
            let hindered = waiting.why.as_ref().map(Why::advice).unwrap_or_default();
            if !hindered.is_empty() {
                return hindered;
            }
            let now = waiting.fullest().map_or_else(String::new, |fullest| {
                format!(" (now {})", fullest.max_ack_backlog)
            });
            vec![
                format!(
                    "find out why {} does not take them in time: candidates are a stuck or busy process, too few \
                     workers, and accept() that fails (its log, 'ls /proc/PID/fd | wc -l' against 'Max open files')",
                    who(waiting.owner.as_ref()),
                )
                .into(),
                format!("a longer queue helps against bursts alone: raise the backlog of listen(){now}").into(),
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
        Looks::Flood => {
            let mut advice: Vec<Cow<'static, str>> = Vec::new();
            if waiting.arrivals.completed == 0 {
                advice.push(
                    format!(
                        "see whether SYN-ACKs leave ('tcpdump -ni any src port {}' in namespace {}): where none do, an \
                         output filter or the route back is the cause, and no flood",
                        key.local.port(),
                        key.netns
                    )
                    .into(),
                );
            }
            advice.push(
                "have net.ipv4.tcp_syncookies at 1, so that forged requests cannot fill the SYN queue".into(),
            );
            advice.push(
                "filter upstream, or on this host before TCP: forged addresses cannot be blocked one by one"
                    .into(),
            );
            advice
        }
        Looks::OneClient | Looks::OnePrefix | Looks::SeveralClients => vec![
            format!(
                "see what leaves and what comes ('tcpdump -ni any tcp port {}' in namespace {}): SYN-ACKs that do not \
                 leave and ACKs that come are dropped here (nft list ruleset, rp_filter); otherwise the client or the \
                 way is at fault",
                key.local.port(),
                key.netns
            )
            .into(),
            format!(
                "on a return path over another interface, check net.ipv4.conf.*.rp_filter and \
                 stateful firewalls; how often a SYN-ACK is repeated is {retries}"
            )
            .into(),
        ],
    }
}
