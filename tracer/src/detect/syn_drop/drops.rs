//! What a listener did instead of creating a connection, cause by cause.

use std::collections::BTreeMap;

use conntracer_common::{
    netns::kernel,
    record::{SynTotals, syn_outcome},
    stats::hook,
};

use super::why::Why;
use crate::{
    detect::connect_failure::Remotes,
    id::SocketId,
    table::listener::{Acceptor, ListenerKey},
    time::Ktime,
};

/// Sockets of one listener whose share of the drops is kept apart; a server has one for each CPU or worker.
const SHARES: usize = 64;

/// What a listener did instead of creating a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
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
    pub(super) const ALL: [Self; 9] = [
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

    pub(super) const fn name(self) -> &'static str {
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
    pub(super) const fn is_of_syn_queue(self) -> bool {
        matches!(
            self,
            Self::SynQueueFull | Self::SynQueuePressure | Self::Cookies
        )
    }

    /// Whether a full accept queue is what it was dropped for.
    pub(super) const fn is_of_accept_queue(self) -> bool {
        matches!(
            self,
            Self::AcceptQueueFull | Self::AckOverflow | Self::AbortOnOverflow
        )
    }

    /// Whether it is the third ACK that finds the accept queue full.
    pub(super) const fn is_of_ack(self) -> bool {
        matches!(self, Self::AckOverflow | Self::AbortOnOverflow)
    }

    /// The hook that tells it.
    pub(super) const fn hooks(self) -> &'static [u32] {
        match self {
            Self::AckOverflow | Self::AbortOnOverflow | Self::NoMemory => &[hook::ACK],
            _ => &[hook::SYN],
        }
    }

    /// The kernel's counters that count it too.
    pub(super) const fn counters(self) -> &'static [usize] {
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
    pub(super) const fn of(self, totals: &SynTotals) -> u64 {
        match self {
            Self::AcceptQueueFull => totals[syn_outcome::ACCEPT_QUEUE_FULL],
            Self::AckOverflow => totals[syn_outcome::VICTIMS],
            // A client that is sent a RST does not retransmit its ACK: each is another one.
            Self::AbortOnOverflow => totals[syn_outcome::ABORTED],
            Self::NoRoute => totals[syn_outcome::NO_ROUTE],
            Self::SynQueueFull => totals[syn_outcome::SYN_QUEUE_FULL],
            Self::SynQueuePressure => totals[syn_outcome::SYN_QUEUE_PRESSURE],
            Self::NoMemory => totals[syn_outcome::ACK_OTHER],
            Self::Other => totals[syn_outcome::OTHER],
            Self::Cookies => totals[syn_outcome::COOKIE],
        }
    }

    /// Whether what became of one SYN, or of one third ACK, is what it counts.
    pub(super) fn is_told_by(self, outcome: usize) -> bool {
        // A client's third ACK is counted once, and told each time, whether or not it is answered with a RST.
        if outcome == syn_outcome::ACK_OVERFLOW {
            return self.is_of_ack();
        }
        let mut one = [0; syn_outcome::COUNT];
        if let Some(total) = one.get_mut(outcome) {
            *total = 1;
        }
        self.of(&one) > 0
    }
}

/// One cause at one listener.
pub(super) type DropKey = (ListenerKey, Cause);

/// What it dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Drops {
    pub(super) count: u64,
    /// Third ACKs refused, those that clients retransmitted among them.
    pub(super) acks: u64,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// The cause was concluded from fields at least once.
    pub(super) by_fields: bool,
    /// The finding that says this listener is flooded, and the one that was last pointed to.
    pub(super) flood: Option<u64>,
    pub(super) said_flood: Option<u64>,
    /// The finding that says why nobody accepts, where there was one already.
    pub(super) delay: Option<u64>,
    /// Who was turned away last.
    pub(super) remotes: Remotes,
    /// The acceptor when it dropped last, and what kept those who may accept from it. They stay for the end, when the
    /// queue is empty and all is well.
    pub(super) acceptor: Option<Acceptor>,
    pub(super) why: Option<Why>,
    pub(super) said_why: Option<&'static str>,
    /// Of `count`, what each socket of the listener dropped, closed ones included.
    pub(super) shares: BTreeMap<SocketId, u64>,
}

impl Drops {
    /// What an update is worth a line for.
    pub(super) const fn moved(&self) -> u64 {
        self.count.saturating_add(self.acks)
    }

    pub(super) fn share(&mut self, id: SocketId, more: u64) {
        if more > 0 && (self.shares.contains_key(&id) || self.shares.len() < SHARES) {
            let share = self.shares.entry(id).or_default();
            *share = share.saturating_add(more);
        }
    }

    /// Remembers what is known of the acceptor while the queue is full.
    pub(super) fn remember(&mut self, acceptor: Option<Acceptor>, why: Option<Why>) {
        self.acceptor = acceptor.or(self.acceptor);
        let Some(why) = why else { return };
        // One that has been let go says nothing of the drops before; one that turned out not to hold the listener, of none.
        let is_news = self.why.as_ref().is_none_or(|known| known.at < why.at);
        let knows_better = |known: &Why| why.is_of_holders && !known.is_of_holders;
        let is_better = self.why.as_ref().is_none_or(knows_better);
        if is_news && (is_better || why.hindrance.is_some() || !self.is_hindered()) {
            let held = self.why.as_ref().filter(|_| why.hindrance.is_none());
            let stays = held.and_then(|known| known.borne_out(&why));
            self.why = Some(stays.unwrap_or(why));
        }
    }

    fn is_hindered(&self) -> bool {
        self.why.as_ref().is_some_and(|why| why.hindrance.is_some())
    }

    /// What hinders, in the word of the evidence.
    pub(super) fn hindrance(&self) -> Option<&'static str> {
        self.why.as_ref().and_then(Why::name)
    }

    /// The socket that dropped the most; of several alike, the one with the lowest address.
    pub(super) fn worst(&self) -> Option<(SocketId, u64)> {
        self.shares
            .iter()
            .rev()
            .max_by_key(|(_, count)| **count)
            .map(|(id, count)| (*id, *count))
    }
}
