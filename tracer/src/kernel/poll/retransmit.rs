//! What connections retransmitted, and what the kernel took back of that, since the last record of each.

use std::io;

use aya::Ebpf;
use conntracer_common::{
    record::{Retransmits, Undo, kind},
    socket::{RETRANSMITTED_KEY_BYTES, Retransmitted},
    stats::hook,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Poll,
    cumulative::{Cumulative, Tally},
};
use crate::kernel::{error::CannotTrace, header::header};

/// More than the longest time between two timeouts (`TCP_RTO_MAX`, 120 s).
const IDLE_NS: u64 = 130_000_000_000;
/// Time between two walks that only tidy up.
const TIDY_NS: u64 = 15_000_000_000;

pub(crate) struct RetransmitTotals {
    entries: Cumulative<RETRANSMITTED_KEY_BYTES>,
    /// Events of the hooks at the last walk, and those of them that no record told; and when that was.
    walked: (u64, u64),
    walked_ns: u64,
}

impl RetransmitTotals {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Ok(Self {
            entries: Cumulative::new::<Retransmitted>(ebpf, &["RETRANSMITS"], IDLE_NS)?,
            walked: (0, 0),
            walked_ns: 0,
        })
    }

    /// A `Retransmits` and an `Undo` of each entry, where no record told of its last. Walked when there is
    /// something to tell, and now and then to tidy up.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let now_ns = poll.now_ns;
        let mut events = poll.accounts.counted(hook::RETRANSMIT)?;
        events.add(&poll.accounts.counted(hook::UNDO)?);
        let walked = (events.seen, events.aggregated);
        let has_entries = walked != self.walked || !self.entries.is_empty();
        let tidies = now_ns.saturating_sub(self.walked_ns) >= TIDY_NS;
        if walked.1 == self.walked.1 && !(tidies && has_entries) {
            return Ok(());
        }
        self.walked = walked;
        self.walked_ns = now_ns;
        self.entries.walk(now_ns, |value, is_news| {
            let entry = Retransmitted::read_from_bytes(value).ok()?;
            if entry.started != entry.finished {
                return None;
            }
            let Retransmits {
                last,
                mut totals,
                egress,
            } = entry.retransmits;
            let undone = &entry.undone;
            let tally = Tally {
                first_ns: totals.first_ns,
                last_ns: last.header.ktime_ns.max(undone.last_ns),
                count: totals.events.saturating_add(undone.totals.undos()),
            };
            if !is_news(&tally) {
                return Some(tally);
            }
            if totals.events > entry.emitted {
                totals.polled = 1;
                let retransmits = Retransmits {
                    last,
                    totals,
                    egress,
                };
                (poll.feed)(retransmits.as_bytes());
            }
            if undone.totals.undos() > undone.emitted {
                (poll.feed)(undo(&entry).as_bytes());
            }
            Some(tally)
        })
    }
}

/// What was taken back, as the eBPF side would tell it.
fn undo(entry: &Retransmitted) -> Undo {
    let (last, undone) = (&entry.retransmits.last, &entry.undone);
    Undo {
        header: header::<Undo>(kind::UNDO, undone.last_ns),
        socket: last.socket,
        owner: last.owner,
        first_ns: entry.retransmits.totals.first_ns,
        totals: undone.totals,
        dsack_dups: undone.dsack_dups,
        pad: 0,
    }
}
