//! Connections whose receive window is shut.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket};

/// Bits of [`Receive::flags`].
pub mod receive_flag {
    /// Data waits to be read, and the window has no room for a segment.
    pub const SHUT: u32 = 1;
}

/// The receiving side of a connection. Written when userspace asks about the socket: where its window is shut, or of any
/// that userspace watches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Receive {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Since data last came; `u64::MAX` where it never did.
    pub data_idle_ns: u64,
    /// The sequence number of the next byte that the process reads.
    pub copied_seq: u32,
    /// Bytes that wait to be read (Recv-Q).
    pub unread: u32,
    /// Bytes that the peer may send now (`tcp_receive_window`).
    pub window: u32,
    /// The largest segment that came (`icsk_ack.rcv_mss`).
    pub mss: u32,
    /// Memory of what waits (`sk_rmem_alloc`), and how much it may be (`sk_rcvbuf`). Bytes.
    pub memory: u32,
    pub memory_max: u32,
    /// Bits of [`receive_flag`].
    pub flags: u32,
    pub pad: [u8; 4],
}
