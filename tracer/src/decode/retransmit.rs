//! What was sent again, and what of it was for nothing.

use conntracer_common::{
    record::{self, Header, RetransmitTotals},
    retransmit::{Attempt, class},
};
use zerocopy::IntoBytes;

use super::{DecodeError, owner, read, socket, tcp, when};
use crate::event::{Device, Egress, Retransmit, RetransmitType, Undo};

/// A recording of an earlier conntracer does not tell the interface.
pub(super) fn retransmits(bytes: &[u8], header: &Header) -> Result<Retransmit, DecodeError> {
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
    Ok(Retransmit {
        totals: raw.totals,
        is_cumulative: true,
        egress: (egress.device[0] != 0).then_some(Egress {
            device: Device(egress.device),
            ifindex: egress.ifindex,
        }),
        ..retransmit(&raw.last)?
    })
}

pub(super) fn retransmit(raw: &record::Retransmit) -> Result<Retransmit, DecodeError> {
    Ok(Retransmit {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        kind: retransmit_type(class(&Attempt::of(raw))),
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

pub(super) fn undo(raw: &record::Undo) -> Result<Undo, DecodeError> {
    Ok(Undo {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        began: when(raw.first_ns),
        totals: raw.totals,
        duplicates: raw.dsack_dups,
    })
}

/// The type of a segment, by what sent it again. What follows a retransmission timeout is `Timeout` like its
/// first segment: it is repeated because a timer expired, not because an ACK told of a hole.
pub(crate) const fn retransmit_type(class: u8) -> RetransmitType {
    match class {
        class::SYN => RetransmitType::Syn,
        class::SYN_ACK => RetransmitType::SynAck,
        class::TIMEOUT | class::SLOW_START => RetransmitType::Timeout,
        class::FAST => RetransmitType::Fast,
        class::LOSS_PROBE => RetransmitType::TailLossProbe,
        _ => RetransmitType::Unknown,
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
    #[case::anything_else(class::OTHER, RetransmitType::Unknown)]
    fn what_sent_a_segment_again_is_its_type(#[case] class: u8, #[case] expected: RetransmitType) {
        assert_eq!(retransmit_type(class), expected);
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
