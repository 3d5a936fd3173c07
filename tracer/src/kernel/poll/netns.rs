//! The running kernel's namespaces and counters, for `kernel::netns` to compare.

use std::{collections::BTreeSet, io, thread};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
    util::online_cpus,
};
use conntracer_common::{
    filter::Filter,
    netns::{CPUS_AT_ONCE, Counts, Look, NetnsId, count},
};
use zerocopy::transmute;

use super::Feed;
use crate::kernel::{
    clock::ktime_ns,
    error::CannotTrace,
    maps,
    netns::{BothCounts, Namespaces, REST},
    on_demand, percpu,
};

/// `Look` and `Counts` as aya sees them: they are not ours to mark as plain data there.
type LookMap = Array<MapData, [u64; size_of::<Look>() / size_of::<u64>()]>;
type CountsMap = HashMap<MapData, u64, [u64; count::COUNT]>;

pub(crate) struct NetnsCounters {
    namespaces: Namespaces,
    counts: CountsMap,
    look: LookMap,
    /// CPUs whose counters can be read; none where one that is compared cannot.
    cpus: Vec<u32>,
}

impl NetnsCounters {
    /// Counts from here on. `limits` are the bits of `netns_flag` that hold for this kernel.
    pub(crate) fn new(
        ebpf: &mut Ebpf,
        filter: &Filter,
        limits: u8,
        cpus: Vec<u32>,
    ) -> Result<Self, CannotTrace> {
        let mut of_kernel = Self {
            namespaces: Namespaces::new(filter, limits),
            counts: maps::take(ebpf, "NETNS")?,
            look: maps::take(ebpf, "NETNS_LOOK")?,
            cpus,
        };
        of_kernel
            .begin(ebpf)
            .map_err(|source| CannotTrace::Kernel {
                what: "reading the kernel's counters",
                source,
            })?;
        Ok(of_kernel)
    }

    fn begin(&mut self, ebpf: &Ebpf) -> io::Result<()> {
        // Where the eBPF side counts for namespaces that found no room of their own.
        let of_all: u64 = transmute!(NetnsId::default());
        self.counts
            .insert(of_all, [0; count::COUNT], 0)
            .map_err(io::Error::other)?;
        let (running, namespaces) = self.running(ebpf);
        namespaces.begin(&running)
    }

    /// The namespaces asked for that there are, `None` where the kernel's list cannot be walked.
    pub(crate) fn inodes(&mut self, ebpf: &Ebpf) -> io::Result<Option<BTreeSet<u32>>> {
        let (running, namespaces) = self.running(ebpf);
        namespaces.inodes(&running)
    }

    /// A `Netns` of each namespace where either side's counters changed.
    pub(crate) fn poll(&mut self, ebpf: &mut Ebpf, feed: Feed<'_>) -> io::Result<()> {
        self.meet_new_cpus(ebpf)?;
        let (mut running, namespaces) = self.running(ebpf);
        namespaces.compare(&mut running, ktime_ns(), feed)
    }

    /// A CPU that came online since has counters that were not read: everything is counted anew.
    fn meet_new_cpus(&mut self, ebpf: &mut Ebpf) -> io::Result<()> {
        if self.cpus.is_empty() {
            return Ok(());
        }
        let online =
            online_cpus().map_err(|(what, error)| io::Error::other(format!("{what}: {error}")))?;
        if online.iter().all(|cpu| self.cpus.contains(cpu)) {
            return Ok(());
        }
        percpu::learn(ebpf).map_err(io::Error::other)?;
        self.cpus = online;
        let (running, namespaces) = self.running(ebpf);
        namespaces.begin(&running)
    }

    fn running<'a>(&'a mut self, ebpf: &'a Ebpf) -> (RunningKernel<'a>, &'a mut Namespaces) {
        let highest = self.cpus.iter().copied().max().unwrap_or(0);
        let running = RunningKernel {
            ebpf,
            look: &self.look,
            counts: &mut self.counts,
            runs: highest / CPUS_AT_ONCE + 1,
        };
        (running, &mut self.namespaces)
    }
}

struct RunningKernel<'a> {
    ebpf: &'a Ebpf,
    look: &'a LookMap,
    counts: &'a mut CountsMap,
    /// Runs for one namespace: each reads some of the CPUs.
    runs: u32,
}

impl BothCounts for RunningKernel<'_> {
    fn look(&self, net: u64) -> io::Result<Look> {
        for run in 0..self.runs {
            let first = u64::from(run * CPUS_AT_ONCE);
            on_demand::run(self.ebpf, "netns_look", [net, first, 0])?;
        }
        let words = self.look.get(&0, 0).map_err(io::Error::other)?;
        Ok(transmute!(words))
    }

    fn counts(&self, id: NetnsId) -> io::Result<Counts> {
        match self.counts.get(&transmute!(id), 0) {
            Ok(counts) => Ok(counts),
            // Nothing went wrong there yet.
            Err(MapError::KeyNotFound) => Ok([0; count::COUNT]),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn counted(&self) -> io::Result<BTreeSet<NetnsId>> {
        self.counts
            .keys()
            .map(|key| key.map(|key| transmute!(key)))
            .collect::<Result<_, _>>()
            .map_err(io::Error::other)
    }

    fn forget(&mut self, id: NetnsId) {
        // Absent where nothing went wrong.
        let _absent = self.counts.remove(&transmute!(id));
    }

    fn rest(&self) {
        thread::sleep(REST);
    }
}
