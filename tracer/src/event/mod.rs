//! An event: one decoded record, in the types of the standard library.
//!
//! Made by [`crate::decode`], read by the tables and detectors, and serialised by the sinks as the
//! fields of one output line. Plain and `Copy`: a healthy event costs no allocation. Kernel numbers
//! that only the running kernel can name (drop and reset reasons) stay numbers until
//! [`Event::named`] is given the [`Host`](crate::host::Host).

mod connection;
mod early_drop;
mod fields;
mod idle;
mod listener;
mod retransmit;
mod seed;
mod snapshot;
mod userspace;

use std::{borrow::Cow, net::SocketAddr, time::Duration};

use conntracer_common::tcp::{ca, state};
use serde::Serialize;

pub use self::{
    connection::{Close, Closer, Failure, Opened, Probe, Reset, State},
    early_drop::{Drop, EarlyDrop, Path, Place},
    fields::Named,
    idle::Idle,
    listener::{Sources, Syn, SynAck},
    retransmit::{Egress, Retransmit, RetransmitType, Undo},
    seed::Seed,
    snapshot::Snapshot,
    userspace::{Clock, HalfClosed, Holders, IdleTotals, Loss, Netns, Process, Seeded},
};
use crate::{finding, id::SocketId, time::Ktime};

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
    EarlyDrop(EarlyDrop),
    Failure(Failure),
    Close(Close),
    Probe(Probe),
    Snapshot(Snapshot),
    Tick,
    Checkpoint,
    Loss(Loss),
    Netns(Netns),
    Seed(Seed),
    Seeded(Seeded),
    Idle(Idle),
    IdleTotals(IdleTotals),
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

    /// Whether the peer has some of what was sent after the first segment that is not acknowledged, as a timeout
    /// tells that is not the first: it takes all for lost that the peer has not (`tcp_timeout_mark_lost`), but for
    /// what was sent within the last round trip, and nothing was since the timeout before.
    #[must_use]
    pub const fn peer_has_later(&self) -> bool {
        self.ca_state == ca::LOSS && self.retransmits > 1 && self.packets_out > self.lost_out
    }

    /// Whether some of that is as large as segments get, for certain and within an eighth: all that the segments in
    /// flight lack of an MSS each is the most that those may lack which the peer has.
    #[must_use]
    pub const fn peer_has_full_sized_later(&self) -> bool {
        let mss = self.mss_bytes as u64;
        // More than that are of a larger MSS, and their sizes not known.
        let Some(lacking) = (self.packets_out as u64)
            .saturating_mul(mss)
            .checked_sub(self.unacked_bytes() as u64)
        else {
            return false;
        };
        let has = self.packets_out.saturating_sub(self.lost_out) as u64;
        self.peer_has_later() && lacking.saturating_mul(8) < has.saturating_mul(mss)
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
            Self::EarlyDrop(_) => "early_drop",
            Self::Failure(_) => "failure",
            Self::Close(_) => "connection",
            Self::Probe(_) => "probe",
            Self::Snapshot(_) => "snapshot",
            Self::Tick => "tick",
            Self::Checkpoint => "checkpoint",
            Self::Loss(_) => "gap",
            Self::Netns(_) => "netns",
            Self::Seed(_) => "seed",
            Self::Seeded(_) => "seeded",
            Self::Idle(_) => "idle",
            Self::IdleTotals(_) => "idle_totals",
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
            Self::EarlyDrop(body) => Some(&body.socket),
            Self::Failure(body) => Some(&body.socket),
            Self::Close(body) => Some(&body.socket),
            Self::Probe(body) => Some(&body.socket),
            Self::Snapshot(body) => Some(&body.socket),
            Self::Seed(body) => Some(&body.socket),
            Self::Holders(body) => Some(&body.socket),
            Self::Idle(body) => Some(&body.socket),
            Self::Tick
            | Self::Checkpoint
            | Self::Loss(_)
            | Self::Netns(_)
            | Self::Seeded(_)
            | Self::IdleTotals(_)
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
            Self::EarlyDrop(body) => body.owner.as_ref(),
            Self::Failure(body) => body.owner.as_ref(),
            Self::Close(body) => body.owner.as_ref(),
            Self::Probe(body) => body.owner.as_ref(),
            Self::Snapshot(body) => body.owner.as_ref(),
            Self::Seed(body) => body.owner.as_ref(),
            Self::Idle(body) => body.owner.as_ref(),
            Self::HalfClosed(body) => body.owner.as_ref(),
            Self::Sources(_)
            | Self::Tick
            | Self::Checkpoint
            | Self::Loss(_)
            | Self::Netns(_)
            | Self::Seeded(_)
            | Self::IdleTotals(_)
            | Self::Clock(_)
            | Self::Process(_)
            | Self::Holders(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields of a damaged record, whose product goes beyond 64 bits.
    #[test]
    fn a_peer_is_said_to_have_nothing_full_sized_where_the_numbers_are_absurd() {
        let tcp = Tcp {
            packets_out: u32::MAX,
            mss_bytes: u32::MAX,
            lost_out: 0,
            retransmits: 2,
            ca_state: ca::LOSS,
            ..Tcp::default()
        };
        assert!(!tcp.peer_has_full_sized_later());
    }
}
