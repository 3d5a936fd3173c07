//! Network namespaces and the kernel's own counters in them, held against what the eBPF side counted.
//!
//! Namespaces are found in the kernel's list, through the `netns_look` program, and their counters read
//! from the kernel's memory: the figures of /proc/net/snmp and /proc/net/netstat, without a process to
//! look through or a capability to enter. What is not known here: what a residue means.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use conntracer_common::{
    filter::{Filter, Plain},
    netns::{Counts, KernelCounts, Look, NetnsId, comparable, expected, kernel, residue},
    record::{Netns, kind, netns_flag},
};
use zerocopy::IntoBytes;

use super::header::header;

/// Namespaces compared at once: what the eBPF side's map holds, and far more than one host's
/// containers. 550 kB.
const MAX_NAMESPACES: usize = 1024;
/// Steps of one walk through the kernel's list: it cannot be locked from here, and one that changes
/// underfoot may lead in circles.
const MAX_STEPS: usize = 4 * MAX_NAMESPACES;
/// Looks at one namespace before a residue is believed: an event is counted by the kernel a little before
/// or after the eBPF side counts it.
const TRIES: usize = 8;
/// Rests between looks, in one comparison of all namespaces. In the middle of an event a virtual CPU may be stopped by its
/// host, or by an emulator until this one has nothing to do, and no number of looks in a row finds the other half.
const RESTS: usize = 16;
/// As long as a host lets others run at least, as a rule.
pub(super) const REST: Duration = Duration::from_millis(1);

/// The kernel's counters and ours in each namespace: of the running kernel, or a test's idea of one.
pub(super) trait BothCounts {
    /// The namespace at an address, 0 for this process's own.
    fn look(&self, net: u64) -> io::Result<Look>;
    /// What the eBPF side counted in a namespace so far.
    fn counts(&self, id: NetnsId) -> io::Result<Counts>;
    /// The namespaces in which the eBPF side counted anything; the key of those that found no room among them.
    fn counted(&self) -> io::Result<BTreeSet<NetnsId>>;
    /// A namespace is gone, and its counts may go.
    fn forget(&mut self, id: NetnsId);
    /// Lets the other CPUs go on.
    fn rest(&self);
}

/// The namespaces that are compared.
#[derive(Debug)]
pub(super) struct Namespaces {
    asked: Filter,
    /// Bits of [`netns_flag`] that hold for this kernel.
    limits: u8,
    known: BTreeMap<NetnsId, Known>,
    /// Those of which something is kept and that the last whole walk did not meet.
    absent: BTreeSet<NetnsId>,
    /// The last walk saw the whole list and all of it is known: what is new at the next was born since.
    complete: bool,
    uncompared: u32,
    said: Option<Netns>,
}

#[derive(Debug)]
struct Known {
    base: Reading,
    born: bool,
    said: Option<Netns>,
}

/// The kernel's figures, between two readings of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reading {
    before: KernelCounts,
    kernel: KernelCounts,
    after: KernelCounts,
}

impl Namespaces {
    /// `limits` are the bits of [`netns_flag`] that hold for this kernel.
    pub(super) const fn new(asked: &Filter, limits: u8) -> Self {
        Self {
            asked: *asked,
            limits,
            known: BTreeMap::new(),
            absent: BTreeSet::new(),
            complete: false,
            uncompared: 0,
            said: None,
        }
    }

    /// Makes this moment the one that everything is counted from. After the hooks are attached, so that
    /// nothing is counted by the kernel alone from here on; and again when what can be read changes.
    pub(super) fn begin(&mut self, kernel: &impl BothCounts) -> io::Result<()> {
        self.known.clear();
        self.absent.clear();
        self.uncompared = 0;
        // Twice: what a walk misses (see `depart`) would be taken for born since.
        for _ in 0..2 {
            self.complete = false;
            self.meet(kernel)?;
        }
        Ok(())
    }

    /// Reads every namespace and makes records of those that changed.
    pub(super) fn compare(
        &mut self,
        kernel: &mut impl BothCounts,
        ktime_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let (found, whole) = self.meet(kernel)?;
        if whole {
            self.depart(kernel, &found, ktime_ns, feed)?;
        }
        let mut rests = RESTS;
        for (id, known) in &mut self.known {
            let Some(net) = found.get(id) else {
                continue;
            };
            let Some(record) = known.compare(kernel, *net, *id, &mut rests)? else {
                continue;
            };
            say(&mut known.said, &record, ktime_ns, feed);
        }
        let untracked: u64 = kernel.counts(NetnsId::default())?.iter().sum();
        let of_all = Netns {
            uncompared: self.uncompared,
            untracked: u32::try_from(untracked).unwrap_or(u32::MAX),
            flags: self.flags(),
            ..Netns::default()
        };
        if self.said.is_some() || of_all != Netns::default() {
            say(&mut self.said, &of_all, ktime_ns, feed);
        }
        Ok(())
    }

    /// Forgets the namespaces that are gone: known ones, of which it is said, and those that came and went between two
    /// walks and left nothing but counts. Each is missed by two walks in a row: one whose next namespace is freed
    /// underfoot, and its memory reused for the list's last, comes around without those in between.
    fn depart(
        &mut self,
        kernel: &mut impl BothCounts,
        found: &BTreeMap<NetnsId, u64>,
        ktime_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut absent = kernel.counted()?;
        absent.remove(&NetnsId::default());
        absent.extend(self.known.keys());
        absent.retain(|id| !found.contains_key(id));
        for id in self.absent.intersection(&absent) {
            kernel.forget(*id);
            let Some(known) = self.known.remove(id) else {
                continue;
            };
            // What is said of an inode would be taken for the next one's.
            if !found.keys().any(|other| other.inode == id.inode) {
                let mut last = known.said.unwrap_or_default();
                last.id = *id;
                last.flags |= netns_flag::GONE;
                say(&mut None, &last, ktime_ns, feed);
            }
        }
        self.absent = absent;
        Ok(())
    }

    /// The namespaces asked for that there are, `None` where the kernel's list cannot be walked.
    pub(super) fn inodes(&self, kernel: &impl BothCounts) -> io::Result<Option<BTreeSet<u32>>> {
        let mut inodes = BTreeSet::new();
        let whole = walk(kernel, |look| {
            if self.asked.matches_netns::<Plain>(look.id.inode) {
                inodes.insert(look.id.inode);
            }
        })?;
        Ok(whole.then_some(inodes))
    }

    fn flags(&self) -> u8 {
        let filtered = if self.asked.has_endpoint::<Plain>() {
            netns_flag::FILTERED
        } else {
            0
        };
        self.limits | filtered
    }

    /// Walks the kernel's list, and takes the baseline of what is new. The namespaces asked for by
    /// identity, and whether the walk saw the whole list.
    fn meet(&mut self, kernel: &impl BothCounts) -> io::Result<(BTreeMap<NetnsId, u64>, bool)> {
        let mut found = BTreeMap::new();
        if self.flags() & (netns_flag::FILTERED | netns_flag::UNREADABLE) != 0 {
            return Ok((found, false));
        }
        let whole = walk(kernel, |look| {
            if self.asked.matches_netns::<Plain>(look.id.inode) {
                found.insert(look.id, look.net);
            }
        })?;
        self.uncompared = 0;
        let born = self.complete;
        for (id, net) in &found {
            if self.known.contains_key(id) {
                continue;
            }
            if self.known.len() == MAX_NAMESPACES {
                self.uncompared += 1;
                continue;
            }
            let base = if born {
                Some(Reading::default())
            } else {
                baseline(kernel, *net, *id)?
            };
            if let Some(base) = base {
                let said = None;
                self.known.insert(*id, Known { base, born, said });
            }
        }
        self.complete = whole && self.uncompared == 0;
        Ok((found, whole))
    }
}

impl Known {
    fn compare(
        &self,
        kernel: &impl BothCounts,
        net: u64,
        id: NetnsId,
        rests: &mut usize,
    ) -> io::Result<Option<Netns>> {
        let mut record = None;
        for _ in 0..TRIES {
            // Gone in the meantime: what was said last stands, and not what does not agree.
            let Some(now) = read(kernel, net, id)? else {
                return Ok(None);
            };
            let since = now.since(&self.base);
            let is_news = self
                .said
                .is_none_or(|said| since.residues() != residues(&said));
            record = Some(Netns {
                kernel: since.kernel,
                before: since.before,
                after: since.after,
                id,
                flags: if self.born { netns_flag::BORN } else { 0 },
                ..Netns::default()
            });
            if since.agrees() {
                break;
            }
            // What was told before is no event of this moment.
            if is_news && *rests > 0 {
                *rests -= 1;
                kernel.rest();
            }
        }
        Ok(record)
    }
}

impl Reading {
    /// What was counted from `base` to now: between its last look and our first, at least.
    fn since(&self, base: &Self) -> Self {
        let less = |from: &KernelCounts, take: &KernelCounts| {
            let mut figures = *from;
            for (figure, take) in figures.iter_mut().zip(take) {
                *figure = figure.saturating_sub(*take);
            }
            figures
        };
        Self {
            before: less(&self.before, &base.after),
            kernel: less(&self.kernel, &base.kernel),
            after: less(&self.after, &base.before),
        }
    }

    fn agrees(&self) -> bool {
        self.residues().iter().all(|residue| *residue == 0)
    }

    fn residues(&self) -> [i64; kernel::COUNT] {
        std::array::from_fn(|at| residue(self.kernel[at], self.before[at], self.after[at]))
    }
}

fn residues(said: &Netns) -> [i64; kernel::COUNT] {
    std::array::from_fn(|at| residue(said.kernel[at], said.before[at], said.after[at]))
}

/// Ours, then the kernel's, then ours; `None` when the namespace is gone, or another one by now.
fn read(kernel: &impl BothCounts, net: u64, id: NetnsId) -> io::Result<Option<Reading>> {
    let before = expected(&kernel.counts(id)?);
    let look = kernel.look(net)?;
    let after = expected(&kernel.counts(id)?);
    Ok((look.id == id && look.is_listed()).then(|| Reading {
        before,
        kernel: comparable(&look.kernel),
        after,
    }))
}

/// A reading in which nothing moved, where one can be had.
fn baseline(kernel: &impl BothCounts, net: u64, id: NetnsId) -> io::Result<Option<Reading>> {
    let mut last = None;
    for _ in 0..TRIES {
        last = read(kernel, net, id)?;
        if last.is_none_or(|reading| reading.before == reading.after) {
            break;
        }
    }
    Ok(last)
}

/// Shows every namespace in the kernel's list; whether it came around to where it began.
fn walk(kernel: &impl BothCounts, mut see: impl FnMut(&Look)) -> io::Result<bool> {
    let own = kernel.look(0)?;
    let mut at = own;
    for _ in 0..MAX_STEPS {
        // The list's head lies in no namespace.
        if at.ops == own.ops && at.id.inode != 0 {
            see(&at);
        }
        if at.next == own.net {
            return Ok(true);
        }
        if at.next == at.net || at.next == 0 {
            return Ok(false);
        }
        at = kernel.look(at.next)?;
    }
    Ok(false)
}

/// Feeds a record that says something new.
fn say(said: &mut Option<Netns>, record: &Netns, ktime_ns: u64, feed: &mut dyn FnMut(&[u8])) {
    if said.as_ref() == Some(record) {
        return;
    }
    *said = Some(*record);
    let record = Netns {
        header: header::<Netns>(kind::NETNS, ktime_ns),
        ..*record
    };
    feed(record.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::HashMap};

    use conntracer_common::{netns::count, record::syn_outcome};
    use proptest::prelude::*;
    use zerocopy::FromBytes;

    use super::*;

    const OPS: u64 = 7;
    /// Where the list's head seems to be a namespace.
    const HEAD: u64 = 0x9000;

    /// Namespaces at the addresses of their inodes, in a list whose head comes last.
    #[derive(Default)]
    struct Fake {
        lists: Vec<u32>,
        kernel: HashMap<u32, u64>,
        counts: HashMap<u32, u64>,
        forgotten: Vec<u32>,
        /// Namespaces that leave the list when they have been met.
        taken_down: Vec<u32>,
        /// What tells the namespaces from earlier ones of the same inodes.
        mix: u32,
        /// The next walk comes around after the first namespace.
        cut_short: Cell<bool>,
        /// Events that the kernel counted and the eBPF side has yet to; told at a look.
        in_flight: Cell<u64>,
        /// What is in flight stays there until somebody rests.
        stopped: Cell<bool>,
        rests: Cell<usize>,
    }

    impl Fake {
        fn of(lists: &[u32]) -> Self {
            Self {
                lists: lists.to_vec(),
                ..Self::default()
            }
        }

        /// A SYN dropped because the accept queue was full, as both sides count it.
        fn overflow(&mut self, inode: u32, seen: bool) {
            *self.kernel.entry(inode).or_default() += 1;
            *self.counts.entry(inode).or_default() += u64::from(seen);
        }
    }

    impl BothCounts for Fake {
        fn look(&self, net: u64) -> io::Result<Look> {
            let cut_short = net == 0 && self.cut_short.take();
            let net = if net == 0 { self.lists[0].into() } else { net };
            let at = self.lists.iter().position(|inode| u64::from(*inode) == net);
            let after = at.map_or(0, |at| at + 1);
            let following = self.lists.get(after).filter(|_| !cut_short);
            let mut look = Look {
                net,
                next: following.map_or(HEAD, |inode| (*inode).into()),
                ..Look::default()
            };
            if let Some(at) = at {
                let inode = self.lists[at];
                look.ops = OPS;
                look.id = NetnsId {
                    mix: id(inode).mix ^ self.mix,
                    ..id(inode)
                };
                look.previous = if self.taken_down.contains(&inode) {
                    0xdead_0000_0000_0122
                } else {
                    HEAD
                };
                let counted = self.kernel.get(&inode).copied().unwrap_or_default();
                look.kernel[kernel::LISTEN_OVERFLOWS] = counted;
                look.kernel[kernel::LISTEN_DROPS] = counted;
            }
            Ok(look)
        }

        fn counts(&self, id: NetnsId) -> io::Result<Counts> {
            let mut counts = [0; count::COUNT];
            let counted = self.counts.get(&id.inode).copied().unwrap_or_default();
            let late = self.in_flight.get();
            if !self.stopped.get() {
                self.in_flight.set(late.saturating_sub(1));
            }
            counts[syn_outcome::ACCEPT_QUEUE_FULL] = counted - counted.min(late);
            Ok(counts)
        }

        fn counted(&self) -> io::Result<BTreeSet<NetnsId>> {
            let untracked = NetnsId::default();
            Ok(self
                .counts
                .keys()
                .map(|inode| id(*inode))
                .chain([untracked])
                .collect())
        }

        fn forget(&mut self, id: NetnsId) {
            self.counts.remove(&id.inode);
            self.forgotten.push(id.inode);
        }

        fn rest(&self) {
            self.rests.set(self.rests.get() + 1);
            if self.stopped.take() {
                self.in_flight.set(0);
            }
        }
    }

    fn id(inode: u32) -> NetnsId {
        NetnsId { inode, mix: !inode }
    }

    fn compared(namespaces: &mut Namespaces, fake: &mut Fake) -> Vec<Netns> {
        let mut records = Vec::new();
        namespaces
            .compare(fake, 1, &mut |record| {
                records.push(Netns::read_from_bytes(record).unwrap());
            })
            .unwrap();
        records
    }

    fn sum(record: &Netns) -> i64 {
        let at = kernel::LISTEN_DROPS;
        residue(record.kernel[at], record.before[at], record.after[at])
    }

    #[test]
    fn what_was_before_the_baseline_is_not_compared() {
        let mut fake = Fake::of(&[1, 2]);
        for seen in [false, true, false] {
            fake.overflow(2, seen);
        }
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.overflow(2, true);
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(records.len(), 2, "{records:?}");
        assert_eq!(records[1].kernel[kernel::LISTEN_DROPS], 1);
        assert_eq!(sum(&records[1]), 0);
        assert_eq!(records[1].flags, 0);
        assert!(compared(&mut namespaces, &mut fake).is_empty(), "no news");
    }

    #[test]
    fn what_only_the_kernel_counted_is_the_residue() {
        let mut fake = Fake::of(&[1]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        for seen in [true, false, false] {
            fake.overflow(1, seen);
        }
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(sum(&records[0]), 2);
    }

    #[test]
    fn an_event_that_the_kernel_half_is_about_to_count_is_no_residue() {
        let mut fake = Fake::of(&[1]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.overflow(1, true);
        fake.in_flight.set(3);
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(sum(&records[0]), 0);
    }

    #[test]
    fn a_cpu_that_is_stopped_within_an_event_goes_on_when_this_one_rests() {
        let mut fake = Fake::of(&[1]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.overflow(1, true);
        fake.in_flight.set(1);
        fake.stopped.set(true);
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(sum(&records[0]), 0);
        assert_eq!(fake.rests.get(), 1);
    }

    #[test]
    fn what_never_agrees_is_not_waited_for_again() {
        let lists: Vec<u32> = (1..=10).collect();
        let mut fake = Fake::of(&lists);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        for inode in &lists {
            fake.overflow(*inode, false);
        }
        compared(&mut namespaces, &mut fake);
        assert_eq!(fake.rests.get(), RESTS, "for all of them together");
        compared(&mut namespaces, &mut fake);
        assert_eq!(fake.rests.get(), RESTS);
    }

    #[test]
    fn a_namespace_born_since_counts_from_zero_and_one_that_is_gone_is_forgotten() {
        let mut fake = Fake::of(&[1, 2]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.lists = vec![1, 3];
        fake.overflow(3, true);
        let records = compared(&mut namespaces, &mut fake);
        let born = records.iter().find(|record| record.id == id(3)).unwrap();
        assert_eq!(born.flags, netns_flag::BORN);
        assert_eq!(born.kernel[kernel::LISTEN_DROPS], 1);
        assert_eq!(sum(born), 0);
        let gone = compared(&mut namespaces, &mut fake);
        assert_eq!(fake.forgotten, [2]);
        let gone: Vec<_> = gone
            .iter()
            .map(|record| (record.id, record.flags))
            .collect();
        assert_eq!(gone, [(id(2), netns_flag::GONE)]);
    }

    #[test]
    fn a_namespace_whose_inode_is_another_s_by_now_is_not_said_to_be_gone() {
        let mut fake = Fake::of(&[1, 2]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.mix = 7;
        compared(&mut namespaces, &mut fake);
        assert!(compared(&mut namespaces, &mut fake).is_empty());
        assert_eq!(fake.forgotten, [1, 2]);
    }

    #[test]
    fn a_walk_that_comes_around_too_soon_forgets_nothing() {
        let mut fake = Fake::of(&[1, 2]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        fake.overflow(2, false);
        fake.cut_short.set(true);
        namespaces.begin(&fake).unwrap();
        fake.overflow(2, true);
        fake.cut_short.set(true);
        compared(&mut namespaces, &mut fake);
        fake.overflow(2, true);
        let records = compared(&mut namespaces, &mut fake);
        let record = records.iter().find(|record| record.id == id(2)).unwrap();
        assert_eq!(record.kernel[kernel::LISTEN_DROPS], 2);
        assert_eq!(sum(record), 0);
        assert_eq!(record.flags, 0);
        assert!(fake.forgotten.is_empty());
    }

    #[test]
    fn what_was_counted_in_namespaces_that_no_walk_met_is_forgotten() {
        let mut fake = Fake::of(&[1]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.overflow(8, true);
        fake.overflow(9, true);
        compared(&mut namespaces, &mut fake);
        assert!(fake.forgotten.is_empty());
        // It was born during the walk before.
        fake.lists = vec![1, 9];
        compared(&mut namespaces, &mut fake);
        assert_eq!(fake.forgotten, [8]);
        compared(&mut namespaces, &mut fake);
        assert_eq!(fake.forgotten, [8]);
    }

    #[test]
    fn the_counters_of_a_namespace_that_is_taken_down_are_not_believed() {
        let mut fake = Fake::of(&[1, 2]);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        fake.overflow(2, true);
        let said = compared(&mut namespaces, &mut fake);
        assert_eq!(sum(&said[1]), 0);
        fake.taken_down = vec![2];
        fake.kernel.insert(2, 0xffff_8880_1234_5678);
        assert!(compared(&mut namespaces, &mut fake).is_empty());
    }

    #[test]
    fn only_what_is_asked_for_is_compared() {
        let mut fake = Fake::of(&[1, 2]);
        let mut asked = Filter::NONE;
        asked.netns[0] = 2;
        asked.used.netns = 1;
        let mut namespaces = Namespaces::new(&asked, 0);
        namespaces.begin(&fake).unwrap();
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(
            records.iter().map(|record| record.id).collect::<Vec<_>>(),
            [id(2)]
        );
    }

    #[test]
    fn under_a_filter_by_port_only_that_is_said() {
        let mut fake = Fake::of(&[1]);
        let mut asked = Filter::NONE;
        asked.ports[0] = 80;
        asked.used.ports = 1;
        let mut namespaces = Namespaces::new(&asked, 0);
        namespaces.begin(&fake).unwrap();
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].id, NetnsId::default());
        assert_eq!(records[0].flags, netns_flag::FILTERED);
    }

    #[test]
    fn more_namespaces_than_there_is_room_for_are_counted() {
        let inodes: Vec<u32> = (1..=u32::try_from(MAX_NAMESPACES).unwrap() + 3).collect();
        let mut fake = Fake::of(&inodes);
        let mut namespaces = Namespaces::new(&Filter::NONE, 0);
        namespaces.begin(&fake).unwrap();
        let records = compared(&mut namespaces, &mut fake);
        assert_eq!(records.last().unwrap().uncompared, 3);
    }

    proptest! {
        /// Whatever is counted between the readings of a baseline and of a comparison, a eBPF side that
        /// misses nothing has no residue, and one that misses more than what moved has one.
        #[test]
        fn the_residue_is_zero_exactly_when_the_readings_allow_it(
            base in 0..1_000_u64,
            base_moves in 0..5_u64,
            counted in 0..1_000_u64,
            moves in 0..5_u64,
            missed in 0..20_u64,
            at in 0..5_u64,
            base_at in 0..5_u64,
        ) {
            let (at, base_at) = (at.min(moves), base_at.min(base_moves));
            let of = |count: u64| [count; kernel::COUNT];
            let first = Reading {
                before: of(base),
                kernel: of(base + base_at),
                after: of(base + base_moves),
            };
            let second = Reading {
                before: of(base + base_moves + counted),
                kernel: of(base + base_moves + counted + at + missed),
                after: of(base + base_moves + counted + moves),
            };
            let since = second.since(&first);
            if missed == 0 {
                prop_assert!(since.agrees(), "{since:?}");
            } else if missed > moves + base_moves {
                prop_assert!(!since.agrees(), "{since:?}");
            }
        }
    }
}
