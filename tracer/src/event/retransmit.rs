//! What a connection retransmitted, and what of it was unnecessary.

use conntracer_common::{
    record::{self, Header, RetransmitTotals, UndoTotals},
    retransmit::{Attempt, class, counted},
};
use serde::Serialize;
use zerocopy::IntoBytes;

use super::{
    device::Device,
    owner::Owner,
    raw::{DecodeError, read, when},
    socket::Socket,
    tcp::Tcp,
};
use crate::time::Ktime;

/// Why a segment was retransmitted: OpenTelemetry's words, then conntracer's.
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

    /// The type of a segment, by what sent it again. What follows a retransmission timeout is `Timeout` like its
    /// first segment: it is retransmitted because a timer expired, not because an ACK told of a hole. What is sent
    /// again in the same state without a timer has no word of its own: `Unknown`.
    #[must_use]
    pub const fn of(class: u8) -> Self {
        match class::told(class) {
            class::SYN => Self::Syn,
            class::SYN_ACK => Self::SynAck,
            class::TIMEOUT | class::SLOW_START => Self::Timeout,
            class::FAST => Self::Fast,
            class::LOSS_PROBE => Self::TailLossProbe,
            _ => Self::Unknown,
        }
    }

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
    pub(super) fn decode(raw: &record::Retransmit) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            kind: RetransmitType::of(class(&Attempt::of(raw))),
            seq: raw.seq,
            end_seq: raw.end_seq,
            segments: raw.segs.max(1),
            errno: raw.error,
            failures_traced: raw.failures_traced != 0,
            duplicates: raw.dsack_dups,
            totals: RetransmitTotals::of(raw),
            is_cumulative: false,
            egress: None,
        })
    }

    /// A recording of an earlier conntracer does not tell the interface.
    pub(super) fn decode_all(bytes: &[u8], header: &Header) -> Result<Self, DecodeError> {
        const OLDER: usize = size_of::<record::Retransmits>() - size_of::<record::Egress>();
        let raw: record::Retransmits = if bytes.len() == OLDER {
            read(
                &[bytes, record::Egress::default().as_bytes()].concat(),
                header,
            )?
        } else {
            read(bytes, header)?
        };
        let egress = raw.egress;
        Ok(Self {
            totals: raw.totals,
            is_cumulative: true,
            egress: (egress.device[0] != 0).then_some(Egress {
                device: Device(egress.device),
                ifindex: egress.ifindex,
            }),
            ..Self::decode(&raw.last)?
        })
    }

    /// Segments that this attempt added to `total_retrans`.
    #[must_use]
    pub const fn counted(&self) -> u32 {
        counted(self.segments, self.errno)
    }

    /// Whether it is the first segment that is not acknowledged.
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

/// The kernel took back what it did about segments that were not lost.
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

impl Undo {
    pub(super) fn decode(raw: &record::Undo) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            began: when(raw.first_ns),
            totals: raw.totals,
            duplicates: raw.dsack_dups,
        })
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::record::kind;
    use rstest::rstest;

    use super::*;
    use crate::{
        decode::decode,
        event::{Body, Event},
    };

    #[rstest]
    #[case::syn(class::SYN, RetransmitType::Syn)]
    #[case::simultaneous_open(class::SYN_ACK, RetransmitType::SynAck)]
    #[case::timer(class::TIMEOUT, RetransmitType::Timeout)]
    #[case::after_the_timer(class::SLOW_START, RetransmitType::Timeout)]
    #[case::fast(class::FAST, RetransmitType::Fast)]
    #[case::probe(class::LOSS_PROBE, RetransmitType::TailLossProbe)]
    #[case::no_timer_fired(class::NOT_CONGESTION, RetransmitType::Unknown)]
    #[case::no_timer_of_connect(class::SYN_NOT_CONGESTION, RetransmitType::Syn)]
    #[case::anything_else(class::OTHER, RetransmitType::Unknown)]
    fn what_sent_a_segment_again_is_its_type(#[case] class: u8, #[case] expected: RetransmitType) {
        assert_eq!(RetransmitType::of(class), expected);
    }

    #[test]
    fn an_older_recording_does_not_tell_the_interface() {
        let mut now = record::Retransmits::default();
        now.egress.device[..4].copy_from_slice(b"eth0");
        now.totals.events = 3;
        now.last.header.kind = kind::RETRANSMITS;
        let egress = |size: usize| {
            let mut record = now;
            record.last.header.size = u16::try_from(size).unwrap();
            match decode(&record.as_bytes()[..size]) {
                Ok(Event {
                    body: Body::Retransmit(body),
                    ..
                }) => (body.totals.events, body.egress.map(|egress| egress.device)),
                other => panic!("{other:?}"),
            }
        };
        let whole = size_of::<record::Retransmits>();
        assert_eq!(egress(whole), (3, Some(Device(now.egress.device))));
        assert_eq!(egress(whole - size_of::<record::Egress>()), (3, None));
    }
}
