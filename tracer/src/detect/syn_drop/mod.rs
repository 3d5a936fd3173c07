//! `syn_drop` and `syn_cookies`: a listener turned clients away, and why.
//!
//! **Rule.** Opens at the first drop of a cause at a listener, stays open while that cause drops,
//! resolves after [`super::SynDrop::quiet_s`] without one. The count is the eBPF side's own total
//! of that cause since the finding began, so that rate-limited records lose nothing.
//!
//! **Causes.** `accept_queue_full` (the SYN found the accept queue full), `ack_overflow` (the third
//! ACK did: the client believes it is connected, and counts once however often it repeats its ACK),
//! `abort_on_overflow` (the same where `tcp_abort_on_overflow` answers with a RST), `syn_queue_full`,
//! `syn_queue_pressure` (the last quarter of `tcp_max_syn_backlog`), `no_route` (back to the client),
//! `no_memory` (no socket was made of a third ACK that found room in the queue), `other` (a SYN refused by a
//! security module, or for want of memory). A listener is an address, with all the sockets that share it (`SO_REUSEPORT`): the worst of
//! them, which dropped the most, lends its queue to the words. A cookie in place of a stored request is `syn_cookies`: service goes on, without window
//! scaling and SACK where timestamps are off.
//!
//! **Flood.** What fills the SYN queue may be a flood: [`super::half_open::handshake`] says so, and a
//! finding about that queue points to its finding.
//!
//! **False positives.** None known for drops: each one cost a client at least a second. Cookies are
//! not reported where `tcp_syncookies` is 2, which asks for them always.

mod words;

use std::collections::BTreeMap;

use conntracer_common::{
    netns::kernel,
    record::{SynTotals, syn_outcome},
};

use super::{Context, Life, hooks};
use crate::{
    event::{Owner, Syn},
    finding::FindingKind,
    host::Host,
    id::SocketId,
    plan::HookType,
    table::listener::{Acceptor, Applied, ListenerKey, Listeners, Service, Summary},
    time::Ktime,
};

/// Sockets of one listener whose share of the drops is kept apart; a server has one for each CPU or worker.
const SHARES: usize = 64;

/// What a listener did instead of creating a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    AcceptQueueFull,
    AckOverflow,
    AbortOnOverflow,
    SynQueueFull,
    SynQueuePressure,
    NoRoute,
    NoMemory,
    Other,
    Cookies,
}

impl Cause {
    const ALL: [Self; 9] = [
        Self::AcceptQueueFull,
        Self::AckOverflow,
        Self::AbortOnOverflow,
        Self::SynQueueFull,
        Self::SynQueuePressure,
        Self::NoRoute,
        Self::NoMemory,
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
            Self::NoMemory => "no_memory",
            Self::Other => "other",
        }
    }

    /// Whether forged requests can be what fills the queue.
    const fn is_of_syn_queue(self) -> bool {
        matches!(
            self,
            Self::SynQueueFull | Self::SynQueuePressure | Self::Cookies
        )
    }

    /// Whether it is the third ACK that finds the accept queue full.
    const fn is_of_ack(self) -> bool {
        matches!(self, Self::AckOverflow | Self::AbortOnOverflow)
    }

    /// The hook that tells it.
    const fn hooks(self) -> &'static [u32] {
        match self {
            Self::AckOverflow | Self::AbortOnOverflow | Self::NoMemory => &hooks::ACK,
            _ => &hooks::SYN,
        }
    }

    /// The kernel's counters that count it too.
    const fn counters(self) -> &'static [usize] {
        match self {
            Self::AcceptQueueFull | Self::AckOverflow | Self::AbortOnOverflow => {
                &[kernel::LISTEN_OVERFLOWS, kernel::LISTEN_DROPS]
            }
            Self::SynQueueFull => &[kernel::REQ_Q_FULL_DROP, kernel::LISTEN_DROPS],
            Self::SynQueuePressure | Self::NoRoute | Self::NoMemory | Self::Other => {
                &[kernel::LISTEN_DROPS]
            }
            Self::Cookies => &[kernel::SYNCOOKIES_SENT, kernel::REQ_Q_FULL_DO_COOKIES],
        }
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
            Self::NoMemory => totals[syn_outcome::ACK_OTHER],
            Self::Other => totals[syn_outcome::OTHER],
            Self::Cookies => totals[syn_outcome::COOKIE],
        }
    }
}

/// One cause at one listener.
#[derive(Clone, Debug, Default)]
struct Drops {
    life: Option<Life>,
    count: u64,
    /// Third ACKs refused, those that clients repeated among them.
    acks: u64,
    since: Ktime,
    last: Ktime,
    /// The cause was concluded from fields at least once.
    by_fields: bool,
    /// The finding that says this listener is flooded, and the one that was last pointed to.
    flood: Option<u64>,
    said_flood: Option<u64>,
    /// Of `count`, what each socket of the listener dropped, closed ones included.
    shares: BTreeMap<SocketId, u64>,
}

impl Drops {
    const fn said(&mut self, mut life: Life) {
        life.said_count = self.moved();
        self.life = Some(life);
        self.said_flood = self.flood;
    }

    /// What an update is worth a line for.
    const fn moved(&self) -> u64 {
        self.count.saturating_add(self.acks)
    }

    fn share(&mut self, id: SocketId, more: u64) {
        if more > 0 && (self.shares.contains_key(&id) || self.shares.len() < SHARES) {
            let share = self.shares.entry(id).or_default();
            *share = share.saturating_add(more);
        }
    }

    /// The socket that dropped the most; of several alike, the one with the lowest address.
    fn worst(&self) -> Option<(SocketId, u64)> {
        self.shares
            .iter()
            .rev()
            .max_by_key(|(_, count)| **count)
            .map(|(id, count)| (*id, *count))
    }
}

/// What a listener dropped, cause by cause.
type Causes = [Drops; Cause::ALL.len()];

/// See the module.
#[derive(Debug)]
pub(crate) struct SynDrop {
    /// Only listeners with an open finding, which are in the table, too.
    drops: BTreeMap<ListenerKey, Causes>,
    /// Open findings by id.
    open: BTreeMap<u64, (ListenerKey, usize)>,
}

impl SynDrop {
    pub(crate) const fn new() -> Self {
        Self {
            drops: BTreeMap::new(),
            open: BTreeMap::new(),
        }
    }

    /// A listener's record, what it changed in the table, and the finding that says the listener is
    /// flooded.
    pub(crate) fn syn(
        &mut self,
        syn: &Syn,
        applied: &Applied,
        flood: Option<u64>,
        cx: &mut Context<'_>,
    ) {
        let key = ListenerKey::of(&syn.socket);
        if let Some((key, service)) = &applied.gone {
            self.resolve_all(key, service, cx);
        }
        let gained = applied.gained;
        if let Some(causes) = self.drops.get_mut(&key) {
            for (drops, cause) in causes.iter_mut().zip(Cause::ALL) {
                drops.flood = flood.filter(|_| cause.is_of_syn_queue());
            }
        }
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            let more = cause.of(&gained);
            let drops = self.drops.get(&key).map(|causes| &causes[index]);
            let is_open = drops.is_some_and(|drops| drops.life.is_some());
            let acks = if cause.is_of_ack() && (more > 0 || is_open) {
                gained[syn_outcome::ACK_OVERFLOW]
            } else {
                0
            };
            if (more == 0 && acks == 0) || (cause == Cause::Cookies && syn.syncookies == Some(2)) {
                continue;
            }
            let drops = &mut self.drops.entry(key).or_default()[index];
            if !is_open {
                *drops = Drops {
                    since: cx.now,
                    flood: flood.filter(|_| cause.is_of_syn_queue()),
                    ..Drops::default()
                };
            }
            drops.count = drops.count.saturating_add(more);
            drops.share(syn.socket.id, more);
            drops.acks = drops.acks.saturating_add(acks);
            drops.last = cx.now;
            drops.by_fields |= !syn.by_counters;
            self.say(key, index, cx);
        }
    }

    /// Opens the finding, or updates it where that is due.
    fn say(&mut self, key: ListenerKey, index: usize, cx: &mut Context<'_>) {
        let listeners = cx.listeners;
        let (Some(service), Some(causes)) = (listeners.get(&key), self.drops.get_mut(&key)) else {
            return;
        };
        let drops = &mut causes[index];
        let moved = drops.moved();
        let draft = |drops: &Drops, cx: &Context<'_>| {
            words::draft(&Told::of(&key, service, drops, cx), Cause::ALL[index], cx)
        };
        match drops.life {
            None => {
                let life = cx.open(draft(drops, cx));
                drops.said(life);
                self.open.insert(life.id, (key, index));
            }
            Some(mut life) if life.due(cx.now, moved) => {
                cx.update(&mut life, draft(drops, cx));
                drops.said(life);
            }
            Some(_) => {}
        }
    }

    /// Ends what is open of a listener that had to make room.
    fn resolve_all(&mut self, key: &ListenerKey, service: &Service, cx: &mut Context<'_>) {
        let Some(mut causes) = self.drops.remove(key) else {
            return;
        };
        for (index, cause) in Cause::ALL.into_iter().enumerate() {
            if let Some(life) = causes[index].life.take() {
                self.open.remove(&life.id);
                let told = Told::of(key, service, &causes[index], cx);
                let draft = words::draft(&told, cause, cx);
                cx.resolve(life, draft);
            }
        }
    }

    /// Says what grew since a second or more, and resolves what is quiet.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let quiet = cx.thresholds.syn_drop.quiet();
        self.each_open(cx, |drops, cx| {
            let points = drops.flood != drops.said_flood;
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
        self.each_open(cx, |drops, cx| {
            if drops.flood != drops.said_flood
                || drops.life.is_some_and(|life| cx.owes(&life, drops.moved()))
            {
                Verdict::Update
            } else {
                Verdict::Keep
            }
        });
    }

    fn each_open(&mut self, cx: &mut Context<'_>, judge: impl Fn(&Drops, &Context<'_>) -> Verdict) {
        let (all, listeners) = (&mut self.drops, cx.listeners);
        self.open.retain(|_, (key, index)| {
            let (Some(service), Some(causes)) = (listeners.get(key), all.get_mut(key)) else {
                return false;
            };
            let drops = &mut causes[*index];
            let Some(mut life) = drops.life else {
                return false;
            };
            let draft = |drops: &Drops, cx: &Context<'_>| {
                let told = Told::of(key, service, drops, cx);
                words::draft(&told, Cause::ALL[*index], cx)
            };
            match judge(drops, cx) {
                Verdict::Keep => true,
                Verdict::Update => {
                    cx.update(&mut life, draft(drops, cx));
                    drops.said(life);
                    true
                }
                Verdict::Resolve => {
                    cx.resolve(life, draft(drops, cx));
                    *drops = Drops::default();
                    if causes.iter().all(|drops| drops.life.is_none()) {
                        all.remove(key);
                    }
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

/// Everything a finding of one cause tells of its listener.
struct Told<'a> {
    key: &'a ListenerKey,
    service: &'a Service,
    drops: &'a Drops,
    /// The newest record of the socket that dropped the most.
    worst: &'a Syn,
    worst_drops: u64,
    owner: Option<Owner>,
    acceptor: Acceptor,
}

impl<'a> Told<'a> {
    fn of(
        key: &'a ListenerKey,
        service: &'a Service,
        drops: &'a Drops,
        cx: &'a Context<'_>,
    ) -> Self {
        let (worst, worst_drops) = drops.worst().map_or((None, 0), |(id, count)| {
            (cx.listeners.member(key, id), count)
        });
        Self {
            key,
            service,
            drops,
            worst: worst.map_or(&service.latest, |member| &member.latest),
            worst_drops,
            owner: worst.and_then(|member| member.owner).or(service.owner),
            acceptor: service.acceptor(cx.now, sees_accepts(cx.host), tells_members_apart(cx.host)),
        }
    }
}

/// The busiest listeners in numbers, and how many more there are.
pub(crate) fn summaries(listeners: &Listeners, host: &Host, now: Ktime) -> (Vec<Summary>, u64) {
    listeners.summaries(now, sees_accepts(host), tells_members_apart(host))
}

/// Whether every accept() is counted.
fn sees_accepts(host: &Host) -> bool {
    !has_hook(host, "accept") || host.plan.hook_type("accept") == HookType::Fentry
}

/// Whether completions are counted by socket, and not by the address alone.
fn tells_members_apart(host: &Host) -> bool {
    !has_hook(host, "ack") || host.plan.hook_type("ack") != HookType::Tracepoint
}

/// A plan without the hook is that of a recording from before it was one.
fn has_hook(host: &Host, name: &str) -> bool {
    host.plan.hooks.iter().any(|plan| plan.hook == name)
}
