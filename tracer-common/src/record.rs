//! The records that cross the ring, byte for byte as the kernel half writes them.
//!
//! Every record starts with a [`Header`] whose `kind` says which struct follows; all are flat,
//! widest field first, without implicit padding (`IntoBytes` refuses it at compile time, and the
//! verifier refuses uninitialised stack). Integers are in the host's byte order; addresses are in
//! network order, IPv4 as v4-mapped IPv6 (RFC 4291, 2.5.5.2), ports are in host order.
//!
//! Written by `tracer-ebpf` (and, where a record says so, by the user half), read by `conntracer::decode`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    netns::{KernelCounts, NetnsId},
    retransmit::class,
    sketch,
    undo::way,
};

/// What a record is about; the value of [`Header::kind`].
pub mod kind {
    /// A `Socket` opening a connection: see [`super::Connect`].
    pub const CONNECT: u16 = 1;
    pub const ACCEPT: u16 = 2;
    pub const STATE: u16 = 3;
    pub const RETRANSMIT: u16 = 4;
    pub const SYNACK: u16 = 5;
    pub const SYN: u16 = 6;
    pub const RESET: u16 = 7;
    pub const DROP: u16 = 8;
    pub const PROBE: u16 = 9;
    pub const SNAPSHOT: u16 = 10;
    pub const TICK: u16 = 11;
    pub const LOSS: u16 = 12;
    pub const SOURCES: u16 = 13;
    pub const REFUSAL: u16 = 14;
    pub const NETNS: u16 = 15;
    pub const SEED: u16 = 16;
    pub const PROCESS: u16 = 17;
    pub const HOLDERS: u16 = 18;
    pub const RETRANSMITS: u16 = 19;
    pub const UNDO: u16 = 20;
    pub const FAILURE: u16 = 21;
    pub const ENDING: u16 = 22;
    pub const IDLE: u16 = 23;
    pub const SEEDED: u16 = 24;
    pub const AUDITED: u16 = 25;
    pub const HALF_CLOSED: u16 = 27;
    pub const CLOCK: u16 = 28;
}

/// Where a socket's owner was learned; DESIGN.md's `owner_source`.
pub mod owner_source {
    pub const UNKNOWN: u8 = 0;
    pub const CONNECT: u8 = 1;
    pub const ACCEPT: u8 = 2;
    pub const LISTENER: u8 = 3;
    pub const SEEDED: u8 = 4;
    /// Its descriptor was passed to the owner, or the owner was seen to use what had been another's.
    pub const PASSED: u8 = 5;
    /// The owner, however it was learned, has forked since: it or descendants of it hold the socket.
    pub const FORKED: u8 = 6;
}

/// Which side opened a connection.
pub mod role {
    pub const UNKNOWN: u8 = 0;
    pub const ACTIVE: u8 = 1;
    pub const PASSIVE: u8 = 2;
    pub const LISTENER: u8 = 3;
}

/// Bits of [`Socket::flags`].
pub mod socket_flag {
    /// Its birth was not seen: it is older than the tracer.
    pub const OLDER: u32 = 1;
}

/// The first 16 bytes of every record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Header {
    /// `bpf_ktime_get_ns` (CLOCK_MONOTONIC), nanoseconds.
    pub ktime_ns: u64,
    /// One of [`kind`].
    pub kind: u16,
    /// Bytes of the whole record, this header included.
    pub size: u16,
    pub cpu: u32,
}

/// The process a socket belongs to, as last learned in a context that can know (never the task that
/// happened to be interrupted). All zero when `source` is `UNKNOWN`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Owner {
    /// `bpf_get_current_cgroup_id`: the inode of the cgroup v2 directory.
    pub cgroup_id: u64,
    /// `task_struct.comm` of the thread group's leader, NUL-padded, any bytes.
    pub comm: [u8; 16],
    /// Thread group id (what user space calls the pid) in the initial pid namespace.
    pub pid: u32,
    pub uid: u32,
    /// One of [`owner_source`].
    pub source: u8,
    /// Processes that hold the socket, this one among them, as a search found; 0 when none was made since
    /// it became this one's, 255 for more.
    pub holders: u8,
    pub pad: [u8; 2],
    /// When the process started: the low 32 bits of `start_boottime` in milliseconds. With the pid it is
    /// an identity, for pids are reused. 0 when not known.
    pub started_ms: u32,
}

/// Which socket, and where it stands.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Socket {
    /// Address of the `struct sock`. Reused by the kernel: an identity only with `born_ns`.
    pub sk: u64,
    /// When the kernel half first saw the socket (its birth, or mid-life when `role` is unknown);
    /// 0 when it never did.
    pub born_ns: u64,
    /// Network order words; IPv4 is `[0, 0, htonl(0xffff), addr]`.
    pub local_addr: [u32; 4],
    pub remote_addr: [u32; 4],
    /// Inode of the network namespace (`ns.inum`).
    pub netns: u32,
    pub local_port: u16,
    pub remote_port: u16,
    /// `AF_INET` or `AF_INET6` (a dual-stack listener is `AF_INET6` with an any-address).
    pub family: u16,
    /// `skc_state` at the time of the record.
    pub state: u8,
    /// One of [`role`].
    pub role: u8,
    /// Bits of [`socket_flag`].
    pub flags: u32,
}

/// The fields of `struct tcp_sock` and `struct inet_connection_sock` that detectors judge by.
/// A field the running kernel does not have is 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Tcp {
    pub bytes_acked: u64,
    pub bytes_retrans: u64,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    /// Bytes of window the peer last advertised.
    pub snd_wnd: u32,
    pub packets_out: u32,
    pub lost_out: u32,
    pub retrans_out: u32,
    /// Segments retransmitted in the socket's life (`tcp_sock.total_retrans`).
    pub total_retrans: u32,
    /// Data segments sent in the socket's life, retransmissions included.
    pub data_segs_out: u32,
    /// Smoothed round-trip time, microseconds (`srtt_us >> 3`).
    pub srtt_us: u32,
    /// Current retransmission timeout in jiffies (`icsk_rto`).
    pub rto_jiffies: u32,
    pub mss: u32,
    /// `TCP_USER_TIMEOUT`, milliseconds; 0 when not set.
    pub user_timeout_ms: u32,
    /// Consecutive unanswered retransmission timeouts (`icsk_retransmits`).
    pub retransmits: u8,
    pub backoff: u8,
    /// Unanswered keepalive or window probes (`icsk_probes_out`).
    pub probes_out: u8,
    /// One of [`crate::tcp::ca`].
    pub ca_state: u8,
    /// One of [`crate::tcp::pending`].
    pub pending: u8,
    /// 1 when `SO_KEEPALIVE` is set (`SOCK_KEEPOPEN`), 0 when not, 255 when not known.
    pub keepalive: u8,
    /// `sk_shutdown`: 1 receive, 2 send.
    pub shutdown: u8,
    /// 1 when the application has closed the socket (`SOCK_DEAD`).
    pub orphan: u8,
}

/// An active open: `tcp_connect`, or CLOSE → SYN_SENT.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Connect {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
}

/// A connection handed to its application, or first used by it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Accept {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
}

/// `inet_sock_set_state`. Default mode emits it only for sockets that were in trouble before
/// (retransmits, probes, an error), so that what detectors opened can be resolved.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct State {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// `sk_err` (errno, positive) at the change.
    pub error: u32,
    pub old_state: u8,
    pub new_state: u8,
    /// `icsk_retransmits` at the change.
    pub retransmits: u8,
    /// `icsk_probes_out` at the change.
    pub probes_out: u8,
}

/// One `tcp_retransmit_skb`: one buffer of one or more segments.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Retransmit {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub seq: u32,
    pub end_seq: u32,
    /// Segments in the buffer (`tcp_gso_segs`, at least 1).
    pub segs: u32,
    /// 0, or a positive errno: the segment was not sent (kernels from 6.17 on say so).
    pub error: u32,
    pub tcp_flags: u8,
    pub sacked: u8,
    /// 1: the kernel tells of what it could not send, so that every attempt is a record.
    pub failures_traced: u8,
    pub pad: u8,
    /// Segments that the peer said came twice (`tcp_sock.dsack_dups`), in the socket's life.
    pub dsack_dups: u32,
}

/// What one connection sent again, cumulative. Whole events are counted, so that two readings subtract.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct RetransmitTotals {
    /// ktime of the first event, which tells this count from an earlier one of the same connection.
    pub first_ns: u64,
    /// Events: buffers, each of one or more segments.
    pub events: u64,
    /// Segments that left, by [`class`].
    pub segments: [u64; class::COUNT],
    /// Segments that were not sent.
    pub failed: u64,
    /// Segments that the socket counted between two events (`total_retrans`): attempts that failed, where the
    /// kernel is silent about those, and otherwise events that no program saw.
    pub unseen: u64,
    /// Of those that left: full-sized ones, and ones sent into a window that is shut.
    pub full: u64,
    pub shut: u64,
    /// Events that repeated the first segment that is not acknowledged, and of them the full-sized ones.
    pub heads: u64,
    pub full_heads: u64,
    /// Events before which the peer acknowledged, or sent, something since the last one.
    pub progress: u64,
    pub peer_spoke: u64,
    /// The smallest segment among `full_heads` in bytes; 0 when there is none.
    pub full_head_bytes: u32,
    /// At the last event: the smallest round trip lately (`net.ipv4.tcp_min_rtt_wlen`), and the path MTU that
    /// the kernel believes in; 0 where it does not tell.
    pub min_rtt_us: u32,
    pub pmtu: u32,
    /// 1: read from the map by the user half, beside the records that tell of single events.
    pub polled: u8,
    /// 1: the kernel tells whether ICMP told of a smaller path.
    pub tells_icmp: u8,
    /// The largest packet that passes, as the last such ICMP message about the socket said (`tcp_sock.mtu_info`);
    /// 0 when none came.
    pub icmp_mtu: u16,
}

/// The interface that a connection sends by.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Egress {
    /// `net_device.name`, NUL-padded; empty when not known.
    pub device: [u8; 16],
    pub ifindex: u32,
    pub pad: u32,
}

/// The last `tcp_retransmit_skb` of a connection and all there were: emitted for the first one and then at
/// most once in [`RETRANSMIT_INTERVAL_NS`], polled otherwise, so that a storm of any size is counted exactly.
/// What finds no room to be counted in, and what a handshake repeats, comes as a [`Retransmit`] each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Retransmits {
    pub last: Retransmit,
    pub totals: RetransmitTotals,
    /// Of the last one.
    pub egress: Egress,
}

/// What the kernel took back of what it did about one connection's losses, cumulative.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct UndoTotals {
    /// How often, by [`way`].
    pub undos: [u64; way::COUNT],
    /// Segments that were repeated for nothing. Of those that the peer had said came twice by then, none.
    pub segments: u64,
}

/// The kernel took back what it did about a loss that was none (`tcp_undo_cwnd_reduction`), as told with the
/// connection's [`Retransmits`]: the first one, and then at most once in [`RETRANSMIT_INTERVAL_NS`], polled
/// otherwise. Where its retransmissions find no room to be counted in, a record each.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Undo {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// [`RetransmitTotals::first_ns`] of the count that it belongs to; 0 when it is of one alone.
    pub first_ns: u64,
    pub totals: UndoTotals,
    /// `tcp_sock.dsack_dups` at the last one, as in [`Retransmit`].
    pub dsack_dups: u32,
    pub pad: u32,
}

/// Shortest time between two [`Retransmits`] records of one connection: a rate over three seconds needs no
/// more, and 1,000 connections that lose cost 4 MB a second at most, whatever they send.
pub const RETRANSMIT_INTERVAL_NS: u64 = 100_000_000;

/// One `tcp_retransmit_synack`: our SYN-ACK was not answered in time (or the client repeated its SYN).
/// At most [`SYNACKS_PER_S`] a second and listener, unless asked for: `SynTotals` count all.
/// `socket` is the listener with the request's remote end; `owner` is the listener's.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
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
    /// SYN-ACKs repeated before this one, any cause (`num_retrans`).
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
    /// ACK, and clients repeat theirs: `TcpExt ListenOverflows` at this stage.
    pub const ACK_OVERFLOW: usize = 8;
    /// The third ACK was refused for another reason (memory, route).
    pub const ACK_OTHER: usize = 9;
    /// Outcomes of SYNs and third ACKs.
    pub const OUTCOMES: usize = 10;

    /// Distinct clients behind `ACK_OVERFLOW` that were not sent a RST.
    pub const VICTIMS: usize = 10;
    /// Of `COMPLETED`, those whose SYN-ACK had to be repeated.
    pub const COMPLETED_LATE: usize = 11;
    /// SYN-ACKs repeated, by timer or for a repeated SYN.
    pub const REPEATED: usize = 12;
    /// Of those, for requests whose third ACK did come and was discarded.
    pub const REPEATED_ACKED: usize = 13;
    /// Requests whose SYN-ACK was repeated at least once.
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

/// Cumulative per listener since the kernel half first saw it, indexed by [`syn_outcome`].
pub type SynTotals = [u64; syn_outcome::COUNT];

/// Bits of [`Syn::flags`].
pub mod listener_flag {
    /// `IPV6_V6ONLY`: an any-address of this listener takes no IPv4.
    pub const V6_ONLY: u8 = 1;
    /// `SO_REUSEPORT`: one of possibly many listeners of its address.
    pub const REUSEPORT: u8 = 2;
}

/// The state of a listener and the outcome that made the kernel half say so. Emitted for the first
/// outcome of each bad kind and then at most once in [`SYN_INTERVAL_NS`] per listener: the totals
/// are cumulative, so nothing is lost by saying less often. `outcome` is 255 in a poll of the map.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
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
    /// Most SYN-ACKs repeated for one request so far.
    pub most_repeats: u8,
    pub pad: [u8; 6],
}

/// Shortest time between two [`Syn`] records of one listener and outcome: ten a second keep a
/// finding's figures fresh, and cap what a flood can cost.
pub const SYN_INTERVAL_NS: u64 = 100_000_000;

/// Records of repeated SYN-ACKs per listener and second: ten times what one lost burst of a handful of
/// clients makes, and a flood costs no more than 10 kB a second.
pub const SYNACKS_PER_S: u32 = 64;

/// Who sent the SYNs that a listener had trouble with (answered by a cookie, dropped, or whose SYN-ACK
/// was repeated): the registers of [`crate::sketch`]. Read from the kernel half's map at a poll, when
/// they changed. Listeners of one namespace share a seed, so that those of one address can be joined:
/// the larger of each register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
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

/// Two floods further apart are two: twice the 31 s between a request's last repeat but one and its last.
pub const SOURCES_QUIET_NS: u64 = 60_000_000_000;

/// A RST sent or received.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Reset {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// `enum sk_rst_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// 1 received, 0 sent.
    pub received: u8,
    pub retransmits: u8,
    pub pad: [u8; 2],
}

/// A TCP segment freed by `kfree_skb`. `socket` holds what the packet says as the receiver sees it:
/// local is the destination. `sk` is 0 when no socket was found.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Drop {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Kernel address that dropped it.
    pub location: u64,
    pub seq: u32,
    /// `enum skb_drop_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    pub tcp_flags: u8,
    pub pad: [u8; 7],
}

/// Where on its way a packet was: the netfilter hook that a filtered one was dropped at.
pub mod path {
    /// The loopback gives every packet its route before it arrives, so that it does not tell.
    pub const UNKNOWN: u8 = 0;
    /// No route yet.
    pub const PREROUTING: u8 = 1;
    /// The route leads to this host.
    pub const INPUT: u8 = 2;
    /// The route leads elsewhere.
    pub const FORWARD: u8 = 3;

    pub const NAMES: [&str; 4] = ["unknown", "prerouting", "input", "forward"];
}

/// Bits of [`Refusal::hints`]: what speaks for a cause where the kernel gives no reason. Zero where it
/// gives one.
pub mod refusal_hint {
    /// This CPU's counters of the namespace that rose since its last dropped TCP segment:
    /// `Tcp InCsumErrors`, `TcpExt TCPMD5NotFound`/`Unexpected`/`Failure`, `TcpExt
    /// IPReversePathFilter`, `Tcp OutRsts`.
    pub const CHECKSUM: u8 = 1;
    pub const MD5: u8 = 2;
    pub const REVERSE_PATH: u8 = 4;
    pub const RESET_SENT: u8 = 8;
    /// The counters could be read.
    pub const COUNTED: u8 = 16;
    /// A listener of that address and port is known; it has a socket filter.
    pub const LISTENER: u8 = 32;
    pub const SOCKET_FILTER: u8 = 64;
    /// It was dropped before it had a route, and its device has an XDP program in generic mode.
    pub const XDP: u8 = 128;
}

/// Which part of the kernel [`Refusal::location`] lies in; named by the user half.
pub mod refusal_place {
    /// Not looked up, or none of the others.
    pub const UNKNOWN: u8 = 0;
    pub const NETFILTER: u8 = 1;
    /// The route of a received packet: reverse path, or no route at all.
    pub const ROUTE: u8 = 2;
    pub const TCP: u8 = 3;

    pub const NAMES: [&str; 4] = ["unknown", "netfilter", "route", "tcp"];
}

/// SYNs that came in and were freed by `kfree_skb` before a listener decided on them, cumulative by
/// where they were to go and why. Emitted for the first one and then at most once in
/// [`SYN_INTERVAL_NS`], within [`REFUSAL_INTERVAL_NS`] of every CPU; polled otherwise.
///
/// `socket` is where they were to go, with the last one's remote end; its `sk` is the listener there, 0
/// when none is known, and `owner` is the listener's. Port 0 stands for all that found the map full.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Refusal {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// SYNs since `first_ns`, which tells this count from an earlier one of the same place.
    pub count: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// Kernel address that dropped them, where the kernel gives no reason.
    pub location: u64,
    /// One bit by each remote address's hash: as many remotes at least as there are bits.
    pub remotes: u64,
    /// What the listener is bound to; all zero with no port when none is known.
    pub listener_addr: [u32; 4],
    /// `net_device.name` that the last one came by, where it is still known.
    pub device: [u8; 16],
    /// Of the same device; 0 when it was never received.
    pub ifindex: u32,
    /// `enum skb_drop_reason` of the running kernel; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// One of [`path`].
    pub path: u8,
    /// One of [`refusal_place`].
    pub place: u8,
    /// Bits of [`refusal_hint`].
    pub hints: u8,
    pub pad: [u8; 5],
}

/// Shortest time between two [`Refusal`] records of one CPU: a scan of every port is a first SYN each
/// time, and must leave the ring to others. The poll brings what was left out.
pub const REFUSAL_INTERVAL_NS: u64 = 10_000_000;

/// Bits of [`Failure::how`].
pub mod failure_how {
    /// A RST answered.
    pub const RESET: u8 = 1;
    /// connect() failed at once: no SYN was sent.
    pub const AT_ONCE: u8 = 2;
    /// The application gave up no sooner than [`super::PATIENCE_NS`] after connect().
    pub const PATIENT: u8 = 4;
    /// Nobody saw what connect() returned: the error is concluded from the port that was not found.
    pub const CONCLUDED: u8 = 8;
}

/// An attempt given up sooner says nothing of the path: of two that race (RFC 8305), the slower one is
/// dropped after some 250 ms. After this time the first SYN is repeated (RFC 6298, 2.1).
pub const PATIENCE_NS: u64 = 1_000_000_000;

/// Attempts to connect that failed, cumulative by process, remote end and error. Emitted for the first one
/// and then at most once in [`SYN_INTERVAL_NS`], within [`REFUSAL_INTERVAL_NS`] of every CPU; polled
/// otherwise.
///
/// `socket` is the last one's; remote port 0 stands for all that found the map full.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Failure {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Attempts since `first_ns`, which tells this count from an earlier one of the same key.
    pub count: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// From connect() to the failure, the longest of all; 0 when no connect() was seen.
    pub longest_ns: u64,
    /// Errno (positive); 0 when the application gave up.
    pub error: u32,
    /// SYNs that the last one had sent.
    pub syns: u32,
    /// Bits of [`failure_how`].
    pub how: u8,
    pub pad: [u8; 7],
}

/// Bits of [`Ending::flags`].
pub mod ending_flag {
    /// A RST of the peer's ended it; this host sent one just before.
    pub const RST_RECEIVED: u8 = 1;
    pub const RST_SENT: u8 = 2;
    /// The application had closed the socket already (`SOCK_DEAD`).
    pub const ORPHAN: u8 = 4;
    /// `SO_LINGER` with a time of 0.
    pub const NO_LINGER: u8 = 8;
    /// No application had accepted it yet (`sk_socket` is NULL).
    pub const NOT_ACCEPTED: u8 = 16;
    /// The peer's FIN came (`SOCK_DONE`).
    pub const FIN_RECEIVED: u8 = 32;
}

/// How an established connection ended: with an error, without a FIN, or with a RST; every end where
/// somebody asked for it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Ending {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub bytes_received: u64,
    /// Since data was last sent or received; `u64::MAX` when none was, or the kernel does not tell.
    pub idle_ns: u64,
    /// `sk_err` and `sk_err_soft` (errno, positive).
    pub error: u32,
    pub soft_error: u32,
    /// `enum sk_rst_reason` of a RST sent before; `u32::MAX` when the kernel gives none.
    pub reason: u32,
    /// Received and not read.
    pub unread: u32,
    pub old_state: u8,
    /// Bits of [`ending_flag`].
    pub flags: u8,
    pub pad: [u8; 6],
}

/// A keepalive or zero-window probe (`tcp_write_wakeup`).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Probe {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// Return value of `tcp_write_wakeup`: 0 sent, > 0 nothing to send, < 0 the host dropped it.
    pub result: i32,
    /// 1 keepalive, 0 window probe.
    pub keepalive: u8,
    pub pad: [u8; 3],
}

/// Bits of [`Idle::flags`].
pub mod idle_flag {
    /// It is established, and `SO_KEEPALIVE` is not set.
    pub const KEEPALIVE_OFF: u32 = 1;
    /// Bytes wait to be sent or acknowledged, and no timer will try (`icsk_pending` is 0).
    pub const NO_TIMER: u32 = 2;
}

/// What the programs `idle` and `snapshot` answer when they are asked about a socket.
pub mod answer {
    /// It is gone, not idle for so long, in no need of words, or filtered.
    pub const NOTHING: u32 = 0;
    /// A record was written.
    pub const SAID: u32 = 1;
    /// There was no room for one.
    pub const LOST: u32 = 2;
}

/// A connection that no data has passed on for as long as the audit asked about, and that nothing will tell that
/// its peer is gone. Written when the user half asks about the socket.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Idle {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// Since data was last sent or received, or the connection was established.
    pub idle_ns: u64,
    /// Bits of [`idle_flag`].
    pub flags: u32,
    pub pad: [u8; 4],
}

/// The audit has asked about every connection, made by the user half: the [`Idle`] records since the last
/// one are all there are.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Audited {
    pub header: Header,
    /// Connections asked about; the others are younger than the limit.
    pub asked: u32,
    /// Of those, the ones that an `Idle` was written of, and the ones that found no room for it.
    pub said: u32,
    pub lost: u32,
    pub pad: u32,
    /// How long a connection must have been idle.
    pub limit_ns: u64,
}

/// The wall clock was set, or the machine slept, made by the user half.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Clock {
    pub header: Header,
    /// CLOCK_REALTIME − CLOCK_MONOTONIC from now on, nanoseconds.
    pub realtime_offset_ns: i64,
}

/// Half-closed sockets of one process that a poll counts and does not ask for one by one, made by the user
/// half.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct HalfClosed {
    pub header: Header,
    pub owner: Owner,
    /// How many there are beyond those that a [`Snapshot`] is written of.
    pub count: u64,
    /// CLOSE_WAIT or FIN_WAIT2.
    pub state: u8,
    pub pad: [u8; 7],
}

/// The state of a watched socket, asked for by the user half between events.
/// `socket.state` is CLOSE when the socket is gone.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Snapshot {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    /// When `socket.state` was entered; 0 when not seen.
    pub since_ns: u64,
}

/// One socket that was there before the tracer, as found by the walk at start (the programs of
/// `probes::seed`). Of a request or a socket in TIME_WAIT, only `socket`, `owner` and `num_retrans` are
/// filled in.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Seed {
    pub header: Header,
    /// `born_ns` is when the tracer began, 0 when the kernel half has no room for the socket.
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub bytes_received: u64,
    /// When the kernel last did anything with the socket (`tcp_mstamp`); 0 when not known.
    pub active_ns: u64,
    /// Half-closed since then or earlier; 0 when not half-closed.
    pub since_ns: u64,
    /// Accept queue length and limit of a listener.
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// Processes that hold a descriptor of it.
    pub holders: u32,
    /// Of a request: SYN-ACKs repeated so far.
    pub num_retrans: u8,
    pub pad: [u8; 3],
}

/// The walk at start is over, made by the user half: what it could not see, and how long it took.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Seeded {
    pub header: Header,
    /// Sockets that found no room in the kernel half's maps.
    pub homeless: u64,
    pub took_ns: u64,
    /// Network namespaces walked, and those that nothing leads into.
    pub namespaces: u32,
    pub not_entered: u32,
}

/// Time passing: the user half writes one into the stream at every poll, so that detectors take
/// time only from records.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Tick {
    pub header: Header,
}

/// Records that were lost before they reached `decode`, as counted where it happened.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Loss {
    pub header: Header,
    /// Lost since the last `Loss` record of this hook.
    pub lost: u64,
    /// Index into [`crate::stats::HOOKS`].
    pub hook: u32,
    pub pad: u32,
}

/// Bits of [`Netns::flags`].
pub mod netns_flag {
    /// Counted from the namespace's birth on; otherwise from conntracer's first look at it.
    pub const BORN: u8 = 1;
    /// A filter by port, address or listener is in force: nothing can be compared.
    pub const FILTERED: u8 = 2;
    /// The kernel's counters cannot be read here.
    pub const UNREADABLE: u8 = 4;
    /// The kernel does not tell of segments that it could not send again.
    pub const FAILURES_UNTRACED: u8 = 8;
}

/// The kernel's own counters of a network namespace and what conntracer counted there, both since the
/// same moment, made by the user half. With inode 0: what is to be said of all of them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Netns {
    pub header: Header,
    /// Indexed by [`crate::netns::kernel`].
    pub kernel: KernelCounts,
    /// What conntracer had counted before `kernel` was read, and after.
    pub before: KernelCounts,
    pub after: KernelCounts,
    pub id: NetnsId,
    /// Namespaces that are not compared, and counts that found no room, for want of a larger table.
    pub uncompared: u32,
    pub homeless: u32,
    /// Bits of [`netns_flag`].
    pub flags: u8,
    pub pad: [u8; 7],
}

/// Bytes of the texts in a [`Process`]. What is longer loses its beginning, and a flag says so.
pub const EXECUTABLE_BYTES: usize = 128;
pub const CGROUP_BYTES: usize = 208;
pub const NETNS_NAME_BYTES: usize = 64;

/// Bits of [`Process::flags`].
pub mod process_flag {
    /// The process was gone when it was asked for: what only itself could tell is missing.
    pub const GONE: u8 = 1;
    /// The last bytes of a longer path.
    pub const EXECUTABLE_CUT: u8 = 2;
    pub const CGROUP_CUT: u8 = 4;
}

/// What names an owner to people, asked for by the user half before the first record of that owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Process {
    pub header: Header,
    /// When it started, milliseconds since 1970; 0 when not known.
    pub started_unix_ms: u64,
    /// As in its [`Owner`].
    pub cgroup_id: u64,
    pub pid: u32,
    pub started_ms: u32,
    /// Inode of the network namespace that `netns_name` is the name of: the socket's.
    pub netns: u32,
    /// Bits of [`process_flag`].
    pub flags: u8,
    pub pad: [u8; 3],
    /// Path of the executable, NUL-padded, any bytes; empty when not known.
    pub executable: [u8; EXECUTABLE_BYTES],
    /// Path of the control group below the root of its hierarchy; empty when not known.
    pub cgroup: [u8; CGROUP_BYTES],
    /// Name of the namespace (`ip netns`); empty when it has none.
    pub netns_name: [u8; NETNS_NAME_BYTES],
}

/// Owners in a [`Holders`]: as many as a person reads. Of more, the number is told.
pub const MAX_HOLDERS: usize = 8;

/// Who holds a socket that is in trouble, as a search through the open files of all processes found, made by
/// the user half.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Holders {
    pub header: Header,
    pub socket: Socket,
    /// The socket's owner first, the others by their pids; those beyond `count` are zero.
    pub owners: [Owner; MAX_HOLDERS],
    /// Processes in all.
    pub count: u32,
    /// Whose the socket was said to be when they were searched for, 0 when nobody's.
    pub said_pid: u32,
}

/// The largest record. What is larger than half the 512-byte BPF stack is emitted from its map.
pub const MAX_RECORD: usize = 544;

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<Socket>() == 64);
    assert!(size_of::<Owner>() == 40);
    assert!(size_of::<Tcp>() == 80);
    assert!(size_of::<Connect>() == 120);
    assert!(size_of::<State>() == 128);
    assert!(size_of::<Retransmit>() == 224);
    assert!(size_of::<Retransmits>() == 400);
    assert!(size_of::<Undo>() == 176);
    assert!(size_of::<SynAck>() == 144);
    assert!(size_of::<Syn>() == 344);
    assert!(size_of::<Reset>() == 128);
    assert!(size_of::<Drop>() == 144);
    assert!(size_of::<Refusal>() == 208);
    assert!(size_of::<Failure>() == 168);
    assert!(size_of::<Ending>() == 240);
    assert!(size_of::<Probe>() == 208);
    assert!(size_of::<Snapshot>() == 208);
    assert!(size_of::<Netns>() == 544);
    assert!(size_of::<Seed>() == 240);
    assert!(size_of::<Seeded>() == 40);
    assert!(size_of::<Holders>() == 408);
    assert!(size_of::<Idle>() == 216);
    assert!(size_of::<Audited>() == 40);
    assert!(size_of::<Clock>() == 24);
    assert!(size_of::<HalfClosed>() == 72);
    assert!(size_of::<Sources>() == 424);
    assert!(size_of::<Syn>() <= MAX_RECORD && size_of::<Sources>() <= MAX_RECORD);
    assert!(size_of::<Retransmits>() <= MAX_RECORD);
    assert!(size_of::<Process>() <= MAX_RECORD && size_of::<Netns>() <= MAX_RECORD);
};
