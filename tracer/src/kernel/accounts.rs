//! What became of each hook's events: as the eBPF side counted them, and what it cannot know.

use std::io;

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use conntracer_common::stats::{HOOKS, HookCounters, hook};
use zerocopy::transmute;

use super::{error::CannotTrace, maps, missed::Missed};

pub(super) struct Accounts {
    /// `HookCounters` as aya sees them: they are not ours to mark as plain data there.
    counters: PerCpuArray<MapData, [u64; 5]>,
    missed: Missed,
    /// Answers of programs run on demand that found no room.
    pub(super) answers_lost: u64,
    /// Per hook, what the eBPF side had lost when [`Self::begin`] was called.
    lost_before: [u64; HOOKS.len()],
}

impl Accounts {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            counters: maps::take(ebpf, "COUNTERS")?,
            missed: Missed::new(ebpf),
            answers_lost: 0,
            lost_before: [0; HOOKS.len()],
        })
    }

    /// From now on all is attached, and what was there is known. What no program could tell until now, such as a SYN to a
    /// listener that nobody had listed yet, was before the start, and not lost by what runs.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        for (hook, before) in (0..).zip(&mut self.lost_before) {
            let per_cpu = self.counters.get(&hook, 0).map_err(io::Error::other)?;
            *before = sum(per_cpu.iter()).lost;
        }
        Ok(())
    }

    /// One hook's counters, summed over CPUs.
    pub(super) fn counted(&self, hook: u32) -> io::Result<HookCounters> {
        let per_cpu = self.counters.get(&hook, 0).map_err(io::Error::other)?;
        let before = self.lost_before.get(hook as usize).copied();
        Ok(since(sum(per_cpu.iter()), before.unwrap_or_default()))
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

fn sum<'a>(per_cpu: impl Iterator<Item = &'a [u64; 5]>) -> HookCounters {
    let mut sum = HookCounters::default();
    for cpu in per_cpu {
        sum.add(&transmute!(*cpu));
    }
    sum
}

/// Without so many that were lost before: they count as never seen.
const fn since(mut counters: HookCounters, lost_before: u64) -> HookCounters {
    counters.seen = counters.seen.saturating_sub(lost_before);
    counters.lost = counters.lost.saturating_sub(lost_before);
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_before_the_start_is_neither_seen_nor_lost() {
        let counters = HookCounters {
            seen: 100,
            emitted: 60,
            aggregated: 10,
            filtered: 5,
            lost: 25,
        };
        let later = since(counters, 21);
        assert_eq!((later.seen, later.lost), (79, 4));
        let told = later.emitted + later.aggregated + later.filtered + later.lost;
        assert_eq!(later.seen, told, "each is accounted for");
    }
}
