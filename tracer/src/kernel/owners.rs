//! Who holds which socket, looked for among the open files of all processes; and owners that no hook told, which
//! are learned on the way. What a search costs grows with the open files of the host.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::{MAX_HOLDERS, Owner, owner_source},
    socket::{Heir, Holder},
};
use foldhash::quality::RandomState;
use zerocopy::transmute;

use super::{clock::ktime_ns, error::CannotTrace, iterators, maps, on_demand};
use crate::id::SocketId;

/// Shortest and longest time between two searches: what no process holds (a kernel thread's listener) is
/// not found by the next one either.
const SEARCH_NS: (u64, u64) = (1_000_000_000, 64_000_000_000);

/// A process: pid and start.
pub(super) type Identity = (u32, u32);

/// The searches, and the map that hands a socket on.
pub(super) struct OwnerSearch {
    heir: Array<MapData, [u64; 6]>,
    unknown: Unknown,
}

impl OwnerSearch {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            heir: maps::take(ebpf, "HEIR")?,
            unknown: Unknown::default(),
        })
    }

    /// Meets the owner of a socket, which may be unknown.
    pub(super) fn note(&mut self, owner: &Owner) {
        self.unknown.met |= owner.source == owner_source::UNKNOWN;
    }

    /// The same of a socket that its owner may have passed on, and that nobody looked for since.
    pub(super) fn note_held(&mut self, owner: &Owner) {
        self.unknown.met |= owner.holders == 0;
    }

    /// Looks for owners that are not known, where it is time to.
    pub(super) fn search_when_due(&mut self, ebpf: &mut Ebpf, now_ns: u64) -> io::Result<()> {
        if self.unknown.is_due(now_ns) {
            self.search(ebpf, &|_| false)?;
        }
        Ok(())
    }

    /// Looks through all open files, hands on what its owner holds no longer, and leaves to the owner what
    /// nobody else holds: as of the beginning, for who forks meanwhile may have a child that was passed over.
    pub(super) fn search(
        &mut self,
        ebpf: &mut Ebpf,
        wants_all: &dyn Fn(SocketId) -> bool,
    ) -> io::Result<Found> {
        let mut found = Found::default();
        let began_ns = ktime_ns();
        iterators::find_owners(ebpf, &mut |holder| found.see(holder, wants_all))?;
        for (SocketId { sk, born }, heir) in found.heirs() {
            let heir: [u64; 6] = transmute!(heir);
            self.heir.set(0, heir, 0).map_err(io::Error::other)?;
            on_demand::run(ebpf, "heir", [sk, born.0, began_ns])?;
        }
        Ok(found)
    }
}

/// Sockets whose owner no hook told, because its program could not run at that moment, or because they
/// are older.
#[derive(Debug, Default)]
struct Unknown {
    met: bool,
    searched_ns: u64,
    wait_ns: u64,
}

impl Unknown {
    /// Whether to search now; each search that is asked for again doubles the wait.
    fn is_due(&mut self, now_ns: u64) -> bool {
        if !std::mem::take(&mut self.met) {
            return false;
        }
        let since_ns = now_ns.saturating_sub(self.searched_ns);
        if since_ns < self.wait_ns {
            return false;
        }
        self.wait_ns = if since_ns > 2 * self.wait_ns {
            SEARCH_NS.0
        } else {
            (2 * self.wait_ns).min(SEARCH_NS.1)
        };
        self.searched_ns = now_ns;
        true
    }
}

/// What one search found.
#[derive(Debug, Default)]
pub(super) struct Found {
    sockets: HashMap<SocketId, Held, RandomState>,
}

/// The holders of one socket.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) count: u32,
    /// The owner first, if it holds the socket.
    pub(super) owners: Vec<Owner>,
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
    /// Who holds a socket, where anybody does.
    pub(super) fn of(&self, id: SocketId) -> Option<&Held> {
        self.sockets.get(&id)
    }

    /// Takes one line of the walk. Of sockets whose holders nobody wants to know, only the first is kept.
    pub(super) fn see(&mut self, holder: &Holder, wants_all: &dyn Fn(SocketId) -> bool) {
        let id = SocketId::new(holder.sk, holder.born_ns);
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
        let most = if wants_all(id) { MAX_HOLDERS } else { 1 };
        if is_owner {
            held.owners.insert(0, holder.owner);
            held.owners.truncate(most);
        } else if held.owners.len() < most {
            held.owners.push(holder.owner);
        }
    }

    /// Sockets whose owner holds them no longer, and to whom they fall: to the first of those that do. And those
    /// of a process that has forked, which turned out to be its alone.
    fn heirs(&self) -> impl Iterator<Item = (SocketId, Heir)> {
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

pub(super) const fn identity(owner: &Owner) -> Identity {
    if owner.source == owner_source::UNKNOWN {
        (0, 0)
    } else {
        (owner.pid, owner.started_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(pid: u32, source: u8) -> Holder {
        Holder {
            sk: 1,
            born_ns: 5,
            owner: Owner {
                pid,
                started_ms: 10 * pid,
                source: owner_source::SEEDED,
                ..Owner::default()
            },
            owner_pid: 3,
            owner_started_ms: 30,
            owner_source: source,
            pad: [0; 7],
        }
    }

    /// The heir to the socket of process 3, which these hold.
    fn heir(source: u8, pids: &[u32]) -> Option<Heir> {
        let mut found = Found::default();
        for pid in pids {
            found.see(&holder(*pid, source), &|_| false);
        }
        let mut heirs = found.heirs();
        let heir = heirs.next().map(|(_, heir)| heir);
        assert_eq!(heirs.count(), 0, "one socket");
        heir
    }

    #[test]
    fn owners_that_stay_unknown_are_looked_for_ever_more_seldom() {
        let mut unknown = Unknown::default();
        let mut searches = Vec::new();
        for second in 1..200 {
            unknown.met = true;
            if unknown.is_due(second * 1_000_000_000) {
                searches.push(second);
            }
        }
        assert_eq!(searches, [1, 2, 4, 8, 16, 32, 64, 128, 192]);
        assert!(!unknown.is_due(u64::MAX), "none is unknown");
    }

    #[test]
    fn what_its_owner_holds_no_longer_falls_to_the_first_that_does() {
        let to_4 = heir(owner_source::ACCEPT, &[4, 5]).unwrap();
        assert_eq!((to_4.owner.pid, to_4.before_pid), (4, 3));
        assert_eq!(to_4.owner.holders, 2);
        assert_eq!(heir(owner_source::ACCEPT, &[4, 5, 3]), None);
    }

    #[test]
    fn what_a_process_that_has_forked_holds_alone_is_its_own() {
        let own = heir(owner_source::FORKED, &[3]).unwrap();
        assert_eq!((own.owner.pid, own.before_pid), (3, 3));
        assert_eq!(
            (own.owner.source, own.owner.holders),
            (owner_source::SEEDED, 1)
        );
        let shared = heir(owner_source::FORKED, &[3, 4]);
        assert_eq!(shared, None, "a child holds it, too");
    }
}
