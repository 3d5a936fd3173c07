//! Why a segment is sent again, from what `tcp_retransmit_skb` finds in the socket and in the buffer.
//!
//! One function for both sides: the eBPF side counts by it, userspace types records by it, so that
//! the two cannot differ. That a repeat was spurious is known only afterwards (a duplicate SACK, an undo):
//! it is a count beside the types, never a type of its own.

use crate::tcp::{ca, flag, pending, sacked, state};

/// What the kernel leaves to tell by, at the tracepoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempt {
    /// `skc_state`.
    pub state: u8,
    /// `tcp_skb_cb.tcp_flags` and `tcp_skb_cb.sacked` of the buffer.
    pub tcp_flags: u8,
    pub sacked: u8,
    /// `icsk_ca_state` and `icsk_pending`.
    pub ca_state: u8,
    pub pending: u8,
    /// 1 in the state Loss without a timeout: nothing is there to take back (`undo_marker` is 0).
    pub without_timeout: u8,
    /// `icsk_retransmits` and `icsk_backoff`.
    pub retransmits: u8,
    pub backoff: u8,
}

/// What sent a segment again. Each is counted by another counter of the kernel, or by none.
pub mod class {
    /// The timer of connect().
    pub const SYN: u8 = 0;
    /// The timer of a full socket that sent a SYN-ACK: a simultaneous open.
    pub const SYN_ACK: u8 = 1;
    /// The retransmission timer: the first segment that is not acknowledged.
    pub const TIMEOUT: u8 = 2;
    /// ACKs after a retransmission timeout: what else it took for lost (`TCPSlowStartRetrans`).
    pub const SLOW_START: u8 = 3;
    /// ACKs that told of a hole (`TCPFastRetrans`).
    pub const FAST: u8 = 4;
    /// The tail loss probe's timer (RFC 8985, 7).
    pub const LOSS_PROBE: u8 = 5;
    /// None of these: the data of a SYN that only the SYN was acknowledged of.
    pub const OTHER: u8 = 6;
    /// As many as records tell apart.
    pub const COUNT: usize = 7;
    /// What was not lost to congestion, told as [`OTHER`]: too large for what ICMP said of the path, or the data of a Fast
    /// Open SYN of which only the SYN was acknowledged (`tcp_simple_retransmit`, `tcp_non_congestion_loss_retransmit`).
    /// No timer fired, and the kernel counts it in `TCPSlowStartRetrans`; of a SYN in `TCPSynRetrans` too.
    pub const NOT_CONGESTION: u8 = 7;
    pub const SYN_NOT_CONGESTION: u8 = 8;
    /// As many as are counted in a namespace.
    pub const COUNTED: usize = 9;

    /// As records tell it.
    #[must_use]
    #[inline]
    pub const fn told(class: u8) -> u8 {
        match class {
            NOT_CONGESTION => OTHER,
            SYN_NOT_CONGESTION => SYN,
            _ => class,
        }
    }
}

/// Whether a socket came to the state Loss without a timeout, which would have something to take back
/// (`tcp_enter_loss`, `tcp_init_undo`): its timer is pending.
#[must_use]
#[inline]
pub const fn is_without_timeout(ca_state: u8, pending: u8, undo_marker: u32) -> bool {
    ca_state == ca::LOSS && pending != pending::NONE && undo_marker == 0
}

/// Whether an ICMP message that says that there is no way took a doubling of the timer back, and by that found it due
/// (RFC 6069, `tcp_ld_RTO_revert`): it is still pending then. The timer counts before it doubles: one ahead is its own
/// timeout, and two are this. ACKs send again with none ahead, or with as many as were taken back and not made up for.
#[must_use]
#[inline]
pub const fn is_clocked_out(retransmits: u8, backoff: u8) -> bool {
    retransmits > backoff.saturating_add(1)
}

/// One of [`class`].
///
/// Only what is marked lost is repeated by ACKs (`tcp_xmit_retransmit_queue`), and a tail loss probe takes
/// the last segment although it is not: that tells them apart in recovery too, where a probe's timer may
/// have been armed before. The retransmission timer is the only one that is no longer pending when it
/// repeats (`tcp_write_timer_handler`), and only it and a smaller path MTU lead to the state Loss.
#[must_use]
#[inline]
pub const fn class(attempt: &Attempt) -> u8 {
    if attempt.tcp_flags & flag::SYN != 0 {
        return if attempt.state == state::SYN_RECV {
            class::SYN_ACK
        } else if attempt.without_timeout != 0 {
            class::SYN_NOT_CONGESTION
        } else {
            class::SYN
        };
    }
    if attempt.pending == pending::LOSS_PROBE && attempt.sacked & sacked::LOST == 0 {
        return class::LOSS_PROBE;
    }
    if attempt.ca_state == ca::LOSS {
        return if attempt.pending == pending::NONE
            || is_clocked_out(attempt.retransmits, attempt.backoff)
        {
            class::TIMEOUT
        } else if attempt.without_timeout != 0 {
            class::NOT_CONGESTION
        } else {
            class::SLOW_START
        };
    }
    if attempt.ca_state == ca::RECOVERY {
        class::FAST
    } else {
        class::OTHER
    }
}

/// Segments that an attempt added to `total_retrans`.
#[must_use]
#[inline]
pub const fn counted(segments: u32, errno: u32) -> u32 {
    if is_untried(errno) { 0 } else { segments }
}

/// Whether a sequence number moved forward (RFC 9293, 3.4: by less than half the space).
#[must_use]
#[inline]
pub const fn advanced(before: u32, now: u32) -> bool {
    let step = now.wrapping_sub(before);
    step != 0 && step < 1 << 31
}

/// Errors of `__tcp_retransmit_skb` before it counts the segment: nothing was tried
/// (net/ipv4/tcp_output.c). All others are counted by `RetransSegs` and by `TCPRetransFail`.
#[must_use]
#[inline]
pub const fn is_untried(errno: u32) -> bool {
    matches!(errno, EAGAIN | ENOMEM | EBUSY | EHOSTUNREACH)
}

/// Beyond the peer's window.
const EAGAIN: u32 = 11;
/// No memory to split or copy the buffer.
const ENOMEM: u32 = 12;
/// What was sent before has not left this host's queue.
const EBUSY: u32 = 16;
/// No route any more.
const EHOSTUNREACH: u32 = 113;

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: Attempt = Attempt {
        state: state::ESTABLISHED,
        tcp_flags: flag::ACK,
        sacked: sacked::EVER_RETRANS | sacked::LOST,
        ca_state: ca::OPEN,
        pending: pending::RETRANS,
        without_timeout: 0,
        retransmits: 0,
        backoff: 0,
    };

    #[test]
    fn handshakes_are_told_by_their_flags() {
        let syn = Attempt {
            state: state::SYN_SENT,
            tcp_flags: flag::SYN,
            ca_state: ca::LOSS,
            pending: pending::NONE,
            ..ESTABLISHED
        };
        assert_eq!(class(&syn), class::SYN);
        let syn_ack = Attempt {
            state: state::SYN_RECV,
            tcp_flags: flag::SYN | flag::ACK,
            ..syn
        };
        assert_eq!(class(&syn_ack), class::SYN_ACK);
    }

    #[test]
    fn the_timer_is_told_from_the_acks_that_follow_it() {
        let timeout = Attempt {
            ca_state: ca::LOSS,
            pending: pending::NONE,
            ..ESTABLISHED
        };
        assert_eq!(class(&timeout), class::TIMEOUT);
        for pending in [pending::RETRANS, pending::LOSS_PROBE, pending::REO_TIMEOUT] {
            let after = Attempt { pending, ..timeout };
            assert_eq!(class(&after), class::SLOW_START);
        }
    }

    #[test]
    fn a_timer_that_an_icmp_message_finds_due_is_one() {
        let after = |retransmits, backoff| {
            class(&Attempt {
                ca_state: ca::LOSS,
                retransmits,
                backoff,
                ..ESTABLISHED
            })
        };
        assert_eq!(after(3, 1), class::TIMEOUT);
        // ACKs after two timeouts, after an answer, and after a message that found the timer not due yet.
        for (retransmits, backoff) in [(2, 2), (0, 2), (2, 1)] {
            assert_eq!(after(retransmits, backoff), class::SLOW_START);
        }
    }

    #[test]
    fn without_a_timeout_nothing_in_the_state_loss_is_one() {
        let marked = |pending, undo_marker| is_without_timeout(ca::LOSS, pending, undo_marker);
        assert!(marked(pending::RETRANS, 0));
        assert!(
            !marked(pending::RETRANS, 7),
            "a timeout has something to take back"
        );
        assert!(!marked(pending::NONE, 0), "the timer itself");
        assert!(!is_without_timeout(ca::RECOVERY, pending::RETRANS, 0));
        let simple = Attempt {
            ca_state: ca::LOSS,
            without_timeout: 1,
            ..ESTABLISHED
        };
        assert_eq!(class(&simple), class::NOT_CONGESTION);
        assert_eq!(class::told(class(&simple)), class::OTHER);
        let syn = Attempt {
            state: state::SYN_SENT,
            tcp_flags: flag::SYN,
            ..simple
        };
        assert_eq!(class(&syn), class::SYN_NOT_CONGESTION);
        assert_eq!(class::told(class(&syn)), class::SYN);
    }

    #[test]
    fn a_probe_is_told_by_what_is_not_lost_in_every_congestion_state() {
        for ca_state in [ca::OPEN, ca::DISORDER, ca::CWR, ca::RECOVERY] {
            let probe = Attempt {
                sacked: sacked::EVER_RETRANS,
                ca_state,
                pending: pending::LOSS_PROBE,
                ..ESTABLISHED
            };
            assert_eq!(class(&probe), class::LOSS_PROBE);
        }
        for pending in [pending::NONE, pending::RETRANS, pending::LOSS_PROBE] {
            let fast = Attempt {
                ca_state: ca::RECOVERY,
                pending,
                ..ESTABLISHED
            };
            assert_eq!(class(&fast), class::FAST);
        }
    }

    #[test]
    fn what_no_loss_explains_is_not_guessed() {
        assert_eq!(class(&ESTABLISHED), class::OTHER);
    }
}
