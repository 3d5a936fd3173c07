//! The two transports behind one interface: BPF ring buffers, and per-CPU perf ring buffers.
//!
//! Each has a lane for rare records and one for the rest. `drain` hands out what is there, rare and bulk
//! merged by ktime; records of different CPUs that were written within the same microsecond may be in
//! either order. What is written meanwhile is left to the next drain, so that each comes to an end. What could
//! not be written was counted in the kernel.

use std::{
    io,
    ops::Deref,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{
        Map, MapData, PerfEventArray, RingBuf,
        perf::{PerfEvent, PerfEventArrayBuffer},
    },
    util::online_cpus,
};
use conntracer_common::record::Header;
use rustix::event::epoll;
use zerocopy::FromBytes;

use super::{clock::ktime_ns as now_ns, error::CannotTrace, maps};
use crate::plan::Transport;

/// Pages of one CPU's perf buffer: 512 KiB, a quarter of a second of 9,000 retransmissions a second
/// on one CPU.
const PERF_PAGES: usize = 128;

/// The open rings, and a descriptor that becomes readable when a rare record wakes it.
pub(super) struct Rings {
    kind: Kind,
    wake: OwnedFd,
    /// Rare records of the drain under way, copied so that they can be merged.
    rare: Vec<Vec<u8>>,
}

enum Kind {
    Ringbuf(Box<Pair>),
    Perf {
        rare: Vec<PerfEventArrayBuffer<MapData>>,
        bulk: Vec<PerfEventArrayBuffer<MapData>>,
    },
}

struct Pair {
    rare: RingBuf<MapData>,
    bulk: RingBuf<MapData>,
}

impl Rings {
    pub(super) fn open(ebpf: &mut Ebpf, transport: Transport) -> Result<Self, CannotTrace> {
        let kernel = |source: io::Error| CannotTrace::Kernel {
            what: "creating an epoll",
            source,
        };
        let wake = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|e| kernel(e.into()))?;
        let watch = |fd: std::os::fd::BorrowedFd<'_>| {
            epoll::add(
                &wake,
                fd,
                epoll::EventData::new_u64(0),
                epoll::EventFlags::IN,
            )
            .map_err(|e| kernel(e.into()))
        };
        let kind = match transport {
            Transport::Ringbuf => {
                let rare = ringbuf(ebpf, "RARE")?;
                let bulk = ringbuf(ebpf, "BULK")?;
                watch(rare.as_fd())?;
                Kind::Ringbuf(Box::new(Pair { rare, bulk }))
            }
            Transport::Perf => {
                let rare = perf(ebpf, "RARE_PERF")?;
                let bulk = perf(ebpf, "BULK_PERF")?;
                for buffer in &rare {
                    watch(buffer.as_fd())?;
                }
                Kind::Perf { rare, bulk }
            }
        };
        Ok(Self {
            kind,
            wake,
            rare: Vec::new(),
        })
    }

    /// Readable when a record that cannot wait is there.
    pub(super) fn wake(&self) -> &OwnedFd {
        &self.wake
    }

    /// Hands out every record now in the rings; says whether more came meanwhile.
    pub(super) fn drain(&mut self, feed: &mut dyn FnMut(&[u8])) -> bool {
        self.rare.clear();
        match &mut self.kind {
            Kind::Ringbuf(pair) => {
                let Pair { rare, bulk } = &mut **pair;
                merge(rare, bulk, now_ns(), &mut self.rare, feed)
            }
            Kind::Perf { rare, bulk } => {
                for buffer in rare.iter_mut().chain(bulk) {
                    buffer.for_each(|event| {
                        // `Lost` repeats what bpf_perf_event_output already told the program.
                        if let PerfEvent::Sample { head, tail } = event {
                            self.rare.push([head, tail].concat());
                        }
                    });
                }
                self.rare.sort_by_key(|record| ktime_ns(record));
                for record in &self.rare {
                    feed(trimmed(record));
                }
                // Each buffer was read up to where it ended when its turn came.
                false
            }
        }
    }
}

/// A ring that is read one record at a time.
trait Lane {
    fn next(&mut self) -> Option<impl Deref<Target = [u8]>>;
}

impl Lane for RingBuf<MapData> {
    fn next(&mut self) -> Option<impl Deref<Target = [u8]>> {
        Self::next(self)
    }
}

/// Hands out what two lanes hold, up to the first record of each that is newer than `until_ns`; says whether
/// there was one. `copies` is for the rare ones.
fn merge(
    rare: &mut impl Lane,
    bulk: &mut impl Lane,
    until_ns: u64,
    copies: &mut Vec<Vec<u8>>,
    feed: &mut dyn FnMut(&[u8]),
) -> bool {
    let mut more = false;
    while !more && let Some(record) = rare.next() {
        more = ktime_ns(&record) > until_ns;
        copies.push(record.to_vec());
    }
    let mut waiting = copies.iter().peekable();
    let mut newer = false;
    while !newer && let Some(record) = bulk.next() {
        let at_ns = ktime_ns(&record);
        newer = at_ns > until_ns;
        while let Some(earlier) = waiting.next_if(|rare| ktime_ns(rare) <= at_ns) {
            feed(earlier);
        }
        feed(&record);
    }
    waiting.for_each(|record| feed(record));
    more || newer
}

/// When a record was made; records too short for a header go first, to be counted by `decode`.
fn ktime_ns(record: &[u8]) -> u64 {
    Header::read_from_prefix(record).map_or(0, |(header, _)| header.ktime_ns)
}

/// A perf sample is padded to 8 bytes beyond its record, which says its own size.
pub(super) fn trimmed(record: &[u8]) -> &[u8] {
    let size = Header::read_from_prefix(record)
        .map_or(record.len(), |(header, _)| usize::from(header.size));
    record.get(..size).unwrap_or(record)
}

fn ringbuf(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, CannotTrace> {
    RingBuf::try_from(maps::take::<Map>(ebpf, name)?).map_err(|error| CannotTrace::Ring {
        ring: name,
        reason: error.to_string(),
    })
}

fn perf(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<Vec<PerfEventArrayBuffer<MapData>>, CannotTrace> {
    let refused = |reason: String| CannotTrace::Ring { ring: name, reason };
    let mut array = PerfEventArray::try_from(maps::take::<Map>(ebpf, name)?)
        .map_err(|error| refused(error.to_string()))?;
    let cpus = online_cpus().map_err(|(what, error)| refused(format!("{what}: {error}")))?;
    cpus.into_iter()
        .map(|cpu| {
            array
                .open(cpu, Some(PERF_PAGES))
                .map_err(|error| refused(format!("CPU {cpu}: {error}")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, collections::VecDeque};

    use zerocopy::IntoBytes;

    use super::*;

    /// Holds records made at the times in `waiting`; another is made whenever one is read, while `goes_on`.
    struct Busy<'a> {
        waiting: VecDeque<u64>,
        clock_ns: &'a Cell<u64>,
        goes_on: bool,
    }

    impl Lane for Busy<'_> {
        fn next(&mut self) -> Option<impl Deref<Target = [u8]>> {
            let ktime_ns = self.waiting.pop_front()?;
            if self.goes_on {
                self.clock_ns.set(self.clock_ns.get() + 1);
                self.waiting.push_back(self.clock_ns.get());
            }
            let header = Header {
                ktime_ns,
                ..Header::default()
            };
            Some(header.as_bytes().to_vec())
        }
    }

    fn drained(rare: &[u64], bulk: &[u64], busy: [bool; 2]) -> (Vec<u64>, bool) {
        let clock_ns = Cell::new(10);
        let lane = |times: &[u64], goes_on| Busy {
            waiting: times.iter().copied().collect(),
            clock_ns: &clock_ns,
            goes_on,
        };
        let mut times = Vec::new();
        let more = merge(
            &mut lane(rare, busy[0]),
            &mut lane(bulk, busy[1]),
            clock_ns.get(),
            &mut Vec::new(),
            &mut |record| times.push(ktime_ns(record)),
        );
        (times, more)
    }

    #[test]
    fn both_lanes_are_handed_out_in_the_order_of_time() {
        let calm = [false; 2];
        assert_eq!(
            drained(&[2, 5, 9], &[1, 3, 4, 7], calm),
            (vec![1, 2, 3, 4, 5, 7, 9], false)
        );
        assert_eq!(drained(&[], &[], calm), (vec![], false));
    }

    #[test]
    fn a_drain_ends_though_records_come_as_fast_as_they_are_read() {
        assert_eq!(
            drained(&[2], &[1, 3], [false, true]),
            (vec![1, 2, 3, 11], true)
        );
        assert_eq!(
            drained(&[2, 3], &[1], [true, false]),
            (vec![1, 2, 3, 11], true)
        );
    }
}
