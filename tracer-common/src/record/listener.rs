//! What became of a listener's SYNs and third ACKs.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket};
use crate::sketch;

/// One `tcp_retransmit_synack`: our SYN-ACK was not answered in time (or the client retransmitted its SYN).
/// At most [`SYNACKS_PER_S`] a second and listener, unless asked for: `SynTotals` count all.
/// `socket` is the listener with the request's remote end; `owner` is the listener's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SynAck {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Address of the `struct request_sock`.
    pub request: u64,
    /// Accept queue length and limit at the moment.
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Requests waiting for their third ACK (`icsk_accept_queue.qlen`).
    pub syn_qlen: u32,
    /// SYN-ACKs retransmitted before this one, any cause (`num_retrans`).
    pub num_retrans: u8,
    /// Timer expiries so far (`num_timeout`).
    pub num_timeout: u8,
    /// 1: the third ACK did arrive and was discarded (accept queue full, or deferred accept).
    pub acked: u8,
    pub pad: u8,
}

/// What a listener's totals count: the index into [`SynTotals`].
///
/// The first [`SYNS`](syn_outcome::SYNS) are what became of SYNs: their sum is every SYN that reached
/// the listener. Up to [`OUTCOMES`](syn_outcome::OUTCOMES) follow the third ACKs; what comes after
/// counts something beside them.
pub mod syn_outcome {
    /// A request was created and a SYN-ACK sent (or, with Fast Open, a child at once).
    pub const ADDED: usize = 0;
    /// A cookie was sent instead of a request being stored.
    pub const COOKIE: usize = 1;
    pub const ACCEPT_QUEUE_FULL: usize = 2;
    pub const SYN_QUEUE_FULL: usize = 3;
    /// The last quarter of `tcp_max_syn_backlog`, cookies off, an unproven peer.
    pub const SYN_QUEUE_PRESSURE: usize = 4;
    /// No route back to the client (`IpExt`/`Ip6` OutNoRoutes).
    pub const NO_ROUTE: usize = 5;
    /// Dropped by `tcp_conn_request` for none of the above (memory, a security module).
    pub const OTHER: usize = 6;
    /// Outcomes of a SYN.
    pub const SYNS: usize = 7;

    /// The third ACK made a connection.
    pub const COMPLETED: usize = 7;
    /// The third ACK found the accept queue full; the client believes it is connected. Once for each
    /// ACK, and clients retransmit theirs: `TcpExt ListenOverflows` at this stage.
    pub const ACK_OVERFLOW: usize = 8;
    /// The third ACK was discarded for another reason (memory, route).
    pub const ACK_OTHER: usize = 9;
    /// Outcomes of SYNs and third ACKs.
    pub const OUTCOMES: usize = 10;

    /// Distinct clients behind `ACK_OVERFLOW` that were not sent a RST.
    pub const VICTIMS: usize = 10;
    /// Of `COMPLETED`, those whose SYN-ACK had to be retransmitted.
    pub const COMPLETED_LATE: usize = 11;
    /// SYN-ACKs retransmitted, by timer or for a retransmitted SYN.
    pub const REPEATED: usize = 12;
    /// Of those, for requests whose third ACK did come and was discarded.
    pub const REPEATED_ACKED: usize = 13;
    /// Requests whose SYN-ACK was retransmitted at least once.
    pub const REQUESTS_REPEATED: usize = 14;
    /// Requests given up by their timer.
    pub const EXPIRED: usize = 15;
    /// Requests ended by the peer's RST or SYN.
    pub const RESET: usize = 16;
    /// Requests ended by our RST, because the accept queue was full and `tcp_abort_on_overflow` is 1.
    pub const ABORTED: usize = 17;
    /// Connections handed out by accept().
    pub const ACCEPTED: usize = 18;
    /// Third ACKs with a valid cookie (`TcpExt SyncookiesRecv`), and those with a wrong one
    /// (`SyncookiesFailed`).
    pub const COOKIE_VALID: usize = 19;
    pub const COOKIE_INVALID: usize = 20;
    pub const COUNT: usize = 21;

    pub const NAMES: [&str; COUNT] = [
        "added",
        "syn_cookies",
        "accept_queue_full",
        "syn_queue_full",
        "syn_queue_pressure",
        "no_route",
        "other",
        "completed",
        "ack_overflow",
        "ack_other",
        "ack_overflow_clients",
        "completed_late",
        "syn_acks_repeated",
        "syn_acks_repeated_ack_discarded",
        "requests_repeated",
        "requests_expired",
        "requests_reset",
        "requests_aborted",
        "accepted",
        "cookies_valid",
        "cookies_invalid",
    ];
}

/// How the cause of a dropped SYN was found.
pub mod syn_evidence {
    /// By the listener's fields at the drop: inferred.
    pub const FIELDS: u8 = 0;
    /// By the kernel's own per-CPU counters before and after `tcp_conn_request`: exact.
    pub const COUNTERS: u8 = 1;
}

/// Cumulative per listener since the eBPF side first saw it, indexed by [`syn_outcome`].
pub type SynTotals = [u64; syn_outcome::COUNT];

/// Bits of [`Syn::flags`].
pub mod listener_flag {
    /// `IPV6_V6ONLY`: an any-address of this listener takes no IPv4.
    pub const V6_ONLY: u8 = 1;
    /// `SO_REUSEPORT`: one of possibly many listeners of its address.
    pub const REUSEPORT: u8 = 2;
}

/// The state of a listener and the outcome that made the eBPF side say so. Emitted for the first
/// outcome of each bad kind and then at most once in [`SYN_INTERVAL_NS`] per listener: the totals
/// are cumulative, so nothing is lost by saying less often. `outcome` is 255 in a poll of the map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Syn {
    pub header: Header,
    /// The listener; `remote_addr` and `remote_port` are the peer of the outcome.
    pub socket: Socket,
    pub owner: Owner,
    pub totals: SynTotals,
    /// ktime of the last accept() of this listener, 0 when none was seen.
    pub last_accept_ns: u64,
    /// ktime of the last outcome.
    pub last_ns: u64,
    /// Accept queue length and limit (`sk_ack_backlog`, `sk_max_ack_backlog`).
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Requests waiting for their third ACK, and `net.ipv4.tcp_max_syn_backlog`.
    pub syn_qlen: u32,
    pub max_syn_backlog: u32,
    /// Highest `ack_backlog` and `syn_qlen` seen at a SYN.
    pub peak_ack_backlog: u32,
    pub peak_syn_qlen: u32,
    /// `net.core.somaxconn` of the listener's namespace; 0 when not known.
    pub somaxconn: u32,
    /// One of [`syn_outcome`], or 255.
    pub outcome: u8,
    /// One of [`syn_evidence`].
    pub evidence: u8,
    /// `net.ipv4.tcp_syncookies` (0, 1, 2), 255 when not known.
    pub syncookies: u8,
    /// `net.ipv4.tcp_abort_on_overflow`, 255 when not known.
    pub abort_on_overflow: u8,
    /// Bits of [`listener_flag`].
    pub flags: u8,
    /// Most SYN-ACKs retransmitted for one request so far.
    pub most_repeats: u8,
    pub pad: [u8; 2],
    /// Index of the device that it is bound to (`SO_BINDTODEVICE`), 0 for none.
    pub bound_ifindex: u32,
}

/// Shortest time between two [`Syn`] records of one listener and outcome: ten a second keep a
/// finding's figures fresh, and cap what a flood can cost.
pub const SYN_INTERVAL_NS: u64 = 100_000_000;

/// Records of retransmitted SYN-ACKs per listener and second: ten times what one lost burst of a handful of
/// clients makes, and a flood costs no more than 10 kB a second.
pub const SYNACKS_PER_S: u32 = 64;

/// Who sent the SYNs that a listener had trouble with (answered by a cookie, dropped, or whose SYN-ACK
/// was repeated): the registers of [`crate::sketch`]. Read from the eBPF side's map at a poll, when
/// they changed. Listeners of one namespace share a seed, so that those of one address can be joined:
/// the larger of each register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Sources {
    pub header: Header,
    /// The listener.
    pub socket: Socket,
    /// ktime of the first and the last such SYN. It starts anew after [`SOURCES_QUIET_NS`] without one.
    pub since_ns: u64,
    pub last_ns: u64,
    /// Troubled SYNs since then.
    pub syns: u64,
    pub addresses: [u8; sketch::ADDRESSES],
    pub prefixes: [u8; sketch::PREFIXES],
}

/// Two floods further apart are two: twice the 31 s between a request's last retransmission but one and its last.
pub const SOURCES_QUIET_NS: u64 = 60_000_000_000;
