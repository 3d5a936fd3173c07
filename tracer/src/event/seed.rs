//! Sockets that were there before the tracer.

use conntracer_common::record;

use super::{
    owner::Owner,
    raw::{DecodeError, when},
    socket::{Socket, TcpState},
    tcp::Tcp,
};
use crate::time::Ktime;

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
    /// Of a request: SYN-ACKs retransmitted so far.
    pub num_retrans: u8,
}

impl Seed {
    pub(super) fn decode(raw: &record::Seed) -> Result<Self, DecodeError> {
        let socket = Socket::decode(&raw.socket);
        // A socket that was found has a state, which its line tells.
        if socket.state == TcpState::Unknown {
            return Err(DecodeError::Value {
                field: "state of a socket found at start",
                value: raw.socket.state.into(),
            });
        }
        Ok(Self {
            socket,
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            bytes_received: raw.bytes_received,
            active: when(raw.active_ns),
            since: when(raw.since_ns),
            ack_backlog: raw.ack_backlog,
            max_ack_backlog: raw.max_ack_backlog,
            holders: raw.holders,
            num_retrans: raw.num_retrans,
        })
    }
}
