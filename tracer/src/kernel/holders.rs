//! Who holds the sockets that are in trouble: a descriptor is inherited and passed on, and its socket is then
//! not, or not only, the process's that connected or accepted.
//!
//! A socket is searched for among the open files of all processes when the first record of its trouble has
//! come by, and again after a while. What was found goes into the stream as a `Holders`, and into the kernel
//! half where the owner holds it no longer. What a search costs grows with the open files of the host, and so
//! does the time to the next.

use std::collections::{HashMap, hash_map::Entry};

use conntracer_common::{
    record::{Header, Holders, MAX_HOLDERS, Owner, Socket, Syn, kind, owner_source},
    socket::{Heir, Holder},
};
use foldhash::quality::RandomState;
use zerocopy::FromBytes;

use super::live::{header, trouble};
use crate::{id::SocketId, time::Ktime};

/// Sockets searched for at once. Others ask again with their next record.
const MAX_ASKED: usize = 4096;
/// Sockets remembered as searched for; beyond it all are searched for again.
const MAX_TOLD: usize = 16_384;
/// A process may close or pass on a descriptor while its connection is in trouble.
const AGAIN_NS: u64 = 64_000_000_000;
/// The same where it is known to have forked, or to share the connection: children come and go.
const SHARED_AGAIN_NS: u64 = 8_000_000_000;
/// Shortest time between two searches, and the share of time that they may take.
const SEARCH_NS: u64 = 1_000_000_000;
const SHARE: u64 = 100;

/// Kinds of records that tell of a socket in trouble.
const TROUBLE: [u16; 7] = [
    kind::RETRANSMIT,
    kind::RETRANSMITS,
    kind::PROBE,
    kind::SNAPSHOT,
    kind::RESET,
    kind::CLOSE,
    kind::SYNACK,
];

/// A process as an owner names it: pid and start.
type Identity = (u32, u32);

/// Which sockets' holders are to be searched for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// As their records have them, with their owners.
    sockets: HashMap<SocketId, (Socket, Identity), RandomState>,
    /// The owner of each that was searched for, as the search left it, and when that was.
    told: HashMap<SocketId, (Identity, u64), RandomState>,
    told_ns: u64,
    next_ns: u64,
}

impl Asked {
    /// Looks at a record that comes by.
    pub(super) fn meet(&mut self, record: &[u8]) {
        let Some((now_ns, socket, owner)) = troubled(record) else {
            return;
        };
        let is_shared = owner.source == owner_source::FORKED || owner.holders > 1;
        let (id, owner) = (id(socket.sk, socket.born_ns), identity(&owner));
        let is_told = self.told.get(&id).is_some_and(|(told, told_ns)| {
            *told == owner && !(is_shared && now_ns >= told_ns + SHARED_AGAIN_NS)
        });
        if self.sockets.len() < MAX_ASKED && !is_told {
            self.sockets.insert(id, (socket, owner));
        }
    }

    /// Whether it is time to search.
    pub(super) fn is_due(&self, now_ns: u64) -> bool {
        !self.sockets.is_empty() && now_ns >= self.next_ns
    }

    /// Takes what a search found: a record of each socket that was asked for and is held by anybody.
    pub(super) fn tell(&mut self, found: &Found, (began_ns, now_ns): (u64, u64)) -> Vec<Holders> {
        self.next_ns = now_ns + SEARCH_NS.max(SHARE * now_ns.saturating_sub(began_ns));
        if now_ns.saturating_sub(self.told_ns) >= AGAIN_NS || self.told.len() >= MAX_TOLD {
            self.told.clear();
            self.told_ns = now_ns;
        }
        let mut records = Vec::new();
        for (id, (socket, owner)) in std::mem::take(&mut self.sockets) {
            let Some(held) = found.sockets.get(&id) else {
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

/// What one search found.
#[derive(Debug, Default)]
pub(super) struct Found {
    sockets: HashMap<SocketId, Held, RandomState>,
}

/// The holders of one socket.
#[derive(Debug)]
struct Held {
    count: u32,
    /// The owner first, if it holds the socket.
    owners: Vec<Owner>,
    owner_holds: bool,
    owner_pid: u32,
    owner_source: u8,
}

impl Held {
    /// Whether it is its owner's no longer, or is its owner's alone whatever became of children.
    const fn has_heir(&self) -> bool {
        !self.owner_holds || self.owner_source == owner_source::FORKED && self.count == 1
    }
}

impl Found {
    /// Takes one line of the walk. Of sockets that nobody asked for, only the first holder is kept.
    pub(super) fn see(&mut self, holder: &Holder, asked: &Asked) {
        let id = id(holder.sk, holder.born_ns);
        let is_owner = identity(&holder.owner) == (holder.owner_pid, holder.owner_started_ms);
        let held = match self.sockets.entry(id) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Held {
                count: 0,
                owners: Vec::new(),
                owner_holds: false,
                owner_pid: 0,
                owner_source: owner_source::UNKNOWN,
            }),
        };
        held.count += 1;
        held.owner_holds |= is_owner;
        held.owner_pid = holder.owner_pid;
        held.owner_source = holder.owner_source;
        let most = if asked.sockets.contains_key(&id) {
            MAX_HOLDERS
        } else {
            1
        };
        if is_owner {
            held.owners.insert(0, holder.owner);
            held.owners.truncate(most);
        } else if held.owners.len() < most {
            held.owners.push(holder.owner);
        }
    }

    /// Sockets whose owner holds them no longer, and to whom they fall: to the first of those that do. And those
    /// of a process that has forked, which turned out to be its alone.
    pub(super) fn heirs(&self) -> impl Iterator<Item = (SocketId, Heir)> {
        self.sockets
            .iter()
            .filter(|(_, held)| held.has_heir())
            .filter_map(|(id, held)| {
                let heir = Heir {
                    owner: Owner {
                        holders: u8::try_from(held.count).unwrap_or(u8::MAX),
                        ..*held.owners.first()?
                    },
                    before_pid: held.owner_pid,
                    pad: 0,
                };
                Some((*id, heir))
            })
    }
}

/// The time of a record that tells of trouble, its socket and the owner.
fn troubled(record: &[u8]) -> Option<(u64, Socket, Owner)> {
    let (header, rest) = Header::read_from_prefix(record).ok()?;
    let in_trouble = TROUBLE.contains(&header.kind)
        || header.kind == kind::SYN
            && Syn::read_from_bytes(record).is_ok_and(|syn| trouble(&syn.totals) > 0);
    if !in_trouble {
        return None;
    }
    let (socket, rest) = Socket::read_from_prefix(rest).ok()?;
    let (owner, _) = Owner::read_from_prefix(rest).ok()?;
    (socket.born_ns != 0).then_some((header.ktime_ns, socket, owner))
}

const fn id(sk: u64, born_ns: u64) -> SocketId {
    SocketId {
        sk,
        born: Ktime(born_ns),
    }
}

const fn identity(owner: &Owner) -> Identity {
    if owner.source == owner_source::UNKNOWN {
        (0, 0)
    } else {
        (owner.pid, owner.started_ms)
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{Retransmit, syn_outcome};
    use zerocopy::IntoBytes as _;

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
    fn told(asked: &mut Asked, pids: &[u32]) -> Vec<(Vec<u32>, u32)> {
        asked.meet(retransmit(3).as_bytes());
        let mut found = Found::default();
        for pid in pids {
            found.see(&holder(*pid, 3), asked);
        }
        asked
            .tell(&found, (0, 1))
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
            told(&mut Asked::default(), &[2, 3, 4]),
            [(vec![3, 2, 4], 3)]
        );
        assert_eq!(told(&mut Asked::default(), &many), [(expected, 21)]);
        let mut asked = Asked::default();
        assert_eq!(told(&mut asked, &[]), []);
        asked.meet(retransmit(3).as_bytes());
        assert!(!asked.is_due(u64::MAX), "nobody holds it");
    }

    #[test]
    fn a_socket_is_asked_for_once_an_owner_and_again_after_a_while() {
        let mut asked = Asked::default();
        assert_eq!(told(&mut asked, &[3]).len(), 1);
        asked.meet(retransmit(3).as_bytes());
        assert!(!asked.is_due(u64::MAX), "it was told");
        asked.meet(retransmit(4).as_bytes());
        assert!(asked.is_due(u64::MAX), "it has another owner");
        assert!(!asked.is_due(SEARCH_NS), "too soon");
        asked.tell(&Found::default(), (0, AGAIN_NS));
        asked.meet(retransmit(3).as_bytes());
        assert!(asked.is_due(u64::MAX), "a while is over");
        assert!(!asked.is_due(2 * AGAIN_NS), "searches take their share");
    }

    #[test]
    fn what_its_owner_holds_no_longer_falls_to_the_first_that_does() {
        let (mut found, asked) = (Found::default(), Asked::default());
        found.see(&holder(4, 3), &asked);
        found.see(&holder(5, 3), &asked);
        let heirs: Vec<_> = found.heirs().collect();
        let [(_, heir)] = heirs.as_slice() else {
            panic!("one socket: {heirs:?}");
        };
        assert_eq!((heir.owner.pid, heir.before_pid), (4, 3));
        assert_eq!(heir.owner.holders, 2);
        found.see(&holder(3, 3), &asked);
        assert_eq!(found.heirs().count(), 0);
    }

    #[test]
    fn what_a_process_that_has_forked_holds_alone_is_its_own() {
        let forked = |pid: u32| Holder {
            owner_source: owner_source::FORKED,
            ..holder(pid, 3)
        };
        let (mut found, asked) = (Found::default(), Asked::default());
        found.see(&forked(3), &asked);
        let heirs: Vec<_> = found.heirs().collect();
        let [(_, heir)] = heirs.as_slice() else {
            panic!("one socket: {heirs:?}");
        };
        assert_eq!((heir.owner.pid, heir.before_pid), (3, 3));
        assert_eq!(
            (heir.owner.source, heir.owner.holders),
            (owner_source::SEEDED, 1)
        );
        found.see(&forked(4), &asked);
        assert_eq!(found.heirs().count(), 0, "a child holds it, too");
    }

    #[test]
    fn a_process_that_forks_is_searched_for_again_before_long() {
        let mut asked = Asked::default();
        assert_eq!(told(&mut asked, &[3]).len(), 1);
        let mut forked = retransmit(3);
        forked.owner.source = owner_source::FORKED;
        forked.header.ktime_ns = SHARED_AGAIN_NS;
        asked.meet(forked.as_bytes());
        assert!(!asked.is_due(u64::MAX), "it was told a moment ago");
        forked.header.ktime_ns += 1;
        asked.meet(forked.as_bytes());
        assert!(asked.is_due(u64::MAX));
    }

    #[test]
    fn only_trouble_asks() {
        let mut asked = Asked::default();
        let mut syn = Syn {
            header: header::<Syn>(kind::SYN, 7),
            socket: retransmit(3).socket,
            ..Syn::default()
        };
        syn.totals[syn_outcome::ADDED] = 9;
        asked.meet(syn.as_bytes());
        assert!(!asked.is_due(u64::MAX));
        syn.totals[syn_outcome::SYN_QUEUE_FULL] = 1;
        asked.meet(syn.as_bytes());
        assert!(asked.is_due(u64::MAX));
    }
}
