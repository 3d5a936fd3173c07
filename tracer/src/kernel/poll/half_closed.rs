//! The sweep for half-closed sockets: which of them a poll asks about, and how many others there are, by
//! process. What they look like, the eBPF side says.

use std::{collections::BTreeMap, io, os::fd::AsFd as _, sync::Arc};

use aya::maps::MapData;
use conntracer_common::{
    filter::verdict,
    record::{self, Owner, kind},
    socket::SocketState,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{Feed, Poll};
use crate::{
    id::SocketId,
    kernel::{header::header, maps},
};

/// Sockets asked about at every poll, and one more of each process that has none among these. Each costs 3 µs
/// from the question to the table: 1 % of a CPU at two polls a second.
const MAX_LISTED: usize = 4_096;

/// Shortest and longest time between two sweeps of the socket map. A sweep of 65,536 sockets copies 6 MB.
const SWEEP_NS: (u64, u64) = (1_000_000_000, 15_000_000_000);

/// As of the last sweep.
pub(crate) struct HalfClosedSweep {
    sockets: Arc<MapData>,
    list: List,
}

impl HalfClosedSweep {
    pub(crate) fn new(sockets: Arc<MapData>) -> Self {
        Self {
            sockets,
            list: List::default(),
        }
    }

    /// A `Snapshot` of each socket in CLOSE_WAIT or FIN_WAIT2 for longer than the limit, swept for at long
    /// intervals and asked for again at every poll; and a `HalfClosed` of those that are not listed.
    pub(crate) fn poll(&mut self, limit_ns: u64, poll: &mut Poll<'_>) -> io::Result<()> {
        if self.list.begins(poll.now_ns, limit_ns) {
            self.sweep(limit_ns, poll)?;
            poll.search_owners()?;
        }
        let asked = poll.snapshots(&self.list.listed);
        self.list.tell(poll.now_ns, poll.feed);
        asked
    }

    fn sweep(&mut self, limit_ns: u64, poll: &mut Poll<'_>) -> io::Result<()> {
        let sockets = self.sockets.fd().as_fd();
        maps::for_each(sockets, size_of::<SocketState>(), |sk, value| {
            if let Ok(state) = SocketState::read_from_bytes(value)
                && state.half_closed != 0
                && state.verdict != verdict::EXCLUDED
                && poll.now_ns.saturating_sub(state.since_ns) >= limit_ns
                && self.list.lists(sk, &state)
            {
                poll.owners.note_held(&state.owner);
            }
        })
    }
}

/// What is half-closed, and when that was looked for.
#[derive(Debug, Default)]
struct List {
    swept_ns: u64,
    listed: Vec<SocketId>,
    /// By pid and state, how many are not listed.
    others: BTreeMap<(u32, u8), (Owner, u64)>,
}

impl List {
    /// Whether to sweep now, which empties the list.
    fn begins(&mut self, now_ns: u64, limit_ns: u64) -> bool {
        let (shortest, longest) = SWEEP_NS;
        let interval_ns = (limit_ns / 4).clamp(shortest, longest);
        let due = now_ns.saturating_sub(self.swept_ns) >= interval_ns;
        if due {
            *self = Self {
                swept_ns: now_ns,
                ..Self::default()
            };
        }
        due
    }

    /// Lists a socket, or counts it.
    fn lists(&mut self, sk: u64, state: &SocketState) -> bool {
        let key = (state.owner.pid, state.half_closed);
        let is_first = !self.others.contains_key(&key);
        let (_, others) = self.others.entry(key).or_insert((state.owner, 0));
        let lists = is_first || self.listed.len() < MAX_LISTED;
        if lists {
            self.listed.push(SocketId::new(sk, state.born_ns));
        } else {
            *others += 1;
        }
        lists
    }

    /// Tells how many others there are.
    fn tell(&self, now_ns: u64, feed: Feed<'_>) {
        for ((_, state), (owner, count)) in &self.others {
            if *count == 0 {
                continue;
            }
            let record = record::HalfClosed {
                header: header::<record::HalfClosed>(kind::HALF_CLOSED, now_ns),
                owner: *owner,
                count: *count,
                state: *state,
                ..record::HalfClosed::default()
            };
            feed(record.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::tcp::state;

    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn it_sweeps_four_times_within_the_limit_and_every_15_s_at_least() {
        let sweeps = |limit_s: u64| {
            let mut list = List::default();
            (1..=120)
                .filter(|second| list.begins(second * S, limit_s * S))
                .count()
        };
        assert_eq!(sweeps(1), 120);
        assert_eq!(sweeps(40), 12);
        assert_eq!(sweeps(900), 8);
    }

    #[test]
    fn what_is_not_listed_is_counted_by_process_and_of_each_process_one_is_listed() {
        let mut list = List::default();
        let socket = |pid, half_closed| SocketState {
            owner: Owner {
                pid,
                ..Owner::default()
            },
            half_closed,
            ..SocketState::default()
        };
        let listed = u64::try_from(MAX_LISTED).unwrap();
        for sk in 0..listed + 10 {
            list.lists(sk, &socket(1, state::CLOSE_WAIT));
        }
        for sk in 0..3 {
            list.lists(listed + 10 + sk, &socket(2, state::CLOSE_WAIT));
        }
        list.lists(listed + 20, &socket(2, state::FIN_WAIT2));
        assert_eq!(list.listed.len(), MAX_LISTED + 2);
        let mut told = Vec::new();
        list.tell(S, &mut |bytes| {
            let record = record::HalfClosed::read_from_bytes(bytes).unwrap();
            told.push((record.owner.pid, record.state, record.count));
        });
        assert_eq!(
            told,
            [(1, state::CLOSE_WAIT, 10), (2, state::CLOSE_WAIT, 2)]
        );
    }
}
