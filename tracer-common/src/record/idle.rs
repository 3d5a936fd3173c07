//! Connections that nothing has passed on for long.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket, Tcp};

/// Bits of [`Idle::flags`].
pub mod idle_flag {
    /// It is established, and `SO_KEEPALIVE` is not set.
    pub const KEEPALIVE_OFF: u32 = 1;
    /// Bytes wait to be sent or acknowledged, and no timer will try (`icsk_pending` is 0).
    pub const NO_TIMER: u32 = 2;
}

/// A connection that no data has passed on for as long as userspace asks about, and that nothing will tell that
/// its peer is gone. Written when userspace asks about the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
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
