//! Maps of cumulative records: what the eBPF side counts by connection, process or place, told when it changed.

use std::{collections::HashMap, io, os::fd::AsFd};

use aya::{Ebpf, maps::MapData};
use foldhash::quality::RandomState;

use crate::kernel::{error::CannotTrace, maps};

/// How often something happened, and when first and last.
pub(crate) struct Tally {
    pub(crate) first_ns: u64,
    pub(crate) last_ns: u64,
    pub(crate) count: u64,
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
