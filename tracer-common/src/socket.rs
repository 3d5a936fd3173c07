//! What the kernel half keeps per socket between events: the value of the `SOCKETS` map.
//!
//! Written by `tracer-ebpf`, swept by the user half for half-closed sockets.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::record::Owner;

/// One connection, from birth (or first sight) to `tcp_destroy_sock`. The key is the address of its
/// `struct sock`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct SocketState {
    /// See [`crate::record::Socket::born_ns`].
    pub born_ns: u64,
    /// When `state` was entered; only CLOSE_WAIT and FIN_WAIT2 are kept.
    pub since_ns: u64,
    /// Address of the listener it came from, 0 when none or unknown.
    pub listener: u64,
    pub owner: Owner,
    /// The half-closed state it is in, 0 when in none.
    pub half_closed: u8,
    /// One of [`crate::record::role`].
    pub role: u8,
    /// 1 once a retransmission, timeout or unanswered probe was seen: its end will be emitted.
    pub troubled: u8,
    pub pad: [u8; 5],
}
