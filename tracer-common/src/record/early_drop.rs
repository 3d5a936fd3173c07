//! Segments that the kernel dropped, and SYNs that no listener saw.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket};

/// A TCP segment freed by `kfree_skb`. `socket` holds what the packet says as the receiver sees it:
/// local is the destination. `sk` is 0 when no socket was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Drop {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Kernel address that dropped it.
    pub location: u64,
    pub seq: u32,
    /// `enum skb_drop_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    pub tcp_flags: u8,
    pub pad: [u8; 7],
}

/// Where on its way a packet was: the netfilter hook that a filtered one was dropped at.
pub mod path {
    /// The loopback gives every packet its route before it arrives, so that it does not tell.
    pub const UNKNOWN: u8 = 0;
    /// No route yet.
    pub const PREROUTING: u8 = 1;
    /// The route leads to this host.
    pub const INPUT: u8 = 2;
    /// The route leads elsewhere.
    pub const FORWARD: u8 = 3;

    pub const NAMES: [&str; 4] = ["unknown", "prerouting", "input", "forward"];
}

/// Bits of [`EarlyDrop::hints`]: what speaks for a cause where the kernel gives no reason. Zero where it
/// gives one.
pub mod early_drop_hint {
    /// This CPU's counters of the namespace that rose since its last dropped TCP segment:
    /// `Tcp InCsumErrors`, `TcpExt TCPMD5NotFound`/`Unexpected`/`Failure`, `TcpExt
    /// IPReversePathFilter`, `Tcp OutRsts`.
    pub const CHECKSUM: u8 = 1;
    pub const MD5: u8 = 2;
    pub const REVERSE_PATH: u8 = 4;
    pub const RESET_SENT: u8 = 8;
    /// The counters could be read.
    pub const COUNTED: u8 = 16;
    /// A listener of that address and port is known; it has a socket filter.
    pub const LISTENER: u8 = 32;
    pub const SOCKET_FILTER: u8 = 64;
    /// It was dropped before it had a route, and its device has an XDP program in generic mode.
    pub const XDP: u8 = 128;
}

/// Which part of the kernel [`EarlyDrop::location`] lies in; named by userspace.
pub mod early_drop_place {
    /// Not looked up, or none of the others.
    pub const UNKNOWN: u8 = 0;
    pub const NETFILTER: u8 = 1;
    /// The route of a received packet: reverse path, or no route at all.
    pub const ROUTE: u8 = 2;
    pub const TCP: u8 = 3;

    pub const NAMES: [&str; 4] = ["unknown", "netfilter", "route", "tcp"];
}

/// SYNs that came in and were freed by `kfree_skb` before a listener decided on them, cumulative by
/// where they were to go and why. Emitted for the first one and then at most once in
/// [`SYN_INTERVAL_NS`](super::SYN_INTERVAL_NS), within [`EARLY_DROP_INTERVAL_NS`] of every CPU; polled otherwise.
///
/// `socket` is where they were to go, with the last one's remote end; its `sk` is the listener there, 0
/// when none is known, and `owner` is the listener's. Port 0 stands for all that found the map full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct EarlyDrop {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// SYNs since `first_ns`, which tells this count from an earlier one of the same place.
    pub count: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// Kernel address that dropped them, where the kernel gives no reason.
    pub location: u64,
    /// One bit by each remote address's hash: as many remotes at least as there are bits.
    pub remotes: u64,
    /// What the listener is bound to; all zero with no port when none is known.
    pub listener_addr: [u32; 4],
    /// `net_device.name` that the last one came by, where it is still known.
    pub device: [u8; 16],
    /// Of the same device; 0 when it was never received.
    pub ifindex: u32,
    /// `enum skb_drop_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// One of [`path`].
    pub path: u8,
    /// One of [`early_drop_place`].
    pub place: u8,
    /// Bits of [`early_drop_hint`].
    pub hints: u8,
    pub pad: [u8; 5],
}

/// Shortest time between two [`EarlyDrop`] records of one CPU: a scan of every port is a first SYN each
/// time, and must leave the ring to others. The poll brings what was left out.
pub const EARLY_DROP_INTERVAL_NS: u64 = 10_000_000;
