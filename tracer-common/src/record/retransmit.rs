//! What a connection sent again, and what of it was for nothing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Header, Owner, Socket, Tcp};
use crate::{retransmit::class, undo::way};

/// One `tcp_retransmit_skb`: one buffer of one or more segments.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Retransmit {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub seq: u32,
    pub end_seq: u32,
    /// Segments in the buffer (`tcp_gso_segs`, at least 1).
    pub segs: u32,
    /// 0, or a positive errno: the segment was not sent (kernels from 6.17 on say so).
    pub error: u32,
    pub tcp_flags: u8,
    pub sacked: u8,
    /// 1: the kernel tells of what it could not send, so that every attempt is a record.
    pub failures_traced: u8,
    pub pad: u8,
    /// Segments that the peer said came twice (`tcp_sock.dsack_dups`), in the socket's life.
    pub dsack_dups: u32,
}

/// What one connection sent again, cumulative. Whole events are counted, so that two readings subtract.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RetransmitTotals {
    /// ktime of the first event, which tells this count from an earlier one of the same connection.
    pub first_ns: u64,
    /// Events: buffers, each of one or more segments.
    pub events: u64,
    /// Segments that left, by [`class`].
    pub segments: [u64; class::COUNT],
    /// Segments that were not sent.
    pub failed: u64,
    /// Segments that the socket counted between two events (`total_retrans`): attempts that failed, where the
    /// kernel is silent about those, and otherwise events that no program saw.
    pub unseen: u64,
    /// Of those that left: full-sized ones, and ones sent into a window that is shut.
    pub full: u64,
    pub shut: u64,
    /// Events that repeated the first segment that is not acknowledged, and of them the full-sized ones.
    pub heads: u64,
    pub full_heads: u64,
    /// Events before which the peer acknowledged, or sent, something since the last one.
    pub progress: u64,
    pub peer_spoke: u64,
    /// The smallest segment among `full_heads` in bytes; 0 when there is none.
    pub full_head_bytes: u32,
    /// At the last event: the smallest round trip lately (`net.ipv4.tcp_min_rtt_wlen`), and the path MTU that
    /// the kernel believes in; 0 where it does not tell.
    pub min_rtt_us: u32,
    pub pmtu: u32,
    /// 1: read from the map by userspace, beside the records that tell of single events.
    pub polled: u8,
    /// 1: the kernel tells whether ICMP told of a smaller path.
    pub tells_icmp: u8,
    /// The largest packet that passes, as the last such ICMP message about the socket said (`tcp_sock.mtu_info`);
    /// 0 when none came.
    pub icmp_mtu: u16,
}

/// The interface that a connection sends by.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Egress {
    /// `net_device.name`, NUL-padded; empty when not known.
    pub device: [u8; 16],
    pub ifindex: u32,
    pub pad: u32,
}

/// The last `tcp_retransmit_skb` of a connection and all there were: emitted for the first one and then at
/// most once in [`RETRANSMIT_INTERVAL_NS`], polled otherwise, so that a storm of any size is counted exactly.
/// What finds no room to be counted in, and what a handshake repeats, comes as a [`Retransmit`] each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Retransmits {
    pub last: Retransmit,
    pub totals: RetransmitTotals,
    /// Of the last one.
    pub egress: Egress,
}

/// What the kernel took back of what it did about one connection's losses, cumulative.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct UndoTotals {
    /// How often, by [`way`].
    pub undos: [u64; way::COUNT],
    /// Segments that were repeated for nothing. Of those that the peer had said came twice by then, none.
    pub segments: u64,
}

/// The kernel took back what it did about a loss that was none (`tcp_undo_cwnd_reduction`), as told with the
/// connection's [`Retransmits`]: the first one, and then at most once in [`RETRANSMIT_INTERVAL_NS`], polled
/// otherwise. Where its retransmissions find no room to be counted in, a record each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Undo {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// [`RetransmitTotals::first_ns`] of the count that it belongs to; 0 when it is of one alone.
    pub first_ns: u64,
    pub totals: UndoTotals,
    /// `tcp_sock.dsack_dups` at the last one, as in [`Retransmit`].
    pub dsack_dups: u32,
    pub pad: u32,
}

/// Shortest time between two [`Retransmits`] records of one connection: a rate over three seconds needs no
/// more, and 1,000 connections that lose cost 4 MB a second at most, whatever they send.
pub const RETRANSMIT_INTERVAL_NS: u64 = 100_000_000;
