//! The running kernel as a source of records.

mod asked;
mod counted;
mod listeners;
mod owners;

use std::{cell::OnceCell, collections::HashMap, io, os::fd::OwnedFd};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
    programs::{Program, RawTracePointRunOptions, TestRun},
    util::online_cpus,
};
use conntracer_common::{
    filter::Filter,
    netns::{CPUS_AT_ONCE, NetnsId, count},
    record::{Header, Loss, SynTotals, Tick, kind, netns_flag},
    socket::FORKS_UNSEEN,
    stats::{HOOKS, HookCounters, hook},
};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::{IntoBytes, transmute};

pub(super) use self::listeners::trouble;
use self::{
    counted::{EarlyDropKey, FailedKey, RetransmittedKey, Told},
    owners::Unowned,
};
use super::{
    Options,
    attach::Attached,
    clock::{Clock, realtime_offset_ns},
    error::CannotTrace,
    filter::Groups,
    half_closed::{HalfClosed, SWEEP_NS},
    holders::Asked,
    learn_percpu_offsets,
    maps::{self, Counters},
    missed::Missed,
    netns::{CountsMap, LookMap, Namespaces, Running},
    processes::Processes,
    ring::Rings,
    seed::Seeds,
};
use crate::{
    host::Host,
    kernel::{early_drop::Places, idle::IdleSearch},
    source::{Source, Watched},
};

/// Where records go.
type Feed<'a> = &'a mut dyn FnMut(&[u8]);

type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// What passes the programs' own log on.
fn logger(ebpf: &mut Ebpf) -> Option<Logger> {
    aya_log::EbpfLogger::init(ebpf)
        .inspect_err(|error| log::warn!("the programs' log is not available: {error}"))
        .ok()
}

/// The attached programs, their rings and maps. Dropping it detaches everything.
pub struct Kernel {
    ebpf: Ebpf,
    host: Host,
    rings: Rings,
    counters: Counters,
    missed: Missed,
    sockets: MapData,
    listeners: MapData,
    early_drops: [MapData; 2],
    retransmits: [MapData; 1],
    failures: [MapData; 2],
    failures_counted: Array<MapData, u64>,
    places: Places,
    processes: Processes,
    namespaces: Namespaces,
    netns_counts: CountsMap,
    netns_look: LookMap,
    /// CPUs whose counters can be read.
    cpus: Vec<u32>,
    sketches: MapData,
    logger: Option<Logger>,
    wake: OnceCell<AsyncFd<OwnedFd>>,
    /// What the last poll saw, to say only what changed.
    lost: [u64; HOOKS.len()],
    listener_events: u64,
    totals: HashMap<u64, SynTotals, foldhash::quality::RandomState>,
    drop_events: u64,
    refused: Told<EarlyDropKey>,
    repeated: Told<RetransmittedKey>,
    /// Events of the hook at the last walk of the map, and those of them that no record told; and when.
    repeats_walked: (u64, u64),
    repeats_walked_ns: u64,
    failed: Told<FailedKey>,
    failures_seen: u64,
    /// Troubled SYNs of each listener, as last told.
    troubled: HashMap<u64, u64, foldhash::quality::RandomState>,
    clock: Clock,
    half_closed: HalfClosed,
    /// Answers that found no room.
    answers_lost: u64,
    search: Option<IdleSearch>,
    seeds: Seeds,
    unowned: Unowned,
    /// Where the filter asks for control groups.
    groups: Option<Groups>,
    asked: Asked,
    heir: Array<MapData, [u64; 6]>,
    forks: Array<MapData, u64>,
}

impl Kernel {
    pub(super) fn new(
        attached: Attached,
        host: Host,
        options: &Options,
    ) -> Result<Self, CannotTrace> {
        let Attached {
            mut ebpf,
            rings,
            hooks: _,
            cpus,
            traces_failures,
            iterators,
        } = attached;
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let limits = flag(cpus.is_none(), netns_flag::UNREADABLE)
            | flag(!traces_failures, netns_flag::FAILURES_UNTRACED);
        let counters: Counters = map(&mut ebpf, "COUNTERS")?;
        let sockets = hash(&mut ebpf, "SOCKETS")?;
        let listeners = hash(&mut ebpf, "LISTENERS")?;
        let early_drops = [
            hash(&mut ebpf, "EARLY_DROPS")?,
            hash(&mut ebpf, "EARLY_DROPS_OVERFLOW")?,
        ];
        let failures = [
            hash(&mut ebpf, "FAILURES")?,
            hash(&mut ebpf, "FAILURES_OVERFLOW")?,
        ];
        let retransmits = [hash(&mut ebpf, "RETRANSMITS")?];
        let failures_counted = map(&mut ebpf, "FAILURES_COUNTED")?;
        let heir = map(&mut ebpf, "HEIR")?;
        let forks = map(&mut ebpf, "FORKS")?;
        let places = if host.drop_reasons.is_empty() {
            Places::read()
                .inspect_err(|error| log::warn!("reading /proc/kallsyms: {error}"))
                .unwrap_or_default()
        } else {
            Places::default()
        };
        let netns_counts = map(&mut ebpf, "NETNS")?;
        let netns_look = map(&mut ebpf, "NETNS_LOOK")?;
        let sketches = hash(&mut ebpf, "SKETCHES")?;
        let logger = options.verbose.then(|| logger(&mut ebpf)).flatten();
        let groups = if options.owners.has_groups() {
            let (verdicts, met) = (map(&mut ebpf, "GROUPS")?, map(&mut ebpf, "GROUPS_MET")?);
            Some(Groups::new(&options.owners, verdicts, met))
        } else {
            None
        };
        let missed = Missed::new(&ebpf);
        let clock = Clock::new(host.realtime_offset_ns);
        let mut kernel = Self {
            ebpf,
            host,
            rings,
            counters,
            missed,
            sockets,
            listeners,
            early_drops,
            retransmits,
            failures,
            failures_counted,
            places,
            processes: Processes::default(),
            namespaces: Namespaces::new(&options.filter, limits),
            netns_counts,
            netns_look,
            cpus: cpus.unwrap_or_default(),
            sketches,
            logger,
            wake: OnceCell::new(),
            lost: [0; HOOKS.len()],
            listener_events: 0,
            totals: HashMap::default(),
            drop_events: 0,
            refused: HashMap::default(),
            repeated: HashMap::default(),
            repeats_walked: (0, 0),
            repeats_walked_ns: 0,
            failed: HashMap::default(),
            failures_seen: 0,
            troubled: HashMap::default(),
            clock,
            half_closed: HalfClosed::default(),
            answers_lost: 0,
            search: options.idle_ns.map(IdleSearch::new),
            seeds: Seeds::default(),
            unowned: Unowned::default(),
            groups,
            asked: Asked::default(),
            heir,
            forks,
        };
        kernel.make_room_for_all()?;
        kernel.compare(None).map_err(unread)?;
        if iterators.is_ok() {
            kernel
                .seed(&options.filter)
                .map_err(|source| CannotTrace::Kernel {
                    what: "walking the sockets that are there",
                    source,
                })?;
        }
        Ok(kernel)
    }

    /// Where the eBPF side counts for namespaces that found no room of their own.
    fn make_room_for_all(&mut self) -> Result<(), CannotTrace> {
        let of_all: u64 = transmute!(NetnsId::default());
        self.netns_counts
            .insert(of_all, [0; count::COUNT], 0)
            .map_err(|error| unread(io::Error::other(error)))
    }

    /// Takes in what was there before the hooks were attached.
    fn seed(&mut self, filter: &Filter) -> io::Result<()> {
        let there = self.running(|running, namespaces| namespaces.inodes(&running))?;
        let named = || {
            filter
                .netns
                .into_iter()
                .filter(|inode| *inode != 0)
                .collect()
        };
        let asked = there.or_else(|| (filter.netns[0] != 0).then(named));
        self.seeds = Seeds::begin(&mut self.ebpf, asked.as_ref())?;
        Ok(())
    }

    /// Takes the baseline (`None`), or compares with it.
    fn compare(&mut self, feed: Option<Feed<'_>>) -> io::Result<()> {
        self.running(|mut running, namespaces| match feed {
            None => namespaces.begin(&running),
            Some(feed) => namespaces.compare(&mut running, ktime_ns(), feed),
        })
    }

    fn running<T>(
        &mut self,
        act: impl FnOnce(
            Running<'_, &dyn Fn(u64, u32) -> io::Result<()>>,
            &mut Namespaces,
        ) -> io::Result<T>,
    ) -> io::Result<T> {
        let Some(Program::RawTracePoint(program)) = self.ebpf.program("netns_look") else {
            return Err(io::Error::other(
                "the eBPF object has no program netns_look",
            ));
        };
        let highest = self.cpus.iter().copied().max().unwrap_or(0);
        let run = |net, first: u32| {
            let mut options = RawTracePointRunOptions::new();
            options.args[0] = net;
            options.args[1] = first.into();
            program
                .test_run(options)
                .map(drop)
                .map_err(io::Error::other)
        };
        let running = Running {
            run: &run as &dyn Fn(u64, u32) -> io::Result<()>,
            look: &self.netns_look,
            counts: &mut self.netns_counts,
            runs: highest / CPUS_AT_ONCE + 1,
        };
        act(running, &mut self.namespaces)
    }

    /// A CPU that came online since has counters that were not read: everything is counted anew.
    fn meet_new_cpus(&mut self) -> io::Result<()> {
        if self.cpus.is_empty() {
            return Ok(());
        }
        let online =
            online_cpus().map_err(|(what, error)| io::Error::other(format!("{what}: {error}")))?;
        if online.iter().all(|cpu| self.cpus.contains(cpu)) {
            return Ok(());
        }
        learn_percpu_offsets(&mut self.ebpf).map_err(io::Error::other)?;
        self.cpus = online;
        self.compare(None)
    }

    /// Facts of this host, with the hook plan.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    /// One hook's counters, with the events that passed while its program could not run, and the answers that
    /// found no room.
    fn account(&self, hook: u32) -> io::Result<HookCounters> {
        let mut counters = maps::counters(&self.counters, hook)?;
        let missed = self.missed.of(hook);
        // What a poll asks for is the state of a socket, told or lost as its changes are.
        let unanswered = if hook == hook::STATE {
            self.answers_lost
        } else {
            0
        };
        counters.seen += missed + unanswered;
        counters.lost += missed + unanswered;
        Ok(counters)
    }

    fn poll_maps(
        &mut self,
        watched: &Watched,
        half_closed_ns: u64,
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let untracked = maps::counters(&self.counters, hook::SEED)?.lost;
        self.seeds.list(untracked, feed)?;
        self.poll_early_drops(now_ns, feed)?;
        self.poll_failures(now_ns, feed)?;
        self.poll_retransmits(now_ns, feed)?;
        self.poll_listeners(&watched.listeners, now_ns, feed)?;
        self.ask_all(&watched.connections, feed)?;
        self.poll_half_closed(now_ns, half_closed_ns, feed)?;
        let places = &self.places;
        self.rings.drain(&mut |record| places.name(record, feed));
        self.look_for_idle(now_ns, feed)?;
        self.poll_lost(now_ns, feed)
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
                if hook == hook::FORK {
                    self.forks
                        .set(FORKS_UNSEEN, now_ns, 0)
                        .map_err(io::Error::other)?;
                }
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

    fn drain(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        let (places, processes, asked) = (&self.places, &mut self.processes, &mut self.asked);
        let more = self.rings.drain(&mut |record| {
            places.name(record, &mut |record| {
                asked.meet(record);
                processes.name(record, feed);
            });
        });
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
        Ok(more)
    }

    fn poll(
        &mut self,
        watched: &Watched,
        half_closed_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let now_ns = ktime_ns();
        if let Some(groups) = &mut self.groups {
            groups.decide(&mut self.processes)?;
        }
        let mut processes = std::mem::take(&mut self.processes);
        let mut asked = std::mem::take(&mut self.asked);
        let polled = self.poll_maps(watched, half_closed_ns, now_ns, &mut |record| {
            asked.meet(record);
            processes.name(record, feed);
        });
        self.processes = processes;
        self.asked = asked;
        polled?;
        self.poll_holders(feed)?;
        let tick = Tick {
            header: header::<Tick>(kind::TICK, ktime_ns()),
        };
        feed(tick.as_bytes());
        Ok(())
    }

    fn reconcile(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        if let Some(clock) = self.clock.set(realtime_offset_ns(), ktime_ns()) {
            feed(clock.as_bytes());
        }
        self.meet_new_cpus()?;
        self.compare(Some(feed))
    }

    fn accounts(&self) -> io::Result<Vec<(&'static str, HookCounters)>> {
        (0..)
            .zip(HOOKS)
            .map(|(hook, name)| Ok((name, self.account(hook)?)))
            .collect()
    }
}

const fn unread(source: io::Error) -> CannotTrace {
    CannotTrace::Kernel {
        what: "reading the kernel's counters",
        source,
    }
}

/// CLOCK_MONOTONIC, which is what `bpf_ktime_get_ns` reads.
pub(super) fn ktime_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// The header of a record that user space makes itself.
pub(super) fn header<T>(kind: u16, ktime_ns: u64) -> Header {
    Header {
        ktime_ns,
        kind,
        size: u16::try_from(size_of::<T>()).unwrap_or(u16::MAX),
        cpu: u32::MAX,
    }
}

fn map<M: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, CannotTrace> {
    ebpf.take_map(name)
        .and_then(|map| M::try_from(map).ok())
        .ok_or(CannotTrace::Foreign(name))
}

fn hash(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, CannotTrace> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(data) | Map::LruHashMap(data)) => Ok(data),
        _ => Err(CannotTrace::Foreign(name)),
    }
}
