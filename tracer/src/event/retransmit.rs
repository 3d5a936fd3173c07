//! What a connection sent again, and what of it was for nothing.

use conntracer_common::{
    record::{RetransmitTotals, UndoTotals},
    retransmit::counted,
};
use serde::Serialize;

use super::{Device, Owner, Socket, Tcp};
use crate::time::Ktime;

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
        self.tcp.mss_bytes != 0
            && bytes >= (self.tcp.mss_bytes as u64).saturating_mul(self.segments as u64)
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
