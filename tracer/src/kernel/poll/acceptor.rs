//! How the processes stand that may accept the connections of a listener in trouble, or read from a connection that
//! nobody reads from: stopped, frozen, or without a descriptor to spare.
//!
//! The first look is taken when the first record of a full accept queue comes by, or of one in which connections wait, at the listener's owner and its
//! children, and goes into the stream before that record: a finding that opens says why at once. Later ones are taken
//! with the records that tell of more drops, and by the polls shortly after these, at those who hold the listener where a
//! search has found them. The more a look costs, the longer it is to the next.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use conntracer_common::record::{
    AcceptQueue, Acceptor, Header, Holders, Owner, Receive, Socket, Syn, SynTotals, UNKNOWN_COUNT,
    UNKNOWN_TOTAL, accept_queue_flag, acceptor_flag, kind, receive_flag, role, syn_outcome,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{Feed, pace::Pace};
use crate::{
    id::SocketId,
    kernel::{
        clock::{cpu_ns, ktime_ns},
        header::header,
    },
    owner::standing,
};

/// Listeners that are remembered, with who holds them.
const MAX_LISTENERS: usize = 64;
/// Processes of one look, and of all the looks of one poll.
const MAX_PROCESSES: usize = 8;
const MAX_A_POLL: usize = 32;
/// Children of an owner among which those are looked for that run its program.
const MAX_CHILDREN: usize = 64;
/// Between two looks at one listener: a person who stops or wakes a process reads about it a second later.
const AGAIN_NS: u64 = 1_000_000_000;
/// Without a dropped SYN for so long, a listener is not looked at: nobody asks how its processes stand. The next one is
/// another reason to look.
const GOES_ON_NS: u64 = 2_000_000_000;
/// After so long, it is forgotten: its finding is over by then.
const QUIET_NS: u64 = 60_000_000_000;
/// Share of the time that looks may take of a CPU, as a divisor; and how long after one the next is taken, whatever it
/// took: a finding that opens is to say why, also where another listener has just been looked at.
const SHARE: u64 = 100;
const LONGEST_REST_NS: u64 = 2_000_000_000;

/// A listener that turned clients away because its accept queue was full.
#[derive(Debug)]
struct Troubled {
    socket: Socket,
    owner: Owner,
    /// Those who hold it, as far as a search found.
    holders: Vec<u32>,
    drops: u64,
    last_ns: u64,
    looked_ns: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct AcceptorLooks {
    listeners: BTreeMap<SocketId, Troubled>,
    pace: Pace,
    proc: PathBuf,
    cgroups: PathBuf,
    ticks_per_s: u64,
}

impl Default for AcceptorLooks {
    fn default() -> Self {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let cgroups = if unified.is_dir() {
            unified.to_owned()
        } else {
            PathBuf::from("/sys/fs/cgroup")
        };
        Self {
            listeners: BTreeMap::new(),
            pace: Pace::new(SHARE, 0..=LONGEST_REST_NS),
            proc: PathBuf::from("/proc"),
            cgroups,
            ticks_per_s: rustix::param::clock_ticks_per_second(),
        }
    }
}

impl AcceptorLooks {
    /// Looks at a record that comes by, and takes the first look at a listener before its first record of trouble.
    pub(crate) fn meet(&mut self, record: &[u8], feed: Feed<'_>) {
        let Ok((header, _)) = Header::read_from_prefix(record) else {
            return;
        };
        match header.kind {
            kind::SYN => {
                if let Ok((syn, _)) = Syn::read_from_prefix(record) {
                    self.meet_syn(&syn, feed);
                }
            }
            kind::ACCEPT_QUEUE => {
                if let Ok((queue, _)) = AcceptQueue::read_from_prefix(record) {
                    self.meet_queue(&queue, feed);
                }
            }
            kind::RECEIVE => {
                if let Ok((receive, _)) = Receive::read_from_prefix(record) {
                    self.meet_receive(&receive, feed);
                }
            }
            kind::HOLDERS => {
                if let Ok((holders, _)) = Holders::read_from_prefix(record) {
                    self.meet_holders(&holders);
                }
            }
            _ => {}
        }
    }

    fn meet_syn(&mut self, syn: &Syn, feed: Feed<'_>) {
        let drops = drops(&syn.totals);
        if drops == 0 || syn.socket.role != role::LISTENER {
            return;
        }
        let Some((id, known)) = self.known(&syn.socket, &syn.owner) else {
            return;
        };
        if drops > known.drops {
            known.drops = drops;
            known.last_ns = syn.header.ktime_ns;
            self.look_at(&[id], syn.header.ktime_ns, feed);
        }
    }

    fn meet_queue(&mut self, queue: &AcceptQueue, feed: Feed<'_>) {
        if queue.flags & accept_queue_flag::LATE != 0 && queue.socket.role == role::LISTENER {
            self.meet_again(&queue.socket, &queue.owner, queue.header.ktime_ns, feed);
        }
    }

    fn meet_receive(&mut self, receive: &Receive, feed: Feed<'_>) {
        if receive.flags & receive_flag::SHUT != 0 {
            self.meet_again(
                &receive.socket,
                &receive.owner,
                receive.header.ktime_ns,
                feed,
            );
        }
    }

    /// A socket whose trouble goes on.
    fn meet_again(&mut self, socket: &Socket, owner: &Owner, ktime_ns: u64, feed: Feed<'_>) {
        let Some((id, known)) = self.known(socket, owner) else {
            return;
        };
        known.last_ns = ktime_ns;
        self.look_at(&[id], ktime_ns, feed);
    }

    /// The socket, which is in trouble.
    fn known(&mut self, socket: &Socket, owner: &Owner) -> Option<(SocketId, &mut Troubled)> {
        if socket.born_ns == 0 {
            return None;
        }
        let id = SocketId::new(socket.sk, socket.born_ns);
        if !self.listeners.contains_key(&id) {
            self.make_room();
        }
        let known = self.listeners.entry(id).or_insert_with(|| Troubled {
            socket: *socket,
            owner: *owner,
            holders: Vec::new(),
            drops: 0,
            last_ns: 0,
            looked_ns: 0,
        });
        known.owner = *owner;
        Some((id, known))
    }

    /// Forgets the listener that dropped nothing for the longest time, where there is no room for one more.
    fn make_room(&mut self) {
        if self.listeners.len() < MAX_LISTENERS {
            return;
        }
        let quietest = self.listeners.iter().min_by_key(|(_, known)| known.last_ns);
        if let Some(id) = quietest.map(|(id, _)| *id) {
            self.listeners.remove(&id);
        }
    }

    fn meet_holders(&mut self, holders: &Holders) {
        let id = SocketId::new(holders.socket.sk, holders.socket.born_ns);
        if let Some(known) = self.listeners.get_mut(&id) {
            let pids = holders.owners.iter().map(|owner| owner.pid);
            known.holders = pids.filter(|pid| *pid != 0).collect();
            known.looked_ns = 0;
        }
    }

    /// Looks again at the listeners whose trouble goes on, the one first at which nobody looked for the longest time.
    pub(crate) fn poll(&mut self, feed: Feed<'_>) {
        let now_ns = ktime_ns();
        self.listeners
            .retain(|_, known| now_ns.saturating_sub(known.last_ns) < QUIET_NS);
        let mut due: Vec<(u64, SocketId)> = self
            .listeners
            .iter()
            .filter(|(_, known)| now_ns.saturating_sub(known.last_ns) < GOES_ON_NS)
            .map(|(id, known)| (known.looked_ns, *id))
            .collect();
        due.sort_unstable();
        // Who holds one was found just now, which the searches' own pace bounds.
        if due.first().is_some_and(|(looked_ns, _)| *looked_ns == 0) {
            self.pace.hurry();
        }
        let due: Vec<SocketId> = due.into_iter().map(|(_, id)| id).collect();
        self.look_at(&due, now_ns, feed);
    }

    /// Looks at those of them where it is time to, as of `at_ns`.
    fn look_at(&mut self, ids: &[SocketId], at_ns: u64, feed: Feed<'_>) {
        let (began_ns, spent_ns) = (ktime_ns(), cpu_ns());
        if !self.pace.is_due(began_ns) {
            return;
        }
        let mut looked = 0;
        for id in ids {
            let Some(known) = self.listeners.get(id) else {
                continue;
            };
            if looked >= MAX_A_POLL || began_ns.saturating_sub(known.looked_ns) < AGAIN_NS {
                continue;
            }
            let records = self.look(known, at_ns);
            looked += records.len();
            for record in &records {
                feed(record.as_bytes());
            }
            if let Some(known) = self.listeners.get_mut(id) {
                known.looked_ns = began_ns;
            }
        }
        if looked > 0 {
            self.rest(spent_ns);
        }
    }

    /// Until the next look, after one that began when so much of a CPU was spent.
    fn rest(&mut self, spent_ns: u64) {
        let cost_ns = cpu_ns().saturating_sub(spent_ns);
        self.pace.rest(cost_ns, ktime_ns());
    }

    /// One record a process, the holders' or the owner's and its children's.
    fn look(&self, troubled: &Troubled, now_ns: u64) -> Vec<Acceptor> {
        let mut pids = troubled.holders.clone();
        let flags = if pids.is_empty() {
            if troubled.owner.pid == 0 {
                return Vec::new();
            }
            pids.push(troubled.owner.pid);
            let most = MAX_PROCESSES - 1;
            // A child that runs another program has hardly inherited a listener to accept from.
            let program =
                |pid: u32| fs::read_link(self.proc.join(pid.to_string()).join("exe")).ok();
            let own = program(troubled.owner.pid);
            let children = standing::children(&self.proc, troubled.owner.pid, MAX_CHILDREN, true);
            let alike = children.into_iter().filter(|child| program(*child) == own);
            pids.extend(alike.take(most));
            0
        } else {
            acceptor_flag::HOLDS
        };
        pids.truncate(MAX_PROCESSES);
        let last = pids.len().saturating_sub(1);
        pids.into_iter()
            .enumerate()
            .map(|(at, pid)| {
                let mut record = self.process(pid, troubled, now_ns);
                record.index = u32::try_from(at).unwrap_or(u32::MAX);
                record.flags |= flags;
                if at == last {
                    record.flags |= acceptor_flag::LAST;
                }
                record
            })
            .collect()
    }

    fn process(&self, pid: u32, troubled: &Troubled, now_ns: u64) -> Acceptor {
        let mut record = Acceptor {
            header: header::<Acceptor>(kind::ACCEPTOR, now_ns),
            socket: troubled.socket,
            throttled: UNKNOWN_TOTAL,
            throttled_us: UNKNOWN_TOTAL,
            pid,
            descriptors: UNKNOWN_COUNT,
            descriptor_limit: UNKNOWN_COUNT,
            owner_pid: troubled.owner.pid,
            ..Acceptor::default()
        };
        let Some(found) = standing::read(&self.proc, &self.cgroups, pid, self.ticks_per_s) else {
            record.flags |= acceptor_flag::GONE;
            return record;
        };
        (record.throttled, record.throttled_us) =
            found.throttled.unwrap_or((UNKNOWN_TOTAL, UNKNOWN_TOTAL));
        record.parent_pid = found.parent_pid;
        record.descriptors = found.descriptors.unwrap_or(UNKNOWN_COUNT);
        record.descriptor_limit = found.descriptor_limit.unwrap_or(UNKNOWN_COUNT);
        if let Some((kind, count)) = found.descriptors_mostly {
            (record.descriptor_kind, record.descriptors_of_kind) = (kind, count);
        }
        record.threads = found.threads;
        record.stopped = found.stopped;
        record.cpu_ms = found.cpu_ms;
        record.state = found.state;
        put(&mut record.comm, &found.comm);
        put(&mut record.waits_in, &found.waits_in);
        if found.is_frozen {
            record.flags |= acceptor_flag::FROZEN;
        }
        if found.has_more_threads {
            record.flags |= acceptor_flag::MANY_THREADS;
        }
        record
    }
}

/// SYNs and third ACKs that found the accept queue full.
fn drops(totals: &SynTotals) -> u64 {
    [
        syn_outcome::ACCEPT_QUEUE_FULL,
        syn_outcome::ACK_OVERFLOW,
        syn_outcome::ABORTED,
    ]
    .into_iter()
    .fold(0, |sum: u64, outcome| sum.saturating_add(totals[outcome]))
}

/// As much as fits, with a NUL behind it.
fn put(place: &mut [u8], text: &[u8]) {
    let most = place.len().saturating_sub(1).min(text.len());
    place[..most].copy_from_slice(&text[..most]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(pid: u32, full: u64) -> Syn {
        let mut syn = Syn {
            header: header::<Syn>(kind::SYN, ktime_ns()),
            socket: Socket {
                sk: 1,
                born_ns: 5,
                role: role::LISTENER,
                ..Socket::default()
            },
            owner: Owner {
                pid,
                ..Owner::default()
            },
            ..Syn::default()
        };
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = full;
        syn
    }

    fn looked(looks: &mut AcceptorLooks, record: &[u8]) -> Vec<Acceptor> {
        let mut made = Vec::new();
        looks.meet(record, &mut |record| {
            made.push(Acceptor::read_from_bytes(record).unwrap());
        });
        made
    }

    #[test]
    fn the_first_full_queue_is_looked_at_at_once_and_the_next_by_a_poll() {
        let mut looks = AcceptorLooks::default();
        let pid = std::process::id();
        assert_eq!(looked(&mut looks, syn(pid, 0).as_bytes()), [], "no trouble");
        let first = looked(&mut looks, syn(pid, 1).as_bytes());
        let own = first.first().unwrap();
        assert_eq!((own.pid, own.index), (pid, 0));
        assert_eq!(own.flags & acceptor_flag::HOLDS, 0, "nobody searched yet");
        assert_ne!(first.last().unwrap().flags & acceptor_flag::LAST, 0);
        assert_ne!(own.descriptors, UNKNOWN_COUNT);
        assert_eq!(looked(&mut looks, syn(pid, 2).as_bytes()), []);

        let mut holders = Holders {
            header: header::<Holders>(kind::HOLDERS, 9),
            socket: syn(pid, 1).socket,
            count: 2,
            ..Holders::default()
        };
        holders.owners[0].pid = pid;
        holders.owners[1].pid = u32::MAX;
        assert_eq!(looked(&mut looks, holders.as_bytes()), []);
        looks.pace.next_ns = 0;
        let mut made = Vec::new();
        looks.poll(&mut |record| made.push(Acceptor::read_from_bytes(record).unwrap()));
        let told: Vec<(u32, u8)> = made.iter().map(|made| (made.pid, made.flags)).collect();
        let (holds, last) = (acceptor_flag::HOLDS, acceptor_flag::LAST);
        let gone = acceptor_flag::GONE;
        assert_eq!(told, [(pid, holds), (u32::MAX, holds | last | gone)]);
        looks.pace.next_ns = 0;
        looks.poll(&mut |_| panic!("a moment ago"));
    }

    #[test]
    fn more_drops_are_a_reason_to_look_and_quiet_is_none() {
        let mut looks = AcceptorLooks::default();
        let pid = std::process::id();
        assert_ne!(looked(&mut looks, syn(pid, 1).as_bytes()), []);
        for known in looks.listeners.values_mut() {
            (known.last_ns, known.looked_ns) = (ktime_ns() - GOES_ON_NS, 0);
        }
        looks.pace.next_ns = 0;
        looks.poll(&mut |_| panic!("nothing was dropped meanwhile"));
        assert_eq!(looked(&mut looks, syn(pid, 1).as_bytes()), []);
        assert_ne!(looked(&mut looks, syn(pid, 2).as_bytes()), []);
    }

    #[test]
    fn many_listeners_leave_room_for_one_more_and_a_costly_look_a_rest() {
        let mut looks = AcceptorLooks::default();
        for sk in 0..=MAX_LISTENERS as u64 {
            let mut syn = syn(0, 1);
            (syn.socket.sk, syn.header.ktime_ns) = (sk, 1 + sk);
            looked(&mut looks, syn.as_bytes());
        }
        assert_eq!(looks.listeners.len(), MAX_LISTENERS);
        assert!(!looks.listeners.contains_key(&SocketId::new(0, 5)));

        // As if all that this thread did so far was that look.
        while cpu_ns() < LONGEST_REST_NS / SHARE {}
        looks.rest(0);
        let now_ns = ktime_ns();
        assert!(looks.pace.next_ns > now_ns && looks.pace.next_ns <= now_ns + LONGEST_REST_NS);
    }
}
