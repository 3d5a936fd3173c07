//! Connections that wait for accept().

use std::{net::SocketAddr, time::Duration};

use conntracer_common::record::{self, accept_queue_flag};

use super::{
    Side,
    owner::Owner,
    raw::{DecodeError, when},
    socket::{Socket, address},
};
use crate::time::Ktime;

/// The accept queue of a listener at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptQueue {
    /// The listener.
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// The remote end of the connection that waits the longest, and for how long it has, where that is known.
    pub oldest_remote: Option<SocketAddr>,
    pub oldest_local: SocketAddr,
    pub oldest: Option<Duration>,
    pub last_accept: Option<Ktime>,
    /// Cumulative, as in [`super::Syn`].
    pub accepted: u64,
    pub completed: u64,
    /// Connections found in the queue after the client's FIN, or after a RST, so far.
    pub fins: u64,
    pub resets: u64,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Of the connections that were gone through, the same now.
    pub fins_now: u32,
    pub resets_now: u32,
    /// The oldest waits for as long as was asked about.
    pub is_late: bool,
}

impl AcceptQueue {
    pub(super) fn decode(raw: &record::AcceptQueue) -> Result<Self, DecodeError> {
        let socket = Socket::decode(&raw.socket);
        let has_waiting = raw.waiting > 0 && socket.remote.port() != 0;
        Ok(Self {
            oldest_local: SocketAddr::new(
                address(&raw.oldest_local, raw.socket.family),
                raw.socket.local_port,
            ),
            oldest_remote: has_waiting.then_some(socket.remote),
            oldest: (raw.waiting > 0 && raw.oldest_ns != u64::MAX)
                .then(|| Duration::from_nanos(raw.oldest_ns)),
            socket,
            owner: Owner::decode(&raw.owner)?,
            last_accept: when(raw.last_accept_ns),
            accepted: raw.accepted,
            completed: raw.completed,
            fins: raw.fins,
            resets: raw.resets,
            ack_backlog: raw.ack_backlog,
            max_ack_backlog: raw.max_ack_backlog,
            fins_now: raw.fins_now,
            resets_now: raw.resets_now,
            is_late: raw.flags & accept_queue_flag::LATE != 0,
        })
    }

    /// The connection that waits the longest, where it is known.
    #[must_use]
    pub fn side(&self) -> Option<Side> {
        Some(Side {
            netns: self.socket.netns,
            local: self.oldest_local,
            remote: self.oldest_remote?,
        })
    }

    /// Whether it holds as many as it takes (`sk_acceptq_is_full`).
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.ack_backlog > self.max_ack_backlog
    }
}
