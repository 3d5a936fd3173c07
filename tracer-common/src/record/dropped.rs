//! Segments of one connection that this host dropped.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Header;

/// Which part of the kernel drops a segment.
pub mod drop_layer {
    /// Not a drop, or none that says anything about what is wrong.
    pub const NONE: u8 = 0;
    pub const NETFILTER: u8 = 1;
    pub const TC_INGRESS: u8 = 2;
    pub const TC_EGRESS: u8 = 3;
    pub const QDISC: u8 = 4;
    pub const CPU_BACKLOG: u8 = 5;
    pub const XDP: u8 = 6;
    /// A program at a control group.
    pub const BPF: u8 = 7;
    pub const ROUTE: u8 = 8;
    pub const NEIGHBOUR: u8 = 9;
    pub const CHECKSUM: u8 = 10;
    /// A signature that is missing or wrong (MD5, AO, IPsec).
    pub const AUTH: u8 = 11;
    /// The socket's receive buffer, or the memory of TCP.
    pub const RECEIVE_BUFFER: u8 = 12;
    pub const SOCKET_BACKLOG: u8 = 13;
    pub const DEVICE: u8 = 14;

    pub const NAMES: [&str; 15] = [
        "none",
        "netfilter",
        "tc_ingress",
        "tc_egress",
        "qdisc",
        "cpu_backlog",
        "xdp",
        "bpf",
        "route",
        "neighbour",
        "checksum",
        "auth",
        "receive_buffer",
        "socket_backlog",
        "device",
    ];
}

/// Where on its way a dropped segment was: netfilter's hooks.
pub mod drop_hook {
    pub const UNKNOWN: u8 = 0;
    pub const PREROUTING: u8 = 1;
    pub const INPUT: u8 = 2;
    pub const FORWARD: u8 = 3;
    pub const OUTPUT: u8 = 4;
    pub const POSTROUTING: u8 = 5;
    pub const INGRESS: u8 = 6;
    pub const EGRESS: u8 = 7;

    pub const NAMES: [&str; 8] = [
        "unknown",
        "prerouting",
        "input",
        "forward",
        "output",
        "postrouting",
        "ingress",
        "egress",
    ];
}

/// What of a netfilter chain dropped a segment.
pub mod drop_rule {
    pub const UNKNOWN: u8 = 0;
    /// A rule of it, whose handle is known.
    pub const RULE: u8 = 1;
    /// What it does with what no rule decides on.
    pub const POLICY: u8 = 2;
}

/// Segments between two ends that this host dropped at one place for one reason, cumulative. Told by a poll, of those
/// whose connection is in trouble.
///
/// Local is where they were to go. A SYN that came in is no part of it: see [`EarlyDrop`](super::EarlyDrop).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Dropped {
    pub header: Header,
    /// Segments since `first_ns`, which tells this count from an earlier one of the same place.
    pub count: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// Those of them with a FIN.
    pub fins: u64,
    /// Kernel address that dropped the last.
    pub location: u64,
    /// The handle of the netfilter rule; 0 when not known.
    pub rule_handle: u64,
    pub local_addr: [u32; 4],
    pub remote_addr: [u32; 4],
    /// Inode of the namespace that they were dropped in; 0 when not known.
    pub netns: u32,
    /// `enum skb_drop_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// Sequence number of the last.
    pub seq: u32,
    /// The device that the last one came by; 0 when this host sent it.
    pub ifindex: u32,
    pub local_port: u16,
    pub remote_port: u16,
    pub family: u16,
    /// Flags of all of them together.
    pub tcp_flags: u8,
    /// One of [`drop_layer`].
    pub layer: u8,
    /// One of [`drop_hook`].
    pub hook: u8,
    /// One of [`drop_rule`].
    pub rule: u8,
    /// `NFPROTO_*` of the rule's table.
    pub table_family: u8,
    pub pad: [u8; 5],
    /// `net_device.name` of the device that the last one was at.
    pub device: [u8; 16],
    /// Names of the table and the chain, cut off where they are longer; empty where not known.
    pub table: [u8; 32],
    pub chain: [u8; 32],
}
