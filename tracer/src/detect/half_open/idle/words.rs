//! What is said of idle connections.

use std::borrow::Cow;

use super::group::{Group, GroupKey};
use crate::detect::room::{Context, Draft, Facts, Spec, plural, process, said_seconds, who};

pub(super) fn draft(
    spec: &'static Spec,
    key: &GroupKey,
    group: &Group,
    count: u64,
    cx: &Context<'_>,
) -> Draft {
    let found = &group.found;
    let mut facts = Facts::default()
        .count("connections", found.count)
        .count("most_connections", group.peak)
        .seconds("idle_limit_s", group.limit);
    if let Some(oldest) = found.oldest {
        facts = facts
            .seconds("oldest_idle_s", oldest.idle)
            .text("oldest_local", oldest.local.to_string())
            .text("oldest_remote", oldest.remote.to_string());
    }
    if key.without_timer {
        facts = facts.count("waiting_bytes", found.waiting_bytes);
    }
    facts = facts
        .count("remotes", found.remotes.len() as u64)
        .text("most_frequent_remotes", found.named());
    Draft {
        here: None,
        spec,
        cause: if key.without_timer {
            "idle_without_timer"
        } else {
            "idle_without_keepalive"
        },
        stage: None,
        doubt: cx.doubt(spec),
        subject: process((key.netns, key.pid), group.owner.as_ref()),
        owner: group.owner,
        // Nobody searches for who holds what is in no trouble.
        severity: None,
        sample: None,
        since: group.since,
        last: cx.now,
        count,
        summary: summary(key, group, count),
        evidence: facts,
        advice: advice(key, group, cx),
    }
}

fn summary(key: &GroupKey, group: &Group, count: u64) -> String {
    let owner = who(group.owner.as_ref());
    let connections = plural(count, "connection");
    let oldest = group.found.oldest.map_or_else(String::new, |oldest| {
        format!(", the oldest for {}", said_seconds(oldest.idle))
    });
    let limit = said_seconds(group.limit);
    if key.without_timer {
        format!(
            "{owner} holds {connections} idle for {limit} or longer{oldest}, with data to deliver and no timer \
             that will try: the kernel sends nothing more by itself"
        )
    } else {
        format!(
            "{owner} holds {connections} idle for {limit} or longer{oldest}, without keepalive: should the peer \
             be gone, this host's kernel will not notice"
        )
    }
}

fn advice(key: &GroupKey, group: &Group, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let owner = who(group.owner.as_ref());
    if key.without_timer {
        return vec![
            format!("let {owner} close them: what it wrote last was not delivered").into(),
            "keep what 'ss -tinom' says of them, and report it: a kernel that forgets a timer has a bug".into(),
        ];
    }
    vec![
        format!(
            "let {owner} set SO_KEEPALIVE on them, and TCP_KEEPIDLE, in the place of {}, below what the \
             firewalls and NATs between remember (350 s at some clouds)",
            cx.said_sysctl("net.ipv4.tcp_keepalive_time", key.netns)
        )
        .into(),
        format!("or let {owner} close what it does not use, or ask its peers for a sign of life now and then")
            .into(),
    ]
}
