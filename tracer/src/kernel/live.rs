//! The running kernel as a source of records: its rings, and the polls of its maps in their order.

use std::{cell::OnceCell, io, os::fd::OwnedFd, sync::Arc};

use aya::Ebpf;
use conntracer_common::{
    record::{Tick, kind, netns_flag},
    stats::{HOOKS, HookCounters},
};
use tokio::io::{Interest, unix::AsyncFd};
use zerocopy::IntoBytes;

use super::{
    accounts::Accounts,
    answer::Answers,
    attach::Attached,
    clock::{WallClock, ktime_ns},
    error::CannotTrace,
    header::header,
    maps,
    options::Options,
    owners::OwnerSearch,
    poll::{
        Poll, accept_queue::AcceptQueues, beside::BesideSearch, bind::Binds, dropped::DroppedLooks,
        early_drop::EarlyDrops, failure::Failures, half_closed::HalfClosedSweep, idle::IdleSearch,
        listener::Listeners, loss::Losses, netns::NetnsCounters, port::PortLooks,
        receive::ReceiveLooks, retransmit::RetransmitTotals, seed::Seeds,
    },
    ring::Rings,
    stream::Stream,
    verdicts::GroupVerdicts,
};
use crate::{
    host::Host,
    plan::HookType,
    source::{Source, Watched},
};

type Logger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// What passes the programs' own log on.
fn logger(ebpf: &mut Ebpf) -> Option<Logger> {
    aya_log::EbpfLogger::init(ebpf)
        .inspect_err(|error| log::warn!("the programs' log is not available: {error}"))
        .ok()
}

/// The attached programs, their rings, and what their maps are asked. Dropping it detaches everything.
pub struct LiveKernel {
    ebpf: Ebpf,
    host: Host,
    rings: Rings,
    wake: OnceCell<AsyncFd<OwnedFd>>,
    logger: Option<Logger>,
    stream: Stream,
    accounts: Accounts,
    owners: OwnerSearch,
    groups: Option<GroupVerdicts>,
    seeds: Seeds,
    early_drops: EarlyDrops,
    failures: Failures,
    binds: Binds,
    retransmits: RetransmitTotals,
    listeners: Listeners,
    accept_queues: AcceptQueues,
    half_closed: HalfClosedSweep,
    receive: ReceiveLooks,
    beside: BesideSearch,
    idle: Option<IdleSearch>,
    losses: Losses,
    netns: NetnsCounters,
    clock: WallClock,
}

impl LiveKernel {
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
        let by_state = host.plan.hook_type("ack") == HookType::Tracepoint;
        let sockets = Arc::new(maps::take_hash(&mut ebpf, "SOCKETS")?);
        let listeners = Arc::new(maps::take_hash(&mut ebpf, "LISTENERS")?);
        let cpus = cpus.unwrap_or_default();
        // The last of the maps: it counts from here on.
        let mut kernel = Self {
            rings,
            wake: OnceCell::new(),
            logger: options.verbose.then(|| logger(&mut ebpf)).flatten(),
            stream: Stream::new(
                &host,
                Answers::new(&mut ebpf)?,
                DroppedLooks::new(&mut ebpf)?,
                PortLooks::new(&mut ebpf)?,
            ),
            accounts: Accounts::new(&mut ebpf)?,
            owners: OwnerSearch::new(&mut ebpf)?,
            groups: GroupVerdicts::new(&mut ebpf, &options.owners)?,
            seeds: Seeds::default(),
            early_drops: EarlyDrops::new(&mut ebpf)?,
            failures: Failures::new(&mut ebpf)?,
            binds: Binds::new(&mut ebpf)?,
            retransmits: RetransmitTotals::new(&mut ebpf)?,
            listeners: Listeners::new(&mut ebpf, Arc::clone(&listeners), by_state)?,
            accept_queues: AcceptQueues::new(&mut ebpf, listeners)?,
            half_closed: HalfClosedSweep::new(Arc::clone(&sockets)),
            receive: ReceiveLooks::new(Arc::clone(&sockets)),
            beside: BesideSearch::new(&mut ebpf, Arc::clone(&sockets))?,
            idle: options.idle_ns.map(|limit| IdleSearch::new(sockets, limit)),
            losses: Losses::new(&mut ebpf)?,
            netns: NetnsCounters::new(&mut ebpf, &options.filter, limits, cpus)?,
            clock: WallClock::new(host.realtime_offset_ns),
            ebpf,
            host,
        };
        if iterators.is_ok() {
            kernel.seed(options).map_err(|source| CannotTrace::Kernel {
                what: "walking the sockets that are there",
                source,
            })?;
        }
        kernel
            .accounts
            .begin()
            .map_err(|source| CannotTrace::Kernel {
                what: "reading what the hooks counted",
                source,
            })?;
        Ok(kernel)
    }

    /// Takes in what was there before the hooks were attached.
    fn seed(&mut self, options: &Options) -> io::Result<()> {
        let there = self.netns.inodes(&self.ebpf)?;
        self.seeds = Seeds::begin(&mut self.ebpf, there, &options.filter)?;
        Ok(())
    }

    /// Facts of this host, with the hook plan.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.host
    }

    fn poll_maps(
        &mut self,
        watched: &Watched,
        half_closed_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let asked = self.stream.take_asked_ports();
        let stream = &mut self.stream;
        let mut poll = Poll {
            now_ns: ktime_ns(),
            ebpf: &mut self.ebpf,
            rings: &mut self.rings,
            accounts: &mut self.accounts,
            owners: &mut self.owners,
            feed: &mut |record| stream.pass(record, feed),
        };
        // What was there before comes before what became of it.
        self.seeds.poll(&mut poll)?;
        self.early_drops.poll(&mut poll)?;
        self.failures.poll(&mut poll)?;
        self.binds.poll(&mut poll)?;
        self.retransmits.poll(&mut poll)?;
        self.listeners.poll(&watched.listeners, &asked, &mut poll)?;
        self.accept_queues
            .poll(&watched.queues, watched.waiting_ns, &mut poll)?;
        poll.snapshots(&watched.connections)?;
        self.half_closed.poll(half_closed_ns, &mut poll)?;
        self.receive.poll(&watched.receivers, &mut poll)?;
        self.beside.poll(watched.silent.as_ref(), &mut poll)?;
        // What the programs wrote in the meantime: the search below asks about every connection.
        poll.rings.drain(poll.feed);
        if let Some(idle) = &mut self.idle {
            idle.poll(&mut poll)?;
        }
        // Last: answers that found no room were lost just now.
        self.losses.poll(&mut poll)
    }
}

impl Source for LiveKernel {
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
        let stream = &mut self.stream;
        let more = self.rings.drain(&mut |record| stream.pass(record, feed));
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
        // First: what the programs let through from here on.
        if let Some(groups) = &mut self.groups {
            groups.decide(self.stream.names())?;
        }
        self.poll_maps(watched, half_closed_ns, feed)?;
        // Behind all of them: whose sockets are in trouble is told by the records that came by.
        self.stream
            .poll_holders(&mut self.ebpf, &mut self.owners, feed)?;
        let tick = Tick {
            header: header::<Tick>(kind::TICK, ktime_ns()),
        };
        feed(tick.as_bytes());
        Ok(())
    }

    fn reconcile(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.clock.poll(feed);
        self.netns.poll(&mut self.ebpf, feed)
    }

    fn accounts(&self) -> io::Result<Vec<(&'static str, HookCounters)>> {
        (0..)
            .zip(HOOKS)
            .map(|(hook, name)| Ok((name, self.accounts.of(hook)?)))
            .collect()
    }
}
