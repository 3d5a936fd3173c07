//! Who holds the sockets that are in trouble: a descriptor is inherited and passed on, and its socket is then
//! not, or not only, the process's that connected or accepted.
//!
//! A socket is searched for when the first record of its trouble has come by, and again after a while. What was
//! found goes into the stream as a `Holders`. The more a search costs, the longer it is to the next.

use std::{collections::HashMap, io};

use aya::Ebpf;
use conntracer_common::record::{Holders, MAX_HOLDERS, Owner, Socket, kind, owner_source};
use foldhash::quality::RandomState;
use zerocopy::IntoBytes;

use super::{Feed, pace::Pace};
use crate::{
    id::SocketId,
    kernel::{
        clock::{cpu_ns, ktime_ns},
        header::header,
        owners::{Found, Identity, OwnerSearch, identity},
        trouble::troubled,
    },
};

/// Sockets searched for at once. Others ask again with their next record.
const MAX_TROUBLED: usize = 4096;
/// Sockets remembered as searched for; beyond it all are searched for again.
const MAX_TOLD: usize = 16_384;
/// A process may close or pass on a descriptor while its connection is in trouble.
const AGAIN_NS: u64 = 64_000_000_000;
/// The same where it is known to have forked, or to share the connection: children come and go.
const SHARED_AGAIN_NS: u64 = 8_000_000_000;
/// Shortest time between two searches, and the share of the time that they may take of a CPU.
const SEARCH_NS: u64 = 1_000_000_000;
const SHARE: u64 = 100;
/// Longest time between two searches, however much they cost: who is in trouble is to be named while the trouble goes on.
const LONGEST_REST_NS: u64 = 60_000_000_000;

/// Which sockets' holders are to be searched for.
#[derive(Debug)]
pub(crate) struct HolderSearch {
    /// As their records have them, with their owners.
    troubled: HashMap<SocketId, (Socket, Identity), RandomState>,
    /// The owner of each that was searched for, as the search left it, and when that was.
    told: HashMap<SocketId, (Identity, u64), RandomState>,
    told_ns: u64,
    pace: Pace,
}

impl Default for HolderSearch {
    fn default() -> Self {
        Self {
            troubled: HashMap::default(),
            told: HashMap::default(),
            told_ns: 0,
            pace: Pace::new(SHARE, SEARCH_NS..=LONGEST_REST_NS),
        }
    }
}

impl HolderSearch {
    /// Looks at a record that comes by.
    pub(crate) fn meet(&mut self, record: &[u8]) {
        let Some((now_ns, socket, owner)) = troubled(record) else {
            return;
        };
        let is_shared = owner.source == owner_source::FORKED || owner.holders > 1;
        let owner = identity(&owner);
        let id = SocketId::new(socket.sk, socket.born_ns);
        let is_told = self.told.get(&id).is_some_and(|(told, told_ns)| {
            *told == owner && !(is_shared && now_ns >= told_ns + SHARED_AGAIN_NS)
        });
        if self.troubled.len() < MAX_TROUBLED && !is_told {
            self.troubled.insert(id, (socket, owner));
        }
    }

    /// Where it is time to search: a `Holders` of each socket in trouble that anybody holds.
    pub(crate) fn poll(
        &mut self,
        ebpf: &mut Ebpf,
        owners: &mut OwnerSearch,
        feed: Feed<'_>,
    ) -> io::Result<()> {
        if !self.is_due(ktime_ns()) {
            return Ok(());
        }
        let spent_ns = cpu_ns();
        let found = owners.search(ebpf, &|id| self.troubled.contains_key(&id))?;
        let cost_ns = cpu_ns().saturating_sub(spent_ns);
        for record in self.tell(&found, cost_ns, ktime_ns()) {
            feed(record.as_bytes());
        }
        Ok(())
    }

    fn is_due(&self, now_ns: u64) -> bool {
        !self.troubled.is_empty() && self.pace.is_due(now_ns)
    }

    fn tell(&mut self, found: &Found, cost_ns: u64, now_ns: u64) -> Vec<Holders> {
        self.pace.rest(cost_ns, now_ns);
        if now_ns.saturating_sub(self.told_ns) >= AGAIN_NS || self.told.len() >= MAX_TOLD {
            self.told.clear();
            self.told_ns = now_ns;
        }
        let mut records = Vec::new();
        for (id, (socket, owner)) in std::mem::take(&mut self.troubled) {
            let Some(held) = found.of(id) else {
                // Not accepted yet, or closed and not gone yet: whose it is or was is known.
                self.told.insert(id, (owner, now_ns));
                continue;
            };
            let mut owners = [Owner::default(); MAX_HOLDERS];
            for (place, owner) in owners.iter_mut().zip(&held.owners) {
                *place = *owner;
            }
            self.told.insert(id, (identity(&owners[0]), now_ns));
            records.push(Holders {
                header: header::<Holders>(kind::HOLDERS, now_ns),
                socket,
                owners,
                count: held.count,
                said_pid: owner.0,
            });
        }
        // A map has no order, and the stream has one.
        records.sort_unstable_by_key(|record| (record.socket.born_ns, record.socket.sk));
        records
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::{
        record::{Retransmit, Syn, syn_outcome},
        socket::Holder,
    };

    use super::*;

    fn owner(pid: u32) -> Owner {
        Owner {
            pid,
            started_ms: 10 * pid,
            source: owner_source::SEEDED,
            ..Owner::default()
        }
    }

    fn holder(pid: u32, owner_pid: u32) -> Holder {
        Holder {
            sk: 1,
            born_ns: 5,
            owner: owner(pid),
            owner_pid,
            owner_started_ms: 10 * owner_pid,
            owner_source: owner_source::ACCEPT,
            pad: [0; 7],
        }
    }

    fn retransmit(pid: u32) -> Retransmit {
        Retransmit {
            header: header::<Retransmit>(kind::RETRANSMIT, 7),
            socket: Socket {
                sk: 1,
                born_ns: 5,
                ..Socket::default()
            },
            owner: owner(pid),
            ..Retransmit::default()
        }
    }

    /// Asks for the holders of the socket of process 3, finds `pids`, and says what is told.
    fn told(search: &mut HolderSearch, pids: &[u32]) -> Vec<(Vec<u32>, u32)> {
        search.meet(retransmit(3).as_bytes());
        let mut found = Found::default();
        for pid in pids {
            found.see(&holder(*pid, 3), &|id| search.troubled.contains_key(&id));
        }
        search
            .tell(&found, 1, 1)
            .into_iter()
            .map(|record| {
                let owners = record.owners.iter();
                let pids = owners.map(|owner| owner.pid).filter(|pid| *pid != 0);
                (pids.collect(), record.count)
            })
            .collect()
    }

    #[test]
    fn the_owner_is_told_first_and_of_many_holders_the_number() {
        let many: Vec<u32> = (10..30).chain([3]).collect();
        let expected: Vec<u32> = [3].into_iter().chain(10..17).collect();
        assert_eq!(
            told(&mut HolderSearch::default(), &[2, 3, 4]),
            [(vec![3, 2, 4], 3)]
        );
        assert_eq!(told(&mut HolderSearch::default(), &many), [(expected, 21)]);
        let mut search = HolderSearch::default();
        assert_eq!(told(&mut search, &[]), []);
        search.meet(retransmit(3).as_bytes());
        assert!(!search.is_due(u64::MAX), "nobody holds it");
    }

    #[test]
    fn a_socket_is_asked_for_once_an_owner_and_again_after_a_while() {
        let mut search = HolderSearch::default();
        assert_eq!(told(&mut search, &[3]).len(), 1);
        search.meet(retransmit(3).as_bytes());
        assert!(!search.is_due(u64::MAX), "it was told");
        search.meet(retransmit(4).as_bytes());
        assert!(search.is_due(u64::MAX), "it has another owner");
        assert!(!search.is_due(SEARCH_NS), "too soon");
        search.tell(&Found::default(), AGAIN_NS, AGAIN_NS);
        search.meet(retransmit(3).as_bytes());
        assert!(search.is_due(u64::MAX), "a while is over");
        let rested_ns = AGAIN_NS + LONGEST_REST_NS;
        assert!(!search.is_due(rested_ns - 1), "searches take their share");
        assert!(search.is_due(rested_ns), "while the trouble goes on");
    }

    #[test]
    fn a_process_that_forks_is_searched_for_again_before_long() {
        let mut search = HolderSearch::default();
        assert_eq!(told(&mut search, &[3]).len(), 1);
        let mut forked = retransmit(3);
        forked.owner.source = owner_source::FORKED;
        forked.header.ktime_ns = SHARED_AGAIN_NS;
        search.meet(forked.as_bytes());
        assert!(!search.is_due(u64::MAX), "it was told a moment ago");
        forked.header.ktime_ns += 1;
        search.meet(forked.as_bytes());
        assert!(search.is_due(u64::MAX));
    }

    #[test]
    fn only_trouble_asks() {
        let mut search = HolderSearch::default();
        let mut syn = Syn {
            header: header::<Syn>(kind::SYN, 7),
            socket: retransmit(3).socket,
            ..Syn::default()
        };
        syn.totals[syn_outcome::ADDED] = 9;
        search.meet(syn.as_bytes());
        assert!(!search.is_due(u64::MAX));
        syn.totals[syn_outcome::SYN_QUEUE_FULL] = 1;
        search.meet(syn.as_bytes());
        assert!(search.is_due(u64::MAX));
    }
}
