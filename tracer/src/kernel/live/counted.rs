//! Cumulative records: what the eBPF side counts by connection, process or place, told when it changed.

use std::{collections::HashMap, io, os::fd::AsFd};

use aya::maps::MapData;
use conntracer_common::{
    record::{EarlyDrop, Failure, Retransmits, Undo, kind},
    socket::{
        EARLY_DROP_KEY_BYTES, EarlyDropEntry, FAILED_KEY_BYTES, Failed, RETRANSMITTED_KEY_BYTES,
        Retransmitted,
    },
    stats::hook,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{Kernel, SWEEP_NS, header, maps};

/// A dropped SYN's entry is removed when it counted nothing for so long: more than the 63 s that a client
/// repeats its SYN for (`tcp_syn_retries` 6 waits 1 + 2 + … + 32 s).
const EARLY_DROP_IDLE_NS: u64 = 120_000_000_000;

pub(super) type EarlyDropKey = [u8; EARLY_DROP_KEY_BYTES];

/// The same for a connection that sends again: more than the longest time between two timeouts
/// (`TCP_RTO_MAX`, 120 s).
const REPEATED_IDLE_NS: u64 = 130_000_000_000;

pub(super) type RetransmittedKey = [u8; RETRANSMITTED_KEY_BYTES];

/// The same for a failed attempt to connect: more than a client waits before it tries again.
const FAILED_IDLE_NS: u64 = 300_000_000_000;

pub(super) type FailedKey = [u8; FAILED_KEY_BYTES];

/// When an entry of a kernel map began to count, and what it had counted when last told.
pub(super) type Told<K> = HashMap<K, (u64, u64), foldhash::quality::RandomState>;

impl Kernel {
    /// Dropped SYNs that were counted since the last poll. Entries long idle are removed: without them
    /// a few scans would fill the map for good.
    pub(super) fn poll_early_drops(
        &mut self,
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let events = maps::counters(&self.counters, hook::DROP)?.seen;
        if events == self.drop_events {
            return Ok(());
        }
        self.drop_events = events;
        let places = &self.places;
        poll_counted(
            &self.early_drops,
            size_of::<EarlyDropEntry>(),
            &mut self.refused,
            (now_ns, EARLY_DROP_IDLE_NS),
            |value, is_news| {
                let EarlyDropEntry { mut early_drop, .. } =
                    EarlyDropEntry::read_from_bytes(value).ok()?;
                let counted = Counted {
                    first_ns: early_drop.first_ns,
                    last_ns: early_drop.last_ns,
                    count: early_drop.count,
                };
                if is_news(&counted) {
                    early_drop.header = header::<EarlyDrop>(kind::EARLY_DROP, now_ns);
                    places.name(early_drop.as_bytes(), feed);
                }
                Some(counted)
            },
        )
    }

    /// What connections sent again, and what was taken back of that, since the last record of each; entries long idle are removed, as with
    /// early drops. Walked when there is something to tell, and now and then to tidy up.
    pub(super) fn poll_retransmits(
        &mut self,
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut events = maps::counters(&self.counters, hook::RETRANSMIT)?;
        events.add(&maps::counters(&self.counters, hook::UNDO)?);
        let walked = (events.seen, events.aggregated);
        let has_entries = walked != self.repeats_walked || !self.repeated.is_empty();
        let tidies = now_ns.saturating_sub(self.repeats_walked_ns) >= SWEEP_NS.1;
        if walked.1 == self.repeats_walked.1 && !(tidies && has_entries) {
            return Ok(());
        }
        self.repeats_walked = walked;
        self.repeats_walked_ns = now_ns;
        poll_counted(
            &self.retransmits,
            size_of::<Retransmitted>(),
            &mut self.repeated,
            (now_ns, REPEATED_IDLE_NS),
            |value, is_news| {
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
                let counted = Counted {
                    first_ns: totals.first_ns,
                    last_ns: last.header.ktime_ns.max(undone.last_ns),
                    count: totals.events + undone.totals.undos(),
                };
                if !is_news(&counted) {
                    return Some(counted);
                }
                if totals.events > entry.emitted {
                    totals.polled = 1;
                    let retransmits = Retransmits {
                        last,
                        totals,
                        egress,
                    };
                    feed(retransmits.as_bytes());
                }
                if undone.totals.undos() > undone.emitted {
                    feed(undo(&entry).as_bytes());
                }
                Some(counted)
            },
        )
    }

    /// Failed attempts to connect that were counted since the last poll; entries long idle are removed, as
    /// with early drops.
    pub(super) fn poll_failures(
        &mut self,
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let counted = self.failures_counted.get(&0, 0).map_err(io::Error::other)?;
        if counted == self.failures_seen {
            return Ok(());
        }
        self.failures_seen = counted;
        poll_counted(
            &self.failures,
            size_of::<Failed>(),
            &mut self.failed,
            (now_ns, FAILED_IDLE_NS),
            |value, is_news| {
                let Failed { mut failure, .. } = Failed::read_from_bytes(value).ok()?;
                let counted = Counted {
                    first_ns: failure.first_ns,
                    last_ns: failure.last_ns,
                    count: failure.count,
                };
                if is_news(&counted) {
                    failure.header = header::<Failure>(kind::FAILURE, now_ns);
                    feed(failure.as_bytes());
                }
                Some(counted)
            },
        )
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

/// How often something happened, and when first and last.
struct Counted {
    first_ns: u64,
    last_ns: u64,
    count: u64,
}

/// Walks the maps of cumulative records: `tell` reads one and hands it on where that is news. Entries that
/// counted nothing for `idle_ns` are removed.
fn poll_counted<const K: usize>(
    counts: &[MapData],
    value_size: usize,
    told: &mut Told<[u8; K]>,
    (now_ns, idle_ns): (u64, u64),
    mut tell: impl FnMut(&[u8], &dyn Fn(&Counted) -> bool) -> Option<Counted>,
) -> io::Result<()> {
    let mut alive = HashMap::default();
    let mut last = vec![0; value_size];
    for map in counts {
        let mut idle = Vec::new();
        maps::for_each_entry(map.fd().as_fd(), value_size, |key: &[u8; K], value| {
            // Without its beginning an entry is still being filled in.
            let is_news = |now: &Counted| {
                now.first_ns != 0 && told.get(key) != Some(&(now.first_ns, now.count))
            };
            let Some(counted) = tell(value, &is_news).filter(|counted| counted.first_ns != 0)
            else {
                return;
            };
            if !is_news(&counted) && now_ns.saturating_sub(counted.last_ns) >= idle_ns {
                idle.push(*key);
            } else {
                alive.insert(*key, (counted.first_ns, counted.count));
            }
        })?;
        for key in &idle {
            if maps::take(map.fd().as_fd(), key, &mut last)? {
                // What was counted since the look is told here or by nobody.
                let is_news = |now: &Counted| told.get(key) != Some(&(now.first_ns, now.count));
                tell(&last, &is_news);
            }
        }
    }
    *told = alive;
    Ok(())
}
