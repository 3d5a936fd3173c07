//! Sockets as they were when they were asked about.

use std::time::Duration;

use super::{Owner, Socket, Tcp};
use crate::finding::Ktime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// When `socket.state` was entered, where that was seen.
    pub since: Option<Ktime>,
}

/// A socket that was there before conntracer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// All zero for what is no full socket: a request, TIME_WAIT, a listener.
    pub tcp: Tcp,
    pub bytes_received: u64,
    /// When the kernel last did anything with it.
    pub active: Option<Ktime>,
    /// Half-closed since then or earlier.
    pub since: Option<Ktime>,
    /// Of a listener.
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Processes that hold a descriptor of it.
    pub holders: u32,
    /// Of a request: SYN-ACKs repeated so far.
    pub num_retrans: u8,
}

/// An established connection on which nothing has passed for long, and that nothing will tell that its peer
/// is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// Since data was last sent or received, or the connection was established.
    pub idle: Duration,
    /// Bytes wait to be sent or acknowledged, and no timer will try; otherwise keepalive is off.
    pub without_timer: bool,
}
