//! Sockets that were there before the tracer.

use std::{mem::offset_of, time::Duration};

use conntracer_common::record::{self, Header};

use super::{
    owner::Owner,
    raw::{DecodeError, ago, read_grown, stamped, when},
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
    /// How long ago the peer last acknowledged or sent anything; `None` when never, or not known.
    pub heard_idle: Option<Duration>,
    /// When what is not acknowledged was first sent again.
    pub retransmits_since: Option<Ktime>,
}

impl Seed {
    /// A recording of an earlier conntracer does not tell when the peer was last heard.
    pub(super) fn decode(bytes: &[u8], header: &Header) -> Result<Self, DecodeError> {
        const OLDER: usize = offset_of!(record::Seed, heard_idle_ns);
        let unknown = record::Seed {
            heard_idle_ns: u64::MAX,
            ..record::Seed::default()
        };
        let raw: record::Seed = read_grown(bytes, OLDER, &unknown, header)?;
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
            heard_idle: ago(raw.heard_idle_ns),
            retransmits_since: stamped(raw.retrans_stamp, raw.header.ktime_ns),
        })
    }
}
