//! Connections that wait for accept().

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket};

/// Connections of one queue that a look goes through: of the others only their number is known.
pub const MAX_WAITING: u32 = 128;

/// Bits of [`AcceptQueue::flags`].
pub mod accept_queue_flag {
    /// The oldest waits for as long as was asked about, or longer.
    pub const LATE: u8 = 1;
}

/// The accept queue of a listener at one look, made by a program that userspace runs.
///
/// `socket` is the listener with the remote end of the connection that waits the longest; `owner` is the listener's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct AcceptQueue {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// For how long the oldest has waited since its handshake was over; 0 where none waits, `u64::MAX` where it is not
    /// known.
    pub oldest_ns: u64,
    /// As in [`super::Syn`].
    pub last_accept_ns: u64,
    pub accepted: u64,
    pub completed: u64,
    /// Connections that a look found in the queue after the client's FIN, or after a RST had ended them, each counted
    /// once.
    pub fins: u64,
    pub resets: u64,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Connections that were gone through, at most [`MAX_WAITING`]; of these, those after the client's FIN, and those that
    /// a RST has ended.
    pub waiting: u32,
    pub fins_now: u32,
    pub resets_now: u32,
    /// Bits of [`accept_queue_flag`].
    pub flags: u8,
    pub pad: [u8; 3],
    /// The local end of the one that waits the longest: the listener's may be any address.
    pub oldest_local: [u32; 4],
    pub pad2: [u8; 8],
}
