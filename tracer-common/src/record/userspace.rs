//! What userspace puts into the stream itself, so that a recording holds all that detectors go by.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket};
use crate::netns::{KernelCounts, NetnsId};

/// Every connection was asked how long it has been idle; made by userspace: the [`Idle`](super::Idle) records since the last
/// one are all there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IdleTotals {
    pub header: Header,
    /// Connections asked about; the others are younger than the limit.
    pub asked: u32,
    /// Of those, the ones that an `Idle` was written of, and the ones that found no room for it.
    pub said: u32,
    pub lost: u32,
    pub pad: u32,
    /// How long a connection must have been idle.
    pub limit_ns: u64,
}

/// What the other connections of this host to the address of a silent one show, asked for by userspace: whether the
/// address answers those.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Beside {
    pub header: Header,
    /// As in [`Socket`](super::Socket).
    pub remote_addr: [u32; 4],
    /// For how long the one that was asked for is silent.
    pub silent_ns: u64,
    /// How long ago any of them last heard of the address; `u64::MAX` when none ever did.
    pub heard_idle_ns: u64,
    pub netns: u32,
    /// Connections to the address, that one included, and those of them that heard of it within that time.
    pub connections: u32,
    pub answered: u32,
    pub family: u16,
    pub pad: u16,
}

/// Somebody asked how things stand (SIGUSR1), made by userspace: every open finding is said again. All that led up to
/// it stands before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Checkpoint {
    pub header: Header,
}

/// The wall clock was set, or the machine slept, made by userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Clock {
    pub header: Header,
    /// CLOCK_REALTIME − CLOCK_MONOTONIC from now on, nanoseconds.
    pub realtime_offset_ns: i64,
}

/// Half-closed sockets of one process that a poll counts and does not ask for one by one, made by the user
/// half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HalfClosed {
    pub header: Header,
    pub owner: Owner,
    /// How many there are beyond those that a [`Snapshot`](super::Snapshot) is written of.
    pub count: u64,
    /// CLOSE_WAIT or FIN_WAIT2.
    pub state: u8,
    pub pad: [u8; 7],
}

/// The walk at start is over, made by userspace: what it could not see, and how long it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Seeded {
    pub header: Header,
    /// Sockets that found no room in the eBPF side's maps.
    pub untracked: u64,
    pub took_ns: u64,
    /// Network namespaces walked, and those that nothing leads into.
    pub namespaces: u32,
    pub not_entered: u32,
}

/// Time passing: userspace writes one into the stream at every poll, so that detectors take
/// time only from records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Tick {
    pub header: Header,
}

/// Records that were lost before they reached `decode`, as counted where it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Loss {
    pub header: Header,
    /// Lost since the last `Loss` record of this hook.
    pub lost: u64,
    /// Index into [`crate::stats::HOOKS`].
    pub hook: u32,
    /// Of those, the ones that no program saw, so that nothing counted them; 0 in older recordings.
    pub missed: u32,
}

/// Bits of [`Netns::flags`].
pub mod netns_flag {
    /// Counted from the namespace's birth on; otherwise from conntracer's first look at it.
    pub const BORN: u8 = 1;
    /// A filter by port, address or listener is in force: nothing can be compared.
    pub const FILTERED: u8 = 2;
    /// The kernel's counters cannot be read here.
    pub const UNREADABLE: u8 = 4;
    /// The kernel does not tell of segments that it could not send again.
    pub const FAILURES_UNTRACED: u8 = 8;
    /// The namespace is gone, and no other has its inode yet. The counters are the last that were read.
    pub const GONE: u8 = 16;
}

/// The kernel's own counters of a network namespace and what conntracer counted there, both since the
/// same moment, made by userspace. With inode 0: what is to be said of all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Netns {
    pub header: Header,
    /// Indexed by [`crate::netns::kernel`].
    pub kernel: KernelCounts,
    /// What conntracer had counted before `kernel` was read, and after.
    pub before: KernelCounts,
    pub after: KernelCounts,
    pub id: NetnsId,
    /// Namespaces that are not compared, and counts that found no room, for want of a larger table.
    pub uncompared: u32,
    pub untracked: u32,
    /// Bits of [`netns_flag`].
    pub flags: u8,
    pub pad: [u8; 7],
}

/// Bytes of the texts in a [`Process`]. What is longer loses its beginning, and a flag says so.
pub const EXECUTABLE_BYTES: usize = 128;
pub const CGROUP_BYTES: usize = 208;
pub const NETNS_NAME_BYTES: usize = 64;

/// Bits of [`Process::flags`].
pub mod process_flag {
    /// The process was gone when it was asked for: what only itself could tell is missing.
    pub const GONE: u8 = 1;
    /// The last bytes of a longer path.
    pub const EXECUTABLE_CUT: u8 = 2;
    pub const CGROUP_CUT: u8 = 4;
}

/// What names an owner to people, asked for by userspace before the first record of that owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Process {
    pub header: Header,
    /// When it started, milliseconds since 1970; 0 when not known.
    pub started_unix_ms: u64,
    /// As in its [`Owner`].
    pub cgroup_id: u64,
    pub pid: u32,
    pub started_ms: u32,
    /// Inode of the network namespace that `netns_name` is the name of: the socket's.
    pub netns: u32,
    /// Bits of [`process_flag`].
    pub flags: u8,
    pub pad: [u8; 3],
    /// Path of the executable, NUL-padded, any bytes; empty when not known.
    pub executable: [u8; EXECUTABLE_BYTES],
    /// Path of the control group below the root of its hierarchy; empty when not known.
    pub cgroup: [u8; CGROUP_BYTES],
    /// Name of the namespace (`ip netns`); empty when it has none.
    pub netns_name: [u8; NETNS_NAME_BYTES],
}

/// Owners in a [`Holders`]: as many as a person reads. Of more, the number is told.
pub const MAX_HOLDERS: usize = 8;

/// Who holds a socket that is in trouble, as a search through the open files of all processes found, made by
/// userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Holders {
    pub header: Header,
    pub socket: Socket,
    /// The socket's owner first, the others by their pids; those beyond `count` are zero.
    pub owners: [Owner; MAX_HOLDERS],
    /// Processes in all.
    pub count: u32,
    /// Whose the socket was said to be when they were searched for, 0 when nobody's.
    pub said_pid: u32,
}

/// Bits of [`Acceptor::flags`].
pub mod acceptor_flag {
    /// A search found that it holds the listener; otherwise it is the listener's owner, or a child of the owner's.
    pub const HOLDS: u8 = 1;
    /// The last of this look.
    pub const LAST: u8 = 2;
    /// Its control group, or one above, is frozen.
    pub const FROZEN: u8 = 4;
    /// It was gone when it was looked at.
    pub const GONE: u8 = 8;
    /// Its threads were not all counted.
    pub const MANY_THREADS: u8 = 16;
}

/// Not known, of the numbers of an [`Acceptor`] and of [`NetnsFacts`].
pub const UNKNOWN_COUNT: u32 = u32::MAX;
pub const UNKNOWN_TOTAL: u64 = u64::MAX;

/// How a process stands that may accept the connections of a listener in trouble, made by userspace from /proc. One
/// look at a listener is one of these a process, with the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Acceptor {
    pub header: Header,
    /// The listener.
    pub socket: Socket,
    /// Times and microseconds that its control group, or the worst one above, was throttled since it was made
    /// (`cpu.stat`); [`UNKNOWN_TOTAL`] where that cannot be read.
    pub throttled: u64,
    pub throttled_us: u64,
    /// Milliseconds that it has run so far.
    pub cpu_ms: u64,
    pub pid: u32,
    pub parent_pid: u32,
    /// Descriptors in use, and how many it may have (`RLIMIT_NOFILE`, soft); [`UNKNOWN_COUNT`] where that cannot be
    /// read.
    pub descriptors: u32,
    pub descriptor_limit: u32,
    /// Its threads, and those of them that are stopped.
    pub threads: u32,
    pub stopped: u32,
    /// Whose the listener is said to be.
    pub owner_pid: u32,
    /// Where in this look, from 0.
    pub index: u32,
    /// `comm` of its first thread, NUL-padded.
    pub comm: [u8; 16],
    /// The kernel function that its first thread sleeps in (`wchan`), NUL-padded; empty where that is not told.
    pub waits_in: [u8; 24],
    /// The letter of its first thread's state in /proc/PID/stat.
    pub state: u8,
    /// Bits of [`acceptor_flag`].
    pub flags: u8,
    /// What most of its descriptors are, one of [`descriptor_kind`], and how many of them; where it has none to spare.
    pub descriptor_kind: u8,
    pub pad: u8,
    pub descriptors_of_kind: u32,
}

/// What a descriptor leads to, of [`Acceptor::descriptor_kind`].
pub mod descriptor_kind {
    pub const UNKNOWN: u8 = 0;
    pub const SOCKET: u8 = 1;
    pub const PIPE: u8 = 2;
    /// With a path: a file or a device.
    pub const FILE: u8 = 3;
    /// An `anon_inode`: eventfd, epoll, timer and their like.
    pub const ANONYMOUS: u8 = 4;
    pub const COUNT: usize = 5;
}

/// Index into [`NetnsFacts::figures`].
pub mod netns_fact {
    /// Connections in the conntrack table of the namespace, and how many one namespace may have.
    pub const CONNTRACK_COUNT: usize = 0;
    pub const CONNTRACK_MAX: usize = 1;
    /// /proc/net/stat/nf_conntrack, all CPUs: packets that fit no connection; connections that could not be inserted,
    /// with no free port for a translation among them; packets dropped since the table was full; connections removed
    /// early to make room.
    pub const CONNTRACK_INVALID: usize = 2;
    pub const CONNTRACK_INSERT_FAILED: usize = 3;
    pub const CONNTRACK_DROP: usize = 4;
    pub const CONNTRACK_EARLY_DROP: usize = 5;
    /// Two packets at once that made one connection, of which one gave way.
    pub const CONNTRACK_CLASH: usize = 6;
    /// Entries of one bucket beyond the longest chain.
    pub const CONNTRACK_CHAIN_TOO_LONG: usize = 7;
    /// ICMP and ICMPv6 messages "destination unreachable" received.
    pub const ICMP_IN_UNREACHABLE: usize = 8;
    pub const ICMP6_IN_UNREACHABLE: usize = 9;
    /// And sent.
    pub const ICMP_OUT_UNREACHABLE: usize = 10;
    pub const ICMP6_OUT_UNREACHABLE: usize = 11;
    /// Packets that had no route out (IPv4).
    pub const OUT_NO_ROUTES: usize = 12;
    pub const COUNT: usize = 15;
}

/// What is known of a network namespace in trouble, made by userspace from the /proc of a process in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct NetnsFacts {
    pub header: Header,
    /// Indexed by [`netns_fact`]; [`UNKNOWN_TOTAL`] for what is not known.
    pub figures: [u64; netns_fact::COUNT],
    /// Inode of the namespace.
    pub netns: u32,
    pub pad: u32,
}
