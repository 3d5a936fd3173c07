//! Cumulative records by key: their entries, and how seldom they are emitted; no programs. For `failure` and
//! `early_drop`.

use aya_ebpf::{
    EbpfContext,
    maps::{HashMap, PerCpuArray},
};
use conntracer_common::record::{EARLY_DROP_INTERVAL_NS, Header, Record, SYN_INTERVAL_NS};

use crate::{
    account::{Outcome, is_streamed},
    emit::{self, Lane},
    sock,
    table::{Plain, Table, add, write_once, zeros},
};

/// An entry: a cumulative record, and when it was last emitted.
pub(crate) trait Cumulative: Plain {
    type Key: Plain;
    type Record: Record;

    /// Makes of a key that of all which find the map full.
    fn blur(key: &mut Self::Key);

    fn parts(&mut self) -> (&mut Self::Record, &mut u64);

    fn tally(record: &mut Self::Record) -> Tally<'_>;
}

/// What every cumulative record has.
pub(crate) struct Tally<'record> {
    pub(crate) header: &'record mut Header,
    pub(crate) count: &'record mut u64,
    pub(crate) first_ns: &'record mut u64,
    pub(crate) last_ns: &'record mut u64,
}

/// Where the entries are.
pub(crate) struct Counts<V: Cumulative> {
    pub(crate) map: &'static Table<HashMap<V::Key, V>>,
    /// For those that find `map` full.
    pub(crate) overflow: &'static Table<HashMap<V::Key, V>>,
    /// When this CPU last emitted one.
    pub(crate) said: &'static Table<PerCpuArray<u64>>,
}

impl<V: Cumulative> Counts<V> {
    /// Counts one more, and says so when it is due. `each` notes what it alone tells; `name` fills in the record
    /// that is new (as its last argument says), or about to be emitted. CPUs may mix a record's fields, never its
    /// count.
    #[inline(always)]
    pub(crate) fn count<C: EbpfContext>(
        &self,
        ctx: &C,
        mut key: V::Key,
        each: impl FnOnce(&mut V::Record),
        name: impl FnOnce(&mut V::Record, &V::Key, bool),
    ) -> Outcome {
        let Some((entry, first)) = self.entry(&mut key) else {
            return Outcome::Lost;
        };
        let now = sock::now_ns();
        let (record, emitted_ns) = entry.parts();
        let tally = V::tally(record);
        add(tally.count, 1);
        *tally.last_ns = now;
        each(record);
        let lane = self.lane(emitted_ns, now, first);
        if first || lane.is_some() {
            name(record, &key, first);
        }
        if first {
            // Last: a poll takes an entry without it for unfinished.
            write_once(V::tally(record).first_ns, now);
        }
        let Some(lane) = lane else {
            return Outcome::Aggregated;
        };
        *V::tally(record).header = emit::header::<V::Record>();
        emit::emit(ctx, lane, record)
    }

    /// The entry of a key, and whether it is new; when there is no more room, the one that stands for all such, and
    /// the key with it. Of two CPUs that meet a new key at once, the second does not clear what the first counted.
    #[inline(always)]
    fn entry(&self, key: &mut V::Key) -> Option<(&'static mut V, bool)> {
        if let Some(entry) = self.map.edit(&*key) {
            return Some((entry, false));
        }
        let zeros = zeros()?;
        let new = self.map.insert_new(&*key, zeros);
        if let Some(entry) = self.map.edit(&*key) {
            return Some((entry, new));
        }
        V::blur(key);
        if let Some(entry) = self.overflow.edit(&*key) {
            return Some((entry, false));
        }
        let new = self.overflow.insert_new(&*key, zeros);
        self.overflow.edit(&*key).map(|entry| (entry, new))
    }

    /// The lane by which a record leaves that has just counted one more; `None` where a later one, or a poll, will
    /// tell. `emitted_ns` is when this one last was emitted.
    #[inline(always)]
    fn lane(&self, emitted_ns: &mut u64, now_ns: u64, first: bool) -> Option<Lane> {
        let said = self.said.edit(0)?;
        let is_due = (first || now_ns - *emitted_ns >= SYN_INTERVAL_NS)
            && now_ns - *said >= EARLY_DROP_INTERVAL_NS;
        if is_due {
            *said = now_ns;
            *emitted_ns = now_ns;
            Some(if first { Lane::Urgent } else { Lane::Rare })
        } else if is_streamed(V::Record::KIND) {
            Some(Lane::Bulk)
        } else {
            None
        }
    }
}
