//! Where programs make records that have no room on the stack beside what is asked about them.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use conntracer_common::record::{Close, Drop, Retransmit};

use crate::{
    account::Outcome,
    table::{Plain, Table, read_once, write_once},
};

/// How often a program can be under way on a CPU: a task, the softirq that interrupts it, and an interrupt. From 6.1 on
/// the kernel enters none that is (`bpf_trace_run`), before it does.
const RUNS: u32 = 3;

/// How many runs are, by the index of their scratch.
#[map]
static UNDER_WAY: Table<PerCpuArray<u32>> = Table::per_cpu(3);

#[map]
static DROPS: Table<PerCpuArray<Drop>> = Table::per_cpu(RUNS);
#[map]
static CLOSES: Table<PerCpuArray<Close>> = Table::per_cpu(RUNS);
#[map]
static RETRANSMIT_EVENTS: Table<PerCpuArray<Retransmit>> = Table::per_cpu(RUNS);

/// Room for a record, a run of one program each.
pub(crate) struct Scratch<T: 'static> {
    records: &'static Table<PerCpuArray<T>>,
    index: u32,
}

pub(crate) const DROP: Scratch<Drop> = Scratch {
    records: &DROPS,
    index: 0,
};
pub(crate) const CLOSE: Scratch<Close> = Scratch {
    records: &CLOSES,
    index: 1,
};
pub(crate) const RETRANSMIT: Scratch<Retransmit> = Scratch {
    records: &RETRANSMIT_EVENTS,
    index: 2,
};

impl<T: Plain> Scratch<T> {
    /// Makes a record there, which holds what the one before left; `Lost` where there is no room for one more.
    #[inline(always)]
    pub(crate) fn make(&self, make: impl FnOnce(&mut T) -> Outcome) -> Outcome {
        // What interrupts this program leaves the number as it was. Stored before the record is begun, and not
        // after it is done.
        let Some(runs) = UNDER_WAY.edit(self.index) else {
            return Outcome::Lost;
        };
        let at = read_once(runs);
        write_once(runs, at + 1);
        let outcome = match self.records.edit(at) {
            Some(record) => make(record),
            None => Outcome::Lost,
        };
        // Looked up again: a pointer kept meanwhile would take stack.
        if let Some(runs) = UNDER_WAY.edit(self.index) {
            let at = read_once(runs);
            write_once(runs, at - 1);
        }
        outcome
    }
}
