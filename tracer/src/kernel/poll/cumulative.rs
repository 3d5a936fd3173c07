//! Maps of cumulative records: what the eBPF side counts by connection, process or place, told when it changed.

use std::{collections::HashMap, io, marker::PhantomData, os::fd::AsFd};

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::record::{Header, Record};
use foldhash::quality::RandomState;
use zerocopy::{FromBytes, IntoBytes as _};

use super::Poll;
use crate::kernel::{error::CannotTrace, header::header, maps};

/// How often something happened, and when first and last.
pub(crate) struct Tally {
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) count: u64,
}

/// What such a map holds: a record, beside what the eBPF side keeps for itself.
pub(crate) trait Entry: FromBytes {
    type Record: Record;

    /// The record, and how often what it tells of happened.
    fn parts(&mut self) -> (&mut Self::Record, Tally);

    /// Where the record's header goes.
    fn header(record: &mut Self::Record) -> &mut Header;
}

/// The maps of one kind of record, with keys of `K` bytes, and what was last told of each entry.
pub(crate) struct Cumulative<const K: usize> {
    maps: Vec<MapData>,
    value_bytes: usize,
    /// An entry that counted nothing for so long is removed: a few scans would fill the map for good.
    idle_ns: u64,
    /// When an entry began to count, and what it had counted.
    told: HashMap<[u8; K], (u64, u64), RandomState>,
}

impl<const K: usize> Cumulative<K> {
    /// Of maps with values of type `V`.
    pub(crate) fn new<V>(
        ebpf: &mut Ebpf,
        names: &[&'static str],
        idle_ns: u64,
    ) -> Result<Self, CannotTrace> {
        let maps = names.iter().map(|name| maps::take_hash(ebpf, name));
        Ok(Self {
            maps: maps.collect::<Result<_, _>>()?,
            value_bytes: size_of::<V>(),
            idle_ns,
            told: HashMap::default(),
        })
    }

    /// The record of each entry that counted any since the last time.
    pub(crate) fn tell<V: Entry>(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        self.walk(poll.now_ns, |value, is_news| {
            let mut entry = V::read_from_bytes(value).ok()?;
            let (record, tally) = entry.parts();
            if is_news(&tally) {
                *V::header(record) = header::<V::Record>(V::Record::KIND, poll.now_ns);
                (poll.feed)(record.as_bytes());
            }
            Some(tally)
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Walks the maps: `tell` reads one value and hands it on where that is news.
    pub(crate) fn walk(
        &mut self,
        now_ns: u64,
        mut tell: impl FnMut(&[u8], &dyn Fn(&Tally) -> bool) -> Option<Tally>,
    ) -> io::Result<()> {
        let told = &self.told;
        let mut alive = HashMap::default();
        let mut last = vec![0; self.value_bytes];
        for map in &self.maps {
            let mut idle = Vec::new();
            maps::for_each_entry(
                map.fd().as_fd(),
                self.value_bytes,
                |key: &[u8; K], value| {
                    // Without its beginning an entry is still being filled in.
                    let is_news = |now: &Tally| {
                        now.first_ns != 0 && told.get(key) != Some(&(now.first_ns, now.count))
                    };
                    let Some(tally) = tell(value, &is_news).filter(|tally| tally.first_ns != 0)
                    else {
                        return;
                    };
                    if !is_news(&tally) && now_ns.saturating_sub(tally.last_ns) >= self.idle_ns {
                        idle.push(*key);
                    } else {
                        alive.insert(*key, (tally.first_ns, tally.count));
                    }
                },
            )?;
            for key in &idle {
                if maps::remove(map.fd().as_fd(), key, &mut last)? {
                    // What was counted since the look is told here or by nobody.
                    let is_news = |now: &Tally| told.get(key) != Some(&(now.first_ns, now.count));
                    tell(&last, &is_news);
                }
            }
        }
        self.told = alive;
        Ok(())
    }
}

/// The same with a count of all that any entry counted, so that the maps are walked only when there is something new.
pub(crate) struct Tallied<V, const K: usize> {
    entries: Cumulative<K>,
    counted: Array<MapData, u64>,
    /// What had been counted at the last walk.
    walked: u64,
    of: PhantomData<V>,
}

impl<V: Entry, const K: usize> Tallied<V, K> {
    pub(super) fn of_maps(
        ebpf: &mut Ebpf,
        entries: &[&'static str],
        counted: &'static str,
        idle_ns: u64,
    ) -> Result<Self, CannotTrace> {
        Ok(Self {
            entries: Cumulative::new::<V>(ebpf, entries, idle_ns)?,
            counted: maps::take(ebpf, counted)?,
            walked: 0,
            of: PhantomData,
        })
    }

    /// The record of each entry that counted any since the last poll.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let counted = self.counted.get(&0, 0).map_err(io::Error::other)?;
        if counted == self.walked {
            return Ok(());
        }
        self.walked = counted;
        self.entries.tell::<V>(poll)
    }
}
