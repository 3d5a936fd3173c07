//! Sockets as they are when the user half asks about them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Header, Owner, Socket, Tcp};

/// Bits of [`Idle::flags`].
pub mod idle_flag {
    /// It is established, and `SO_KEEPALIVE` is not set.
    pub const KEEPALIVE_OFF: u32 = 1;
    /// Bytes wait to be sent or acknowledged, and no timer will try (`icsk_pending` is 0).
    pub const NO_TIMER: u32 = 2;
}

/// What the programs `idle` and `snapshot` answer when they are asked about a socket.
pub mod answer {
    /// It is gone, not idle for so long, in no need of words, or filtered.
    pub const NOTHING: u32 = 0;
    /// A record was written.
    pub const SAID: u32 = 1;
    /// There was no room for one.
    pub const LOST: u32 = 2;
}

/// A connection that no data has passed on for as long as the audit asked about, and that nothing will tell that
/// its peer is gone. Written when the user half asks about the socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Idle {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// Since data was last sent or received, or the connection was established.
    pub idle_ns: u64,
    /// Bits of [`idle_flag`].
    pub flags: u32,
    pub pad: [u8; 4],
}

/// The state of a watched socket, asked for by the user half between events.
/// `socket.state` is CLOSE when the socket is gone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Snapshot {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// When `socket.state` was entered; 0 when not seen.
    pub since_ns: u64,
}

/// One socket that was there before the tracer, as found by the walk at start (the programs of
/// `probes::seed`). Of a request or a socket in TIME_WAIT, only `socket`, `owner` and `num_retrans` are
/// filled in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Seed {
    pub header: Header,
    /// `born_ns` is when the tracer began, 0 when the kernel half has no room for the socket.
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
    /// Of a request: SYN-ACKs repeated so far.
    pub num_retrans: u8,
    pub pad: [u8; 3],
}
