//! The search of idle connections: when to look, and whom to ask about. What is idle, the eBPF side says.
//!
//! Every connection that may have been idle for so long is asked about at each look, at about 1.5 µs.

use std::{io, os::fd::BorrowedFd};

use conntracer_common::{
    record::{IdleTotals, answer, kind},
    socket::SocketState,
};
use zerocopy::FromBytes;

use super::{live::header, maps};
use crate::{id::SocketId, time::Ktime};

/// The program that is run for each connection.
pub(super) const PROGRAM: &str = "idle";

/// Shortest and longest time between two looks: 65,536 connections take 0.1 s, which is 0.2 % of the latter.
const INTERVAL_NS: (u64, u64) = (1_000_000_000, 60_000_000_000);

/// What is looked for, and when the next time is.
#[derive(Debug)]
pub(super) struct IdleSearch {
    limit_ns: u64,
    next_ns: u64,
}

impl IdleSearch {
    pub(super) const fn new(limit_ns: u64) -> Self {
        Self {
            limit_ns,
            next_ns: 0,
        }
    }

    pub(super) const fn limit_ns(&self) -> u64 {
        self.limit_ns
    }

    /// Whether to look now.
    pub(super) fn is_due(&mut self, now_ns: u64) -> bool {
        let due = now_ns >= self.next_ns;
        if due {
            let (shortest, longest) = INTERVAL_NS;
            self.next_ns = now_ns + (self.limit_ns / 4).clamp(shortest, longest);
        }
        due
    }

    /// The connections that can have been idle for so long, by their age.
    pub(super) fn candidates(
        &self,
        sockets: BorrowedFd<'_>,
        now_ns: u64,
        mut see: impl FnMut(&SocketState),
    ) -> io::Result<Vec<SocketId>> {
        let mut candidates = Vec::new();
        maps::for_each(sockets, size_of::<SocketState>(), |sk, value| {
            let Ok(state) = SocketState::read_from_bytes(value) else {
                return;
            };
            if self.may_be_idle(&state, now_ns) {
                see(&state);
                candidates.push(SocketId {
                    sk,
                    born: Ktime(state.born_ns),
                });
            }
        })?;
        Ok(candidates)
    }

    const fn may_be_idle(&self, state: &SocketState, now_ns: u64) -> bool {
        state.older != 0 || now_ns.saturating_sub(state.born_ns) >= self.limit_ns
    }
}

/// The answers of one look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Answers {
    asked: u32,
    said: u32,
    lost: u32,
}

impl Answers {
    pub(super) fn add(&mut self, answered: u32) {
        self.asked += 1;
        self.said += u32::from(answered == answer::SAID);
        self.lost += u32::from(answered == answer::LOST);
    }

    /// The record that ends a look.
    pub(super) fn record(self, limit_ns: u64, now_ns: u64) -> IdleTotals {
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
            let mut search = IdleSearch::new(limit_s * S);
            (1..=120).filter(|second| search.is_due(second * S)).count()
        };
        assert_eq!(looks(1), 120);
        assert_eq!(looks(40), 12);
        assert_eq!(looks(900), 2);
    }

    #[test]
    fn what_is_younger_than_the_limit_is_not_asked_about() {
        let search = IdleSearch::new(10 * S);
        let state = |born_s: u64, older| SocketState {
            born_ns: born_s * S,
            older,
            ..SocketState::default()
        };
        assert!(search.may_be_idle(&state(10, 0), 20 * S));
        assert!(!search.may_be_idle(&state(11, 0), 20 * S));
        assert!(search.may_be_idle(&state(20, 1), 20 * S));
    }
}
