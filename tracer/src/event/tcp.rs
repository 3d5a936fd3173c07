//! What the kernel knows of a connection.

use std::time::Duration;

use conntracer_common::{record, tcp::ca};

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
    pub(super) fn decode(raw: &record::Tcp) -> Self {
        Self {
            bytes_acked: raw.bytes_acked,
            bytes_retrans: raw.bytes_retrans,
            snd_una: raw.snd_una,
            snd_nxt: raw.snd_nxt,
            write_seq: raw.write_seq,
            rcv_nxt: raw.rcv_nxt,
            snd_wnd_bytes: raw.snd_wnd,
            packets_out: raw.packets_out,
            lost_out: raw.lost_out,
            retrans_out: raw.retrans_out,
            total_retrans: raw.total_retrans,
            data_segs_out: raw.data_segs_out,
            srtt: Duration::from_micros(raw.srtt_us.into()),
            rto_jiffies: raw.rto_jiffies,
            mss_bytes: raw.mss,
            user_timeout: (raw.user_timeout_ms != 0)
                .then(|| Duration::from_millis(raw.user_timeout_ms.into())),
            retransmits: raw.retransmits,
            backoff: raw.backoff,
            probes_out: raw.probes_out,
            ca_state: raw.ca_state,
            pending: raw.pending,
            keepalive: match raw.keepalive {
                0 => Some(false),
                1 => Some(true),
                _ => None,
            },
            shutdown: raw.shutdown,
            orphan: raw.orphan != 0,
        }
    }

    /// Sent and not acknowledged. Sequence numbers wrap; their difference does not.
    #[must_use]
    pub const fn unacked_bytes(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    /// The application has shut its side, so that a FIN follows all that it wrote, and that is not acknowledged. It is the
    /// last in the sequence.
    #[must_use]
    pub const fn fin_waits(&self) -> bool {
        const SEND_SHUTDOWN: u8 = 2;
        self.shutdown & SEND_SHUTDOWN != 0 && self.write_seq != self.snd_una
    }

    /// Bytes sent and not acknowledged: a FIN has a number and is no byte.
    #[must_use]
    pub const fn unacked_data_bytes(&self) -> u32 {
        let fin = self.fin_waits() && self.snd_nxt == self.write_seq;
        self.unacked_bytes().saturating_sub(fin as u32)
    }

    /// Bytes written and not acknowledged, without the FIN.
    #[must_use]
    pub const fn waiting_data_bytes(&self) -> u32 {
        self.waiting_bytes().saturating_sub(self.fin_waits() as u32)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fin_has_a_number_and_is_no_byte() {
        let tcp = |shutdown, snd_una, snd_nxt| Tcp {
            shutdown,
            snd_una,
            snd_nxt,
            write_seq: 1001,
            ..Tcp::default()
        };
        let said = |tcp: Tcp| {
            (
                tcp.unacked_data_bytes(),
                tcp.waiting_data_bytes(),
                tcp.fin_waits(),
            )
        };
        assert_eq!(said(tcp(2, 1000, 1001)), (0, 0, true), "the FIN alone");
        assert_eq!(
            said(tcp(3, 901, 1001)),
            (99, 99, true),
            "both are in flight"
        );
        assert_eq!(
            said(tcp(2, 901, 951)),
            (50, 99, true),
            "it was not sent yet"
        );
        assert_eq!(
            said(tcp(2, 1001, 1001)),
            (0, 0, false),
            "it is acknowledged"
        );
        assert_eq!(said(tcp(0, 1000, 1001)), (1, 1, false), "a byte");
        assert_eq!(
            said(tcp(1, 1000, 1001)),
            (1, 1, false),
            "the peer's side is shut"
        );
    }

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
