//! Where records come from: the seam between the kernel (or a fake of it in tests) and the pipeline.

use std::io;

use conntracer_common::stats::HookCounters;

use crate::{id::SocketId, time::Ktime};

/// What the detectors want to see at the next poll, whatever happened to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watched {
    /// Silent connections, whose recovery no hook tells.
    pub connections: Vec<SocketId>,
    /// Listeners with an open finding.
    pub listeners: Vec<SocketId>,
    /// Listeners whose queues are told of whoever waits there, and for how long a connection waits in one that is told of
    /// besides.
    pub queues: Vec<SocketId>,
    pub waiting_ns: u64,
    /// Connections whose receiving side is to be told of, whether its window is shut or not.
    pub receivers: Vec<SocketId>,
    /// A silent connection, of whose address the others are to tell.
    pub silent: Option<Silent>,
}

/// An address that does not answer one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silent {
    pub netns: u32,
    pub family: u16,
    /// As in records: IPv4 is v4-mapped.
    pub remote_addr: [u32; 4],
    pub since: Ktime,
}

/// A live supply of raw records. Every record it hands out is complete and starts with a
/// [`conntracer_common::record::Header`].
pub trait Source {
    /// Completes when a record that cannot wait is in the rings. Cancel-safe.
    fn readable(&self) -> impl Future<Output = io::Result<()>>;

    /// Hands out everything now in the rings, in the order of `ktime_ns`; says whether more came meanwhile, which
    /// `readable` may not tell.
    fn drain(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<bool>;

    /// Asks the kernel's maps: listeners that are watched or whose totals changed (`Syn` with outcome
    /// 255), accept queues in which connections wait (`AcceptQueue`), who troubled them since the last poll (`Sources`), SYNs dropped before a listener
    /// (`EarlyDrop`), connections whose receive window is shut and those that are watched (`Receive`), a `Snapshot` of each watched connection, sockets half-closed for longer than
    /// `half_closed_ns` (`Snapshot`), what was lost (`Loss`), and last a `Tick` with the current ktime.
    fn poll(
        &mut self,
        watched: &Watched,
        half_closed_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()>;

    /// Holds the kernel's own counters against the eBPF side's: a `Netns` for each namespace where
    /// either changed. And a `Clock` where the wall clock was set.
    fn reconcile(&mut self, feed: &mut dyn FnMut(&[u8])) -> io::Result<()>;

    /// The eBPF side's accounts, hook by hook, in the order of `conntracer_common::stats::HOOKS`.
    fn accounts(&self) -> io::Result<Vec<(&'static str, HookCounters)>>;
}
