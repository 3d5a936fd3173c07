//! Connections that nothing has passed on for long.

use std::time::Duration;

use conntracer_common::record::{self, idle_flag};

use super::{owner::Owner, raw::DecodeError, socket::Socket, tcp::Tcp};

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

impl Idle {
    pub(super) fn decode(raw: &record::Idle) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            idle: Duration::from_nanos(raw.idle_ns),
            without_timer: raw.flags & idle_flag::NO_TIMER != 0,
        })
    }
}
