//! What userspace itself put into the stream.

use std::time::Duration;

use conntracer_common::{
    netns::{KernelCounts, NetnsId},
    record::{CGROUP_BYTES, EXECUTABLE_BYTES, MAX_HOLDERS, NETNS_NAME_BYTES},
    stats::HOOKS,
};

use super::{Owner, Socket, TcpState};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Index into [`HOOKS`], checked by decode.
    pub hook: usize,
    pub lost: u64,
}

/// The kernel's counters of a network namespace and ours, since the same moment. With inode 0: what is to
/// be said of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netns {
    pub id: NetnsId,
    /// Indexed by [`conntracer_common::netns::kernel`]; ours before the kernel's were read, and after.
    pub kernel: KernelCounts,
    pub before: KernelCounts,
    pub after: KernelCounts,
    /// Counted from the namespace's birth on.
    pub born: bool,
    /// Nothing can be compared: a filter is in force, or the kernel's counters cannot be read.
    pub filtered: bool,
    pub unreadable: bool,
    /// The kernel does not tell of segments that it could not send again.
    pub failures_untraced: bool,
    /// Namespaces not compared, and counts that found no room.
    pub uncompared: u32,
    pub untracked: u32,
    /// Counters that the record tells, the first ones; the others are 0 on all sides.
    pub told: usize,
}

/// The walk at start is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Sockets that found no room in the eBPF side's maps.
    pub untracked: u64,
    pub took: Duration,
    /// Network namespaces walked, and those that nothing leads into.
    pub namespaces: u32,
    pub not_entered: u32,
}

/// The audit is over: the [`Idle`](super::Idle) events since the last one are all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleTotals {
    /// Connections asked about, those told of, and those that were lost.
    pub asked: u32,
    pub said: u32,
    pub lost: u32,
    /// How long a connection must have been idle.
    pub limit: Duration,
}

/// The wall clock was set, or the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// CLOCK_REALTIME − CLOCK_MONOTONIC from now on, nanoseconds.
    pub realtime_offset_ns: i64,
}

/// Half-closed sockets of one process that a poll counts beyond those of which it shows a [`Snapshot`](super::Snapshot).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfClosed {
    pub owner: Option<Owner>,
    pub count: u64,
    pub state: TcpState,
}

impl Loss {
    /// The hook's name.
    #[must_use]
    pub fn hook_name(&self) -> &'static str {
        HOOKS.get(self.hook).copied().unwrap_or("unknown")
    }
}

/// Who holds a socket that is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    pub socket: Socket,
    first: [Option<Owner>; MAX_HOLDERS],
    /// Processes in all.
    pub count: u32,
    /// Whose it was said to be until then; 0 when nobody's, and in older recordings.
    pub said_pid: u32,
}

impl Holders {
    #[must_use]
    pub const fn new(
        socket: Socket,
        first: [Option<Owner>; MAX_HOLDERS],
        count: u32,
        said_pid: u32,
    ) -> Self {
        Self {
            socket,
            first,
            count,
            said_pid,
        }
    }

    /// The first of them: the owner, and others by their pids.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.first.iter().flatten()
    }
}

/// What names an owner. Texts are NUL-padded, empty when not known, and any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub started_ms: u32,
    /// Milliseconds since 1970; 0 when not known.
    pub started_unix_ms: u64,
    /// The namespace that `netns_name` names.
    pub netns: u32,
    pub executable: [u8; EXECUTABLE_BYTES],
    /// The beginning is missing.
    pub executable_cut: bool,
    pub cgroup: [u8; CGROUP_BYTES],
    pub cgroup_cut: bool,
    pub netns_name: [u8; NETNS_NAME_BYTES],
}
