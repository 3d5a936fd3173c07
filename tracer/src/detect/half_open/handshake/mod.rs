//! `half_open` / `handshake`: our SYN-ACKs go unanswered, or their answers are thrown away.
//!
//! **Rule.** Every repeated SYN-ACK counts. Opens at the second repeat of one request, or when several
//! requests of one listener need a repeat within 4 s; also when a listener's SYN queue overflows and it
//! looks like a flood. Resolves once no repeat came for twice the time in which the last request was
//! due for one, and the queue did not overflow for [`super::super::SynDrop::quiet_s`]. The count is the
//! number of repeats, from the eBPF side's own totals: the SYN-ACK part of `TcpExt TCPSynRetrans`.
//!
//! **Reading** (`looks_like`). Where most requests are marked `acked`, the third ACK did arrive and this
//! host discarded it: `overflow_victims`, or `deferred` (`TCP_DEFER_ACCEPT`) where neither the listener's totals
//! nor its queue tell of an accept queue without room. Otherwise it never came, from
//! - `one_client`: a single address;
//! - `flood`: at least [`HalfOpen::flood_sources`] addresses of which next to none completes
//!   ([`HalfOpen::flood_completed`]), in several networks or with an overflowing queue;
//! - `one_prefix`: several addresses of one network (/24, /48), whose path is broken;
//! - `several_clients`: anything else.
//!
//! Addresses and networks are estimated (`crowd`); a request is told by its own totals as completed
//! late, expired, reset by its client, or ended by this host.
//!
//! **False positives.** A server for the open internet has clients that vanish in mid-handshake at any
//! time; raise `synack_repeats` there if single ones are not of interest. A listener none of whose
//! SYN-ACKs reach anybody looks flooded, if it is busy enough.

mod crowd;
mod words;

use std::{collections::BTreeMap, time::Duration};

use conntracer_common::record::{SynTotals, syn_outcome};

use self::{crowd::Crowd, words::draft};
use crate::{
    count::Grow,
    detect::{Context, HalfOpen, Life},
    event::{Owner, Sources, Syn, SynAck, TcpState},
    id::SocketId,
    table::{
        Bounded,
        listener::{Applied, ListenerKey},
    },
    time::Ktime,
};

/// How long first repeats count together: one request repeats at 1 and 3 s, so that 4 s hold both.
const TOGETHER: Duration = Duration::from_secs(4);

/// Handshakes begun so long before the first sign of trouble are held against it, at most twice this:
/// a request's last repeat comes 31 s after its SYN.
const LOOKBACK: Duration = Duration::from_secs(31);

/// `TCP_TIMEOUT_INIT`, from which SYN-ACK timeouts double, and `TCP_RTO_MAX` (include/net/tcp.h).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Sockets of one address whose queues are looked at: a `SO_REUSEPORT` group of 64 workers.
const SOCKETS: usize = 64;

/// Something counted twice: record by record, and by the listener's totals. The former comes first, the
/// latter is complete; neither counts anything else.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    by_records: u64,
    by_totals: u64,
}

impl Counted {
    const fn get(self) -> u64 {
        if self.by_records > self.by_totals {
            self.by_records
        } else {
            self.by_totals
        }
    }
}

/// A figure of this and of the last stretch of time.
#[derive(Clone, Copy, Debug, Default)]
struct Stretches<T> {
    this: T,
    last: T,
    from: Ktime,
}

impl<T: Copy + Default> Stretches<T> {
    fn new(from: Ktime) -> Self {
        Self {
            from,
            ..Self::default()
        }
    }

    /// Begins the next stretch when this one is over; after a pause as long as one, the last is empty.
    fn turn(&mut self, now: Ktime, length: Duration) {
        let past = now.since(self.from);
        if past >= length {
            self.last = if past < length.saturating_mul(2) {
                self.this
            } else {
                T::default()
            };
            self.this = T::default();
            self.from = now;
        }
    }
}

/// SYNs that were answered, and handshakes that completed.
#[derive(Clone, Copy, Debug, Default)]
struct Arrivals {
    added: u64,
    cookies: u64,
    completed: u64,
    /// SYNs and third ACKs that were refused, for the accept queue or for want of a socket.
    refused: u64,
}

impl Arrivals {
    const fn add(&mut self, more: Self) {
        self.added = self.added.saturating_add(more.added);
        self.cookies = self.cookies.saturating_add(more.cookies);
        self.completed = self.completed.saturating_add(more.completed);
        self.refused = self.refused.saturating_add(more.refused);
    }

    const fn of(gained: &SynTotals) -> Self {
        Self {
            added: gained[syn_outcome::ADDED],
            cookies: gained[syn_outcome::COOKIE],
            completed: gained[syn_outcome::COMPLETED],
            refused: gained[syn_outcome::ACCEPT_QUEUE_FULL]
                .saturating_add(gained[syn_outcome::ACK_OVERFLOW])
                .saturating_add(gained[syn_outcome::ACK_OTHER]),
        }
    }

    const fn answered(self) -> u64 {
        self.added.saturating_add(self.cookies)
    }

    /// Share of the answered SYNs that became connections; `None` where none was counted.
    fn completion(self) -> Option<f64> {
        (self.answered() > 0).then(|| (self.completed as f64 / self.answered() as f64).min(1.0))
    }
}

/// One listener's queues as last told.
#[derive(Clone, Copy, Debug, Default)]
struct Queues {
    syn_qlen: u32,
    ack_backlog: u32,
    max_ack_backlog: u32,
}

impl Queues {
    /// The kernel holds one more than the limit (`sk_acceptq_is_full`).
    const fn is_full(&self) -> bool {
        self.ack_backlog > self.max_ack_backlog
    }

    /// Whether connections wait in more of it than of `other`, by its own limit.
    fn is_fuller_than(&self, other: &Self) -> bool {
        let full = |queue: &Self, limit: &Self| {
            u64::from(queue.ack_backlog).saturating_mul(limit.max_ack_backlog.max(1).into())
        };
        full(self, other) > full(other, self)
    }
}

/// Trouble at one listener address, from its first sign on.
#[derive(Debug)]
struct Waiting {
    owner: Option<Owner>,
    life: Option<Life>,
    repeats: Counted,
    /// Repeats of requests whose third ACK was discarded.
    discarded: Counted,
    /// Requests that needed a repeat.
    requests: Counted,
    /// The same in this and in the last stretch of [`TOGETHER`].
    together: Stretches<Counted>,
    most_repeats: u8,
    /// What the listener's totals gained.
    totals: SynTotals,
    arrivals: Arrivals,
    crowd: Crowd,
    last_remote: Option<std::net::SocketAddr>,
    queues: BTreeMap<SocketId, Queues>,
    /// An accept queue of the address was full at some moment.
    was_full: bool,
    since: Ktime,
    last: Ktime,
    quiet_from: Ktime,
}

impl Waiting {
    fn new(arrivals: Arrivals, now: Ktime) -> Self {
        Self {
            owner: None,
            life: None,
            repeats: Counted::default(),
            discarded: Counted::default(),
            requests: Counted::default(),
            together: Stretches::new(now),
            most_repeats: 0,
            totals: [0; syn_outcome::COUNT],
            arrivals,
            crowd: Crowd::new(),
            last_remote: None,
            queues: BTreeMap::new(),
            was_full: false,
            since: now,
            last: now,
            quiet_from: now,
        }
    }

    /// One repeated SYN-ACK.
    fn repeated(&mut self, body: &SynAck, now: Ktime) {
        self.owner = body.owner.or(self.owner);
        self.last_remote = Some(body.socket.remote);
        self.last = now;
        self.repeats.by_records.grow(1);
        self.discarded.by_records.grow(u64::from(body.acked));
        self.most_repeats = self.most_repeats.max(body.num_retrans.saturating_add(1));
        self.together.turn(now, TOGETHER);
        if body.num_retrans == 0 {
            self.requests.by_records.grow(1);
            self.together.this.by_records.grow(1);
        }
        self.crowd.saw(body.socket.remote.ip());
        self.stood(
            body.socket.id,
            Queues {
                syn_qlen: body.syn_qlen,
                ack_backlog: body.ack_backlog,
                max_ack_backlog: body.max_ack_backlog,
            },
        );
        self.expect(body.num_retrans.saturating_add(1), now);
    }

    /// What the totals gained.
    fn told(&mut self, body: &Syn, gained: &SynTotals, quiet: Duration, now: Ktime) {
        self.owner = body.owner.or(self.owner);
        for (total, more) in self.totals.iter_mut().zip(gained) {
            *total = total.saturating_add(*more);
        }
        self.arrivals.add(Arrivals::of(gained));
        if body.socket.state == TcpState::Close {
            self.queues.remove(&body.socket.id);
        } else {
            self.stood(
                body.socket.id,
                Queues {
                    syn_qlen: body.syn_qlen,
                    ack_backlog: body.ack_backlog,
                    max_ack_backlog: body.max_ack_backlog,
                },
            );
        }
        self.together.turn(now, TOGETHER);
        self.repeats.by_totals = self.totals[syn_outcome::REPEATED];
        self.discarded.by_totals = self.totals[syn_outcome::REPEATED_ACKED];
        self.requests.by_totals = self.totals[syn_outcome::REQUESTS_REPEATED];
        let together = &mut self.together.this.by_totals;
        *together = together.saturating_add(gained[syn_outcome::REQUESTS_REPEATED]);
        if gained[syn_outcome::REPEATED] > 0 {
            self.last = now;
            self.expect(self.most_repeats.max(1), now);
        }
        if overflowed(gained) > 0 {
            self.last = now;
            self.quiet_from = self.quiet_from.max(now.after(quiet));
        }
    }

    /// The next repeat of a request that had so many is due within a time; twice that is quiet.
    fn expect(&mut self, repeats: u8, now: Ktime) {
        let next = FIRST_TIMEOUT
            .saturating_mul(1_u32.checked_shl(repeats.into()).unwrap_or(u32::MAX))
            .min(LONGEST_TIMEOUT);
        self.quiet_from = self.quiet_from.max(now.after(next.saturating_mul(2)));
    }

    fn stood(&mut self, id: SocketId, queues: Queues) {
        self.was_full |= queues.is_full();
        if self.queues.len() < SOCKETS || self.queues.contains_key(&id) {
            self.queues.insert(id, queues);
        }
    }

    /// Requests that wait at all sockets of the address.
    fn syn_qlen(&self) -> u64 {
        let lengths = self.queues.values().map(|queues| queues.syn_qlen);
        lengths.map(u64::from).sum()
    }

    /// The queues of the socket whose accept queue is the fullest; `None` where all are closed.
    fn fullest(&self) -> Option<&Queues> {
        self.queues.values().reduce(|fullest, queues| {
            if queues.is_fuller_than(fullest) {
                queues
            } else {
                fullest
            }
        })
    }

    /// Whether an accept queue of the address takes no more.
    fn is_full(&self) -> bool {
        self.fullest().is_some_and(Queues::is_full)
    }

    fn unanswered(&self) -> u64 {
        self.repeats.get().saturating_sub(self.discarded.get())
    }

    fn looks(&self, thresholds: &HalfOpen) -> Looks {
        let sources = self.crowd.sources();
        let completion = self.arrivals.completion().unwrap_or_default();
        let overflowed = overflowed(&self.totals) > 0;
        let one_prefix = self.crowd.prefixes() <= 1;
        if self.discarded.get() > self.unanswered() {
            if self.arrivals.refused == 0 && !self.was_full {
                Looks::Deferred
            } else {
                Looks::OverflowVictims
            }
        } else if sources <= 1 {
            Looks::OneClient
        } else if sources >= thresholds.flood_sources
            && completion < thresholds.flood_completed
            && (overflowed || !one_prefix)
        {
            Looks::Flood
        } else if one_prefix {
            Looks::OnePrefix
        } else {
            Looks::SeveralClients
        }
    }

    fn opens(&self, thresholds: &HalfOpen) -> bool {
        let together = self
            .together
            .this
            .get()
            .saturating_add(self.together.last.get());
        self.most_repeats >= thresholds.synack_repeats
            || together >= thresholds.synack_requests
            || (overflowed(&self.totals) > 0 && matches!(self.looks(thresholds), Looks::Flood))
    }

    /// Everything whose growth is worth an update.
    fn moved(&self) -> u64 {
        [
            syn_outcome::COMPLETED_LATE,
            syn_outcome::EXPIRED,
            syn_outcome::RESET,
            syn_outcome::ABORTED,
            syn_outcome::VICTIMS,
        ]
        .iter()
        .fold(self.repeats.get(), |sum, total| {
            sum.saturating_add(self.totals[*total])
        })
        .saturating_add(overflowed(&self.totals))
    }
}

/// SYNs that found the SYN queue full, or too full for strangers.
fn overflowed(totals: &SynTotals) -> u64 {
    totals[syn_outcome::COOKIE]
        .saturating_add(totals[syn_outcome::SYN_QUEUE_FULL])
        .saturating_add(totals[syn_outcome::SYN_QUEUE_PRESSURE])
}

/// What is behind the requests that come to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Looks {
    OverflowVictims,
    Deferred,
    OneClient,
    OnePrefix,
    SeveralClients,
    Flood,
}

/// One listener address.
#[derive(Debug, Default)]
struct Listener {
    /// Arrivals in this and in the last stretch of [`LOOKBACK`].
    arrivals: Stretches<Arrivals>,
    /// Most repeats of one request, as its totals last told.
    most_repeats: u8,
    waiting: Option<Box<Waiting>>,
    /// No socket listens there any more.
    is_over: bool,
}

impl Listener {
    fn arrived(&mut self, gained: &SynTotals, now: Ktime) {
        self.arrivals.turn(now, LOOKBACK);
        self.arrivals.this.add(Arrivals::of(gained));
    }

    /// The trouble it is in, begun anew when the last was never worth a finding and is over.
    fn trouble(&mut self, now: Ktime) -> &mut Waiting {
        self.forget_what_is_over(now);
        let mut arrivals = self.arrivals.last;
        arrivals.add(self.arrivals.this);
        self.waiting
            .get_or_insert_with(|| Box::new(Waiting::new(arrivals, now)))
    }

    fn forget_what_is_over(&mut self, now: Ktime) {
        if self
            .waiting
            .as_ref()
            .is_some_and(|waiting| waiting.life.is_none() && now >= waiting.quiet_from)
        {
            self.waiting = None;
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Handshake {
    listeners: Bounded<ListenerKey, Listener>,
    open: BTreeMap<u64, ListenerKey>,
}

impl Handshake {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            listeners: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.listeners.evicted()
    }

    pub(crate) fn syn_ack(&mut self, body: &SynAck, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        let now = cx.now;
        if let Some(listener) = self.listener(key, cx) {
            listener.trouble(now).repeated(body, now);
        }
        self.judge(key, cx);
    }

    /// A listener's totals, and what they gained since its last record.
    pub(crate) fn syn(&mut self, body: &Syn, applied: &Applied, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        let gained = &applied.gained;
        let (now, quiet) = (cx.now, cx.thresholds.syn_drop.quiet());
        let Some(listener) = self.listener(key, cx) else {
            return;
        };
        listener.forget_what_is_over(now);
        let begins = gained[syn_outcome::REPEATED] > 0 || overflowed(gained) > 0;
        if listener.waiting.is_some() || begins {
            let most_repeats =
                (body.most_repeats > listener.most_repeats).then_some(body.most_repeats);
            let waiting = listener.trouble(now);
            waiting.most_repeats = waiting.most_repeats.max(most_repeats.unwrap_or_default());
            waiting.told(body, gained, quiet, now);
        }
        listener.is_over = !applied.is_listening;
        listener.most_repeats = listener.most_repeats.max(body.most_repeats);
        listener.arrived(gained, now);
        self.judge(key, cx);
    }

    /// Who a listener's trouble comes from. What is no trouble any more is not asked.
    pub(crate) fn sources(&mut self, body: &Sources, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        if let Some(waiting) = self.waiting(&key) {
            waiting.crowd.join(body);
            self.judge(key, cx);
        }
    }

    /// The open finding that says a listener is flooded.
    pub(crate) fn flood(&self, key: &ListenerKey, cx: &Context<'_>) -> Option<u64> {
        let waiting = self.listeners.get(key)?.waiting.as_ref()?;
        let life = waiting.life?;
        (waiting.looks(&cx.thresholds.half_open) == Looks::Flood).then_some(life.id)
    }

    /// Listening sockets whose queues the next poll is to tell.
    pub(crate) fn watched(&self) -> Vec<SocketId> {
        self.open
            .values()
            .filter_map(|key| self.listeners.get(key)?.waiting.as_ref())
            .flat_map(|waiting| waiting.queues.keys().copied())
            .collect()
    }

    fn waiting(&mut self, key: &ListenerKey) -> Option<&mut Waiting> {
        self.listeners.get_mut(key)?.waiting.as_deref_mut()
    }

    fn listener(&mut self, key: ListenerKey, cx: &mut Context<'_>) -> Option<&mut Listener> {
        let is_spare = |listener: &Listener| listener.is_over && listener.waiting.is_none();
        if self.listeners.touch(&key).is_none()
            && let Some((key, gone)) =
                self.listeners
                    .insert_over(key, Listener::default(), is_spare)
            && let Some(waiting) = gone.waiting
            && let Some(life) = waiting.life
        {
            self.open.remove(&life.id);
            cx.resolve(life, draft(&key, &waiting, cx));
        }
        self.listeners.get_mut(&key)
    }

    /// Opens what is worth a finding, and says what is due.
    fn judge(&mut self, key: ListenerKey, cx: &mut Context<'_>) {
        let listeners = &mut self.listeners;
        let Some(waiting) = listeners
            .get_mut(&key)
            .and_then(|listener| listener.waiting.as_deref_mut())
        else {
            return;
        };
        match waiting.life {
            None if waiting.opens(&cx.thresholds.half_open) => {
                let mut life = cx.open(draft(&key, waiting, cx));
                life.said_count = waiting.moved();
                waiting.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(life) if life.due(cx.now, waiting.moved()) => say(&key, waiting, life, cx),
            _ => {}
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let listeners = &mut self.listeners;
        self.open.retain(|_, key| {
            let Some(listener) = listeners.get_mut(key) else {
                return false;
            };
            let Some(waiting) = listener.waiting.as_deref_mut() else {
                return false;
            };
            let Some(life) = waiting.life else {
                return false;
            };
            if cx.now >= waiting.quiet_from {
                cx.resolve(life, draft(key, waiting, cx));
                listener.waiting = None;
                return false;
            }
            if life.due(cx.now, waiting.moved()) {
                say(key, waiting, life, cx);
            }
            true
        });
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for key in self.open.values() {
            let Some(waiting) = self
                .listeners
                .get_mut(key)
                .and_then(|listener| listener.waiting.as_deref_mut())
            else {
                continue;
            };
            if let Some(life) = waiting.life
                && cx.owes(&life, waiting.moved())
            {
                say(key, waiting, life, cx);
            }
        }
    }
}

fn say(key: &ListenerKey, waiting: &mut Waiting, mut life: Life, cx: &mut Context<'_>) {
    cx.update(&mut life, draft(key, waiting, cx));
    life.said_count = waiting.moved();
    waiting.life = Some(life);
}
