//! The running kernel as a source of records.

use std::{
    cell::OnceCell,
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
    programs::{Program, RawTracePoint, RawTracePointRunOptions, TestRun},
};
use conntracer_common::{
    record::{Header, Loss, Sources, Syn, SynTotals, Tick, kind, syn_outcome},
    socket::{Listener, SocketState},
    stats::{HOOKS, HookCounters, hook},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    attach::Attached,
    error::CannotTrace,
    host::Host,
    maps::{self, Counters},
    missed::Missed,
    ring::Rings,
};
use crate::{
    finding::Ktime,
    source::{SocketId, Source, Watched},
};

/// Half-closed sockets reported at most; a leak is a leak long before.
const MAX_HALF_CLOSED: usize = 4096;
/// Shortest and longest time between two sweeps of the socket map for half-closed ones. A sweep of
/// 65,536 sockets copies 6 MB.
const SWEEP_NS: (u64, u64) = (1_000_000_000, 15_000_000_000);

/// Listeners whose queues are asked for anew at one poll: as many of a host's as may be in trouble at
/// once, at about 1 µs each. The others are told as they stood at their last SYN.
const MAX_REFRESHED: usize = 256;

/// The attached programs, their rings and maps. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    host: Host,
    rings: Rings,
    counters: Counters,
    missed: Missed,
    sockets: MapData,
    listeners: MapData,
    sketches: MapData,
    logger: Option<aya_log::EbpfLogger<&'static dyn log::Log>>,
    wake: OnceCell<AsyncFd<OwnedFd>>,
    /// What the last poll saw, to say only what changed.
    lost: [u64; HOOKS.len()],
    listener_events: u64,
    totals: HashMap<u64, SynTotals, foldhash::quality::RandomState>,
    /// Troubled SYNs of each listener, as last told.
    troubled: HashMap<u64, u64, foldhash::quality::RandomState>,
    half_closed: Vec<SocketId>,
    swept_ns: u64,
}

impl Kernel {
    pub(super) fn new(attached: Attached, host: Host, verbose: bool) -> Result<Self, CannotTrace> {
        let Attached {
            mut ebpf,
            rings,
            hooks: _,
        } = attached;
        let counters = Counters::try_from(
            ebpf.take_map("COUNTERS")
                .ok_or(CannotTrace::Foreign("COUNTERS"))?,
        )
        .map_err(|_| CannotTrace::Foreign("COUNTERS"))?;
        let sockets = hash(&mut ebpf, "SOCKETS")?;
        let listeners = hash(&mut ebpf, "LISTENERS")?;
        let sketches = hash(&mut ebpf, "SKETCHES")?;
        let logger = if verbose {
            aya_log::EbpfLogger::init(&mut ebpf)
                .inspect_err(|error| log::warn!("the programs' log is not available: {error}"))
                .ok()
        } else {
            None
        };
        let missed = Missed::new(&ebpf);
        Ok(Self {
            ebpf,
            host,
            rings,
            counters,
            missed,
            sockets,
            listeners,
            sketches,
            logger,
            wake: OnceCell::new(),
            lost: [0; HOOKS.len()],
            listener_events: 0,
            totals: HashMap::default(),
            troubled: HashMap::default(),
            half_closed: Vec::new(),
            swept_ns: 0,
        })
    }

    /// Facts of this host, with the hook plan.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    fn on_demand(&self, name: &str) -> io::Result<&RawTracePoint> {
        match self.ebpf.program(name) {
            Some(Program::RawTracePoint(program)) => Ok(program),
            _ => Err(io::Error::other(format!(
                "the eBPF object has no program {name}"
            ))),
        }
    }

    /// Runs a program on one socket: `snapshot`, whose `Snapshot` arrives in the bulk ring, or `refresh`
    /// for a listener.
    fn ask(&self, name: &str, id: SocketId) -> io::Result<()> {
        let mut options = RawTracePointRunOptions::new();
        options.args[0] = id.sk;
        options.args[1] = id.born.0;
        self.on_demand(name)?
            .test_run(options)
            .map(drop)
            .map_err(io::Error::other)
    }

    /// Listeners that are watched, or whose totals changed since the last poll, as they stand now.
    fn poll_listeners(
        &mut self,
        watched: &[SocketId],
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut events = HookCounters::default();
        for hook in [hook::SYN, hook::ACK, hook::SYNACK, hook::REQUEST] {
            events.add(&maps::counters(&self.counters, hook)?);
        }
        if events.seen == self.listener_events && watched.is_empty() {
            return Ok(());
        }
        self.listener_events = events.seen;
        let before = std::mem::take(&mut self.totals);
        let totals = &mut self.totals;
        let mut due = watched.to_vec();
        maps::for_each(
            self.listeners.fd().as_fd(),
            size_of::<Listener>(),
            |sk, value| {
                let Ok(Listener { syn, .. }) = Listener::read_from_bytes(value) else {
                    return;
                };
                totals.insert(sk, syn.totals);
                if before.get(&sk) != Some(&syn.totals) {
                    due.push(SocketId {
                        sk,
                        born: Ktime(syn.socket.born_ns),
                    });
                }
            },
        )?;
        due.sort_unstable();
        due.dedup();
        for id in due.iter().take(MAX_REFRESHED) {
            self.ask("refresh", *id)?;
        }
        let mut troubled = false;
        let mut value = [0; size_of::<Listener>()];
        for SocketId { sk, born } in due {
            // Gone meanwhile: its last totals are in the rare ring.
            if !maps::lookup(self.listeners.fd().as_fd(), sk, &mut value)? {
                continue;
            }
            let Ok(Listener { mut syn, .. }) = Listener::read_from_bytes(&value) else {
                continue;
            };
            if syn.socket.born_ns != born.0 {
                continue;
            }
            troubled |= before.get(&sk).map_or(0, trouble) != trouble(&syn.totals);
            self.totals.insert(sk, syn.totals);
            syn.header = header::<Syn>(kind::SYN, now_ns);
            syn.outcome = u8::MAX;
            feed(syn.as_bytes());
        }
        if troubled {
            self.poll_sources(now_ns, feed)?;
        }
        Ok(())
    }

    /// Who troubled listeners since the last poll.
    fn poll_sources(&mut self, now_ns: u64, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let before = std::mem::take(&mut self.troubled);
        let troubled = &mut self.troubled;
        maps::for_each(
            self.sketches.fd().as_fd(),
            size_of::<Sources>(),
            |sk, value| {
                let Ok(mut sources) = Sources::read_from_bytes(value) else {
                    return;
                };
                troubled.insert(sk, sources.syns);
                if before.get(&sk) != Some(&sources.syns) {
                    sources.header = header::<Sources>(kind::SOURCES, now_ns);
                    feed(sources.as_bytes());
                }
            },
        )
    }

    /// Sockets in CLOSE_WAIT or FIN_WAIT2 for longer than the limit: swept for at long intervals, and
    /// asked for again at every poll.
    fn poll_half_closed(&mut self, now_ns: u64, limit_ns: u64) -> io::Result<()> {
        let interval = (limit_ns / 4).clamp(SWEEP_NS.0, SWEEP_NS.1);
        if now_ns.saturating_sub(self.swept_ns) >= interval {
            self.swept_ns = now_ns;
            let found = &mut self.half_closed;
            found.clear();
            maps::for_each(
                self.sockets.fd().as_fd(),
                size_of::<SocketState>(),
                |sk, value| {
                    let Ok(state) = SocketState::read_from_bytes(value) else {
                        return;
                    };
                    if state.half_closed != 0
                        && now_ns.saturating_sub(state.since_ns) >= limit_ns
                        && found.len() < MAX_HALF_CLOSED
                    {
                        found.push(SocketId {
                            sk,
                            born: Ktime(state.born_ns),
                        });
                    }
                },
            )?;
        }
        for id in &self.half_closed {
            self.ask("snapshot", *id)?;
        }
        Ok(())
    }

    /// One hook's counters, with the events that passed while its program could not run.
    fn account(&self, hook: u32) -> io::Result<HookCounters> {
        let mut counters = maps::counters(&self.counters, hook)?;
        let missed = self.missed.of(hook);
        counters.seen += missed;
        counters.lost += missed;
        Ok(counters)
    }

    fn poll_lost(&mut self, now_ns: u64, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        for hook in 0..hook::COUNT {
            let now = self.account(hook)?.lost;
            let before = &mut self.lost[hook as usize];
            if now > *before {
                let loss = Loss {
                    header: header::<Loss>(kind::LOSS, now_ns),
                    lost: now - *before,
                    hook,
                    pad: 0,
                };
                feed(loss.as_bytes());
                *before = now;
            }
        }
        Ok(())
    }
}

impl Source for Kernel {
    async fn readable(&self) -> io::Result<()> {
        // Made here and not in `new`: a reactor is running by now, and `doctor` needs none.
        let wake = if let Some(wake) = self.wake.get() {
            wake
        } else {
            let fd = self.rings.wake().try_clone()?;
            // SAFETY: an OwnedFd names the same open descriptor for as long as it lives.
            let wake = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
            self.wake.get_or_init(|| wake)
        };
        wake.readable().await?.clear_ready();
        Ok(())
    }

    fn drain(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.rings.drain(feed);
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        Ok(())
    }

    fn poll(
        &mut self,
        watched: &Watched,
        half_closed_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let now_ns = ktime_ns();
        self.poll_listeners(&watched.listeners, now_ns, feed)?;
        for id in &watched.connections {
            self.ask("snapshot", *id)?;
        }
        self.poll_half_closed(now_ns, half_closed_ns)?;
        self.rings.drain(feed);
        self.poll_lost(now_ns, feed)?;
        let tick = Tick {
            header: header::<Tick>(kind::TICK, ktime_ns()),
        };
        feed(tick.as_bytes());
        Ok(())
    }

    fn accounts(&self) -> io::Result<Vec<(&'static str, HookCounters)>> {
        (0..)
            .zip(HOOKS)
            .map(|(hook, name)| Ok((name, self.account(hook)?)))
            .collect()
    }
}

/// CLOCK_MONOTONIC, which is what `bpf_ktime_get_ns` reads.
fn ktime_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// The header of a record that user space makes itself.
fn header<T>(kind: u16, ktime_ns: u64) -> Header {
    Header {
        ktime_ns,
        kind,
        size: u16::try_from(size_of::<T>()).unwrap_or(u16::MAX),
        cpu: u32::MAX,
    }
}

/// What of a listener's totals goes into a sketch of its sources.
fn trouble(totals: &SynTotals) -> u64 {
    totals[syn_outcome::COOKIE..syn_outcome::SYNS]
        .iter()
        .fold(totals[syn_outcome::REPEATED], |sum, more| {
            sum.wrapping_add(*more)
        })
}

fn hash(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, CannotTrace> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(data) | Map::LruHashMap(data)) => Ok(data),
        _ => Err(CannotTrace::Foreign(name)),
    }
}
