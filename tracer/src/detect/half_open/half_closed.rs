//! `half_open` / `half_closed`: one side has closed, the other has not, for too long.
//!
//! **Rule.** Every poll lists the sockets that are in CLOSE_WAIT or FIN_WAIT2 for longer than
//! [`HalfOpen::half_closed_after_s`](crate::detect::HalfOpen::half_closed_after_s), which are grouped
//! by process and state. Opens at
//! [`HalfOpen::half_closed_sockets`](crate::detect::HalfOpen::half_closed_sockets); resolves when two
//! polls find none. The count is how many there are; of a resolved finding, how many there were at
//! most. Of very many a poll lists a part, and counts the others by process (`unlisted_sockets`).
//!
//! **Reading.** CLOSE_WAIT: the peer closed and the application did not. A number that grows again and again, by
//! [`HalfOpen::leak_per_minute`](crate::detect::HalfOpen::leak_per_minute), is a descriptor leak; sockets that
//! still have something to deliver belong to a slow peer; the others are forgotten, or their task is stuck.
//! FIN_WAIT2: the application shut its sending side, and the peer does not close.
//!
//! **Older than conntracer.** A socket that was half-closed before conntracer began is so at least since
//! the kernel last did anything with it; its age is said to be that at least.
//!
//! **False positives.** Protocols that half-close by design (rsh, some proxies) stay so for as long
//! as the other direction sends; raise the age there.

use std::{
    borrow::Cow,
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use foldhash::quality::RandomState;

use super::process;
use crate::{
    count::Grow,
    detect::{Context, Draft, Facts, Life, plural, said_seconds, who},
    event::{HalfClosed as Unlisted, Owner, Snapshot, TcpState},
    finding::FindingKind,
    id::SocketId,
    table::Bounded,
    time::Ktime,
};

/// Growth is measured over the age from which sockets count, by default a minute, in so many steps.
const SAMPLES: u32 = 6;

fn sample_interval(cx: &Context<'_>) -> Duration {
    let age = Duration::from_secs(cx.thresholds.half_open.half_closed_after_s);
    age.checked_div(SAMPLES)
        .map_or(age, |share| share.max(Duration::from_secs(1)))
}

/// Sockets of one poll that are told apart: four times the eBPF side's default table.
const SEEN: usize = 1 << 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    netns: u32,
    /// 0 when the owner is unknown.
    pid: u32,
    state: TcpState,
}

/// The oldest socket of a group.
#[derive(Clone, Copy, Debug)]
struct Oldest {
    id: SocketId,
    /// When it entered the state, or an upper bound of that.
    since: Ktime,
    /// It did before conntracer began.
    before: bool,
    local: SocketAddr,
    remote: SocketAddr,
    /// What the kernel still knows of its life before.
    bytes_acked: u64,
    retransmitted: u32,
}

/// What a group of half-closed sockets looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// Ever more of them.
    Leak,
    /// The peer is the one that takes its time.
    SlowPeer,
    /// The application has nothing left to do with them, and keeps them.
    Forgotten,
}

impl Reading {
    const fn name(self) -> &'static str {
        match self {
            Self::Leak => "leak",
            Self::SlowPeer => "slow_peer",
            Self::Forgotten => "forgotten",
        }
    }
}

#[derive(Debug)]
struct Group {
    owner: Option<Owner>,
    life: Option<Life>,
    /// Counted since the last tick, and as of it; of those, held by more than one process.
    counting: u64,
    count: u64,
    /// Of those, counted and not listed: likewise.
    counting_unlisted: u64,
    unlisted: u64,
    sharing: u64,
    shared: u64,
    peak: u64,
    /// Those that the peer has closed, and has not taken everything from yet: likewise.
    counting_delivering: u64,
    delivering: u64,
    oldest: Option<Oldest>,
    absent_polls: u8,
    /// Counts at steps of [`sample_interval`], oldest first.
    samples: VecDeque<(Ktime, u64)>,
}

impl Group {
    /// Sockets gained since the oldest sample, and over how long; `None` before there is one.
    fn growth(&self, cx: &Context<'_>) -> Option<(u64, Duration)> {
        let (then, count) = *self.samples.front()?;
        let span = cx.now.since(then);
        (span >= sample_interval(cx)).then(|| (self.count.saturating_sub(count), span))
    }

    /// Grown fast enough, and again and again: a burst of clients that leave together is no leak.
    fn leaks(&self, cx: &Context<'_>) -> bool {
        const RISES: usize = 3;
        let counts = self.samples.iter().map(|(_, count)| *count);
        let later = counts.clone().skip(1).chain([self.count]);
        let rises = counts.zip(later).filter(|(then, now)| now > then).count();
        self.growth(cx).is_some_and(|(gained, span)| {
            let per_minute = gained as f64 * 60.0 / span.as_secs_f64();
            rises >= RISES && per_minute >= cx.thresholds.half_open.leak_per_minute.max(1) as f64
        })
    }

    /// Those of which a poll says more than that they are there.
    const fn listed(&self) -> u64 {
        self.count.saturating_sub(self.unlisted)
    }

    fn reading(&self, state: TcpState, cx: &Context<'_>) -> Reading {
        if self.leaks(cx) {
            Reading::Leak
        } else if state == TcpState::FinWait2
            || self.delivering > 0 && self.delivering == self.listed()
        {
            Reading::SlowPeer
        } else {
            Reading::Forgotten
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct HalfClosed {
    groups: Bounded<Key, Group>,
    /// Sockets counted since the last tick: a watched one is listed twice in a poll.
    seen: HashSet<SocketId, RandomState>,
}

impl HalfClosed {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            groups: Bounded::new(limit),
            seen: HashSet::default(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.groups.evicted()
    }

    pub(crate) fn snapshot(&mut self, body: &Snapshot, cx: &mut Context<'_>) {
        let socket = &body.socket;
        if !matches!(socket.state, TcpState::CloseWait | TcpState::FinWait2) {
            return;
        }
        let Some(since) = body.since else { return };
        let limit = Duration::from_secs(cx.thresholds.half_open.half_closed_after_s);
        if cx.now.since(since) < limit || self.seen.len() >= SEEN || !self.seen.insert(socket.id) {
            return;
        }
        let key = Key {
            netns: socket.netns,
            pid: body.owner.map_or(0, |owner| owner.pid),
            state: socket.state,
        };
        if self.groups.touch(&key).is_none() {
            let group = Group {
                owner: body.owner,
                life: None,
                counting: 0,
                count: 0,
                counting_unlisted: 0,
                unlisted: 0,
                sharing: 0,
                shared: 0,
                peak: 0,
                counting_delivering: 0,
                delivering: 0,
                oldest: None,
                absent_polls: 0,
                samples: VecDeque::new(),
            };
            if let Some((key, mut gone)) = self.groups.insert(key, group)
                && let Some(life) = gone.life.take()
            {
                cx.resolve(life, draft(&key, &gone, gone.peak, cx));
            }
        }
        let Some(group) = self.groups.get_mut(&key) else {
            return;
        };
        group.owner = body.owner.or(group.owner);
        if group.counting == 0 {
            group.oldest = None;
        }
        group.counting.grow(1);
        let holders = body.owner.and_then(|owner| owner.holders);
        group.sharing.grow(u64::from(holders > Some(1)));
        group.counting_delivering.grow(u64::from(
            socket.state == TcpState::CloseWait && body.tcp.waiting_bytes() > 0,
        ));
        if group.oldest.is_none_or(|oldest| since < oldest.since) {
            group.oldest = Some(Oldest {
                id: socket.id,
                since,
                before: socket.older && since < socket.id.born,
                local: socket.local,
                remote: socket.remote,
                bytes_acked: body.tcp.bytes_acked,
                retransmitted: body.tcp.total_retrans,
            });
        }
    }

    /// Which namespace they are in is not known: they count where most of the process's others do.
    pub(crate) fn unlisted(&mut self, body: &Unlisted) {
        let pid = body.owner.map_or(0, |owner| owner.pid);
        let key = self
            .groups
            .iter()
            .filter(|(key, _)| (key.pid, key.state) == (pid, body.state))
            .max_by_key(|(_, group)| group.counting)
            .map(|(key, _)| *key);
        if let Some(group) = key.and_then(|key| self.groups.get_mut(&key)) {
            group.counting_unlisted = group.counting_unlisted.saturating_add(body.count);
        }
    }

    /// A tick ends a poll: what was neither listed nor counted is gone.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        self.seen.clear();
        if self.groups.is_empty() {
            return;
        }
        let keys: Vec<Key> = self.groups.iter().map(|(key, _)| *key).collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else {
                continue;
            };
            let unlisted = std::mem::take(&mut group.counting_unlisted);
            let counted = std::mem::take(&mut group.counting).saturating_add(unlisted);
            let shared = std::mem::take(&mut group.sharing);
            let delivering = std::mem::take(&mut group.counting_delivering);
            if counted == 0 {
                group.absent_polls.grow(1);
                // One poll may have lost its snapshots to a full ring.
                if group.absent_polls >= 2 {
                    if let Some(life) = group.life {
                        cx.resolve(life, draft(&key, group, group.peak, cx));
                    }
                    self.groups.remove(&key);
                }
                continue;
            }
            group.absent_polls = 0;
            group.count = counted;
            group.unlisted = unlisted;
            group.shared = shared;
            group.delivering = delivering;
            group.peak = group.peak.max(counted);
            judge(&key, group, cx);
            if group
                .samples
                .back()
                .is_none_or(|(at, _)| cx.now.since(*at) >= sample_interval(cx))
            {
                if group.samples.len() == SAMPLES as usize {
                    group.samples.pop_front();
                }
                group.samples.push_back((cx.now, counted));
            }
        }
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        let keys: Vec<Key> = self.groups.iter().map(|(key, _)| *key).collect();
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else {
                continue;
            };
            let Some(mut life) = group.life else { continue };
            if cx.owes(&life, group.count) {
                cx.update(&mut life, draft(&key, group, group.count, cx));
                group.life = Some(life);
            }
        }
    }
}

fn judge(key: &Key, group: &mut Group, cx: &mut Context<'_>) {
    match group.life {
        None if group.count >= cx.thresholds.half_open.half_closed_sockets => {
            group.life = Some(cx.open(draft(key, group, group.count, cx)));
        }
        Some(mut life) if life.due(cx.now, group.count) => {
            cx.update(&mut life, draft(key, group, group.count, cx));
            group.life = Some(life);
        }
        _ => {}
    }
}

fn draft(key: &Key, group: &Group, count: u64, cx: &Context<'_>) -> Draft {
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
        facts = facts.count("still_sending", group.delivering);
    }
    facts = facts.text("looks_like", group.reading(key.state, cx).name());
    if let Some((gained, span)) = group.growth(cx) {
        facts = facts
            .count("gained_sockets", gained)
            .seconds("gained_within_s", span);
    }
    Draft {
        kind: FindingKind::HalfOpen,
        cause: "half_closed",
        stage: None,
        doubt: cx.doubt("half_open.half_closed", &[]),
        subject: process((key.netns, key.pid), group.owner.as_ref()),
        owner: group.owner,
        sample: group.oldest.map(|oldest| oldest.id),
        since,
        last: cx.now,
        count,
        summary: summary(key, group, count, cx),
        evidence: facts,
        advice: advice(key, group, cx),
    }
}

fn summary(key: &Key, group: &Group, count: u64, cx: &Context<'_>) -> String {
    let owner = who(group.owner.as_ref());
    let sockets = plural(count, "socket");
    let oldest = group.oldest.map_or_else(String::new, |oldest| {
        format!(
            ", the oldest for {}{}",
            if oldest.before { "at least " } else { "" },
            said_seconds(cx.now.since(oldest.since))
        )
    });
    let trend = match group.growth(cx) {
        Some((gained, span)) if group.leaks(cx) => {
            format!("; {gained} more within {}: a leak", said_seconds(span))
        }
        _ => String::new(),
    };
    match (key.state, group.reading(key.state, cx)) {
        (TcpState::CloseWait, Reading::SlowPeer) => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed its side, and is slow to take \
             what it is still sent"
        ),
        (TcpState::CloseWait, _) => format!(
            "{owner} holds {sockets} in CLOSE_WAIT{oldest}: the peer has closed, close() was not \
             called{trend}"
        ),
        _ => format!(
            "{owner} holds {sockets} in FIN_WAIT2{oldest}: it has shut its side, the peer does not \
             close{trend}"
        ),
    }
}

fn advice(key: &Key, group: &Group, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let owner = who(group.owner.as_ref());
    if key.state == TcpState::CloseWait && group.shared == group.listed() && group.shared > 0 {
        return vec![
            format!("close every copy: each is held by {owner} and by another process that inherited it")
                .into(),
            "close what a child is not to have before exec() (SOCK_CLOEXEC, accept4()), and in a parent after \
             fork()"
                .into(),
        ];
    }
    match (key.state, group.reading(key.state, cx)) {
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
            format!("let {owner} close() instead of shutdown() when it wants no answer, or set a \
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
