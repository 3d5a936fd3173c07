//! What is said of half-closed sockets.

use std::{borrow::Cow, time::Duration};

use super::group::{Group, GroupKey, Reading};
use crate::{
    detect::{
        half_open::thresholds::Thresholds,
        room::{Context, Draft, Facts, Spec, plural, process, said_seconds, who},
    },
    event::TcpState,
    time::Ktime,
};

pub(super) fn draft(
    spec: &'static Spec,
    key: &GroupKey,
    group: &Group,
    count: u64,
    thresholds: &Thresholds,
    cx: &Context<'_>,
) -> Draft {
    let reading = group.reading(key, thresholds, cx.now);
    let growth = group.growth(thresholds, cx.now);
    let since = group.oldest.map_or(cx.now, |oldest| oldest.since);
    let mut facts = Facts::default()
        .text(
            "state",
            if key.state == TcpState::CloseWait {
                "CLOSE_WAIT"
            } else {
                "FIN_WAIT2"
            },
        )
        .count("sockets", group.count)
        .count("most_sockets", group.peak)
        .seconds("oldest_s", cx.now.since(since));
    if let Some(oldest) = group.oldest {
        facts = facts
            .seconds("oldest_without_progress_s", cx.now.since(oldest.progress))
            .text("oldest_local", oldest.local.to_string())
            .text("oldest_remote", oldest.remote.to_string());
        if oldest.before {
            facts = facts
                .count("oldest_acked_bytes", oldest.bytes_acked)
                .count("oldest_segments_retransmitted", oldest.retransmitted);
        }
    }
    if group.unlisted > 0 {
        facts = facts.count("unlisted_sockets", group.unlisted);
    }
    if group.shared > 0 {
        facts = facts.count("shared_sockets", group.shared);
    }
    if key.state == TcpState::CloseWait {
        facts = facts.count("still_sending", group.seen.delivering);
        if group.seen.unanswered > 0 {
            facts = facts.count("unanswered_sockets", group.seen.unanswered);
        }
    }
    if group.seen.told > 0 {
        facts = facts
            .count("not_read_sockets", group.seen.unread)
            .count("unread_bytes", group.seen.unread_bytes);
    }
    facts = facts.text("looks_like", reading.name());
    if let Some((gained, span)) = growth {
        facts = facts
            .count("gained_sockets", gained)
            .seconds("gained_within_s", span);
    }
    Draft {
        here: group.here(reading),
        spec,
        cause: "half_closed",
        stage: None,
        doubt: cx.doubt_in(spec, key.netns),
        subject: process((key.netns, key.pid), group.owner.as_ref()),
        owner: group.owner,
        severity: None,
        sample: group.oldest.map(|oldest| oldest.id),
        since,
        last: cx.now,
        count,
        summary: summary(key, group, count, reading, growth, cx.now),
        evidence: facts,
        advice: advice(key, group, reading, cx),
    }
}

fn summary(
    key: &GroupKey,
    group: &Group,
    count: u64,
    reading: Reading,
    growth: Option<(u64, Duration)>,
    now: Ktime,
) -> String {
    let owner = who(group.owner.as_ref());
    let sockets = plural(count, "socket");
    let oldest = group.oldest.map_or_else(String::new, |oldest| {
        format!(
            ", the oldest for {}{}",
            if oldest.before { "at least " } else { "" },
            said_seconds(now.since(oldest.since))
        )
    });
    let trend = match growth {
        Some((gained, span)) if reading == Reading::Leak => {
            format!("; {gained} more within {}: a leak", said_seconds(span))
        }
        _ => String::new(),
    };
    let seen = &group.seen;
    match (key.state, reading) {
        (_, Reading::NotAccepted) => {
            let (connections, wait) = if count == 1 {
                ("connection", "waits")
            } else {
                ("connections", "wait")
            };
            format!(
                "{count} {connections} in CLOSE_WAIT {wait} for accept() by {owner}{oldest}: the peers have closed \
                 their side meanwhile"
            )
        }
        (TcpState::CloseWait, Reading::SlowPeer) if seen.unanswered == seen.delivering => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed its side, and acknowledges nothing \
             of what it is still sent"
        ),
        (TcpState::CloseWait, Reading::SlowPeer) => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed its side, and is slow to take \
             what it is still sent"
        ),
        (TcpState::CloseWait, Reading::Unread) => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed, and what came before its end{} is \
             not read",
            unread(seen.unread_bytes)
        ),
        (TcpState::CloseWait, _) if is_shared(group) => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed, and not every process that holds them \
             has called close(){trend}"
        ),
        (TcpState::CloseWait, _) => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed, close() was not \
             called{trend}"
        ),
        (_, Reading::Unread) => format!(
            "{owner} holds {sockets} in FIN_WAIT2{oldest}: it has shut its side, and does not read what the peer \
             sends{}",
            unread(seen.unread_bytes)
        ),
        _ => format!(
            "{owner} holds {sockets} in FIN_WAIT2{oldest}: it has shut its side, and no end of the peer's has come \
             through{trend}"
        ),
    }
}

/// Whether each of them is held by several processes.
const fn is_shared(group: &Group) -> bool {
    group.shared > 0 && group.shared == group.listed()
}

fn unread(bytes: u64) -> String {
    if bytes == 0 {
        String::new()
    } else {
        format!(" ({})", plural(bytes, "byte"))
    }
}

fn advice(
    key: &GroupKey,
    group: &Group,
    reading: Reading,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let owner = who(group.owner.as_ref());
    if key.state == TcpState::CloseWait && is_shared(group) {
        return vec![
            format!("close every copy: each is held by {owner} and by another process that inherited it")
                .into(),
            "close what a child is not to have before exec() (SOCK_CLOEXEC, accept4()), and in a parent after \
             fork()"
                .into(),
        ];
    }
    match (key.state, reading) {
        // What mends it is in the finding that explains this one.
        (_, Reading::NotAccepted) if group.delay.is_some() => Vec::new(),
        (_, Reading::NotAccepted) => vec![
            format!(
                "see what {owner} does instead of accept() (ps -o pid,stat,wchan:20,cmd -p {}: T is stopped, D waits \
                 for a disk), and whether accept() fails for want of descriptors (ls /proc/{}/fd against 'Max open \
                 files' in its limits)",
                key.pid, key.pid
            )
            .into(),
        ],
        (_, Reading::Unread) => vec![
            format!(
                "see what {owner} does instead of reading (ps -o pid,stat,wchan:20,cmd -p {}: T is stopped, D waits \
                 for a disk): a stuck task, or a socket that it does not look at any more",
                key.pid
            )
            .into(),
        ],
        (TcpState::CloseWait, Reading::Leak) => vec![
            format!("find the path in {owner} that forgets close() after read() returned 0").into(),
            format!(
                "watch its descriptors (ls /proc/{}/fd) against its limit: at RLIMIT_NOFILE accept() \
                 fails",
                key.pid
            )
            .into(),
        ],
        (TcpState::CloseWait, Reading::SlowPeer) => vec![
            format!("nothing leaks: bound how long {owner} waits for such a peer (SO_SNDTIMEO, \
                     TCP_USER_TIMEOUT, or a limit of its own)")
                .into(),
        ],
        (_, Reading::Leak) => vec![
            format!("find what in {owner} shuts connections and never closes them: a reader that waits \
                     without a timeout for the peer's end")
                .into(),
            format!(
                "watch its descriptors (ls /proc/{}/fd) against its limit: at RLIMIT_NOFILE accept() \
                 fails",
                key.pid
            )
            .into(),
        ],
        (TcpState::CloseWait, Reading::Forgotten) => vec![
            format!("find out what {owner} waits for before it closes: a stuck task, or a peer it \
                     forgot")
                .into(),
        ],
        _ => vec![
            format!(
                "see whether the peer has closed ('ss -tn' there): where it is in FIN-WAIT-1 or LAST-ACK, its FIN is lost \
                 on the way or dropped here ('nft list ruleset' of namespace {})",
                key.netns
            )
            .into(),
            format!("where it has not, let {owner} close() instead of shutdown() when it wants no answer, or set a \
                     receive timeout")
                .into(),
            format!(
                "the kernel ends FIN_WAIT2 by itself only after close(): {}",
                cx.said_sysctl("net.ipv4.tcp_fin_timeout", key.netns),
            )
            .into(),
        ],
    }
}
