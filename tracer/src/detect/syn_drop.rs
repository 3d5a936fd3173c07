//! `syn_drop` and `syn_cookies`: a listener turned clients away, and why.
//!
//! **Rule.** Opens at the first drop of a cause at a listener, stays open while that cause drops,
//! resolves after [`super::SynDrop::quiet_s`] without one. The count is the kernel half's own total
//! of that cause since the finding began, so that rate-limited records lose nothing.
//!
//! **Causes.** `accept_queue_full` (the SYN found the accept queue full), `ack_overflow` (the third
//! ACK did: the client believes it is connected, and counts once however often it repeats its ACK),
//! `abort_on_overflow` (the same where `tcp_abort_on_overflow` answers with a RST), `syn_queue_full`,
//! `syn_queue_pressure` (the last quarter of `tcp_max_syn_backlog`), `no_route` (back to the client),
//! `other`. A cookie in place of a stored request is `syn_cookies`: service goes on, without window
//! scaling and SACK where timestamps are off.
//!
//! **Flood.** What fills the SYN queue may be a flood: [`super::half_open::handshake`] says so, and a
//! finding about that queue points to its finding.
//!
//! **False positives.** None known for drops: each one cost a client at least a second. Cookies are
//! not reported where `tcp_syncookies` is 2, which asks for them always.

use std::{borrow::Cow, collections::BTreeMap};

use conntracer_common::record::{SynTotals, syn_outcome};

use super::{Context, Draft, Facts, Life, hooks, plural, said_seconds, who};
use crate::{
    event::{Owner, Syn},
    finding::{FindingKind, Ktime, Subject},
    table::{Bounded, listener::ListenerKey},
};

/// What a listener did instead of creating a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    AcceptQueueFull,
    AckOverflow,
    AbortOnOverflow,
    SynQueueFull,
    SynQueuePressure,
    NoRoute,
    Other,
    Cookies,
}

impl Cause {
    const ALL: [Self; 8] = [
        Self::AcceptQueueFull,
        Self::AckOverflow,
        Self::AbortOnOverflow,
        Self::SynQueueFull,
        Self::SynQueuePressure,
        Self::NoRoute,
        Self::Other,
        Self::Cookies,
    ];

    const fn kind(self) -> FindingKind {
        match self {
            Self::Cookies => FindingKind::SynCookies,
            _ => FindingKind::SynDrop,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::AcceptQueueFull => "accept_queue_full",
            Self::AckOverflow => "ack_overflow",
            Self::AbortOnOverflow => "abort_on_overflow",
            Self::SynQueueFull | Self::Cookies => "syn_queue_full",
            Self::SynQueuePressure => "syn_queue_pressure",
            Self::NoRoute => "no_route",
            Self::Other => "other",
        }
    }

    /// Whether it is the third ACK that is refused.
    const fn is_of_ack(self) -> bool {
        matches!(self, Self::AckOverflow | Self::AbortOnOverflow)
    }

    /// Whether forged requests can be what fills the queue.
    const fn is_of_syn_queue(self) -> bool {
        matches!(
            self,
            Self::SynQueueFull | Self::SynQueuePressure | Self::Cookies
        )
    }

    /// How many clients these totals turned away for this cause.
    const fn of(self, totals: &SynTotals) -> u64 {
        match self {
            Self::AcceptQueueFull => totals[syn_outcome::ACCEPT_QUEUE_FULL],
            Self::AckOverflow => totals[syn_outcome::VICTIMS],
            // A client that is sent a RST does not repeat its ACK: each is another one.
            Self::AbortOnOverflow => totals[syn_outcome::ABORTED],
            Self::NoRoute => totals[syn_outcome::NO_ROUTE],
            Self::SynQueueFull => totals[syn_outcome::SYN_QUEUE_FULL],
            Self::SynQueuePressure => totals[syn_outcome::SYN_QUEUE_PRESSURE],
            Self::Other => {
                totals[syn_outcome::OTHER].saturating_add(totals[syn_outcome::ACK_OTHER])
            }
            Self::Cookies => totals[syn_outcome::COOKIE],
        }
    }
}

/// One cause at one listener.
#[derive(Clone, Copy, Debug, Default)]
struct Drops {
    life: Option<Life>,
    count: u64,
    /// Third ACKs refused, those that clients repeated among them.
    acks: u64,
    since: Ktime,
    last: Ktime,
    /// The cause was concluded from fields at least once.
    by_fields: bool,
    /// The finding pointed to by what was last said.
    said_flood: Option<u64>,
}

impl Drops {
    const fn said(&mut self, life: Life, flood: Option<u64>) {
        self.life = Some(life);
        self.said_flood = flood;
    }

    /// What an update is worth a line for.
    const fn moved(&self) -> u64 {
        self.count.saturating_add(self.acks)
    }
}

#[derive(Debug)]
struct Listener {
    owner: Option<Owner>,
    latest: Syn,
    /// What was counted since the listener was first seen.
    totals: SynTotals,
    drops: [Drops; Cause::ALL.len()],
    /// The finding that says this listener is flooded.
    flood: Option<u64>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SynDrop {
    listeners: Bounded<ListenerKey, Listener>,
    /// Open findings by id.
    open: BTreeMap<u64, (ListenerKey, usize)>,
}

impl SynDrop {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            listeners: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.listeners.evicted()
    }

    /// A listener's totals, what they gained since its last record, and the finding that says it is
    /// flooded.
    pub(crate) fn syn(
        &mut self,
        syn: &Syn,
        gained: &SynTotals,
        flood: Option<u64>,
        cx: &mut Context<'_>,
    ) {
        let key = ListenerKey::of(&syn.socket);
        if self.listeners.touch(&key).is_none() {
            let listener = Listener {
                owner: syn.owner,
                latest: *syn,
                totals: [0; syn_outcome::COUNT],
                drops: Default::default(),
                flood: None,
            };
            if let Some((key, mut gone)) = self.listeners.insert(key, listener) {
                for (index, cause) in Cause::ALL.into_iter().enumerate() {
                    if let Some(life) = gone.drops[index].life.take() {
                        self.open.remove(&life.id);
                        cx.resolve(life, draft(&key, &gone, cause, cx));
                    }
                }
            }
        }
        let Some(listener) = self.listeners.get_mut(&key) else {
            return;
        };
        listener.owner = syn.owner.or(listener.owner);
        listener.flood = flood;
        let remote = listener.latest.socket.remote;
        listener.latest = *syn;
        if syn.socket.remote.port() == 0 {
            // A poll has no peer: the last one that a record named stays.
            listener.latest.socket.remote = remote;
        }
        for (total, more) in listener.totals.iter_mut().zip(gained) {
            *total = total.saturating_add(*more);
        }
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            let more = cause.of(gained);
            let drops = &mut listener.drops[index];
            let acks = if cause.is_of_ack() && (more > 0 || drops.life.is_some()) {
                gained[syn_outcome::ACK_OVERFLOW]
            } else {
                0
            };
            if (more == 0 && acks == 0) || (cause == Cause::Cookies && syn.syncookies == Some(2)) {
                continue;
            }
            if drops.life.is_none() {
                *drops = Drops {
                    since: cx.now,
                    ..Drops::default()
                };
            }
            drops.count = drops.count.saturating_add(more);
            drops.acks = drops.acks.saturating_add(acks);
            drops.last = cx.now;
            drops.by_fields |= !syn.by_counters;
            let (life, moved) = (drops.life, drops.moved());
            match life {
                None => {
                    let mut life = cx.open(draft(&key, listener, cause, cx));
                    life.said_count = moved;
                    listener.drops[index].said(life, flood);
                    self.open.insert(life.id, (key, index));
                }
                Some(mut life) if life.due(cx.now, moved) => {
                    cx.update(&mut life, draft(&key, listener, cause, cx));
                    life.said_count = moved;
                    listener.drops[index].said(life, flood);
                }
                Some(_) => {}
            }
        }
    }

    /// Says what grew since a second or more, and resolves what is quiet.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let quiet = cx.thresholds.syn_drop.quiet();
        self.each_open(cx, |drops, points, cx| {
            if cx.now.since(drops.last) >= quiet {
                Verdict::Resolve
            } else if drops.life.is_some_and(|life| {
                life.due(cx.now, drops.moved()) || (points && life.ripe(cx.now))
            }) {
                Verdict::Update
            } else {
                Verdict::Keep
            }
        });
    }

    /// The last word on what is still open.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        self.each_open(cx, |drops, points, _| {
            if points || drops.life.is_some_and(|life| life.stale(drops.moved())) {
                Verdict::Update
            } else {
                Verdict::Keep
            }
        });
    }

    /// `judge` is also told whether a finding has come to point to another one, or no longer does.
    fn each_open(
        &mut self,
        cx: &mut Context<'_>,
        judge: impl Fn(&Drops, bool, &Context<'_>) -> Verdict,
    ) {
        let listeners = &mut self.listeners;
        self.open.retain(|_, (key, index)| {
            let Some(listener) = listeners.get_mut(key) else {
                return false;
            };
            let Some(mut life) = listener.drops[*index].life else {
                return false;
            };
            let drops = &listener.drops[*index];
            let points = Cause::ALL[*index].is_of_syn_queue() && drops.said_flood != listener.flood;
            match judge(drops, points, cx) {
                Verdict::Keep => true,
                Verdict::Update => {
                    cx.update(&mut life, draft(key, listener, Cause::ALL[*index], cx));
                    life.said_count = listener.drops[*index].moved();
                    listener.drops[*index].said(life, listener.flood);
                    true
                }
                Verdict::Resolve => {
                    cx.resolve(life, draft(key, listener, Cause::ALL[*index], cx));
                    listener.drops[*index] = Drops::default();
                    false
                }
            }
        });
    }
}

enum Verdict {
    Keep,
    Update,
    Resolve,
}

fn draft(key: &ListenerKey, listener: &Listener, cause: Cause, cx: &Context<'_>) -> Draft {
    let drops = &listener.drops[cause as usize];
    let syn = &listener.latest;
    let doubt = cx
        .doubt(
            "syn_drop",
            if cause.is_of_ack() {
                &hooks::ACK
            } else {
                &hooks::SYN
            },
        )
        .or_else(|| {
            (drops.by_fields && cause != Cause::Cookies)
                .then(|| "the cause was concluded from the listener's queue lengths".into())
        });
    let waits = syn.last_accept.map(|last| cx.now.since(last));
    let arrivals = listener.totals[..syn_outcome::SYNS]
        .iter()
        .fold(0, |sum: u64, more| sum.saturating_add(*more));
    let mut facts = Facts::default()
        .count("ack_backlog", syn.ack_backlog)
        .count("peak_ack_backlog", syn.peak_ack_backlog)
        .count("max_ack_backlog", syn.max_ack_backlog)
        .count("syn_qlen", syn.syn_qlen)
        .count("peak_syn_qlen", syn.peak_syn_qlen)
        .count("max_syn_backlog", syn.max_syn_backlog)
        .count("syn_arrivals", arrivals)
        .count("syn_added", listener.totals[syn_outcome::ADDED])
        .count("syn_cookies_sent", listener.totals[syn_outcome::COOKIE])
        .count_if_known("syncookies", syn.syncookies.map(u64::from))
        .count_if_known("somaxconn", syn.somaxconn.map(u64::from));
    if cause.is_of_ack() {
        facts = facts
            .count("third_acks_refused", drops.acks)
            .count_if_known("abort_on_overflow", syn.abort_on_overflow.map(u64::from));
    }
    if let Some(waits) = waits {
        facts = facts.seconds("since_last_accept_s", waits);
    }
    if syn.socket.remote.port() != 0 {
        facts = facts.text("last_remote", syn.socket.remote.to_string());
    }
    let mut summary = summary(key, listener, cause, cx);
    if let Some(flood) = listener.flood.filter(|_| cause.is_of_syn_queue()) {
        facts = facts
            .text("looks_like", "flood")
            .count("flood_finding", flood);
        summary = format!("{summary}; finding {flood} says that it looks like a flood");
    }
    Draft {
        kind: cause.kind(),
        cause: cause.name(),
        stage: None,
        doubt,
        subject: Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        owner: listener.owner,
        since: drops.since,
        last: drops.last,
        count: drops.count,
        summary,
        evidence: facts,
        advice: advice(listener, cause, cx),
    }
}

fn summary(key: &ListenerKey, listener: &Listener, cause: Cause, cx: &Context<'_>) -> String {
    let syn = &listener.latest;
    let local = key.local;
    let count = listener.drops[cause as usize].count;
    let accepts = || match syn.last_accept {
        Some(last) if cx.now.since(last).as_secs() >= 1 => {
            format!(
                "nothing was accepted for {}",
                said_seconds(cx.now.since(last))
            )
        }
        Some(_) => "accept() is called, but not often enough".to_owned(),
        None => "no accept() was seen yet".to_owned(),
    };
    let peak = syn.peak_ack_backlog.max(syn.ack_backlog);
    let limit = syn.max_ack_backlog;
    match cause {
        Cause::AcceptQueueFull => format!(
            "{local} dropped {}: its accept queue is full ({peak} waiting, limit {limit}); {}",
            plural(count, "SYN"),
            accepts(),
        ),
        Cause::AckOverflow => format!(
            "{local} discarded the third ACK of {}: its accept queue is full ({peak} waiting, limit \
             {limit}), and the clients believe they are connected; {}",
            plural(count, "client"),
            accepts(),
        ),
        Cause::AbortOnOverflow => format!(
            "{local} reset {} at the end of the handshake: its accept queue is full ({peak} waiting, \
             limit {limit}) and tcp_abort_on_overflow is 1; {}",
            plural(count, "client"),
            accepts(),
        ),
        Cause::SynQueueFull => format!(
            "{local} dropped {}: its SYN queue is full ({} requests, limit {limit}) and SYN cookies \
             are off",
            plural(count, "SYN"),
            syn.peak_syn_qlen.max(syn.syn_qlen),
        ),
        Cause::SynQueuePressure => format!(
            "{local} dropped {}: less than a quarter of tcp_max_syn_backlog ({}) was left and the \
             clients were unknown to this host",
            plural(count, "SYN"),
            syn.max_syn_backlog,
        ),
        Cause::NoRoute => format!(
            "{local} dropped {}: this host has no route back to the client",
            plural(count, "SYN"),
        ),
        Cause::Other => format!(
            "{local} dropped {} for want of memory, or by a security module",
            plural(count, "connection request"),
        ),
        Cause::Cookies => format!(
            "{local} answered {} with cookies: its SYN queue is full ({} requests, limit {limit})",
            plural(count, "SYN"),
            syn.peak_syn_qlen.max(syn.syn_qlen),
        ),
    }
}

fn advice(listener: &Listener, cause: Cause, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let syn = &listener.latest;
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    match cause {
        Cause::AcceptQueueFull | Cause::AckOverflow | Cause::AbortOnOverflow => {
            let owner = who(listener.owner.as_ref());
            advice.push(match syn.last_accept {
                Some(last) if cx.now.since(last).as_secs() < 1 => {
                    format!("let {owner} accept faster: more workers, or accept() until EAGAIN")
                        .into()
                }
                _ => {
                    format!("find out why {owner} does not call accept(): stuck, or out of workers")
                        .into()
                }
            });
            advice.push(backlog(syn));
            if syn.abort_on_overflow == Some(true) {
                advice.push(
                    "set net.ipv4.tcp_abort_on_overflow to 0 (now 1): a full queue resets clients \
                     that would have been served a second later"
                        .into(),
                );
            }
        }
        Cause::SynQueueFull => {
            let now = syn
                .syncookies
                .map_or_else(String::new, |mode| format!(" (now {mode})"));
            advice.push(
                format!("set net.ipv4.tcp_syncookies to 1{now}: a full queue then costs no client")
                    .into(),
            );
            advice.push(backlog(syn));
        }
        Cause::SynQueuePressure => {
            advice.push(
                format!(
                    "raise net.ipv4.tcp_max_syn_backlog (now {})",
                    syn.max_syn_backlog
                )
                .into(),
            );
            advice.push("or set net.ipv4.tcp_syncookies to 1".into());
        }
        Cause::NoRoute => advice.push(
            format!(
                "add a route to {}: 'ip route get' in the listener's namespace says what is missing",
                syn.socket.remote.ip()
            )
            .into(),
        ),
        Cause::Other => advice.push(
            "look for memory pressure (TcpExt TCPMemoryPressures) and for denials in the audit log"
                .into(),
        ),
        Cause::Cookies => {
            advice.push(backlog(syn));
            advice.push(
                "if the SYNs are a flood of forged addresses, leave it: cookies are the defence"
                    .into(),
            );
        }
    }
    advice
}

/// Both queues are bounded by the backlog of `listen()`, cut to `somaxconn`
/// (`inet_csk_reqsk_queue_is_full`, `sk_acceptq_is_full`).
fn backlog(syn: &Syn) -> Cow<'static, str> {
    let now = syn.max_ack_backlog;
    match syn.somaxconn {
        Some(most) if now >= most => format!(
            "raise net.core.somaxconn (now {most}), and the backlog passed to listen() with it"
        ),
        Some(most) => format!(
            "raise the backlog passed to listen() (now {now}; net.core.somaxconn allows {most})"
        ),
        None => format!("raise the backlog passed to listen() (now {now}) and net.core.somaxconn"),
    }
    .into()
}
