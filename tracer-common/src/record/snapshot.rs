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
    /// How long ago data last came, data was last sent (again, too), and anything of the peer's that acknowledges
    /// last came (`rcv_tstamp`), as `ss -i` shows them; `u64::MAX` when never, or when the kernel does not tell.
    pub received_idle_ns: u64,
    pub sent_idle_ns: u64,
    pub heard_idle_ns: u64,
    /// Bytes that came and were not read; the peer's FIN is none.
    pub unread: u32,
    /// When what is not acknowledged was first sent again (`tcp_sock.retrans_stamp`), in the milliseconds of
    /// CLOCK_MONOTONIC; 0 when it was not.
    pub retrans_stamp: u32,
    /// Bits of [`snapshot_flag`].
    pub flags: u8,
    pub pad: [u8; 7],
}

/// Bits of [`Snapshot::flags`].
pub mod snapshot_flag {
    /// No application has accepted it yet (`sk_socket` is NULL, and nobody has closed it).
    pub const NOT_ACCEPTED: u8 = 1;
    /// The peer's FIN came (`SOCK_DONE`), and the application has not read up to it.
    pub const END_UNREAD: u8 = 2;
}
