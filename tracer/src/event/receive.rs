//! The receiving side of a connection.

use std::time::Duration;

use conntracer_common::record::{self, receive_flag};

use super::{owner::Owner, raw::DecodeError, socket::Socket};

/// How much a connection has received that nobody has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// Since data last came; `None` where it never did.
    pub data_idle: Option<Duration>,
    /// The sequence number of the next byte that the process reads.
    pub copied_seq: u32,
    /// Bytes that wait to be read (Recv-Q).
    pub unread_bytes: u32,
    /// Bytes that the peer may send now.
    pub window_bytes: u32,
    /// Memory of what waits, and how much it may be.
    pub memory_bytes: u32,
    pub memory_max_bytes: u32,
    /// Data waits to be read, and the window has no room for a segment.
    pub is_shut: bool,
}

impl Receive {
    pub(super) fn decode(raw: &record::Receive) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            data_idle: (raw.data_idle_ns != u64::MAX)
                .then(|| Duration::from_nanos(raw.data_idle_ns)),
            copied_seq: raw.copied_seq,
            unread_bytes: raw.unread,
            window_bytes: raw.window,
            memory_bytes: raw.memory,
            memory_max_bytes: raw.memory_max,
            is_shut: raw.flags & receive_flag::SHUT != 0,
        })
    }
}
