//! What network namespaces in trouble count beside TCP: conntrack's table and ICMP, as the /proc of a process in them
//! shows. No capability to enter a namespace is kept, so that one without a process stays unknown.
//!
//! A namespace is looked at by the next poll after its first record of trouble, which comes before the tick that its
//! findings open at, and again while the trouble goes on. The more a look costs, the longer it is to the next.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use conntracer_common::record::{
    Header, NetnsFacts, Owner, Socket, UNKNOWN_TOTAL, kind, netns_fact,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{Feed, pace::Pace};
use crate::{
    kernel::{
        clock::{cpu_ns, ktime_ns},
        header::header,
        trouble::troubled,
    },
    owner::{figures, standing},
};

/// Namespaces looked at; others wait until one of them is quiet.
const MAX_NAMESPACES: usize = 64;
/// Processes remembered for each, of those that have sockets there.
const MAX_PIDS: usize = 8;
/// Threads of one of them that are looked at.
const MAX_THREADS: usize = 64;
/// Between two looks at one namespace.
const AGAIN_NS: u64 = 1_000_000_000;
/// Without trouble for so long, a namespace is looked at no more.
const QUIET_NS: u64 = 10_000_000_000;
/// Between two searches through all processes for one of a namespace; and between two through the threads of those that
/// have sockets there, where no other has turned up.
const SEARCH_NS: u64 = 2_000_000_000;
/// How often the time between two searches through all processes that find none of a namespace is doubled.
const DOUBLINGS: u32 = 3;
/// Share of the time that looks may take of a CPU, as a divisor; and how long after one the next is taken, whatever it
/// took: before the trouble is forgotten.
const SHARE: u64 = 50;
const LONGEST_REST_NS: u64 = QUIET_NS / 2;

/// Kinds beside those of [`troubled`] that tell of trouble.
const TROUBLE: [u16; 2] = [kind::EARLY_DROP, kind::FAILURE];

#[derive(Debug, Default)]
struct Troubled {
    pids: Vec<u32>,
    last_ns: u64,
    looked_ns: u64,
    /// Where its figures are.
    net: Option<PathBuf>,
    /// When its processes were looked through in vain, since when no other has turned up.
    tried_ns: Option<u64>,
    /// When all processes were, and how often before.
    searched: Option<(u64, u32)>,
}

impl Troubled {
    /// Whether a search through all processes may find what the last one did not.
    fn is_searched_for(&self, now_ns: u64) -> bool {
        let rest = |(at_ns, before): (u64, u32)| {
            is_over(Some(at_ns), SEARCH_NS << before.min(DOUBLINGS), now_ns)
        };
        self.net.is_none() && self.searched.is_none_or(rest)
    }
}

/// Whether what was in vain may be tried again.
fn is_over(in_vain_ns: Option<u64>, rest_ns: u64, now_ns: u64) -> bool {
    in_vain_ns.is_none_or(|at_ns| now_ns.saturating_sub(at_ns) >= rest_ns)
}

/// See the module.
#[derive(Debug)]
pub(crate) struct NetnsFactsLooks {
    namespaces: BTreeMap<u32, Troubled>,
    pace: Pace,
    search_pace: Pace,
    proc: PathBuf,
}

impl Default for NetnsFactsLooks {
    fn default() -> Self {
        Self {
            namespaces: BTreeMap::new(),
            pace: Pace::new(SHARE, 0..=LONGEST_REST_NS),
            search_pace: Pace::new(SHARE, SEARCH_NS..=u64::MAX),
            proc: PathBuf::from("/proc"),
        }
    }
}

impl NetnsFactsLooks {
    /// Looks at a record that comes by.
    pub(crate) fn meet(&mut self, record: &[u8]) {
        let Some((now_ns, netns, pid)) = in_trouble(record) else {
            return;
        };
        if netns == 0
            || self.namespaces.len() >= MAX_NAMESPACES && !self.namespaces.contains_key(&netns)
        {
            return;
        }
        let known = self.namespaces.entry(netns).or_default();
        known.last_ns = known.last_ns.max(now_ns);
        if pid != 0 && !known.pids.contains(&pid) {
            if known.pids.len() == MAX_PIDS {
                known.pids.remove(0);
            }
            known.pids.push(pid);
            known.tried_ns = None;
        }
    }

    /// Looks at the namespaces in trouble.
    pub(crate) fn poll(&mut self, feed: Feed<'_>) {
        let (began_ns, spent_ns) = (ktime_ns(), cpu_ns());
        self.namespaces
            .retain(|_, known| began_ns.saturating_sub(known.last_ns) < QUIET_NS);
        if !self.pace.is_due(began_ns) || self.namespaces.is_empty() {
            return;
        }
        self.find(began_ns);
        let most = figures::conntrack_max(&self.proc);
        let mut looked = false;
        for (netns, known) in &mut self.namespaces {
            if began_ns.saturating_sub(known.looked_ns) < AGAIN_NS {
                continue;
            }
            let Some(net) = &known.net else { continue };
            let Some(figures) = look(net, *netns, most) else {
                // Another process is looked for.
                known.net = None;
                continue;
            };
            known.looked_ns = began_ns;
            looked = true;
            let record = NetnsFacts {
                header: header::<NetnsFacts>(kind::NETNS_FACTS, ktime_ns()),
                figures,
                netns: *netns,
                pad: 0,
            };
            feed(record.as_bytes());
        }
        if looked {
            let cost_ns = cpu_ns().saturating_sub(spent_ns);
            self.pace.rest(cost_ns, ktime_ns());
        }
    }

    /// Finds a way to the figures of each namespace, through a process that is in it.
    fn find(&mut self, now_ns: u64) {
        let proc = &self.proc;
        let mut missing = false;
        for (netns, known) in &mut self.namespaces {
            let leads = |directory: &Path| leads_to(directory, *netns);
            if known
                .net
                .as_deref()
                .and_then(Path::parent)
                .is_some_and(leads)
            {
                continue;
            }
            let own = proc.join("thread-self");
            let by_pid = || {
                known.pids.iter().find_map(|pid| {
                    let process = proc.join(pid.to_string());
                    if leads(&process) {
                        return Some(process);
                    }
                    let threads = fs::read_dir(process.join("task")).ok()?.flatten();
                    let mut threads = threads.take(MAX_THREADS).map(|thread| thread.path());
                    threads.find(|thread| leads(thread))
                })
            };
            let mut found = leads(&own).then_some(own);
            if found.is_none() && is_over(known.tried_ns, SEARCH_NS, now_ns) {
                found = by_pid();
                known.tried_ns = found.is_none().then_some(now_ns);
            }
            known.net = found.map(|directory| directory.join("net"));
            missing |= known.is_searched_for(now_ns);
        }
        if !missing || !self.search_pace.is_due(now_ns) {
            return;
        }
        let spent_ns = cpu_ns();
        for pid in standing::pids(proc) {
            let process = proc.join(pid.to_string());
            let Some(netns) = netns_of(&process) else {
                continue;
            };
            if let Some(known) = self.namespaces.get_mut(&netns)
                && known.net.is_none()
            {
                known.net = Some(process.join("net"));
            }
        }
        for known in self.namespaces.values_mut() {
            let before = known.searched.map_or(0, |(_, before)| before + 1);
            known.searched = known.net.is_none().then_some((now_ns, before));
        }
        let cost_ns = cpu_ns().saturating_sub(spent_ns);
        self.search_pace.rest(cost_ns, now_ns);
    }
}

/// When a record tells of trouble, in which namespace, and a process that has a socket there; 0 for none.
fn in_trouble(record: &[u8]) -> Option<(u64, u32, u32)> {
    if let Some((now_ns, socket, owner)) = troubled(record) {
        return Some((now_ns, socket.netns, owner.pid));
    }
    let (header, rest) = Header::read_from_prefix(record).ok()?;
    if !TROUBLE.contains(&header.kind) {
        return None;
    }
    let (socket, rest) = Socket::read_from_prefix(rest).ok()?;
    let (owner, _) = Owner::read_from_prefix(rest).ok()?;
    Some((header.ktime_ns, socket.netns, owner.pid))
}

/// The namespace of a process or thread, by its directory in /proc.
fn netns_of(directory: &Path) -> Option<u32> {
    let inode = fs::metadata(directory.join("ns/net")).ok()?.ino();
    u32::try_from(inode).ok()
}

pub(super) fn leads_to(directory: &Path, netns: u32) -> bool {
    netns_of(directory) == Some(netns)
}

/// The figures of a namespace; nothing where the process that leads there has ended meanwhile: what was known stays.
fn look(net: &Path, netns: u32, conntrack_max: Option<u64>) -> Option<[u64; netns_fact::COUNT]> {
    let figures = read(net, conntrack_max);
    net.parent()
        .is_some_and(|way| leads_to(way, netns))
        .then_some(figures)
}

fn read(net: &Path, conntrack_max: Option<u64>) -> [u64; netns_fact::COUNT] {
    use netns_fact as fact;
    let mut figures = [UNKNOWN_TOTAL; fact::COUNT];
    if let Some(columns) = figures::conntrack(net) {
        for (name, value) in columns {
            let index = match name.as_str() {
                figures::ENTRIES => fact::CONNTRACK_COUNT,
                "invalid" => fact::CONNTRACK_INVALID,
                "insert_failed" => fact::CONNTRACK_INSERT_FAILED,
                "drop" => fact::CONNTRACK_DROP,
                "early_drop" => fact::CONNTRACK_EARLY_DROP,
                // Called "searched" before 5.10, when it counted something else.
                "clashres" => fact::CONNTRACK_CLASH,
                "chainlength" => fact::CONNTRACK_CHAIN_TOO_LONG,
                _ => continue,
            };
            figures[index] = value;
        }
        figures[fact::CONNTRACK_MAX] = conntrack_max.unwrap_or(UNKNOWN_TOTAL);
    }
    if let Ok(text) = fs::read_to_string(net.join("snmp")) {
        for (index, protocol, counter) in [
            (fact::ICMP_IN_UNREACHABLE, "Icmp", "InDestUnreachs"),
            (fact::ICMP_OUT_UNREACHABLE, "Icmp", "OutDestUnreachs"),
            (fact::OUT_NO_ROUTES, "Ip", "OutNoRoutes"),
        ] {
            figures[index] = figures::snmp(&text, protocol, counter).unwrap_or(UNKNOWN_TOTAL);
        }
    }
    if let Ok(text) = fs::read_to_string(net.join("snmp6")) {
        for (index, counter) in [
            (fact::ICMP6_IN_UNREACHABLE, "Icmp6InDestUnreachs"),
            (fact::ICMP6_OUT_UNREACHABLE, "Icmp6OutDestUnreachs"),
        ] {
            figures[index] = figures::snmp6(&text, counter).unwrap_or(UNKNOWN_TOTAL);
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::{EarlyDrop, Tick};

    use super::*;

    #[test]
    fn a_namespace_in_trouble_is_looked_at_through_a_process_in_it() {
        let own = netns_of(Path::new("/proc/self")).unwrap();
        let mut looks = NetnsFactsLooks::default();
        let mut early_drop = EarlyDrop {
            header: header::<EarlyDrop>(kind::EARLY_DROP, ktime_ns()),
            ..EarlyDrop::default()
        };
        early_drop.socket.netns = own;
        looks.poll(&mut |_| panic!("no trouble"));
        looks.meet(early_drop.as_bytes());
        let mut made = Vec::new();
        looks.poll(&mut |record| made.push(NetnsFacts::read_from_bytes(record).unwrap()));
        let [facts] = made.as_slice() else {
            panic!("one namespace: {made:?}");
        };
        assert_eq!(facts.netns, own);
        assert_ne!(
            facts.figures[netns_fact::ICMP_IN_UNREACHABLE],
            UNKNOWN_TOTAL
        );
        looks.pace.next_ns = 0;
        looks.poll(&mut |_| panic!("a moment ago"));
        // Nothing leads there.
        early_drop.socket.netns = 1;
        looks.meet(early_drop.as_bytes());
        looks.poll(&mut |_| panic!("unknown"));
    }

    #[test]
    fn what_nothing_leads_to_is_looked_for_now_and_then() {
        let mut looks = NetnsFactsLooks::default();
        let mut early_drop = EarlyDrop {
            header: header::<EarlyDrop>(kind::EARLY_DROP, ktime_ns()),
            ..EarlyDrop::default()
        };
        early_drop.socket.netns = 1;
        early_drop.owner.pid = std::process::id();
        looks.meet(early_drop.as_bytes());
        let tries = |looks: &mut NetnsFactsLooks, now_ns| {
            looks.find(now_ns);
            let known = &looks.namespaces[&1];
            let searched_ns = known.searched.map(|(at_ns, _)| at_ns);
            [known.tried_ns, searched_ns].map(|at_ns| at_ns == Some(now_ns))
        };
        let begun_ns = 1 << 40;
        assert_eq!(tries(&mut looks, begun_ns), [true, true]);
        looks.search_pace.next_ns = 0;
        assert_eq!(tries(&mut looks, begun_ns + SEARCH_NS - 1), [false, false]);
        assert_eq!(tries(&mut looks, begun_ns + SEARCH_NS), [true, true]);
        // Another process of it.
        early_drop.owner.pid = 1;
        looks.meet(early_drop.as_bytes());
        looks.search_pace.next_ns = 0;
        assert_eq!(tries(&mut looks, begun_ns + SEARCH_NS + 1), [true, false]);
        assert_eq!(tries(&mut looks, begun_ns + 3 * SEARCH_NS), [true, true]);
    }

    #[test]
    fn a_process_that_has_ended_tells_nothing() {
        let own = netns_of(Path::new("/proc/self")).unwrap();
        assert!(look(Path::new("/proc/self/net"), own, None).is_some());
        assert!(look(Path::new("/proc/0/net"), own, None).is_none());
        assert!(look(Path::new("/proc/self/net"), 1, None).is_none());
    }

    #[test]
    fn time_alone_is_no_trouble() {
        let tick = Tick {
            header: header::<Tick>(kind::TICK, 7),
        };
        assert_eq!(in_trouble(tick.as_bytes()), None);
    }
}
