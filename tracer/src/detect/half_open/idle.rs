//! `half_open` / `idle_without_keepalive`, `idle_without_timer`: connections that would not notice the death of
//! their peer, found by an audit (`--audit keepalive`).
//!
//! **Rule.** An audit tells of every connection on which no data has passed for
//! [`HalfOpen::idle_after_s`](crate::detect::HalfOpen::idle_after_s), and which is established and has keepalive
//! off, or has bytes (or a FIN) to deliver and no timer that would try. They are grouped by process. Opens at the first; resolves when an audit
//! finds none. The count is how many there are; of a resolved finding, how many there were at most.
//!
//! **Reading.** `idle_without_keepalive` says nothing about the peers: they may be well. It says that this host
//! cannot know, which is how half-open connections last for days. `idle_without_timer` is a connection that the
//! kernel has forgotten to send on.
//!
//! **False positives.** Protocols that speak seldom and check their peers by themselves (a heartbeat slower than
//! the limit); raise the limit there.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::process;
use crate::{
    count::Grow,
    detect::{Context, Draft, Facts, Life, hooks, plural, said_seconds, who},
    event::{Idle as Event, IdleTotals, Owner, Role},
    finding::FindingKind,
    table::Bounded,
    time::Ktime,
};

/// Remote ends told apart in one group: many more than are named.
const REMOTES: usize = 256;
/// Those that are named, the most frequent first.
const NAMED: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    netns: u32,
    /// 0 when the owner is unknown.
    pid: u32,
    without_timer: bool,
}

/// The other end of a connection: of those that others opened the port says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Remote {
    Service(SocketAddr),
    Host(IpAddr),
}

impl Remote {
    const fn of(event: &Event) -> Self {
        let remote = event.socket.remote;
        match event.socket.role {
            Role::Active => Self::Service(remote),
            Role::Passive | Role::Unknown | Role::Listener => Self::Host(remote.ip()),
        }
    }
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Service(remote) => remote.fmt(f),
            Self::Host(remote) => remote.fmt(f),
        }
    }
}

/// What one audit found of a group.
#[derive(Clone, Debug, Default)]
struct Found {
    count: u64,
    oldest: Option<Oldest>,
    remotes: BTreeMap<Remote, u64>,
    /// Connections to further remote ends.
    elsewhere: u64,
    waiting_bytes: u64,
}

/// The connection that is idle for longest.
#[derive(Clone, Copy, Debug)]
struct Oldest {
    idle: Duration,
    local: SocketAddr,
    remote: SocketAddr,
}

impl Found {
    fn add(&mut self, event: &Event) {
        self.count.grow(1);
        self.waiting_bytes
            .grow(u64::from(event.tcp.waiting_bytes()));
        if self.oldest.is_none_or(|oldest| event.idle > oldest.idle) {
            self.oldest = Some(Oldest {
                idle: event.idle,
                local: event.socket.local,
                remote: event.socket.remote,
            });
        }
        let remote = Remote::of(event);
        if self.remotes.len() < REMOTES || self.remotes.contains_key(&remote) {
            self.remotes.entry(remote).or_default().grow(1);
        } else {
            self.elsewhere.grow(1);
        }
    }

    /// The most frequent remote ends.
    fn named(&self) -> String {
        let mut remotes: Vec<(Remote, u64)> = self
            .remotes
            .iter()
            .map(|(remote, count)| (*remote, *count))
            .collect();
        remotes.sort_by_key(|(remote, count)| (std::cmp::Reverse(*count), *remote));
        let left_out = remotes.len().saturating_sub(NAMED);
        let mut named: Vec<String> = remotes
            .iter()
            .take(NAMED)
            .map(|(remote, count)| match count {
                1 => remote.to_string(),
                count => format!("{remote} ({count})"),
            })
            .collect();
        if self.elsewhere > 0 {
            named.push(format!("{left_out} more at least"));
        } else if left_out > 0 {
            named.push(format!("{left_out} more"));
        }
        named.join(", ")
    }
}

#[derive(Debug)]
struct Group {
    owner: Option<Owner>,
    life: Option<Life>,
    /// Found since the last audit ended, and by it.
    finding: Found,
    found: Found,
    limit: Duration,
    peak: u64,
    since: Ktime,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct IdleConnections {
    groups: Bounded<Key, Group>,
}

impl IdleConnections {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            groups: Bounded::new(limit),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.groups.evicted()
    }

    pub(crate) fn idle(&mut self, event: &Event, cx: &mut Context<'_>) {
        // A recording may be judged again by a longer limit.
        if event.idle < Duration::from_secs(cx.thresholds.half_open.idle_after_s) {
            return;
        }
        let key = Key {
            netns: event.socket.netns,
            pid: event.owner.map_or(0, |owner| owner.pid),
            without_timer: event.without_timer,
        };
        if self.groups.touch(&key).is_none() {
            let group = Group {
                owner: event.owner,
                life: None,
                finding: Found::default(),
                found: Found::default(),
                limit: Duration::ZERO,
                peak: 0,
                since: cx.now,
            };
            if let Some((key, gone)) = self.groups.insert(key, group)
                && let Some(life) = gone.life
            {
                cx.resolve(life, draft(&key, &gone, gone.peak, cx));
            }
        }
        if let Some(group) = self.groups.get_mut(&key) {
            group.owner = event.owner.or(group.owner);
            group.finding.add(event);
        }
    }

    /// An audit ends: what it did not tell of is gone, unless it lost some.
    pub(crate) fn idle_totals(&mut self, event: &IdleTotals, cx: &mut Context<'_>) {
        let keys: Vec<Key> = self.groups.iter().map(|(key, _)| *key).collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else {
                continue;
            };
            let found = std::mem::take(&mut group.finding);
            if found.count == 0 {
                if event.lost == 0
                    && let Some(group) = self.groups.remove(&key)
                    && let Some(life) = group.life
                {
                    cx.resolve(life, draft(&key, &group, group.peak, cx));
                }
                continue;
            }
            group.found = found;
            group.limit = event.limit;
            group.peak = group.peak.max(group.found.count);
            match group.life {
                None => group.life = Some(cx.open(draft(&key, group, group.found.count, cx))),
                Some(mut life) if life.due(cx.now, group.found.count) => {
                    cx.update(&mut life, draft(&key, group, group.found.count, cx));
                    group.life = Some(life);
                }
                Some(_) => {}
            }
        }
    }

    /// The last word on what is still open.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        let keys: Vec<Key> = self.groups.iter().map(|(key, _)| *key).collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else {
                continue;
            };
            if let Some(mut life) = group.life
                && cx.owes(&life, group.found.count)
            {
                cx.update(&mut life, draft(&key, group, group.found.count, cx));
                group.life = Some(life);
            }
        }
    }
}

fn draft(key: &Key, group: &Group, count: u64, cx: &Context<'_>) -> Draft {
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
        kind: FindingKind::HalfOpen,
        cause: if key.without_timer {
            "idle_without_timer"
        } else {
            "idle_without_keepalive"
        },
        stage: None,
        doubt: cx.doubt("half_open.idle", &hooks::IDLE),
        subject: process((key.netns, key.pid), group.owner.as_ref()),
        owner: group.owner,
        // Nobody searches for who holds what is in no trouble.
        sample: None,
        since: group.since,
        last: cx.now,
        count,
        summary: summary(key, group, count),
        evidence: facts,
        advice: advice(key, group, cx),
    }
}

fn summary(key: &Key, group: &Group, count: u64) -> String {
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
             be gone, nobody here will notice"
        )
    }
}

fn advice(key: &Key, group: &Group, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
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
