//! SYNs dropped before a listener saw them, counted by where they were to go and why.

use std::io;

use aya::Ebpf;
use conntracer_common::{
    record::{EarlyDrop, Header},
    socket::{EARLY_DROP_KEY_BYTES, EarlyDropEntry},
    stats::hook,
};

use super::{
    Poll,
    cumulative::{Cumulative, Entry, Tally},
};
use crate::kernel::error::CannotTrace;

/// More than the 63 s that a client retransmits its SYN for (`tcp_syn_retries` 6 waits 1 + 2 + … + 32 s).
const IDLE_NS: u64 = 120_000_000_000;

pub(crate) struct EarlyDrops {
    entries: Cumulative<EARLY_DROP_KEY_BYTES>,
    /// Events of the hook at the last walk.
    events: u64,
}

impl EarlyDrops {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        let maps = ["EARLY_DROPS", "EARLY_DROPS_OVERFLOW"];
        Ok(Self {
            entries: Cumulative::new::<EarlyDropEntry>(ebpf, &maps, IDLE_NS)?,
            events: 0,
        })
    }

    /// An `EarlyDrop` of each entry that counted any since the last poll.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let events = poll.accounts.counted(hook::DROP)?.seen;
        if events == self.events {
            return Ok(());
        }
        self.events = events;
        self.entries.tell::<EarlyDropEntry>(poll)
    }
}

impl Entry for EarlyDropEntry {
    type Record = EarlyDrop;

    fn parts(&mut self) -> (&mut EarlyDrop, Tally) {
        let EarlyDrop {
            first_ns,
            last_ns,
            count,
            ..
        } = self.early_drop;
        let tally = Tally {
            first_ns,
            last_ns,
            count,
        };
        (&mut self.early_drop, tally)
    }

    fn header(record: &mut EarlyDrop) -> &mut Header {
        &mut record.header
    }
}
