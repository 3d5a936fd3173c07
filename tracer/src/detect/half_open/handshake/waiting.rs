//! The trouble of one listener address: requests that wait for a third ACK, and where they come from.

use std::{collections::BTreeMap, time::Duration};

use conntracer_common::record::{SynTotals, syn_outcome};

use super::crowd::Crowd;
use crate::{
    count::Grow,
    detect::{Context, half_open::thresholds::Thresholds, syn_drop::Why},
    event::{Owner, Syn, SynAck, TcpState},
    id::SocketId,
    table::listener::ListenerKey,
    time::Ktime,
};

/// How long first retransmissions count together: one request has them at 1 and 3 s, so that 4 s hold both.
const TOGETHER: Duration = Duration::from_secs(4);

/// Handshakes begun so long before the first sign of trouble are held against it, at most twice this:
/// a request's last retransmission comes 31 s after its SYN.
pub(super) const LOOKBACK: Duration = Duration::from_secs(31);

/// `TCP_TIMEOUT_INIT`, from which SYN-ACK timeouts double, and `TCP_RTO_MAX` (include/net/tcp.h).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_mins(2);

/// Sockets of one address whose queues are looked at: a `SO_REUSEPORT` group of 64 workers.
const SOCKETS: usize = 64;

/// Something counted twice: record by record, and by the listener's totals. The former comes first, the
/// latter is complete; neither counts anything else.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TwiceCounted {
    pub(super) by_records: u64,
    pub(super) by_totals: u64,
}

impl TwiceCounted {
    pub(super) const fn get(self) -> u64 {
        if self.by_records > self.by_totals {
            self.by_records
        } else {
            self.by_totals
        }
    }
}

/// A figure of this and of the last stretch of time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Stretches<T> {
    pub(super) this: T,
    pub(super) last: T,
    pub(super) from: Ktime,
}

impl<T: Copy + Default> Stretches<T> {
    pub(super) fn new(from: Ktime) -> Self {
        Self {
            from,
            ..Self::default()
        }
    }

    /// Begins the next stretch when this one is over; after a pause as long as one, the last is empty.
    pub(super) fn turn(&mut self, now: Ktime, length: Duration) {
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
pub(super) struct Arrivals {
    pub(super) added: u64,
    pub(super) cookies: u64,
    pub(super) completed: u64,
    /// SYNs and third ACKs that were refused for the accept queue, and third ACKs of which no socket was made.
    pub(super) refused: u64,
    pub(super) unmade: u64,
}

impl Arrivals {
    pub(super) const fn add(&mut self, more: Self) {
        self.added = self.added.saturating_add(more.added);
        self.cookies = self.cookies.saturating_add(more.cookies);
        self.completed = self.completed.saturating_add(more.completed);
        self.refused = self.refused.saturating_add(more.refused);
        self.unmade = self.unmade.saturating_add(more.unmade);
    }

    pub(super) const fn of(gained: &SynTotals) -> Self {
        Self {
            added: gained[syn_outcome::ADDED],
            cookies: gained[syn_outcome::COOKIE],
            completed: gained[syn_outcome::COMPLETED],
            refused: gained[syn_outcome::ACCEPT_QUEUE_FULL]
                .saturating_add(gained[syn_outcome::ACK_OVERFLOW]),
            unmade: gained[syn_outcome::ACK_OTHER],
        }
    }

    pub(super) const fn answered(self) -> u64 {
        self.added.saturating_add(self.cookies)
    }

    /// Share of the answered SYNs that became connections; `None` where none was counted.
    pub(super) fn completion(self) -> Option<f64> {
        (self.answered() > 0).then(|| (self.completed as f64 / self.answered() as f64).min(1.0))
    }
}

/// One listener's queues as last told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Queues {
    pub(super) syn_qlen: u32,
    pub(super) ack_backlog: u32,
    pub(super) max_ack_backlog: u32,
}

impl Queues {
    /// The kernel holds one more than the limit (`sk_acceptq_is_full`).
    pub(super) const fn is_full(&self) -> bool {
        self.ack_backlog > self.max_ack_backlog
    }

    /// Whether connections wait in more of it than of `other`, by its own limit.
    pub(super) fn is_fuller_than(&self, other: &Self) -> bool {
        let full = |queue: &Self, limit: &Self| {
            u64::from(queue.ack_backlog).saturating_mul(limit.max_ack_backlog.max(1).into())
        };
        full(self, other) > full(other, self)
    }
}

/// Trouble at one listener address, from its first sign on.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) owner: Option<Owner>,
    pub(super) retransmits: TwiceCounted,
    /// Retransmissions of requests whose third ACK was discarded.
    pub(super) discarded: TwiceCounted,
    /// Requests that needed a retransmission.
    pub(super) requests: TwiceCounted,
    /// The same in this and in the last stretch of [`TOGETHER`].
    pub(super) together: Stretches<TwiceCounted>,
    pub(super) most_repeats: u8,
    /// What the listener's totals gained.
    pub(super) totals: SynTotals,
    pub(super) arrivals: Arrivals,
    pub(super) crowd: Crowd,
    pub(super) last_remote: Option<std::net::SocketAddr>,
    pub(super) queues: BTreeMap<SocketId, Queues>,
    /// An accept queue of the address was full at some moment.
    pub(super) was_full: bool,
    /// What kept those who may accept from it while it was.
    pub(super) why: Option<Why>,
    /// What it looked like at the last tick, and what was said.
    pub(super) reading: Option<Reading>,
    pub(super) said_reading: Option<Reading>,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    pub(super) quiet_from: Ktime,
}

impl Waiting {
    pub(super) fn new(arrivals: Arrivals, now: Ktime) -> Self {
        Self {
            owner: None,
            retransmits: TwiceCounted::default(),
            discarded: TwiceCounted::default(),
            requests: TwiceCounted::default(),
            together: Stretches::new(now),
            most_repeats: 0,
            totals: [0; syn_outcome::COUNT],
            arrivals,
            crowd: Crowd::new(),
            last_remote: None,
            queues: BTreeMap::new(),
            was_full: false,
            why: None,
            reading: None,
            said_reading: None,
            since: now,
            last: now,
            quiet_from: now,
        }
    }

    /// One retransmitted SYN-ACK.
    pub(super) fn retransmitted(&mut self, body: &SynAck, now: Ktime) {
        self.owner = body.owner.or(self.owner);
        self.last_remote = Some(body.socket.remote);
        self.last = now;
        self.retransmits.by_records.grow(1);
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
    pub(super) fn gained(&mut self, body: &Syn, gained: &SynTotals, quiet: Duration, now: Ktime) {
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
        self.retransmits.by_totals = self.totals[syn_outcome::REPEATED];
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

    /// The next retransmission of a request that had so many is due within a time; twice that is quiet.
    pub(super) fn expect(&mut self, retransmits: u8, now: Ktime) {
        let next = FIRST_TIMEOUT
            .saturating_mul(1_u32.checked_shl(retransmits.into()).unwrap_or(u32::MAX))
            .min(LONGEST_TIMEOUT);
        self.quiet_from = self.quiet_from.max(now.after(next.saturating_mul(2)));
    }

    pub(super) fn stood(&mut self, id: SocketId, queues: Queues) {
        self.was_full |= queues.is_full();
        if self.queues.len() < SOCKETS || self.queues.contains_key(&id) {
            self.queues.insert(id, queues);
        }
    }

    /// Requests that wait at all sockets of the address.
    pub(super) fn syn_qlen(&self) -> u64 {
        let lengths = self.queues.values().map(|queues| queues.syn_qlen);
        lengths.map(u64::from).sum()
    }

    /// The queues of the socket whose accept queue is the fullest; `None` where all are closed.
    pub(super) fn fullest(&self) -> Option<&Queues> {
        self.queues.values().reduce(|fullest, queues| {
            if queues.is_fuller_than(fullest) {
                queues
            } else {
                fullest
            }
        })
    }

    /// Whether an accept queue of the address takes no more.
    pub(super) fn is_full(&self) -> bool {
        self.fullest().is_some_and(Queues::is_full)
    }

    /// Keeps what the last look at those who may accept showed, while a queue is full: what hinders them stays for the
    /// end, when all is well.
    pub(super) fn look(&mut self, key: &ListenerKey, thresholds: &Thresholds, cx: &Context<'_>) {
        let full = self.queues.iter().filter(|(_, queues)| queues.is_full());
        let whys = full.filter_map(|(id, _)| cx.acceptors(key, *id).map(Why::of));
        for why in whys {
            let is_known = self
                .why
                .as_ref()
                .is_some_and(|known| known.name().is_some());
            if !is_known || why.name().is_some() {
                self.why = Some(why);
            }
        }
        let hindered_by = self.why.as_ref().and_then(Why::name);
        self.reading = Some((self.looks(thresholds), hindered_by));
        // The first is in the line that opened it.
        self.said_reading = self.said_reading.or(self.reading);
    }

    pub(super) fn unanswered(&self) -> u64 {
        self.retransmits.get().saturating_sub(self.discarded.get())
    }

    pub(super) fn looks(&self, thresholds: &Thresholds) -> Looks {
        let sources = self.crowd.sources();
        let completion = self.arrivals.completion().unwrap_or_default();
        let overflowed = overflowed(&self.totals) > 0;
        let one_prefix = self.crowd.prefixes() <= 1;
        if self.discarded.get() > self.unanswered() {
            if self.arrivals.refused == 0 && self.arrivals.unmade == 0 && !self.was_full {
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

    pub(super) fn opens(&self, thresholds: &Thresholds) -> bool {
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
    pub(super) fn moved(&self) -> u64 {
        [
            syn_outcome::COMPLETED_LATE,
            syn_outcome::EXPIRED,
            syn_outcome::RESET,
            syn_outcome::ABORTED,
            syn_outcome::VICTIMS,
        ]
        .iter()
        .fold(self.retransmits.get(), |sum, total| {
            sum.saturating_add(self.totals[*total])
        })
        .saturating_add(overflowed(&self.totals))
    }
}

/// SYNs that found the SYN queue full, or too full for strangers.
pub(super) fn overflowed(totals: &SynTotals) -> u64 {
    totals[syn_outcome::COOKIE]
        .saturating_add(totals[syn_outcome::SYN_QUEUE_FULL])
        .saturating_add(totals[syn_outcome::SYN_QUEUE_PRESSURE])
}

/// What it looks like, and what keeps those who may accept from it.
type Reading = (Looks, Option<&'static str>);

/// What is behind the requests that come to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    OverflowVictims,
    Deferred,
    OneClient,
    OnePrefix,
    SeveralClients,
    Flood,
}

impl Looks {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::OverflowVictims => "overflow_victims",
            Self::Deferred => "deferred",
            Self::OneClient => "one_client",
            Self::OnePrefix => "one_prefix",
            Self::SeveralClients => "several_clients",
            Self::Flood => "flood",
        }
    }
}
