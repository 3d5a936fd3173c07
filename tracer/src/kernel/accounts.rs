//! What became of each hook's events: as the eBPF side counted them, and what it cannot know.

use std::io;

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use conntracer_common::stats::{HookCounters, hook};
use zerocopy::transmute;

use super::{error::CannotTrace, maps, missed::Missed};

pub(super) struct Accounts {
    /// `HookCounters` as aya sees them: they are not ours to mark as plain data there.
    counters: PerCpuArray<MapData, [u64; 5]>,
    missed: Missed,
    /// Answers of programs run on demand that found no room.
    pub(super) answers_lost: u64,
}

impl Accounts {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            counters: maps::take(ebpf, "COUNTERS")?,
            missed: Missed::new(ebpf),
            answers_lost: 0,
        })
    }

    /// One hook's counters, summed over CPUs.
    pub(super) fn counted(&self, hook: u32) -> io::Result<HookCounters> {
        let per_cpu = self.counters.get(&hook, 0).map_err(io::Error::other)?;
        let mut sum = HookCounters::default();
        for cpu in per_cpu.iter() {
            sum.add(&transmute!(*cpu));
        }
        Ok(sum)
    }

    /// Events of a hook that no program saw.
    pub(super) fn missed(&self, hook: u32) -> u64 {
        self.missed.of(hook)
    }

    /// The same, with the events that passed while its program could not run, and the answers that found no
    /// room.
    pub(super) fn of(&self, hook: u32) -> io::Result<HookCounters> {
        let mut counters = self.counted(hook)?;
        // What a poll asks for is the state of a socket, told or lost as its changes are.
        let unanswered = if hook == hook::STATE {
            self.answers_lost
        } else {
            0
        };
        let unseen = self.missed.of(hook).saturating_add(unanswered);
        counters.seen = counters.seen.saturating_add(unseen);
        counters.lost = counters.lost.saturating_add(unseen);
        Ok(counters)
    }
}
