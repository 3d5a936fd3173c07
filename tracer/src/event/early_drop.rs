//! Segments that the kernel dropped, and SYNs that no listener saw.

use std::net::SocketAddr;

use serde::Serialize;

use super::{Device, Owner, Socket};
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
