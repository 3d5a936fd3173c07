//! An event: one decoded record, in the types of the standard library.
//!
//! Made by [`crate::decode`], read by the tables and detectors, and serialised by the sinks as the
//! fields of one output line. Plain and `Copy`: a healthy event costs no allocation. Kernel numbers
//! that only the running kernel can name (drop and reset reasons) stay numbers until
//! [`Event::named`] is given the
//! [`Host`](crate::kernel::host::Host).

mod fields;

use std::{borrow::Cow, net::SocketAddr, time::Duration};

use conntracer_common::{
    netns::{KernelCounts, NetnsId},
    record::{
        CGROUP_BYTES, EXECUTABLE_BYTES, MAX_HOLDERS, NETNS_NAME_BYTES, RetransmitTotals, SynTotals,
        UndoTotals, ending_flag,
    },
    retransmit::counted,
    sketch,
    stats::HOOKS,
    tcp::state,
};
use serde::Serialize;

pub use fields::Named;

use crate::{
    finding::{self, Ktime},
    source::SocketId,
};

/// One decoded record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    pub time: Ktime,
    pub cpu: u32,
    pub body: Body,
}

/// What happened, by record kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Body {
    Connect(Opened),
    Accept(Opened),
    State(State),
    Retransmit(Retransmit),
    Undo(Undo),
    SynAck(SynAck),
    Syn(Syn),
    Sources(Sources),
    Reset(Reset),
    Drop(Drop),
    Refusal(Refusal),
    Failure(Failure),
    Ending(Ending),
    Probe(Probe),
    Snapshot(Snapshot),
    Tick,
    Loss(Loss),
    Netns(Netns),
    Seed(Seed),
    Seeded(Seeded),
    Idle(Idle),
    Audited(Audited),
    HalfClosed(HalfClosed),
    Clock(Clock),
    Process(Process),
    Holders(Holders),
}

/// `TCP_*` states of include/net/tcp_states.h, spelled as OpenTelemetry's `network.connection.state`
/// when serialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpState {
    Established,
    SynSent,
    #[serde(rename = "syn_received")]
    SynRecv,
    #[serde(rename = "fin_wait_1")]
    FinWait1,
    #[serde(rename = "fin_wait_2")]
    FinWait2,
    TimeWait,
    #[serde(rename = "closed")]
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// A request socket before its third ACK; the kernel shows it as SYN_RECV.
    NewSynRecv,
    /// No socket, or a number no supported kernel uses.
    Unknown,
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        match number {
            state::ESTABLISHED => Self::Established,
            state::SYN_SENT => Self::SynSent,
            state::SYN_RECV => Self::SynRecv,
            state::FIN_WAIT1 => Self::FinWait1,
            state::FIN_WAIT2 => Self::FinWait2,
            state::TIME_WAIT => Self::TimeWait,
            state::CLOSE => Self::Close,
            state::CLOSE_WAIT => Self::CloseWait,
            state::LAST_ACK => Self::LastAck,
            state::LISTEN => Self::Listen,
            state::CLOSING => Self::Closing,
            state::NEW_SYN_RECV => Self::NewSynRecv,
            _ => Self::Unknown,
        }
    }
}

/// Which side opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Unknown,
    Active,
    Passive,
    Listener,
}

/// Where an owner was learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerSource {
    Connect,
    Accept,
    Listener,
    Seeded,
    Passed,
    Forked,
}

impl OwnerSource {
    /// The word of the output contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Accept => "accept",
            Self::Listener => "listener",
            Self::Seeded => "seeded",
            Self::Passed => "passed",
            Self::Forked => "forked",
        }
    }
}

/// `task_struct.comm`: at most 15 bytes of any value, NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn to_text(self) -> Cow<'static, str> {
        let end = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.0.len());
        Cow::Owned(String::from_utf8_lossy(&self.0[..end]).into_owned())
    }
}

/// The process a socket belongs to, as the record carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub cgroup_id: u64,
    pub comm: Comm,
    pub pid: u32,
    pub uid: u32,
    /// When the process started, milliseconds since boot modulo 2^32: with the pid an identity. 0 when not
    /// known.
    pub started_ms: u32,
    pub source: OwnerSource,
    /// Processes that hold the socket; `None` where nobody looked since it became this one's.
    pub holders: Option<u8>,
}

impl From<Owner> for finding::Owner {
    fn from(owner: Owner) -> Self {
        Self {
            pid: owner.pid,
            comm: owner.comm.to_text().into_owned(),
            uid: owner.uid,
            cgroup_id: owner.cgroup_id,
            source: owner.source.name().into(),
            started_ms: owner.started_ms,
            names: finding::Names::default(),
        }
    }
}

/// Which socket, and where it stands. A remote end that is not known is the any-address with port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub id: SocketId,
    pub netns: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: TcpState,
    pub role: Role,
    /// Its birth was not seen: it is older than conntracer.
    pub older: bool,
}

/// The fields of `struct tcp_sock` that detectors judge by; 0 where the kernel has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    pub bytes_acked: u64,
    pub bytes_retrans: u64,
    pub snd_una: u32,
    pub snd_nxt: u32,
    pub write_seq: u32,
    pub rcv_nxt: u32,
    pub snd_wnd_bytes: u32,
    pub packets_out: u32,
    pub lost_out: u32,
    pub retrans_out: u32,
    pub total_retrans: u32,
    pub data_segs_out: u32,
    pub srtt: Duration,
    pub rto_jiffies: u32,
    pub mss_bytes: u32,
    /// `TCP_USER_TIMEOUT`, where it is set.
    pub user_timeout: Option<Duration>,
    pub retransmits: u8,
    pub backoff: u8,
    pub probes_out: u8,
    pub ca_state: u8,
    pub pending: u8,
    /// Whether `SO_KEEPALIVE` is set, where that is known.
    pub keepalive: Option<bool>,
    pub shutdown: u8,
    /// The application has closed the socket; what it wrote may still be under way.
    pub orphan: bool,
}

impl Tcp {
    /// Sent and not acknowledged. Sequence numbers wrap; their difference does not.
    #[must_use]
    pub const fn unacked_bytes(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    /// Written by the application and not acknowledged, whether it was sent or not.
    #[must_use]
    pub const fn waiting_bytes(&self) -> u32 {
        self.write_seq.wrapping_sub(self.snd_una)
    }
}

/// Body of `connect` and `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub socket: Socket,
    pub owner: Option<Owner>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub old: TcpState,
    pub new: TcpState,
    /// `sk_err`; 0 for none.
    pub errno: u32,
    pub retransmits: u8,
    pub probes_out: u8,
}

/// Why a segment was repeated: OpenTelemetry's words, then conntracer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RetransmitType {
    Timeout,
    Fast,
    TailLossProbe,
    Syn,
    SynAck,
    Unknown,
}

impl RetransmitType {
    /// Every type, in the order of `self as usize`.
    pub const ALL: [Self; 6] = [
        Self::Timeout,
        Self::Fast,
        Self::TailLossProbe,
        Self::Syn,
        Self::SynAck,
        Self::Unknown,
    ];

    /// The word of the output contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Fast => "fast",
            Self::TailLossProbe => "tail_loss_probe",
            Self::Syn => "syn",
            Self::SynAck => "syn_ack",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retransmit {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    pub kind: RetransmitType,
    pub seq: u32,
    pub end_seq: u32,
    /// Segments in the buffer, at least 1.
    pub segments: u32,
    /// Errno with which it was not sent; 0 when it was.
    pub errno: u32,
    /// The kernel tells of what it could not send.
    pub failures_traced: bool,
    /// Segments that the peer said came twice, in the socket's life.
    pub duplicates: u32,
    /// All that its connection sent again where `is_cumulative`, otherwise this event alone.
    pub totals: RetransmitTotals,
    pub is_cumulative: bool,
    /// The interface that its connection sends by, where it is known.
    pub egress: Option<Egress>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    pub device: Device,
    /// Its number in its network namespace.
    pub ifindex: u32,
}

impl Retransmit {
    /// Segments that this attempt added to `total_retrans`.
    #[must_use]
    pub const fn counted(&self) -> u32 {
        counted(self.segments, self.errno)
    }

    /// Whether it repeated the first segment that is not acknowledged.
    #[must_use]
    pub const fn is_head(&self) -> bool {
        self.seq == self.tcp.snd_una
    }

    /// Whether each of its segments holds as much as the path is believed to carry.
    #[must_use]
    pub const fn is_full_sized(&self) -> bool {
        let bytes = self.end_seq.wrapping_sub(self.seq) as u64;
        self.tcp.mss_bytes != 0 && bytes >= self.tcp.mss_bytes as u64 * self.segments as u64
    }

    /// Whether it is the answer to a poll, and no event of its own.
    #[must_use]
    pub const fn is_polled(&self) -> bool {
        self.totals.polled != 0
    }
}

/// The kernel took back what it did about losses that were none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undo {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// The beginning of the count of retransmissions that the totals belong to; `None`: they are of one alone.
    pub began: Option<Ktime>,
    pub totals: UndoTotals,
    /// Segments that the peer said came twice, in the socket's life.
    pub duplicates: u32,
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// `enum sk_rst_reason`, where the kernel gives one.
    pub reason: Option<u32>,
    pub received: bool,
    pub retransmits: u8,
}

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
pub struct Refusal {
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
    /// Bits of [`conntracer_common::record::refusal_hint`].
    pub hints: u8,
}

/// Attempts to connect that failed, cumulative by process, remote end and error. `socket` is the last one's;
/// remote port 0 stands for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// Attempts since `first`.
    pub count: u64,
    pub first: Ktime,
    pub last: Ktime,
    /// From connect() to the failure, the longest of all.
    pub longest: Duration,
    /// 0 when the application gave up.
    pub errno: u32,
    /// SYNs that the last one had sent.
    pub syns: u32,
    /// Bits of [`conntracer_common::record::failure_how`].
    pub how: u8,
}

/// How an established connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// As the kernel counts: with the FIN, which has a number like a byte. See [`Ending::bytes_received`].
    pub octets_received: u64,
    /// Since the connection began; `None` when its beginning was not seen.
    pub age: Option<Duration>,
    /// Since data was last sent or received; `None` when none was, or the kernel does not tell.
    pub idle: Option<Duration>,
    /// `sk_err` and `sk_err_soft`; 0 for none.
    pub errno: u32,
    pub soft_errno: u32,
    /// `enum sk_rst_reason` of a RST that this host sent before, where the kernel gives one.
    pub reason: Option<u32>,
    pub unread_bytes: u32,
    pub old: TcpState,
    /// Bits of [`conntracer_common::record::ending_flag`].
    pub flags: u8,
}

/// Which side sent the first FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Closer {
    Local,
    Remote,
    /// Neither did: the connection was cut.
    Nobody,
}

impl Closer {
    /// The word of the output contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Remote => "remote",
            Self::Nobody => "nobody",
        }
    }
}

impl Ending {
    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Bytes of the application that the peer acknowledged: the kernel also counts the SYN of an active open and
    /// the FIN (`tcp_snd_una_update`).
    #[must_use]
    pub const fn bytes_sent(&self) -> u64 {
        let syn = matches!(self.socket.role, Role::Active);
        let fin = self.tcp.waiting_bytes() == 0
            && matches!(
                self.old,
                TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck
            );
        self.tcp.bytes_acked.saturating_sub(syn as u64 + fin as u64)
    }

    /// Bytes for the application that came.
    #[must_use]
    pub const fn bytes_received(&self) -> u64 {
        let fin = self.has(ending_flag::FIN_RECEIVED);
        self.octets_received.saturating_sub(fin as u64)
    }

    /// This host sent a RST: before the end, or right after it where a living connection ends without an error
    /// (`tcp_disconnect`, `tcp_close`).
    #[must_use]
    pub const fn reset_sent(&self) -> bool {
        self.has(ending_flag::RST_SENT)
            || (self.errno == 0 && !self.has(ending_flag::RST_RECEIVED) && !self.is_orderly())
    }

    /// Who closed first, as the state that it ended from tells.
    #[must_use]
    pub const fn closed_first(&self) -> Closer {
        match self.old {
            TcpState::CloseWait | TcpState::LastAck => Closer::Remote,
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing => Closer::Local,
            _ => Closer::Nobody,
        }
    }

    /// An orderly end: both sides closed, all was acknowledged, and nothing cut in.
    #[must_use]
    pub const fn is_orderly(&self) -> bool {
        self.errno == 0
            && self.tcp.waiting_bytes() == 0
            && !self.has(ending_flag::RST_SENT)
            && !self.has(ending_flag::RST_RECEIVED)
            && !matches!(self.old, TcpState::Established | TcpState::CloseWait)
    }
}

/// `net_device.name`: at most 15 bytes, NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device(pub [u8; 16]);

impl Device {
    /// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn to_text(self) -> Cow<'static, str> {
        Comm(self.0).to_text()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// Return value of `tcp_write_wakeup`; negative when this host dropped it.
    pub result: i32,
    /// A keepalive; otherwise a window probe.
    pub keepalive: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// When `socket.state` was entered, where that was seen.
    pub since: Option<Ktime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Index into [`HOOKS`], checked by decode.
    pub hook: usize,
    pub lost: u64,
}

/// The kernel's counters of a network namespace and ours, since the same moment. With inode 0: what is to
/// be said of all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Netns {
    pub id: NetnsId,
    /// Indexed by [`conntracer_common::netns::kernel`]; ours before the kernel's were read, and after.
    pub kernel: KernelCounts,
    pub before: KernelCounts,
    pub after: KernelCounts,
    /// Counted from the namespace's birth on.
    pub born: bool,
    /// Nothing can be compared: a filter is in force, or the kernel's counters cannot be read.
    pub filtered: bool,
    pub unreadable: bool,
    /// The kernel does not tell of segments that it could not send again.
    pub failures_untraced: bool,
    /// Namespaces not compared, and counts that found no room.
    pub uncompared: u32,
    pub homeless: u32,
    /// Counters that the record tells, the first ones; the others are 0 on all sides.
    pub told: usize,
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

/// The walk at start is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seeded {
    /// Sockets that found no room in the kernel half's maps.
    pub homeless: u64,
    pub took: Duration,
    /// Network namespaces walked, and those that nothing leads into.
    pub namespaces: u32,
    pub not_entered: u32,
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

/// The audit is over: the [`Idle`] events since the last one are all there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audited {
    /// Connections asked about, those told of, and those that were lost.
    pub asked: u32,
    pub said: u32,
    pub lost: u32,
    /// How long a connection must have been idle.
    pub limit: Duration,
}

/// The wall clock was set, or the machine slept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// CLOCK_REALTIME − CLOCK_MONOTONIC from now on, nanoseconds.
    pub realtime_offset_ns: i64,
}

/// Half-closed sockets of one process that a poll counts beyond those of which it shows a [`Snapshot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HalfClosed {
    pub owner: Option<Owner>,
    pub count: u64,
    pub state: TcpState,
}

impl Loss {
    /// The hook's name.
    #[must_use]
    pub fn hook_name(&self) -> &'static str {
        HOOKS.get(self.hook).copied().unwrap_or("unknown")
    }
}

/// Who holds a socket that is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    pub socket: Socket,
    first: [Option<Owner>; MAX_HOLDERS],
    /// Processes in all.
    pub count: u32,
    /// Whose it was said to be until then; 0 when nobody's, and in older recordings.
    pub said_pid: u32,
}

impl Holders {
    #[must_use]
    pub const fn new(
        socket: Socket,
        first: [Option<Owner>; MAX_HOLDERS],
        count: u32,
        said_pid: u32,
    ) -> Self {
        Self {
            socket,
            first,
            count,
            said_pid,
        }
    }

    /// The first of them: the owner, and others by their pids.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.first.iter().flatten()
    }
}

/// What names an owner. Texts are NUL-padded, empty when not known, and any bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub started_ms: u32,
    /// Milliseconds since 1970; 0 when not known.
    pub started_unix_ms: u64,
    /// The namespace that `netns_name` names.
    pub netns: u32,
    pub executable: [u8; EXECUTABLE_BYTES],
    /// The beginning is missing.
    pub executable_cut: bool,
    pub cgroup: [u8; CGROUP_BYTES],
    pub cgroup_cut: bool,
    pub netns_name: [u8; NETNS_NAME_BYTES],
}

impl Body {
    /// The `kind` of the output contract. A repeated SYN-ACK is a `retransmit` of type `syn_ack`.
    #[must_use]
    pub const fn kind_name(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connect",
            Self::Accept(_) => "accept",
            Self::State(_) => "state",
            Self::Retransmit(_) | Self::SynAck(_) => "retransmit",
            Self::Undo(_) => "undo",
            Self::Syn(_) => "syn",
            Self::Sources(_) => "sources",
            Self::Reset(_) => "reset",
            Self::Drop(_) => "drop",
            Self::Refusal(_) => "refusal",
            Self::Failure(_) => "failure",
            Self::Ending(_) => "connection",
            Self::Probe(_) => "probe",
            Self::Snapshot(_) => "snapshot",
            Self::Tick => "tick",
            Self::Loss(_) => "gap",
            Self::Netns(_) => "netns",
            Self::Seed(_) => "seed",
            Self::Seeded(_) => "seeded",
            Self::Idle(_) => "idle",
            Self::Audited(_) => "audited",
            Self::HalfClosed(_) => "half_closed",
            Self::Clock(_) => "clock",
            Self::Process(_) => "process",
            Self::Holders(_) => "holders",
        }
    }

    /// The socket it is about; `None` for what is about none.
    #[must_use]
    pub const fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Connect(body) | Self::Accept(body) => Some(&body.socket),
            Self::State(body) => Some(&body.socket),
            Self::Retransmit(body) => Some(&body.socket),
            Self::Undo(body) => Some(&body.socket),
            Self::SynAck(body) => Some(&body.socket),
            Self::Syn(body) => Some(&body.socket),
            Self::Sources(body) => Some(&body.socket),
            Self::Reset(body) => Some(&body.socket),
            Self::Drop(body) => Some(&body.socket),
            Self::Refusal(body) => Some(&body.socket),
            Self::Failure(body) => Some(&body.socket),
            Self::Ending(body) => Some(&body.socket),
            Self::Probe(body) => Some(&body.socket),
            Self::Snapshot(body) => Some(&body.socket),
            Self::Seed(body) => Some(&body.socket),
            Self::Holders(body) => Some(&body.socket),
            Self::Idle(body) => Some(&body.socket),
            Self::Tick
            | Self::Loss(_)
            | Self::Netns(_)
            | Self::Seeded(_)
            | Self::Audited(_)
            | Self::HalfClosed(_)
            | Self::Clock(_)
            | Self::Process(_) => None,
        }
    }

    /// The owner, where it is known.
    #[must_use]
    pub const fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Connect(body) | Self::Accept(body) => body.owner.as_ref(),
            Self::State(body) => body.owner.as_ref(),
            Self::Retransmit(body) => body.owner.as_ref(),
            Self::Undo(body) => body.owner.as_ref(),
            Self::SynAck(body) => body.owner.as_ref(),
            Self::Syn(body) => body.owner.as_ref(),
            Self::Reset(body) => body.owner.as_ref(),
            Self::Drop(body) => body.owner.as_ref(),
            Self::Refusal(body) => body.owner.as_ref(),
            Self::Failure(body) => body.owner.as_ref(),
            Self::Ending(body) => body.owner.as_ref(),
            Self::Probe(body) => body.owner.as_ref(),
            Self::Snapshot(body) => body.owner.as_ref(),
            Self::Seed(body) => body.owner.as_ref(),
            Self::Idle(body) => body.owner.as_ref(),
            Self::HalfClosed(body) => body.owner.as_ref(),
            Self::Sources(_)
            | Self::Tick
            | Self::Loss(_)
            | Self::Netns(_)
            | Self::Seeded(_)
            | Self::Audited(_)
            | Self::Clock(_)
            | Self::Process(_)
            | Self::Holders(_) => None,
        }
    }
}
