//! Sockets as they are when userspace asks about them.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket, Tcp};

/// What the programs `idle` and `snapshot` answer when they are asked about a socket.
pub mod answer {
    /// It is gone, not idle for so long, in no need of words, or filtered.
    pub const NOTHING: u32 = 0;
    /// A record was written.
    pub const SAID: u32 = 1;
    /// There was no room for one.
    pub const LOST: u32 = 2;
}

/// The state of a watched socket, asked for by userspace between events.
/// `socket.state` is CLOSE when the socket is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Snapshot {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// When `socket.state` was entered; 0 when not seen.
    pub since_ns: u64,
}
