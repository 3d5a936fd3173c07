//! Segments that the kernel dropped, and SYNs that no listener saw.

use std::net::SocketAddr;

use conntracer_common::record::{self, early_drop_place, path};
use serde::Serialize;

use super::{
    device::Device,
    owner::Owner,
    raw::{DecodeError, reason},
    socket::{Socket, address},
};
use crate::time::Ktime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drop {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// Kernel address that dropped it.
    pub location: u64,
    pub seq: u32,
    /// `enum skb_drop_reason`, where the kernel gives one.
    pub reason: Option<u32>,
    pub tcp_flags: u8,
}

impl Drop {
    pub(super) fn decode(raw: &record::Drop) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            location: raw.location,
            seq: raw.seq,
            reason: reason(raw.reason),
            tcp_flags: raw.tcp_flags,
        })
    }
}

/// How far a received packet had come, by its route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// It had no route yet.
    Prerouting,
    /// Its route led to this host.
    Input,
    /// Its route led elsewhere.
    Forward,
}

impl Path {
    /// The word of the output contract; netfilter's name of its hook.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
        }
    }
}

/// Which part of the kernel dropped a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Netfilter,
    Route,
    Tcp,
}

/// SYNs dropped before a listener decided on them, cumulative by where they were to go and why.
/// `socket` is where they were to go, with the last one's remote end; port 0 stands for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EarlyDrop {
    pub socket: Socket,
    /// Of the listener there.
    pub owner: Option<Owner>,
    /// SYNs since `first`.
    pub count: u64,
    pub first: Ktime,
    pub last: Ktime,
    /// Kernel address that dropped them, where the kernel gives no reason.
    pub location: u64,
    /// One bit by each remote address's hash.
    pub remotes: u64,
    /// What the listener there is bound to, where one is known.
    pub listener: Option<SocketAddr>,
    /// The device that the last one came by.
    pub device: Option<Device>,
    /// Its index; 0 when the packet was never received.
    pub ifindex: u32,
    /// `enum skb_drop_reason`, where the kernel gives one.
    pub reason: Option<u32>,
    /// Where it can be known.
    pub path: Option<Path>,
    pub place: Option<Place>,
    /// Bits of [`conntracer_common::record::early_drop_hint`].
    pub hints: u8,
}

impl EarlyDrop {
    pub(super) fn decode(raw: &record::EarlyDrop) -> Result<Self, DecodeError> {
        let path = match raw.path {
            path::UNKNOWN => None,
            path::PREROUTING => Some(Path::Prerouting),
            path::INPUT => Some(Path::Input),
            path::FORWARD => Some(Path::Forward),
            value => {
                return Err(DecodeError::Value {
                    field: "path of an early drop",
                    value: value.into(),
                });
            }
        };
        let place = match raw.place {
            early_drop_place::UNKNOWN => None,
            early_drop_place::NETFILTER => Some(Place::Netfilter),
            early_drop_place::ROUTE => Some(Place::Route),
            early_drop_place::TCP => Some(Place::Tcp),
            value => {
                return Err(DecodeError::Value {
                    field: "place of an early drop",
                    value: value.into(),
                });
            }
        };
        let port = raw.socket.local_port;
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            count: raw.count,
            first: Ktime(raw.first_ns),
            last: Ktime(raw.last_ns),
            location: raw.location,
            remotes: raw.remotes,
            listener: (raw.socket.sk != 0)
                .then(|| SocketAddr::new(address(&raw.listener_addr, raw.socket.family), port)),
            device: (raw.device[0] != 0).then_some(Device(raw.device)),
            ifindex: raw.ifindex,
            reason: reason(raw.reason),
            path,
            place,
            hints: raw.hints,
        })
    }
}
