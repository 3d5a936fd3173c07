//! What became of a listener's SYNs and third ACKs.

use conntracer_common::{record::SynTotals, sketch};

use super::{Owner, Socket};
use crate::time::Ktime;

/// A repeated SYN-ACK. `socket` is the listener with the request's remote end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynAck {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// Kernel address of the request.
    pub request: u64,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub syn_qlen: u32,
    /// SYN-ACKs repeated before this one.
    pub num_retrans: u8,
    pub num_timeout: u8,
    /// The third ACK did arrive and was discarded.
    pub acked: bool,
}

/// A listener's cumulative totals and queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub totals: SynTotals,
    pub last_accept: Option<Ktime>,
    /// When the last outcome was.
    pub last: Option<Ktime>,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub syn_qlen: u32,
    pub max_syn_backlog: u32,
    pub peak_ack_backlog: u32,
    pub peak_syn_qlen: u32,
    /// Index into [`conntracer_common::record::syn_outcome`]; `None` in a poll.
    pub outcome: Option<usize>,
    /// Whether the kernel's own counters named the cause, not the listener's fields.
    pub by_counters: bool,
    /// `net.core.somaxconn`, `net.ipv4.tcp_syncookies` and `net.ipv4.tcp_abort_on_overflow` of the
    /// listener's namespace, where they are known.
    pub somaxconn: Option<u32>,
    pub syncookies: Option<u8>,
    pub abort_on_overflow: Option<bool>,
    /// An any-address that takes no IPv4.
    pub v6_only: bool,
    /// One of possibly many listeners of its address (`SO_REUSEPORT`).
    pub reuseport: bool,
    /// Most SYN-ACKs repeated for one request so far.
    pub most_repeats: u8,
}

/// Who sent the SYNs a listener had trouble with: the registers of [`conntracer_common::sketch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The listener.
    pub socket: Socket,
    /// The first and the last of these SYNs.
    pub since: Ktime,
    pub last: Ktime,
    pub syns: u64,
    pub addresses: [u8; sketch::ADDRESSES],
    pub prefixes: [u8; sketch::PREFIXES],
}
