//! Sockets that were there before the tracer.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket, Tcp};

/// One socket that was there before the tracer, as found by the walk at start (the programs of
/// `probes::seed`). Of a request or a socket in TIME_WAIT, only `socket`, `owner` and `num_retrans` are
/// filled in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Seed {
    pub header: Header,
    /// `born_ns` is when the tracer began, 0 when the eBPF side has no room for the socket.
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub bytes_received: u64,
    /// When the kernel last did anything with the socket (`tcp_mstamp`); 0 when not known.
    pub active_ns: u64,
    /// Half-closed since then or earlier; 0 when not half-closed.
    pub since_ns: u64,
    /// Accept queue length and limit of a listener.
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Processes that hold a descriptor of it.
    pub holders: u32,
    /// Of a request: SYN-ACKs retransmitted so far.
    pub num_retrans: u8,
    pub pad: [u8; 3],
    /// How long ago the peer last acknowledged or sent anything; `u64::MAX` when never, or not known.
    pub heard_idle_ns: u64,
    /// As in [`Snapshot`](super::Snapshot).
    pub retrans_stamp: u32,
    pub pad_to_8: u32,
}
