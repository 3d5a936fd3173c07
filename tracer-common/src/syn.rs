//! What became of a SYN or a third ACK, from what the kernel counted and how its listener's queues stood.
//!
//! The kernel drops a SYN without a word (`tcp_conn_request`), but counts it: what this CPU's counters of the
//! namespace rose by while it decided is about that packet alone. Where they cannot be read, the queues tell, and
//! the record says that it was inferred.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::record::{syn_evidence, syn_outcome};

/// Counters of one CPU that tell why a SYN or a third ACK was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct SynCounters {
    /// `TcpExt` ListenOverflows, ListenDrops, TCPReqQFullDrop, TCPReqQFullDoCookies.
    pub overflows: u64,
    pub drops: u64,
    pub full_drop: u64,
    pub full_cookies: u64,
}

impl SynCounters {
    pub const NONE: Self = Self {
        overflows: 0,
        drops: 0,
        full_drop: 0,
        full_cookies: 0,
    };

    /// What was counted from `before` to `self`.
    #[must_use]
    #[inline]
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            overflows: self.overflows.wrapping_sub(before.overflows),
            drops: self.drops.wrapping_sub(before.drops),
            full_drop: self.full_drop.wrapping_sub(before.full_drop),
            full_cookies: self.full_cookies.wrapping_sub(before.full_cookies),
        }
    }

    /// Whether they counted no more than what is looked at now, or one thing before the tracer.
    #[must_use]
    #[inline]
    pub const fn are_fresh(&self) -> bool {
        self.overflows | self.drops | self.full_drop | self.full_cookies <= 1
    }

    /// Whether a SYN was to be answered with a cookie, and then dropped: the kernel decides on the cookie first,
    /// and then finds the accept queue full.
    #[must_use]
    #[inline]
    pub const fn dropped_cookie(&self) -> bool {
        self.drops != 0 && self.full_cookies != 0
    }
}

/// How a listener's queues stand, and what bounds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queues {
    /// `sk_ack_backlog` and `sk_max_ack_backlog`.
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// `icsk_accept_queue.qlen`, and `net.ipv4.tcp_max_syn_backlog`.
    pub syn_qlen: u32,
    pub max_syn_backlog: u32,
    /// `net.ipv4.tcp_syncookies`, 255 when not known.
    pub syncookies: u8,
}

/// The value of `net.ipv4.tcp_syncookies` that sends a cookie for every SYN.
const ALWAYS: u8 = 2;

impl Queues {
    #[inline]
    const fn accept_queue_is_full(&self) -> bool {
        self.ack_backlog > self.max_ack_backlog
    }

    /// Which queue a dropped SYN found full. The kernel looks at the SYN queue first; `qlen == limit` is full on
    /// some stable releases and not on others, so the accept queue goes before it there.
    #[inline]
    const fn full(&self) -> usize {
        if self.syncookies == 0 && self.syn_qlen > self.max_ack_backlog {
            syn_outcome::SYN_QUEUE_FULL
        } else if self.accept_queue_is_full() {
            syn_outcome::ACCEPT_QUEUE_FULL
        } else if self.syncookies == 0 && self.syn_qlen >= self.max_ack_backlog {
            syn_outcome::SYN_QUEUE_FULL
        } else {
            self.pressure_or_other()
        }
    }

    /// Neither queue is full: with cookies off, the last quarter of `tcp_max_syn_backlog` is kept for peers known
    /// to be alive.
    #[inline]
    const fn pressure_or_other(&self) -> usize {
        let left = self.max_syn_backlog.wrapping_sub(self.syn_qlen);
        if self.syncookies == 0 && left < self.max_syn_backlog >> 2 {
            syn_outcome::SYN_QUEUE_PRESSURE
        } else {
            syn_outcome::OTHER
        }
    }
}

/// The [`syn_outcome`] of a SYN, by what rose while the kernel decided on it: ListenDrops for every SYN that it
/// drops, and beside it why. Whether no route was found, and the queues, are asked for only where that does not
/// tell.
#[must_use]
#[inline]
pub fn by_counters(
    rise: &SynCounters,
    no_route: impl FnOnce() -> bool,
    queues: impl FnOnce() -> Queues,
) -> usize {
    if rise.drops == 0 {
        if rise.full_cookies != 0 {
            syn_outcome::COOKIE
        } else {
            syn_outcome::ADDED
        }
    } else if rise.overflows != 0 {
        syn_outcome::ACCEPT_QUEUE_FULL
    } else if rise.full_drop != 0 {
        syn_outcome::SYN_QUEUE_FULL
    } else if no_route() {
        syn_outcome::NO_ROUTE
    } else {
        queues().pressure_or_other()
    }
}

/// The same by the queues as they stood before, by whether `sk_drops` rose, and by whether a request was stored.
#[must_use]
#[inline]
pub const fn by_queues(before: &Queues, dropped: bool, stored: bool) -> usize {
    if dropped {
        before.full()
    } else if before.syncookies != 0 && before.syn_qlen >= before.max_ack_backlog && !stored {
        syn_outcome::COOKIE
    } else {
        syn_outcome::ADDED
    }
}

/// The same by the queues as they stand afterwards, where nobody looked before.
#[must_use]
#[inline]
pub const fn by_queues_after(after: &Queues, dropped: bool) -> usize {
    if dropped {
        after.full()
    } else if after.syncookies == ALWAYS {
        syn_outcome::COOKIE
    } else {
        syn_outcome::ADDED
    }
}

/// What became of a third ACK that made no connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Whether the kernel counts it as a drop. Of two ACKs that bring the same cookie at once, one finds the socket
    /// made (`inet_ehash_nolisten`), and it counts none.
    pub is_drop: bool,
    /// One of [`syn_outcome`], if so.
    pub outcome: usize,
    /// One of [`syn_evidence`].
    pub evidence: u8,
}

impl Discard {
    #[must_use]
    #[inline]
    pub const fn by_counters(rise: &SynCounters) -> Self {
        Self::new(rise.drops != 0, rise.overflows != 0, syn_evidence::COUNTERS)
    }

    #[must_use]
    #[inline]
    pub const fn by_backlog(is_drop: bool, ack_backlog: u32, max_ack_backlog: u32) -> Self {
        Self::new(is_drop, ack_backlog > max_ack_backlog, syn_evidence::FIELDS)
    }

    #[inline]
    const fn new(is_drop: bool, is_overflow: bool, evidence: u8) -> Self {
        Self {
            is_drop,
            outcome: if is_overflow {
                syn_outcome::ACK_OVERFLOW
            } else {
                syn_outcome::ACK_OTHER
            },
            evidence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Accept queue, SYN queue, and whether cookies are on; both queues take 8 and one more.
    const fn queues(ack_backlog: u32, syn_qlen: u32, syncookies: u8) -> Queues {
        Queues {
            ack_backlog,
            max_ack_backlog: 8,
            syn_qlen,
            max_syn_backlog: 64,
            syncookies,
        }
    }

    const fn rise(overflows: u64, drops: u64, full_drop: u64, full_cookies: u64) -> SynCounters {
        SynCounters {
            overflows,
            drops,
            full_drop,
            full_cookies,
        }
    }

    const DROP: SynCounters = rise(0, 1, 0, 0);

    #[test]
    fn the_kernels_counters_tell_what_became_of_a_syn() {
        let outcome =
            |rise: SynCounters, no_route| by_counters(&rise, || no_route, || queues(1, 1, 1));
        let cases = [
            (SynCounters::NONE, syn_outcome::ADDED),
            (rise(0, 0, 0, 1), syn_outcome::COOKIE),
            (rise(1, 1, 0, 0), syn_outcome::ACCEPT_QUEUE_FULL),
            (rise(1, 1, 0, 1), syn_outcome::ACCEPT_QUEUE_FULL),
            (rise(0, 1, 1, 0), syn_outcome::SYN_QUEUE_FULL),
            (DROP, syn_outcome::OTHER),
        ];
        for (rise, expected) in cases {
            assert_eq!(outcome(rise, false), expected, "{rise:?}");
        }
        assert_eq!(outcome(DROP, true), syn_outcome::NO_ROUTE);
        assert!(rise(1, 1, 0, 1).dropped_cookie());
        assert!(!rise(0, 0, 0, 1).dropped_cookie() && !rise(1, 1, 0, 0).dropped_cookie());
    }

    #[test]
    fn the_last_quarter_of_the_syn_backlog_is_pressure_only_without_cookies() {
        let cases = [
            (queues(1, 49, 0), syn_outcome::SYN_QUEUE_PRESSURE),
            (queues(1, 48, 0), syn_outcome::OTHER),
            (queues(1, 49, 1), syn_outcome::OTHER),
            (queues(1, 49, u8::MAX), syn_outcome::OTHER),
        ];
        for (queues, expected) in cases {
            assert_eq!(
                by_counters(&DROP, || false, || queues),
                expected,
                "{queues:?}"
            );
        }
    }

    #[test]
    fn without_counters_the_queues_tell() {
        let cases = [
            (queues(9, 1, 1), syn_outcome::ACCEPT_QUEUE_FULL),
            (queues(1, 9, 0), syn_outcome::SYN_QUEUE_FULL),
            (queues(1, 8, 0), syn_outcome::SYN_QUEUE_FULL),
            (queues(9, 8, 0), syn_outcome::ACCEPT_QUEUE_FULL),
            (queues(9, 9, 0), syn_outcome::SYN_QUEUE_FULL),
            (queues(1, 1, 1), syn_outcome::OTHER),
        ];
        for (queues, expected) in cases {
            assert_eq!(by_queues(&queues, true, false), expected, "{queues:?}");
            assert_eq!(by_queues_after(&queues, true), expected, "{queues:?}");
        }
    }

    #[test]
    fn a_syn_that_is_not_stored_at_a_full_queue_was_answered_with_a_cookie() {
        let cases = [
            (queues(1, 8, 1), false, syn_outcome::COOKIE),
            (queues(1, 8, 1), true, syn_outcome::ADDED),
            (queues(1, 7, 1), false, syn_outcome::ADDED),
            (queues(1, 8, 0), false, syn_outcome::ADDED),
        ];
        for (queues, stored, expected) in cases {
            assert_eq!(by_queues(&queues, false, stored), expected, "{queues:?}");
        }
        assert_eq!(by_queues_after(&queues(1, 8, 1), false), syn_outcome::ADDED);
        assert_eq!(
            by_queues_after(&queues(1, 1, ALWAYS), false),
            syn_outcome::COOKIE
        );
    }

    #[test]
    fn a_third_ack_is_dropped_where_the_kernel_says_so() {
        let overflow = Discard::by_counters(&rise(1, 1, 0, 0));
        assert!(overflow.is_drop && overflow.evidence == syn_evidence::COUNTERS);
        assert_eq!(overflow.outcome, syn_outcome::ACK_OVERFLOW);
        let other = Discard::by_counters(&DROP);
        assert!(other.is_drop && other.outcome == syn_outcome::ACK_OTHER);
        assert!(!Discard::by_counters(&SynCounters::NONE).is_drop);
        let inferred = Discard::by_backlog(true, 9, 8);
        assert!(inferred.is_drop && inferred.evidence == syn_evidence::FIELDS);
        assert_eq!(inferred.outcome, syn_outcome::ACK_OVERFLOW);
        assert_eq!(
            Discard::by_backlog(true, 8, 8).outcome,
            syn_outcome::ACK_OTHER
        );
    }

    #[test]
    fn counters_at_one_may_have_counted_this_packet_alone() {
        assert!(rise(1, 1, 0, 0).are_fresh() && SynCounters::NONE.are_fresh());
        assert!(!rise(0, 2, 0, 0).are_fresh());
        assert_eq!(
            rise(1, 5, 0, 2).since(&rise(1, 3, 0, 3)),
            rise(0, 2, 0, u64::MAX)
        );
    }
}
