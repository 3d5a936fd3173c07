//! Who holds the ports that bind() and listen() do not get: the sockets of all processes, found by a walk over their open
//! files, and those that no process holds any more, as /proc shows them.
//!
//! A port is looked at by the poll after a call failed with EADDRINUSE; what was found goes into the stream as a
//! `BindHolders`. The more a look costs, the longer it is to the next.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::{Bind, BindHolder, BindHolders, Owner, Socket, bind_call, bind_flag, kind},
    socket::{PortHolder, SoughtPorts},
    tcp::state,
};
use foldhash::quality::RandomState;
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Feed, netns_facts::leads_to, pace::Pace};
use crate::{
    kernel::{
        clock::{cpu_ns, ktime_ns},
        error::CannotTrace,
        header::{header, is_of},
        iterators, maps,
        words::{is_unspecified, is_v4},
    },
    owner::{ports, standing},
};

/// include/uapi/asm-generic/errno.h.
const EADDRINUSE: u32 = 98;

/// Ports looked for at once; others ask again with their next failure.
const MAX_ASKED: usize = 64;
/// Share of the time that looks may take of a CPU, as a divisor; and how long one is apart from the next.
const SHARE: u64 = 50;
const REST_NS: RangeInclusive<u64> = 200_000_000..=10_000_000_000;

/// What a call asked for and did not get. Port 0: any of the range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Asked {
    netns: u32,
    port: u16,
    family: u16,
    addr: [u32; 4],
}

/// By whom it was asked.
#[derive(Clone, Copy, Debug)]
struct Caller {
    sk: u64,
    pid: u32,
    uid: u32,
    flags: u8,
    range: [u16; 2],
}

/// See the module.
pub(crate) struct PortLooks {
    sought: Array<MapData, [u32; 2]>,
    asked: BTreeMap<Asked, Caller>,
    pace: Pace,
    proc: PathBuf,
}

impl PortLooks {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            sought: maps::take(ebpf, "PORTS_SOUGHT")?,
            asked: BTreeMap::new(),
            pace: Pace::new(SHARE, REST_NS),
            proc: PathBuf::from("/proc"),
        })
    }

    /// Looks at a record that comes by.
    pub(crate) fn meet(&mut self, record: &[u8]) {
        if !is_of(kind::BIND, record) {
            return;
        }
        let Ok((bind, _)) = Bind::read_from_prefix(record) else {
            return;
        };
        let is_known = bind.flags & bind_flag::SEVERAL == 0;
        if bind.error != EADDRINUSE || bind.call == bind_call::SECURITY || !is_known {
            return;
        }
        let Bind { socket, owner, .. } = bind;
        let asked = Asked {
            netns: socket.netns,
            port: socket.local_port,
            family: socket.family,
            addr: socket.local_addr,
        };
        if self.asked.len() < MAX_ASKED || self.asked.contains_key(&asked) {
            let caller = Caller {
                sk: socket.sk,
                pid: owner.pid,
                uid: owner.uid,
                flags: bind.flags,
                range: bind.range,
            };
            self.asked.insert(asked, caller);
        }
    }

    /// Looks who holds what was asked for.
    pub(crate) fn poll(&mut self, ebpf: &mut Ebpf, feed: Feed<'_>) -> io::Result<()> {
        let began_ns = ktime_ns();
        if self.asked.is_empty() || !self.pace.is_due(began_ns) {
            return Ok(());
        }
        let spent_ns = cpu_ns();
        let asked = std::mem::take(&mut self.asked);
        let mut all = self.look(ebpf, &asked)?;
        for (netns, held) in &mut all {
            let asked: Vec<_> = of_netns(&asked, *netns).collect();
            self.add_orphans(*netns, &asked, held);
            for (asked, caller) in asked {
                feed(found(asked, caller, held).as_bytes());
            }
        }
        self.pace.rest(cpu_ns().saturating_sub(spent_ns), began_ns);
        Ok(())
    }

    /// The sockets of all processes at the ports that are asked for, by namespace: one walk for all.
    fn look(
        &mut self,
        ebpf: &mut Ebpf,
        asked: &BTreeMap<Asked, Caller>,
    ) -> io::Result<BTreeMap<u32, Held>> {
        let (low, high) = span(asked.iter()).into_inner();
        let mut all: BTreeMap<u32, Held> = asked
            .keys()
            .map(|asked| (asked.netns, Held::default()))
            .collect();
        let netns = match all.len() {
            1 => all.keys().next().copied().unwrap_or_default(),
            _ => 0,
        };
        let sought: [u32; 2] = zerocopy::transmute!(SoughtPorts { netns, low, high });
        self.sought.set(0, sought, 0).map_err(io::Error::other)?;
        let mut met: HashSet<(u64, u32), RandomState> = HashSet::default();
        iterators::find_port_holders(ebpf, &mut |holder| {
            // Threads share descriptors, and a process may have two of one socket.
            if let Some(held) = all.get_mut(&holder.socket.netns)
                && met.insert((holder.socket.sk, holder.owner.pid))
            {
                held.sockets.push(holder);
            }
        })?;
        Ok(all)
    }

    /// Adds those of a namespace that no process holds.
    fn add_orphans(&self, netns: u32, asked: &[(&Asked, &Caller)], held: &mut Held) {
        let ports = span(asked.iter().copied());
        let pids = asked.iter().map(|(_, caller)| caller.pid);
        let pids = pids.chain(held.sockets.iter().map(|holder| holder.owner.pid));
        let way = way(&self.proc, netns, pids);
        held.is_complete = way.is_some_and(|net| {
            ports::orphans(&net, &ports, &mut |orphan| {
                held.sockets.push(PortHolder {
                    socket: Socket {
                        netns,
                        family: orphan.family,
                        local_addr: orphan.local_addr,
                        remote_addr: orphan.remote_addr,
                        local_port: orphan.local_port,
                        remote_port: orphan.remote_port,
                        state: orphan.state,
                        ..Socket::default()
                    },
                    flags: bind_flag::ORPHAN,
                    ..PortHolder::default()
                });
            })
        });
    }
}

fn of_netns(
    asked: &BTreeMap<Asked, Caller>,
    netns: u32,
) -> impl Iterator<Item = (&Asked, &Caller)> {
    asked.iter().filter(move |(asked, _)| asked.netns == netns)
}

/// The ports from the lowest to the highest that are asked for.
fn span<'a>(asked: impl Iterator<Item = (&'a Asked, &'a Caller)>) -> RangeInclusive<u16> {
    let ports = asked.map(|(asked, caller)| match asked.port {
        0 => caller.range,
        port => [port, port],
    });
    let (low, high) = ports.fold((u16::MAX, 0), |(low, high), [first, last]| {
        (low.min(first), high.max(last))
    });
    low..=high
}

/// The `net` directory of a process in a namespace: of one of these, or of any.
fn way(proc: &Path, netns: u32, pids: impl Iterator<Item = u32>) -> Option<PathBuf> {
    let mut pids = pids.filter(|pid| *pid != 0).chain(standing::pids(proc));
    let process = pids.find_map(|pid| {
        let process = proc.join(pid.to_string());
        leads_to(&process, netns).then_some(process)
    })?;
    Some(process.join("net"))
}

/// What one look found.
#[derive(Debug, Default)]
struct Held {
    /// A socket is in here once for each process that holds it.
    sockets: Vec<PortHolder>,
    /// Those that no process holds are among them.
    is_complete: bool,
}

/// What is in the way of one call.
fn found(asked: &Asked, caller: &Caller, held: &Held) -> BindHolders {
    let mut found = BindHolders {
        header: header::<BindHolders>(kind::BIND_HOLDERS, ktime_ns()),
        local_addr: asked.addr,
        netns: asked.netns,
        port: asked.port,
        family: asked.family,
        incomplete: u32::from(!held.is_complete),
        ..BindHolders::default()
    };
    let mut in_the_way: Vec<&PortHolder> = held
        .sockets
        .iter()
        .filter(|holder| is_in_the_way(asked, caller, holder))
        .collect();
    let mut met: HashSet<u64, RandomState> = HashSet::default();
    for holder in &in_the_way {
        // An orphan has no address to be known by again, and is shown once.
        if holder.socket.sk != 0 && !met.insert(holder.socket.sk) {
            continue;
        }
        let count = match holder.socket.state {
            state::LISTEN => &mut found.listeners,
            state::CLOSE => &mut found.bound,
            state::TIME_WAIT => &mut found.time_wait,
            state::ESTABLISHED | state::SYN_SENT | state::SYN_RECV | state::CLOSE_WAIT => {
                &mut found.connected
            }
            _ if holder.flags & bind_flag::ORPHAN == 0 => &mut found.connected,
            _ => &mut found.closing,
        };
        *count += 1;
    }
    if asked.port == 0 {
        return of_range(found, &in_the_way);
    }
    in_the_way.sort_by_key(|holder| rank(holder.socket.state));
    for (place, holder) in found.holders.iter_mut().zip(&in_the_way) {
        *place = named(holder, 1);
        found.named += 1;
    }
    found
}

/// Who is named first.
const fn rank(of: u8) -> u8 {
    match of {
        state::LISTEN => 0,
        state::CLOSE => 1,
        state::ESTABLISHED | state::SYN_SENT | state::SYN_RECV => 2,
        state::TIME_WAIT => 4,
        _ => 3,
    }
}

/// Who holds most of the range.
fn of_range(mut found: BindHolders, in_the_way: &[&PortHolder]) -> BindHolders {
    let mut all: HashSet<u16, RandomState> = HashSet::default();
    let mut by_process: HashMap<u32, (HashSet<u16, RandomState>, &PortHolder), RandomState> =
        HashMap::default();
    for holder in in_the_way {
        all.insert(holder.socket.local_port);
        let of = by_process.entry(holder.owner.pid);
        let (ports, _) = of.or_insert_with(|| (HashSet::default(), holder));
        ports.insert(holder.socket.local_port);
    }
    found.ports = u32::try_from(all.len()).unwrap_or(u32::MAX);
    // Pid 0 is that of the sockets that no process holds.
    by_process.remove(&0);
    let mut most: Vec<_> = by_process.into_values().collect();
    most.sort_by_key(|(ports, holder)| (std::cmp::Reverse(ports.len()), holder.owner.pid));
    for (place, (ports, holder)) in found.holders.iter_mut().zip(&most) {
        *place = named(holder, u32::try_from(ports.len()).unwrap_or(u32::MAX));
        found.named += 1;
    }
    found
}

fn named(holder: &PortHolder, ports: u32) -> BindHolder {
    let PortHolder {
        socket,
        owner,
        flags,
        ..
    } = *holder;
    let is_orphan = flags & bind_flag::ORPHAN != 0;
    BindHolder {
        owner: if is_orphan { Owner::default() } else { owner },
        local_addr: socket.local_addr,
        remote_addr: socket.remote_addr,
        local_port: socket.local_port,
        remote_port: socket.remote_port,
        family: socket.family,
        state: socket.state,
        flags,
        ports,
        ..BindHolder::default()
    }
}

/// Whether a socket keeps a call from its port (`inet_csk_bind_conflict`): its address is the same, or one of both has them
/// all, and they do not share it.
fn is_in_the_way(asked: &Asked, caller: &Caller, holder: &PortHolder) -> bool {
    let socket = &holder.socket;
    let is_its_port = match asked.port {
        0 => (caller.range[0]..=caller.range[1]).contains(&socket.local_port),
        port => socket.local_port == port,
    };
    if !is_its_port || socket.sk != 0 && socket.sk == caller.sk {
        return false;
    }
    // A request, or what is left of a connection, has the options of a socket that is not seen.
    if holder.flags & bind_flag::ORPHAN != 0 && socket.state == state::SYN_RECV {
        return false;
    }
    let both = caller.flags & holder.flags;
    let share = both & bind_flag::REUSEADDR != 0 && socket.state != state::LISTEN
        || both & bind_flag::REUSEPORT != 0 && caller.uid == holder.owner.uid;
    let other_v6_only = holder.flags & bind_flag::V6_ONLY != 0;
    !share
        && overlap(
            (
                &asked.addr,
                asked.family,
                caller.flags & bind_flag::V6_ONLY != 0,
            ),
            (&socket.local_addr, socket.family, other_v6_only),
        )
}

/// Whether two addresses have one in common, each with its family and whether it is for IPv6 alone.
fn overlap(one: (&[u32; 4], u16, bool), other: (&[u32; 4], u16, bool)) -> bool {
    let serves = |(addr, family, v6_only): (&[u32; 4], u16, bool), of: &[u32; 4], of_v4: bool| {
        let has_v4 = is_v4(addr, family) || is_unspecified(addr) && !v6_only;
        if is_unspecified(addr) {
            if of_v4 { has_v4 } else { !is_v4(addr, family) }
        } else {
            addr == of
        }
    };
    let both_any = is_unspecified(one.0) && is_unspecified(other.0);
    if both_any {
        let [first, second] = [one, other].map(|(addr, family, v6_only)| {
            let v4 = is_v4(addr, family);
            (v4 || !v6_only, !v4)
        });
        return first.0 && second.0 || first.1 && second.1;
    }
    serves(one, other.0, is_v4(other.0, other.1)) || serves(other, one.0, is_v4(one.0, one.1))
}

#[cfg(test)]
mod tests {
    use conntracer_common::tcp::{AF_INET, AF_INET6};
    use rstest::rstest;

    use super::*;

    const ANY_V6: ([u32; 4], u16) = ([0; 4], AF_INET6);

    fn v4(last: u8) -> ([u32; 4], u16) {
        let addr = if last == 0 { [0; 4] } else { [127, 0, 0, last] };
        let words = [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(addr)];
        (words, AF_INET)
    }

    fn v6(last: u32) -> ([u32; 4], u16) {
        ([0x20, 0, 0, last], AF_INET6)
    }

    #[rstest]
    #[case::same(v4(1), false, v4(1), false, true)]
    #[case::others(v4(1), false, v4(2), false, false)]
    #[case::any_v4_and_one(v4(0), false, v4(1), false, true)]
    #[case::one_and_any_v6(v4(1), false, ANY_V6, false, true)]
    #[case::one_and_any_v6_only(v4(1), false, ANY_V6, true, false)]
    #[case::any_v4_and_any_v6(v4(0), false, ANY_V6, false, true)]
    #[case::any_v4_and_any_v6_only(v4(0), false, ANY_V6, true, false)]
    #[case::any_v6_twice(ANY_V6, true, ANY_V6, false, true)]
    #[case::any_v4_and_one_v6(v4(0), false, v6(1), false, false)]
    #[case::any_v6_and_one_v6(ANY_V6, true, v6(1), false, true)]
    #[case::v6_others(v6(1), false, v6(2), false, false)]
    fn addresses_overlap_as_the_kernel_has_it(
        #[case] one: ([u32; 4], u16),
        #[case] one_v6_only: bool,
        #[case] other: ([u32; 4], u16),
        #[case] other_v6_only: bool,
        #[case] expected: bool,
    ) {
        let one = (&one.0, one.1, one_v6_only);
        let other = (&other.0, other.1, other_v6_only);
        assert_eq!(overlap(one, other), expected);
        assert_eq!(overlap(other, one), expected, "the other way round");
    }

    fn holder(state: u8, flags: u8, uid: u32) -> PortHolder {
        let (local_addr, family) = v4(0);
        PortHolder {
            socket: Socket {
                sk: 2,
                local_addr,
                family,
                local_port: 8080,
                state,
                ..Socket::default()
            },
            owner: Owner {
                pid: 7,
                uid,
                ..Owner::default()
            },
            flags,
            ..PortHolder::default()
        }
    }

    const REUSEADDR: u8 = bind_flag::REUSEADDR;
    const REUSEPORT: u8 = bind_flag::REUSEPORT;

    #[rstest]
    #[case::listener(state::LISTEN, 0, 0, 0, true)]
    #[case::listener_with_both_reuseaddr(state::LISTEN, REUSEADDR, REUSEADDR, 0, true)]
    #[case::time_wait_without(state::TIME_WAIT, 0, 0, 0, true)]
    #[case::connection_of_one_alone(state::ESTABLISHED, 0, REUSEADDR, 0, true)]
    #[case::connection_of_both(state::ESTABLISHED, REUSEADDR, REUSEADDR, 0, false)]
    #[case::workers(state::LISTEN, REUSEPORT, REUSEPORT, 0, false)]
    #[case::workers_of_another_user(state::LISTEN, REUSEPORT, REUSEPORT, 5, true)]
    fn what_two_sockets_share_is_in_nobodys_way(
        #[case] state: u8,
        #[case] flags: u8,
        #[case] caller_flags: u8,
        #[case] uid: u32,
        #[case] expected: bool,
    ) {
        let (addr, family) = v4(1);
        let asked = Asked {
            netns: 0,
            port: 8080,
            family,
            addr,
        };
        let caller = Caller {
            sk: 1,
            pid: 8,
            uid: 0,
            flags: caller_flags,
            range: [32768, 60999],
        };
        let holder = holder(state, flags, uid);
        assert_eq!(is_in_the_way(&asked, &caller, &holder), expected);
        let own = Caller { sk: 2, ..caller };
        assert!(!is_in_the_way(&asked, &own, &holder), "its own socket");
        let elsewhere = Asked { port: 81, ..asked };
        assert!(!is_in_the_way(&elsewhere, &caller, &holder), "another port");
    }

    #[test]
    fn who_listens_is_named_first_and_one_socket_counts_once() {
        let (addr, family) = v4(0);
        let asked = Asked {
            netns: 0,
            port: 8080,
            family,
            addr,
        };
        let caller = Caller {
            sk: 1,
            pid: 8,
            uid: 0,
            flags: 0,
            range: [32768, 60999],
        };
        let mut connection = holder(state::ESTABLISHED, 0, 0);
        connection.socket.sk = 3;
        let mut child = holder(state::LISTEN, 0, 0);
        child.owner.pid = 9;
        let held = Held {
            sockets: vec![connection, holder(state::LISTEN, 0, 0), child],
            is_complete: true,
        };
        let found = found(&asked, &caller, &held);
        assert_eq!((found.listeners, found.connected, found.named), (1, 1, 3));
        assert_eq!(found.holders.map(|holder| holder.owner.pid), [7, 9, 7]);
    }

    #[test]
    fn who_holds_most_of_a_range_is_named_first() {
        let (addr, family) = v4(0);
        let asked = Asked {
            netns: 0,
            port: 0,
            family,
            addr,
        };
        let caller = Caller {
            sk: 1,
            pid: 8,
            uid: 0,
            flags: 0,
            range: [40_000, 40_009],
        };
        let sockets = (0..10_u16).map(|at| {
            let mut holder = holder(state::CLOSE, 0, 0);
            holder.socket.sk = u64::from(at) + 10;
            holder.socket.local_port = 40_000 + at;
            holder.owner.pid = if at < 7 { 5 } else { 6 };
            holder
        });
        let held = Held {
            sockets: sockets.collect(),
            is_complete: true,
        };
        let found = found(&asked, &caller, &held);
        assert_eq!((found.ports, found.bound, found.named), (10, 10, 2));
        let most = found.holders.map(|holder| (holder.owner.pid, holder.ports));
        assert_eq!(most, [(5, 7), (6, 3), (0, 0)]);
    }
}
