//! An event: one decoded record, in the types of the standard library.
//!
//! Made by [`crate::decode`], read by the tables and detectors, and serialised by the sinks as the
//! fields of one output line. Plain and `Copy`: a healthy event costs no allocation. Kernel numbers
//! that only the running kernel can name (drop and reset reasons) stay numbers until
//! [`Event::named`] is given the [`Host`].

use std::{net::SocketAddr, time::Duration};

use conntracer_common::{
    record::{SynTotals, syn_outcome},
    stats::HOOKS,
    tcp::state,
};
use serde::{
    Serialize, Serializer,
    ser::{Error as _, SerializeMap},
};

use crate::{
    finding::{self, Ktime},
    kernel::host::Host,
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
    SynAck(SynAck),
    Syn(Syn),
    Reset(Reset),
    Drop(Drop),
    Probe(Probe),
    Snapshot(Snapshot),
    Tick,
    Loss(Loss),
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
        }
    }
}

/// `task_struct.comm`: at most 15 bytes of any value, NUL-padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Comm(pub [u8; 16]);

impl Comm {
    /// The bytes before the first NUL; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn to_text(self) -> std::borrow::Cow<'static, str> {
        let end = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(self.0.len());
        std::borrow::Cow::Owned(String::from_utf8_lossy(&self.0[..end]).into_owned())
    }
}

/// The process a socket belongs to, as the record carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub cgroup_id: u64,
    pub comm: Comm,
    pub pid: u32,
    pub uid: u32,
    pub source: OwnerSource,
}

impl From<Owner> for finding::Owner {
    fn from(owner: Owner) -> Self {
        Self {
            pid: owner.pid,
            comm: owner.comm.to_text().into_owned(),
            uid: owner.uid,
            cgroup_id: owner.cgroup_id,
            source: owner.source.name().into(),
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
}

impl Tcp {
    /// Sent and not acknowledged. Sequence numbers wrap; their difference does not.
    #[must_use]
    pub const fn unacked_bytes(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
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
    /// Index into [`syn_outcome`]; `None` in a poll.
    pub outcome: Option<usize>,
    /// Whether the kernel's own counters named the cause, not the listener's fields.
    pub by_counters: bool,
    /// `net.ipv4.tcp_syncookies`, where it is known.
    pub syncookies: Option<u8>,
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

impl Loss {
    /// The hook's name.
    #[must_use]
    pub fn hook_name(&self) -> &'static str {
        HOOKS.get(self.hook).copied().unwrap_or("unknown")
    }
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
            Self::Syn(_) => "syn",
            Self::Reset(_) => "reset",
            Self::Drop(_) => "drop",
            Self::Probe(_) => "probe",
            Self::Snapshot(_) => "snapshot",
            Self::Tick => "tick",
            Self::Loss(_) => "gap",
        }
    }

    /// The socket it is about; `None` for `Tick` and `Loss`.
    #[must_use]
    pub const fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Connect(body) | Self::Accept(body) => Some(&body.socket),
            Self::State(body) => Some(&body.socket),
            Self::Retransmit(body) => Some(&body.socket),
            Self::SynAck(body) => Some(&body.socket),
            Self::Syn(body) => Some(&body.socket),
            Self::Reset(body) => Some(&body.socket),
            Self::Drop(body) => Some(&body.socket),
            Self::Probe(body) => Some(&body.socket),
            Self::Snapshot(body) => Some(&body.socket),
            Self::Tick | Self::Loss(_) => None,
        }
    }

    /// The owner, where it is known.
    #[must_use]
    pub const fn owner(&self) -> Option<&Owner> {
        match self {
            Self::Connect(body) | Self::Accept(body) => body.owner.as_ref(),
            Self::State(body) => body.owner.as_ref(),
            Self::Retransmit(body) => body.owner.as_ref(),
            Self::SynAck(body) => body.owner.as_ref(),
            Self::Syn(body) => body.owner.as_ref(),
            Self::Reset(body) => body.owner.as_ref(),
            Self::Drop(body) => body.owner.as_ref(),
            Self::Probe(body) => body.owner.as_ref(),
            Self::Snapshot(body) => body.owner.as_ref(),
            Self::Tick | Self::Loss(_) => None,
        }
    }
}

impl Event {
    /// The same fields, with drop and reset reasons named as the traced kernel names them.
    #[must_use]
    pub const fn named<'a>(&'a self, host: &'a Host) -> Named<'a> {
        Named {
            event: self,
            host: Some(host),
        }
    }
}

/// An [`Event`] and the host whose kernel names its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Named<'a> {
    event: &'a Event,
    host: Option<&'a Host>,
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Named {
            event: self,
            host: None,
        }
        .serialize(serializer)
    }
}

impl Serialize for Named<'_> {
    /// A flat map without `time` and `kind`, which the sink writes itself. Keys are OpenTelemetry's
    /// where it has one; an unknown value's key is left out.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("cpu", &self.event.cpu)?;
        if let Some(socket) = self.event.body.socket() {
            socket_entries(&mut map, socket)?;
        }
        if let Some(owner) = self.event.body.owner() {
            owner_entries(&mut map, owner)?;
        }
        self.body_entries(&mut map)?;
        map.end()
    }
}

impl Named<'_> {
    fn body_entries<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        match &self.event.body {
            Body::Connect(_) | Body::Accept(_) | Body::Tick => Ok(()),
            Body::State(body) => {
                map.serialize_entry("old_state", &body.old)?;
                map.serialize_entry("new_state", &body.new)?;
                errno_entry(map, body.errno)?;
                map.serialize_entry("consecutive_timeouts", &body.retransmits)?;
                map.serialize_entry("probes_unanswered", &body.probes_out)
            }
            Body::Retransmit(body) => {
                map.serialize_entry("tcp.retransmit.type", &body.kind)?;
                map.serialize_entry("segments", &body.segments)?;
                map.serialize_entry("seq", &body.seq)?;
                map.serialize_entry("end_seq", &body.end_seq)?;
                errno_entry(map, body.errno)?;
                tcp_entries(map, &body.tcp)
            }
            Body::SynAck(body) => {
                map.serialize_entry("tcp.retransmit.type", &RetransmitType::SynAck)?;
                map.serialize_entry("segments", &1)?;
                map.serialize_entry("repeats_before", &body.num_retrans)?;
                map.serialize_entry("third_ack_discarded", &body.acked)?;
                map.serialize_entry("ack_backlog", &body.ack_backlog)?;
                map.serialize_entry("max_ack_backlog", &body.max_ack_backlog)?;
                map.serialize_entry("syn_qlen", &body.syn_qlen)
            }
            Body::Syn(body) => {
                if let Some(outcome) = body.outcome {
                    let name = syn_outcome::NAMES.get(outcome).copied();
                    map.serialize_entry(
                        "outcome",
                        name.ok_or_else(|| M::Error::custom("SYN outcome out of range"))?,
                    )?;
                }
                for (name, total) in syn_outcome::NAMES.iter().zip(body.totals) {
                    map.serialize_entry(name, &total)?;
                }
                map.serialize_entry("ack_backlog", &body.ack_backlog)?;
                map.serialize_entry("max_ack_backlog", &body.max_ack_backlog)?;
                map.serialize_entry("syn_qlen", &body.syn_qlen)?;
                map.serialize_entry("max_syn_backlog", &body.max_syn_backlog)
            }
            Body::Reset(body) => {
                let direction = if body.received { "receive" } else { "transmit" };
                map.serialize_entry("network.io.direction", direction)?;
                map.serialize_entry("consecutive_timeouts", &body.retransmits)?;
                reason_entry(map, body.reason, self.host.map(|host| &host.reset_reasons))
            }
            Body::Drop(body) => {
                map.serialize_entry("seq", &body.seq)?;
                map.serialize_entry("tcp_flags", &body.tcp_flags)?;
                reason_entry(map, body.reason, self.host.map(|host| &host.drop_reasons))
            }
            Body::Probe(body) => {
                let kind = if body.keepalive {
                    "keepalive"
                } else {
                    "window"
                };
                map.serialize_entry("probe", kind)?;
                map.serialize_entry("result", &body.result)?;
                tcp_entries(map, &body.tcp)
            }
            Body::Snapshot(body) => tcp_entries(map, &body.tcp),
            Body::Loss(body) => {
                map.serialize_entry("hook", body.hook_name())?;
                map.serialize_entry("lost", &body.lost)
            }
        }
    }
}

fn socket_entries<M: SerializeMap>(map: &mut M, socket: &Socket) -> Result<(), M::Error> {
    map.serialize_entry("netns", &socket.netns)?;
    map.serialize_entry("network.local.address", &socket.local.ip())?;
    map.serialize_entry("network.local.port", &socket.local.port())?;
    if socket.remote.port() != 0 {
        map.serialize_entry("network.peer.address", &socket.remote.ip())?;
        map.serialize_entry("network.peer.port", &socket.remote.port())?;
    }
    if socket.state != TcpState::Unknown {
        map.serialize_entry("network.connection.state", &socket.state)?;
    }
    if socket.role != Role::Unknown {
        map.serialize_entry("role", &socket.role)?;
    }
    if socket.id.sk != 0 {
        // As text: JSON readers lose the low bits of integers above 2^53.
        map.serialize_entry("socket", &format_args!("{:#x}", socket.id.sk))?;
    }
    if socket.id.born.0 != 0 {
        map.serialize_entry("born_ktime_ns", &socket.id.born.0)?;
    }
    Ok(())
}

fn owner_entries<M: SerializeMap>(map: &mut M, owner: &Owner) -> Result<(), M::Error> {
    map.serialize_entry("process.pid", &owner.pid)?;
    map.serialize_entry("process.command", &owner.comm.to_text())?;
    map.serialize_entry("user.id", &owner.uid)?;
    map.serialize_entry("cgroup_id", &owner.cgroup_id)?;
    map.serialize_entry("owner_source", &owner.source)
}

fn tcp_entries<M: SerializeMap>(map: &mut M, tcp: &Tcp) -> Result<(), M::Error> {
    map.serialize_entry("unacked_bytes", &tcp.unacked_bytes())?;
    map.serialize_entry("snd_wnd_bytes", &tcp.snd_wnd_bytes)?;
    map.serialize_entry("srtt_us", &tcp.srtt.as_micros())?;
    map.serialize_entry("total_retrans", &tcp.total_retrans)?;
    map.serialize_entry("data_segs_out", &tcp.data_segs_out)?;
    map.serialize_entry("consecutive_timeouts", &tcp.retransmits)?;
    map.serialize_entry("probes_unanswered", &tcp.probes_out)?;
    map.serialize_entry("backoff", &tcp.backoff)
}

fn errno_entry<M: SerializeMap>(map: &mut M, errno: u32) -> Result<(), M::Error> {
    if errno == 0 {
        Ok(())
    } else {
        map.serialize_entry("errno", &errno)
    }
}

fn reason_entry<M: SerializeMap>(
    map: &mut M,
    reason: Option<u32>,
    names: Option<&std::collections::BTreeMap<u32, String>>,
) -> Result<(), M::Error> {
    let Some(reason) = reason else { return Ok(()) };
    match names.and_then(|names| names.get(&reason)) {
        Some(name) => map.serialize_entry("reason", name),
        None => map.serialize_entry("reason", &reason),
    }
}
