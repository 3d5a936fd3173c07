//! What the eBPF side keeps per socket between events: the values of the `SOCKETS`, `LISTENERS`,
//! `RETRANSMITS`, `EARLY_DROPS`, `FAILURES` and `BINDS` maps.
//!
//! Written by `tracer-ebpf`; userspace sweeps the former for half-closed sockets and reads the others'
//! totals.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::record::{Bind, EarlyDrop, Failure, Owner, Retransmits, Socket, Syn, UndoTotals};

/// [`SocketState::listener`] of a connection that its application had closed before it was first seen: whose it was,
/// its listener does not tell.
pub const NOBODYS: u64 = u64::MAX;

/// One connection, from birth (or first coverage) to `tcp_destroy_sock`. The key is the address of its
/// `struct sock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SocketState {
    /// See [`crate::record::Socket::born_ns`].
    pub born_ns: u64,
    /// When `state` was entered; only CLOSE_WAIT and FIN_WAIT2 are kept.
    pub since_ns: u64,
    /// Address of the listener it came from, 0 when none or unknown, [`NOBODYS`] where it has no owner to inherit.
    pub listener: u64,
    /// See [`Listener::owned_ns`].
    pub owned_ns: u64,
    pub owner: Owner,
    /// The half-closed state it is in, 0 when in none.
    pub half_closed: u8,
    /// One of [`crate::record::role`].
    pub role: u8,
    /// 1 once a retransmission, timeout or unanswered probe was seen: its end will be emitted.
    pub troubled: u8,
    /// 1 when its birth was not seen.
    pub older: u8,
    /// What the filter says of the owner, one of [`crate::filter::verdict`].
    pub verdict: u8,
    /// 1 while it recovers from a loss that the kernel may take back (tracepoint hook type only).
    pub undoable: u8,
    /// 1 once it was said to be accepted.
    pub accepted: u8,
    /// 1 once a look at its listener's accept queue found that its client had ended it.
    pub ended_waiting: u8,
    pub held: Held,
}

/// Which processes hold a socket, as the last search for owners found them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Held {
    /// Which search that was.
    pub search: u32,
    /// The last process found, which may hold it more than once.
    pub pid: u32,
    pub holders: u32,
    /// The parent of the owner that a search found.
    pub parent: u32,
}

/// One process that holds a socket, as the walk over all open files writes it for userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Holder {
    pub sk: u64,
    pub born_ns: u64,
    pub owner: Owner,
    /// Whom the eBPF side has for its owner: pid and start, as in [`Owner`].
    pub owner_pid: u32,
    pub owner_started_ms: u32,
    pub owner_source: u8,
    pub pad: [u8; 7],
}

/// Bytes of a key of the `DROPPED` map.
pub const DROPPED_KEY_BYTES: usize = 64;

/// Drop reasons of the kernel's core that the eBPF side looks up; 7.x has some 130.
pub const DROP_REASONS: u32 = 256;

/// Functions by which drops are told apart where the kernel gives no reason.
pub const DROP_PLACES_MOST: usize = 8;

/// The code of one of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct DropPlace {
    pub start: u64,
    /// 0 where there is none.
    pub end: u64,
    /// One of [`crate::record::drop_layer`].
    pub layer: u64,
}

/// The process that a socket falls to which its owner no longer holds, written by userspace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Heir {
    pub owner: Owner,
    /// Whose it was when that was found out: a hook may have learned better since.
    pub before_pid: u32,
    pub pad: u32,
}

/// One listener: its cumulative record, and bookkeeping that never leaves the kernel. The key is the
/// address of its `struct sock`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Listener {
    pub syn: Syn,
    /// When the owner last was known to hold it alone: as it became the owner, or before a search that found
    /// nobody else. A fork() since gave it to a child, too.
    pub owned_ns: u64,
    /// When a bad outcome was last emitted.
    pub emitted_ns: u64,
    /// Bits of the outcomes emitted at least once.
    pub emitted: u32,
    /// `sk_drops` when first seen (tracepoint hook type only).
    pub drops_base: u32,
    /// How much `sk_drops` rose since for known reasons (tracepoint hook type only).
    pub drops_explained: u64,
    /// Addresses of the members after and before it in its `SO_REUSEPORT` group, 0 for none
    /// (tracepoint hook type only).
    pub group_next: u64,
    pub group_previous: u64,
    /// The second in which retransmitted SYN-ACKs were last emitted, and how many.
    pub synacks_from_ns: u64,
    pub synacks: u32,
    /// 1: members after it belong to other processes. Its address alone does not tell whose a connection is.
    pub mixed: u8,
    /// What the filter says of the owner, one of [`crate::filter::verdict`].
    pub verdict: u8,
    pub pad: [u8; 2],
    pub held: Held,
    /// See [`crate::record::AcceptQueue::fins`].
    pub fins: u64,
    pub resets: u64,
}

/// Places of the `FORKS` map, a power of two: half a megabyte, and a place of its own for every process where
/// pids end at 32,768, as they do by the kernel's default. Where they go higher, processes 65,536 apart share
/// one: a fork() of either is taken for the other's, whose sockets are then said to be `FORKED` without need.
pub const FORK_PLACES: u32 = 65_536;

/// The place after these: a time before which any process may have forked unseen.
pub const FORKS_UNSEEN: u32 = FORK_PLACES;

/// Where `FORKS` keeps the last fork() of a process.
#[must_use]
pub const fn fork_place(pid: u32) -> u32 {
    pid % FORK_PLACES
}

/// What one connection sent again: its cumulative record, and what was last emitted of it.
///
/// Written under the socket's lock, read by userspace at any time: it is whole where `finished`, which
/// a walk copies first and a writer sets last, equals `started`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Retransmitted {
    pub finished: u64,
    pub retransmits: Retransmits,
    /// When, and how many events the last record that found room told of.
    pub emitted_ns: u64,
    pub emitted: u64,
    pub undone: Undone,
    pub started: u64,
}

/// What the kernel took back of it, and what was last emitted of that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Undone {
    pub totals: UndoTotals,
    pub last_ns: u64,
    pub emitted_ns: u64,
    /// How many undos the last record that found room told of.
    pub emitted: u64,
    pub dsack_dups: u32,
    pub pad: u32,
}

/// Bytes of a key of the `RETRANSMITS` map; the record says all that is in it.
pub const RETRANSMITTED_KEY_BYTES: usize = 16;

/// SYNs dropped on their way to one address for one reason: their cumulative record, and when it was
/// last emitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct EarlyDropEntry {
    pub early_drop: EarlyDrop,
    pub emitted_ns: u64,
}

/// Bytes of a key of the `EARLY_DROPS` map; the record says all that is in it.
pub const EARLY_DROP_KEY_BYTES: usize = 40;

/// One process's failed attempts to connect to one remote end: their cumulative record, and when it was
/// last emitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Failed {
    pub failure: Failure,
    pub emitted_ns: u64,
}

/// One process's calls of bind() or listen() for one address that failed alike: as [`Failed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct BindFailed {
    pub bind: Bind,
    pub emitted_ns: u64,
}

/// Bytes of a key of the `BINDS` map; the record says all that is in it.
pub const BIND_KEY_BYTES: usize = 32;

/// Which ports the walk over all open files looks for holders of, in one namespace, or with 0 in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SoughtPorts {
    pub netns: u32,
    pub low: u16,
    pub high: u16,
}

/// A TCP socket bound to one of them, and a process that holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct PortHolder {
    pub socket: Socket,
    pub owner: Owner,
    /// Bits of [`crate::record::bind_flag`].
    pub flags: u8,
    pub pad: [u8; 7],
}

/// An ICMP message about a SYN: the value of the `ICMP_SAID` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct IcmpSaid {
    pub remote_addr: [u32; 4],
    pub from: [u32; 4],
    pub ktime_ns: u64,
    pub netns: u32,
    pub icmp_type: u8,
    pub icmp_code: u8,
    pub pad: [u8; 2],
}

/// Its key: the ports, and the namespace with the last word of the remote address; the value has both whole.
#[must_use]
#[inline]
pub fn icmp_key(netns: u32, local_port: u16, remote_port: u16, remote_word: u32) -> u64 {
    (u64::from(netns ^ remote_word) << 32) | (u64::from(local_port) << 16) | u64::from(remote_port)
}

/// Bytes of a key of the `FAILURES` map; the record says all that is in it.
pub const FAILED_KEY_BYTES: usize = 32;
