//! Why a segment is sent again, from what `tcp_retransmit_skb` finds in the socket and in the buffer.
//!
//! One function for both sides: the eBPF side counts by it, userspace types records by it, so that
//! the two cannot differ. That a repeat was spurious is known only afterwards (a duplicate SACK, an undo):
//! it is a count beside the types, never a type of its own.

use crate::{
    record::{Retransmit, RetransmitTotals, Tcp},
    tcp::{ca, flag, pending, sacked, state},
};

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
    pub const COUNT: usize = 7;
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
        } else {
            class::SYN
        };
    }
    if attempt.pending == pending::LOSS_PROBE && attempt.sacked & sacked::LOST == 0 {
        return class::LOSS_PROBE;
    }
    if attempt.ca_state == ca::LOSS {
        return if attempt.pending == pending::NONE {
            class::TIMEOUT
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

impl Attempt {
    /// What a record holds of it.
    #[must_use]
    #[inline]
    pub const fn of(record: &Retransmit) -> Self {
        Self {
            state: record.socket.state,
            tcp_flags: record.tcp_flags,
            sacked: record.sacked,
            ca_state: record.tcp.ca_state,
            pending: record.tcp.pending,
        }
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

impl RetransmitTotals {
    /// Counts one more event; `before` are the socket's fields at the last one.
    #[inline]
    pub fn count(&mut self, event: &Retransmit, before: Option<&Tcp>) {
        let tcp = &event.tcp;
        let segments = u64::from(event.segs);
        if let Some(before) = before {
            self.progress += u64::from(advanced(before.snd_una, tcp.snd_una));
            self.peer_spoke += u64::from(advanced(before.rcv_nxt, tcp.rcv_nxt));
            let gained = tcp.total_retrans.wrapping_sub(before.total_retrans);
            self.unseen += u64::from(gained.saturating_sub(counted(event.segs, event.error)));
        } else {
            self.first_ns = event.header.ktime_ns;
        }
        self.events += 1;
        if event.error != 0 {
            self.failed += segments;
            return;
        }
        if let Some(of_class) = self
            .segments
            .get_mut(usize::from(class(&Attempt::of(event))))
        {
            *of_class += segments;
        }
        let bytes = event.end_seq.wrapping_sub(event.seq);
        let is_full = tcp.mss != 0 && u64::from(bytes) >= u64::from(tcp.mss) * segments;
        self.full += u64::from(is_full) * segments;
        self.shut += u64::from(tcp.snd_wnd == 0) * segments;
        if event.seq != tcp.snd_una {
            return;
        }
        self.heads += 1;
        self.full_heads += u64::from(is_full);
        // Of many, all but the last are of one MSS.
        let bytes = if event.segs > 1 { tcp.mss } else { bytes };
        if is_full && (self.full_head_bytes == 0 || bytes < self.full_head_bytes) {
            self.full_head_bytes = bytes;
        }
    }

    /// What was counted since `before`, an earlier reading of the same connection. Of two readings the newer
    /// may come first, when they are of two CPUs: nothing then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if self.first_ns != before.first_ns {
            return *self;
        }
        if self.events <= before.events {
            return Self::default();
        }
        let mut gained = *self;
        gained.events -= before.events;
        for (gained, before) in gained.segments.iter_mut().zip(before.segments) {
            *gained = gained.saturating_sub(before);
        }
        gained.failed = self.failed.saturating_sub(before.failed);
        gained.unseen = self.unseen.saturating_sub(before.unseen);
        gained.full = self.full.saturating_sub(before.full);
        gained.shut = self.shut.saturating_sub(before.shut);
        gained.heads = self.heads.saturating_sub(before.heads);
        gained.full_heads = self.full_heads.saturating_sub(before.full_heads);
        gained.progress = self.progress.saturating_sub(before.progress);
        gained.peer_spoke = self.peer_spoke.saturating_sub(before.peer_spoke);
        gained
    }

    /// The count of a single event.
    #[must_use]
    pub fn of(event: &Retransmit) -> Self {
        let mut totals = Self::default();
        totals.count(event, None);
        totals
    }
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

    fn event(change: impl FnOnce(&mut Retransmit)) -> Retransmit {
        let mut event = Retransmit {
            seq: 1000,
            end_seq: 1000 + 2 * 1448,
            segs: 2,
            ..Retransmit::default()
        };
        event.header.ktime_ns = 7;
        event.tcp.snd_una = 1000;
        event.tcp.snd_wnd = 64_000;
        event.tcp.mss = 1448;
        event.tcp.ca_state = ca::RECOVERY;
        event.tcp.pending = pending::RETRANS;
        event.sacked = sacked::LOST;
        change(&mut event);
        event
    }

    #[test]
    fn a_single_event_counts_its_segments() {
        let totals = RetransmitTotals::of(&event(|_| ()));
        let mut expected = RetransmitTotals {
            first_ns: 7,
            events: 1,
            full: 2,
            heads: 1,
            full_heads: 1,
            full_head_bytes: 1448,
            ..RetransmitTotals::default()
        };
        expected.segments[usize::from(class::FAST)] = 2;
        assert_eq!(totals, expected);
        let failed = RetransmitTotals::of(&event(|event| event.error = 1));
        assert_eq!((failed.failed, failed.segments), (2, [0; class::COUNT]));
        let small = RetransmitTotals::of(&event(|event| event.end_seq -= 1));
        assert_eq!((small.full, small.heads, small.full_heads), (0, 1, 0));
        let shut = RetransmitTotals::of(&event(|event| event.tcp.snd_wnd = 0));
        assert_eq!(shut.shut, 2);
    }

    #[test]
    fn what_the_socket_counted_beside_its_events_is_unseen() {
        let mut totals = RetransmitTotals::default();
        let first = event(|event| event.tcp.total_retrans = 4);
        totals.count(&first, None);
        assert_eq!(totals.unseen, 0, "what was before the first is not known");
        let next = event(|event| event.tcp.total_retrans = 9);
        totals.count(&next, Some(&first.tcp));
        assert_eq!(totals.unseen, 3);
        // Tried in vain: the socket did not count it.
        let untried = event(|event| {
            event.tcp.total_retrans = 10;
            event.error = EBUSY;
        });
        totals.count(&untried, Some(&next.tcp));
        assert_eq!(totals.unseen, 4);
    }

    #[test]
    fn readings_subtract() {
        let mut before = RetransmitTotals::of(&event(|_| ()));
        let mut now = before;
        now.count(&event(|_| ()), Some(&event(|_| ()).tcp));
        let gained = now.since(&before);
        assert_eq!((gained.events, gained.full), (1, 2));
        assert_eq!(before.since(&now).events, 0, "an older reading");
        before.first_ns = 6;
        assert_eq!(now.since(&before), now, "another count");
    }

    #[test]
    fn what_no_loss_explains_is_not_guessed() {
        assert_eq!(class(&ESTABLISHED), class::OTHER);
    }
}
