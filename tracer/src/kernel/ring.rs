//! The two transports behind one interface: BPF ring buffers, and per-CPU perf ring buffers.
//!
//! Each has a lane for rare records and one for the rest. `drain` hands out what is there, rare and bulk
//! merged by ktime; records of different CPUs that were written within the same microsecond may be in
//! either order. What could not be written was counted in the kernel.

use std::{
    io,
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

use super::{error::CannotTrace, plan::Transport};

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

    /// Hands out every record now in the rings.
    pub(super) fn drain(&mut self, feed: &mut dyn FnMut(&[u8])) {
        self.rare.clear();
        match &mut self.kind {
            Kind::Ringbuf(pair) => {
                let Pair { rare, bulk } = &mut **pair;
                while let Some(record) = rare.next() {
                    self.rare.push(record.to_vec());
                }
                let mut waiting = self.rare.iter().peekable();
                while let Some(record) = bulk.next() {
                    while let Some(earlier) =
                        waiting.next_if(|rare| ktime_ns(rare) <= ktime_ns(&record))
                    {
                        feed(earlier);
                    }
                    feed(&record);
                }
                waiting.for_each(|record| feed(record));
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
            }
        }
    }
}

/// When a record was made; records too short for a header go first, to be counted by `decode`.
fn ktime_ns(record: &[u8]) -> u64 {
    Header::read_from_prefix(record).map_or(0, |(header, _)| header.ktime_ns)
}

/// A perf sample is padded to 8 bytes beyond its record, which says its own size.
fn trimmed(record: &[u8]) -> &[u8] {
    let size = Header::read_from_prefix(record)
        .map_or(record.len(), |(header, _)| usize::from(header.size));
    record.get(..size).unwrap_or(record)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, CannotTrace> {
    ebpf.take_map(name).ok_or(CannotTrace::Foreign(name))
}

fn ringbuf(ebpf: &mut Ebpf, name: &'static str) -> Result<RingBuf<MapData>, CannotTrace> {
    RingBuf::try_from(take(ebpf, name)?).map_err(|error| CannotTrace::Ring {
        ring: name,
        reason: error.to_string(),
    })
}

fn perf(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<Vec<PerfEventArrayBuffer<MapData>>, CannotTrace> {
    let refused = |reason: String| CannotTrace::Ring { ring: name, reason };
    let mut array =
        PerfEventArray::try_from(take(ebpf, name)?).map_err(|error| refused(error.to_string()))?;
    let cpus = online_cpus().map_err(|(what, error)| refused(format!("{what}: {error}")))?;
    cpus.into_iter()
        .map(|cpu| {
            array
                .open(cpu, Some(PERF_PAGES))
                .map_err(|error| refused(format!("CPU {cpu}: {error}")))
        })
        .collect()
}
