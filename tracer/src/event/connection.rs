//! A connection's life and end.

use std::{net::IpAddr, time::Duration};

use conntracer_common::record::{self, Header, close_flag, close_hint, failure_how, rst_sender};
use serde::Serialize;
use zerocopy::IntoBytes;

use super::{
    owner::Owner,
    raw::{DecodeError, read, reason},
    socket::{Role, Socket, TcpState, address},
    tcp::Tcp,
};
use crate::time::Ktime;

/// Body of `connect` and `accept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub socket: Socket,
    pub owner: Option<Owner>,
}

impl Opened {
    pub(super) fn decode(
        socket: &record::Socket,
        owner: &record::Owner,
    ) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(socket),
            owner: Owner::decode(owner)?,
        })
    }
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

impl State {
    pub(super) fn decode(raw: &record::State) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            old: raw.old_state.into(),
            new: raw.new_state.into(),
            errno: raw.error,
            retransmits: raw.retransmits,
            probes_out: raw.probes_out,
        })
    }
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

impl Reset {
    pub(super) fn decode(raw: &record::Reset) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            reason: reason(raw.reason),
            received: raw.received != 0,
            retransmits: raw.retransmits,
        })
    }
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
    /// The signal that ended its process.
    pub signal: Option<u8>,
    /// The last ICMP message about it, where it was seen.
    pub icmp: Option<Icmp>,
}

/// An ICMP or ICMPv6 message, by the family of its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    pub kind: u8,
    pub code: u8,
    pub from: IpAddr,
}

impl Failure {
    /// A recording of an earlier conntracer has the first bytes of it.
    pub(super) fn decode(bytes: &[u8], header: &Header) -> Result<Self, DecodeError> {
        if bytes.len() == record::FAILURE_BEFORE {
            let mut whole = bytes.to_vec();
            whole.resize(size_of::<record::Failure>(), 0);
            return Self::of(&read(&whole, header)?);
        }
        Self::of(&read(bytes, header)?)
    }

    fn of(raw: &record::Failure) -> Result<Self, DecodeError> {
        Ok(Self {
            signal: (raw.signal != 0).then_some(raw.signal),
            icmp: (raw.how & failure_how::ICMP != 0).then(|| Icmp {
                kind: raw.icmp_type,
                code: raw.icmp_code,
                from: address(&raw.icmp_from, raw.socket.family),
            }),
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            count: raw.count,
            first: Ktime(raw.first_ns),
            last: Ktime(raw.last_ns),
            longest: Duration::from_nanos(raw.longest_ns),
            errno: raw.error,
            syns: raw.syns,
            how: raw.how,
        })
    }
}

/// How an established connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Close {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// As the kernel counts: with the FIN, which has a number like a byte. See [`Close::bytes_received`].
    pub octets_received: u64,
    /// Since the connection began; `None` when its beginning was not seen.
    pub age: Option<Duration>,
    /// How long nothing had passed before the first segment that was not answered, or where all were, before the end;
    /// `None` where it is not known.
    pub idle: Option<Duration>,
    /// Since the first segment that was not answered was sent; `None` where there is none, or it is not known.
    pub unanswered: Option<Duration>,
    /// `sk_err` and `sk_err_soft`; 0 for none.
    pub errno: u32,
    pub soft_errno: u32,
    /// `enum sk_rst_reason` of a RST that this host sent before, where the kernel gives one.
    pub reason: Option<u32>,
    pub unread_bytes: u32,
    pub old: TcpState,
    /// Bits of [`conntracer_common::record::close_flag`].
    pub flags: u8,
    /// The process that closed it was ending.
    pub exit: Option<Exit>,
    /// How this host sent the RST that was received, where it was seen to.
    pub sender: Option<RstSender>,
    /// The kernel tells of every RST that TCP sends.
    pub senders_told: bool,
    /// It was taken away without a word to the peer (`TCP_REPAIR`).
    pub in_repair: bool,
    /// Whether the socket had a route that it sent by, where the kernel tells.
    pub routed: Option<bool>,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    Signal(u8),
    Status(u8),
}

impl Exit {
    const fn decode(code: u16) -> Self {
        // As wait() has it: 0x80 is a core dump's.
        let [low, status] = code.to_le_bytes();
        match low & 0x7f {
            0 => Self::Status(status),
            signal => Self::Signal(signal),
        }
    }
}

/// How a RST was sent on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RstSender {
    pub by: SentBy,
    /// `enum sk_rst_reason`, where the kernel gives one.
    pub reason: Option<u32>,
    pub netns: u32,
    /// One of the ends is translated on the way.
    pub translated: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SentBy {
    /// By the socket's own decision.
    Socket,
    /// In answer to a segment, of a socket in this state.
    Answer(TcpState),
    /// In answer to a segment that met no socket.
    NoSocket,
}

impl RstSender {
    const fn decode(raw: &record::Close) -> Option<Self> {
        let by = match raw.sender & !rst_sender::TRANSLATED {
            rst_sender::SOCKET => SentBy::Socket,
            rst_sender::ANSWER => SentBy::Answer(TcpState::of(raw.sender_state)),
            rst_sender::NO_SOCKET => SentBy::NoSocket,
            _ => return None,
        };
        Some(Self {
            by,
            reason: reason(raw.sender_reason),
            netns: raw.sender_netns,
            translated: raw.sender & rst_sender::TRANSLATED != 0,
        })
    }
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

impl Close {
    /// An earlier recording ends before what was added since.
    pub(super) fn decode(bytes: &[u8], header: &Header) -> Result<Self, DecodeError> {
        const OLDER: usize = std::mem::offset_of!(record::Close, unanswered_ns);
        if bytes.len() == OLDER {
            let added = record::Close {
                unanswered_ns: u64::MAX,
                ..record::Close::default()
            };
            let added = added.as_bytes().get(OLDER..).unwrap_or_default();
            return Self::of(&read(&[bytes, added].concat(), header)?);
        }
        Self::of(&read(bytes, header)?)
    }

    fn of(raw: &record::Close) -> Result<Self, DecodeError> {
        let known = |ns: u64| (ns != u64::MAX).then(|| Duration::from_nanos(ns));
        let socket = Socket::decode(&raw.socket);
        let is_whole = socket.id.born != Ktime(0) && !socket.older && socket.role != Role::Unknown;
        Ok(Self {
            socket,
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            octets_received: raw.bytes_received,
            age: is_whole.then(|| Ktime(raw.header.ktime_ns).since(socket.id.born)),
            idle: known(raw.idle_ns),
            unanswered: known(raw.unanswered_ns),
            errno: raw.error,
            soft_errno: raw.soft_error,
            reason: reason(raw.reason),
            unread_bytes: raw.unread,
            old: raw.old_state.into(),
            flags: raw.flags,
            exit: (raw.flags & close_flag::EXITING != 0).then(|| Exit::decode(raw.exit_code)),
            sender: RstSender::decode(raw),
            senders_told: raw.hints & close_hint::SENDERS_TOLD != 0,
            in_repair: raw.hints & close_hint::REPAIR != 0,
            routed: match raw.routed {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            },
        })
    }

    #[must_use]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether this side's FIN is among what was written.
    const fn has_fin(&self) -> bool {
        matches!(
            self.old,
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::Closing | TcpState::LastAck
        )
    }

    /// Bytes that were sent and not acknowledged. A FIN has a number and is no byte.
    #[must_use]
    pub const fn unacked_data(&self) -> u32 {
        let fin = self.has_fin() && self.tcp.snd_nxt == self.tcp.write_seq;
        self.tcp.unacked_bytes().saturating_sub(fin as u32)
    }

    /// Bytes that the application wrote and the peer did not acknowledge, whether they were sent or not.
    #[must_use]
    pub const fn waiting_data(&self) -> u32 {
        self.tcp
            .waiting_bytes()
            .saturating_sub(self.has_fin() as u32)
    }

    /// Whether a byte passed in either way, or was to.
    #[must_use]
    pub const fn has_data(&self) -> bool {
        self.bytes_sent() > 0 || self.bytes_received() > 0 || self.waiting_data() > 0
    }

    /// Bytes of the application that the peer acknowledged: the kernel also counts the SYN of an active open and
    /// the FIN (`tcp_snd_una_update`).
    #[must_use]
    pub const fn bytes_sent(&self) -> u64 {
        let syn = matches!(self.socket.role, Role::Active);
        let fin = self.tcp.waiting_bytes() == 0 && self.has_fin();
        self.tcp
            .bytes_acked
            .saturating_sub((syn as u64).saturating_add(fin as u64))
    }

    /// Bytes for the application that came.
    #[must_use]
    pub const fn bytes_received(&self) -> u64 {
        let fin = self.has(close_flag::FIN_RECEIVED);
        self.octets_received.saturating_sub(fin as u64)
    }

    /// This host sent a RST: before the end, or right after it where a living connection ends without an error
    /// (`tcp_disconnect`, `tcp_close`).
    #[must_use]
    pub const fn reset_sent(&self) -> bool {
        self.has(close_flag::RST_SENT)
            || (self.errno == 0 && !self.has(close_flag::RST_RECEIVED) && !self.is_orderly())
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
            && !self.has(close_flag::RST_SENT)
            && !self.has(close_flag::RST_RECEIVED)
            && !matches!(self.old, TcpState::Established | TcpState::CloseWait)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// Return value of `tcp_write_wakeup`; see [`Self::has_left`].
    pub result: i32,
    /// A keepalive; otherwise a window probe.
    pub keepalive: bool,
}

impl Probe {
    pub(super) fn decode(raw: &record::Probe) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            result: raw.result,
            keepalive: raw.keepalive != 0,
        })
    }

    /// Whether it left this host: otherwise the result is an error (negative), or the verdict of a queue that
    /// dropped it (positive, `net_xmit_eval`).
    #[must_use]
    pub const fn has_left(&self) -> bool {
        self.result == 0
    }
}
