//! The search of idle connections: when to look, and whom to ask about. What is idle, the eBPF side says.
//!
//! Every connection that may have been idle for so long is asked about at each look, at about 1.5 µs.

use std::{io, os::fd::AsFd as _, sync::Arc};

use aya::maps::MapData;
use conntracer_common::{
    record::{IdleTotals, answer, kind},
    socket::SocketState,
};
use zerocopy::{FromBytes, IntoBytes};

use super::Poll;
use crate::{
    id::SocketId,
    kernel::{clock::ktime_ns, header::header, maps, on_demand},
};

/// Shortest and longest time between two looks: 65,536 connections take 0.1 s, which is 0.2 % of the latter.
const INTERVAL_NS: (u64, u64) = (1_000_000_000, 60_000_000_000);

/// Somebody asked for connections that nothing passes on.
pub(crate) struct IdleSearch {
    sockets: Arc<MapData>,
    look: Look,
}

impl IdleSearch {
    pub(crate) fn new(sockets: Arc<MapData>, limit_ns: u64) -> Self {
        Self {
            sockets,
            look: Look {
                limit_ns,
                next_ns: 0,
            },
        }
    }

    /// Where it is time to look: an `Idle` of each connection that has been idle for so long, and the
    /// `IdleTotals` of the look.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        if !self.look.is_due(poll.now_ns) {
            return Ok(());
        }
        let limit_ns = self.look.limit_ns;
        let candidates = self.candidates(poll)?;
        poll.search_owners()?;
        let mut answers = Answers::default();
        poll.ask(on_demand::IDLE, &candidates, limit_ns, |answered| {
            answers.add(answered);
        })?;
        (poll.feed)(answers.record(limit_ns, ktime_ns()).as_bytes());
        Ok(())
    }

    /// The connections that can have been idle for so long, by their age.
    fn candidates(&self, poll: &mut Poll<'_>) -> io::Result<Vec<SocketId>> {
        let mut candidates = Vec::new();
        let sockets = self.sockets.fd().as_fd();
        maps::for_each(sockets, size_of::<SocketState>(), |sk, value| {
            let Ok(state) = SocketState::read_from_bytes(value) else {
                return;
            };
            if self.look.may_find(&state, poll.now_ns) {
                poll.owners.note(&state.owner);
                candidates.push(SocketId::new(sk, state.born_ns));
            }
        })?;
        Ok(candidates)
    }
}

/// What is looked for, and when the next time is.
#[derive(Debug)]
struct Look {
    limit_ns: u64,
    next_ns: u64,
}

impl Look {
    /// Whether to look now.
    fn is_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.next_ns;
        if due {
            let (shortest, longest) = INTERVAL_NS;
            self.next_ns = now_ns + (self.limit_ns / 4).clamp(shortest, longest);
        }
        due
    }

    const fn may_find(&self, state: &SocketState, now_ns: u64) -> bool {
        state.older != 0 || now_ns.saturating_sub(state.born_ns) >= self.limit_ns
    }
}

/// The answers of one look.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    asked: u32,
    said: u32,
    lost: u32,
}

impl Answers {
    fn add(&mut self, answered: u32) {
        self.asked += 1;
        self.said += u32::from(answered == answer::SAID);
        self.lost += u32::from(answered == answer::LOST);
    }

    /// The record that ends a look.
    fn record(self, limit_ns: u64, now_ns: u64) -> IdleTotals {
        IdleTotals {
            header: header::<IdleTotals>(kind::IDLE_TOTALS, now_ns),
            asked: self.asked,
            said: self.said,
            lost: self.lost,
            pad: 0,
            limit_ns,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn it_looks_four_times_within_the_limit_and_once_a_minute_at_least() {
        let looks = |limit_s: u64| {
            let mut look = Look {
                limit_ns: limit_s * S,
                next_ns: 0,
            };
            (1..=120).filter(|second| look.is_due(second * S)).count()
        };
        assert_eq!(looks(1), 120);
        assert_eq!(looks(40), 12);
        assert_eq!(looks(900), 2);
    }

    #[test]
    fn what_is_younger_than_the_limit_is_not_asked_about() {
        let look = Look {
            limit_ns: 10 * S,
            next_ns: 0,
        };
        let state = |born_s: u64, older| SocketState {
            born_ns: born_s * S,
            older,
            ..SocketState::default()
        };
        assert!(look.may_find(&state(10, 0), 20 * S));
        assert!(!look.may_find(&state(11, 0), 20 * S));
        assert!(look.may_find(&state(20, 1), 20 * S));
    }
}
