//! Network namespaces and the kernel's own counters in them, held against what the kernel half counted.
//!
//! Namespaces are found in the kernel's list, through the `netns_look` program, and their counters read
//! from the kernel's memory: the figures of /proc/net/snmp and /proc/net/netstat, without a process to
//! look through or a capability to enter. What is not known here: what a residue means.

use std::{collections::BTreeMap, io, thread};

use aya::maps::{Array, HashMap, MapData};
use conntracer_common::{
    filter::{Filter, named},
    netns::{Compared, Counts, Look, NetnsId, comparable, count, expected, kernel, residue},
    record::{Header, Netns, kind, netns_flag},
};
use zerocopy::{IntoBytes, transmute};

/// Namespaces compared at once: what the kernel half's map holds, and far more than one host's
/// containers. 550 kB.
const MAX_NAMESPACES: usize = 1024;
/// Steps of one walk through the kernel's list: it cannot be locked from here, and one that changes
/// underfoot may lead in circles.
const MAX_STEPS: usize = 4 * MAX_NAMESPACES;
/// Looks at one namespace before a residue is believed: an event is counted by the kernel a little before
/// or after the kernel half counts it.
const TRIES: usize = 8;

/// `Look` and `Counts` as aya sees them: they are not ours to mark as plain data there.
type LookWords = [u64; size_of::<Look>() / size_of::<u64>()];
pub(super) type LookMap = Array<MapData, LookWords>;
pub(super) type CountsMap = HashMap<MapData, u64, [u64; count::COUNT]>;

/// What there is to look at: the running kernel, or a test's idea of one.
pub(super) trait Kernel {
    /// The namespace at an address, 0 for this process's own.
    fn look(&self, net: u64) -> io::Result<Look>;
    /// What the kernel half counted in a namespace so far.
    fn counts(&self, id: NetnsId) -> io::Result<Counts>;
    /// A namespace is gone, and its counts may go.
    fn forget(&mut self, id: NetnsId);
}

/// The running kernel; `run` runs the `netns_look` program with its arguments.
pub(super) struct Running<'a, R> {
    pub(super) run: R,
    pub(super) look: &'a LookMap,
    pub(super) counts: &'a mut CountsMap,
    /// Runs for one namespace: each reads some of the CPUs.
    pub(super) runs: u32,
}

impl<R: Fn(u64, u32) -> io::Result<()>> Kernel for Running<'_, R> {
    fn look(&self, net: u64) -> io::Result<Look> {
        for run in 0..self.runs {
            (self.run)(net, run * conntracer_common::netns::CPUS_AT_ONCE)?;
        }
        let words = self.look.get(&0, 0).map_err(io::Error::other)?;
        Ok(transmute!(words))
    }

    fn counts(&self, id: NetnsId) -> io::Result<Counts> {
        match self.counts.get(&transmute!(id), 0) {
            Ok(counts) => Ok(counts),
            // Nothing went wrong there yet.
            Err(aya::maps::MapError::KeyNotFound) => Ok([0; count::COUNT]),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn forget(&mut self, id: NetnsId) {
        // Absent where nothing went wrong.
        let _absent = self.counts.remove(&transmute!(id));
    }
}

/// The namespaces that are compared.
#[derive(Debug)]
pub(super) struct Namespaces {
    asked: Filter,
    /// The kernel's counters cannot be read.
    unreadable: bool,
    known: BTreeMap<NetnsId, Known>,
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
    before: Compared,
    kernel: Compared,
    after: Compared,
}

impl Namespaces {
    pub(super) fn new(asked: Filter, unreadable: bool) -> Self {
        Self {
            asked,
            unreadable,
            known: BTreeMap::new(),
            complete: false,
            uncompared: 0,
            said: None,
        }
    }

    /// Makes this moment the one that everything is counted from. After the hooks are attached, so that
    /// nothing is counted by the kernel alone from here on; and again when what can be read changes.
    pub(super) fn begin(&mut self, kernel: &impl Kernel) -> io::Result<()> {
        self.known.clear();
        self.complete = false;
        self.uncompared = 0;
        self.meet(kernel).map(drop)
    }

    /// Reads every namespace and makes records of those that changed.
    pub(super) fn compare(
        &mut self,
        kernel: &mut impl Kernel,
        ktime_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let (found, whole) = self.meet(kernel)?;
        if whole {
            self.known.retain(|id, _| {
                let lives = found.contains_key(id);
                if !lives {
                    kernel.forget(*id);
                }
                lives
            });
        }
        for (id, known) in &mut self.known {
            let Some(net) = found.get(id) else {
                continue;
            };
            let Some(record) = known.compare(kernel, *net, *id)? else {
                continue;
            };
            say(&mut known.said, &record, ktime_ns, feed);
        }
        let homeless: u64 = kernel.counts(NetnsId::default())?.iter().sum();
        let of_all = Netns {
            uncompared: self.uncompared,
            homeless: u32::try_from(homeless).unwrap_or(u32::MAX),
            flags: self.flags(),
            ..Netns::default()
        };
        if self.said.is_some() || of_all != Netns::default() {
            say(&mut self.said, &of_all, ktime_ns, feed);
        }
        Ok(())
    }

    fn flags(&self) -> u8 {
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        flag(self.asked.has_endpoint(), netns_flag::FILTERED)
            | flag(self.unreadable, netns_flag::UNREADABLE)
    }

    /// Walks the kernel's list, and takes the baseline of what is new. The namespaces asked for by
    /// identity, and whether the walk saw the whole list.
    fn meet(&mut self, kernel: &impl Kernel) -> io::Result<(BTreeMap<NetnsId, u64>, bool)> {
        let mut found = BTreeMap::new();
        if self.flags() != 0 {
            return Ok((found, true));
        }
        let whole = walk(kernel, |look| {
            if named(&self.asked.netns, look.id.inode) {
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
    fn compare(&self, kernel: &impl Kernel, net: u64, id: NetnsId) -> io::Result<Option<Netns>> {
        let mut record = None;
        for _ in 0..TRIES {
            // Gone in the meantime: what was said last stands.
            let Some(now) = read(kernel, net, id)? else {
                break;
            };
            let since = now.since(&self.base);
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
            thread::yield_now();
        }
        Ok(record)
    }
}

impl Reading {
    /// What was counted from `base` to now: between its last look and our first, at least.
    fn since(&self, base: &Self) -> Self {
        let less = |from: &Compared, take: &Compared| {
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
        (0..kernel::COMPARED)
            .all(|at| residue(self.kernel[at], self.before[at], self.after[at]) == 0)
    }
}

/// Ours, then the kernel's, then ours; `None` when the namespace is another one by now.
fn read(kernel: &impl Kernel, net: u64, id: NetnsId) -> io::Result<Option<Reading>> {
    let before = expected(&kernel.counts(id)?);
    let look = kernel.look(net)?;
    let after = expected(&kernel.counts(id)?);
    Ok((look.id == id).then(|| Reading {
        before,
        kernel: comparable(&look.kernel),
        after,
    }))
}

/// A reading in which nothing moved, where one can be had.
fn baseline(kernel: &impl Kernel, net: u64, id: NetnsId) -> io::Result<Option<Reading>> {
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
fn walk(kernel: &impl Kernel, mut see: impl FnMut(&Look)) -> io::Result<bool> {
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
        header: Header {
            ktime_ns,
            kind: kind::NETNS,
            size: u16::try_from(size_of::<Netns>()).unwrap_or(u16::MAX),
            cpu: u32::MAX,
        },
        ..*record
    };
    feed(record.as_bytes());
}
