//! Listeners in whose accept queues connections wait: every listener is asked, at a pace, and those whose oldest connection
//! waits for long are told of. A healthy connection has no part in it.

use std::{io, os::fd::AsFd as _, sync::Arc};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    filter::verdict,
    record::{AcceptQueue, Header, answer, kind},
    socket::Listener,
};
use zerocopy::{FromBytes as _, IntoBytes, transmute};

use super::{Poll, pace::Pace};
use crate::{
    id::SocketId,
    kernel::{clock::cpu_ns, error::CannotTrace, maps, on_demand},
};

/// Listeners asked at one look, at some 2 µs each; the next look goes on with the others.
const MAX_ASKED: usize = 512;
/// Share of the time that looks may take of a CPU, as a divisor, and how long one is apart from the next: no longer than
/// half of what a wait is told after, whatever a look costs.
const SHARE: u64 = 500;
const REST_NS: std::ops::RangeInclusive<u64> = 400_000_000..=2_000_000_000;

const WORDS: usize = size_of::<AcceptQueue>() / size_of::<u64>();

/// See the module.
pub(crate) struct AcceptQueues {
    listeners: Arc<MapData>,
    found: Array<MapData, [u64; WORDS]>,
    pace: Pace,
    /// The first address that the next look goes on with.
    next: SocketId,
}

impl AcceptQueues {
    pub(crate) fn new(ebpf: &mut Ebpf, listeners: Arc<MapData>) -> Result<Self, CannotTrace> {
        Ok(Self {
            listeners,
            found: maps::take(ebpf, "ACCEPT_QUEUE")?,
            pace: Pace::new(SHARE, REST_NS),
            next: SocketId::new(0, 0),
        })
    }

    /// An `AcceptQueue` of each listener whose oldest connection has waited for `limit_ns`, and of each that is watched,
    /// where it is time to look.
    pub(crate) fn poll(
        &mut self,
        watched: &[SocketId],
        limit_ns: u64,
        poll: &mut Poll<'_>,
    ) -> io::Result<()> {
        if !self.pace.is_due(poll.now_ns) {
            return Ok(());
        }
        let spent_ns = cpu_ns();
        for id in watched {
            self.ask(*id, 0, poll)?;
        }
        let mut all = Vec::new();
        maps::for_each(
            self.listeners.fd().as_fd(),
            size_of::<Listener>(),
            |sk, value| {
                if let Ok(Listener { syn, verdict, .. }) = Listener::read_from_bytes(value)
                    && syn.socket.born_ns != 0
                    && verdict != verdict::EXCLUDED
                {
                    all.push(SocketId::new(sk, syn.socket.born_ns));
                }
            },
        )?;
        for id in in_turn(all, &mut self.next) {
            if !watched.contains(&id) {
                self.ask(id, limit_ns.max(1), poll)?;
            }
        }
        let cost_ns = cpu_ns().saturating_sub(spent_ns);
        self.pace.rest(cost_ns, poll.now_ns);
        Ok(())
    }

    fn ask(&self, id: SocketId, limit_ns: u64, poll: &mut Poll<'_>) -> io::Result<()> {
        let arguments = [id.sk, id.born.0, limit_ns];
        if on_demand::run(poll.ebpf, "accept_queue", arguments)? != answer::SAID {
            return Ok(());
        }
        let words = self.found.get(&0, 0).map_err(io::Error::other)?;
        let mut found: AcceptQueue = transmute!(words);
        found.header = Header {
            kind: kind::ACCEPT_QUEUE,
            ..found.header
        };
        poll.owners.note(&found.owner);
        (poll.feed)(found.as_bytes());
        Ok(())
    }
}

/// As many as are asked at one look, from `next` on, which becomes the one after them.
fn in_turn(mut all: Vec<SocketId>, next: &mut SocketId) -> Vec<SocketId> {
    all.sort_unstable();
    if all.len() > MAX_ASKED {
        let from = all.partition_point(|id| id < next);
        all.rotate_left(from);
        *next = all[MAX_ASKED];
        all.truncate(MAX_ASKED);
    }
    all
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn many_listeners_are_asked_in_turn() {
        let count = 2 * MAX_ASKED as u64 + 7;
        let all = || (1..=count).map(|sk| SocketId::new(sk, 1)).collect();
        let mut next = SocketId::new(0, 0);
        let mut asked = BTreeSet::new();
        for _ in 0..3 {
            let some = in_turn(all(), &mut next);
            assert_eq!(some.len(), MAX_ASKED);
            asked.extend(some.iter().map(|id| id.sk));
        }
        assert_eq!(asked.len() as u64, count);
        let few = vec![SocketId::new(2, 1), SocketId::new(1, 1)];
        assert_eq!(in_turn(few, &mut next).len(), 2);
    }
}
