//! What is counted per network namespace, to be held against the kernel's own counters of it.
//!
//! Only what went wrong: a healthy connection counts nothing here. Written by the eBPF side where a
//! listener's totals are, compared by userspace.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{record::syn_outcome, retransmit::class, undo::way};

/// Index into [`Counts`]. The first [`syn_outcome::OUTCOMES`] are those of [`syn_outcome`], of which the
/// healthy ones (`ADDED`, `COMPLETED`) stay 0.
pub mod count {
    use super::{class, syn_outcome, way};

    /// SYNs that were to be answered with a cookie, and then dropped.
    pub const COOKIE_DROPPED: usize = syn_outcome::OUTCOMES;
    /// ACKs without a request that brought a valid cookie, and those that brought a wrong one.
    pub const COOKIE_VALID: usize = COOKIE_DROPPED + 1;
    pub const COOKIE_INVALID: usize = COOKIE_DROPPED + 2;
    /// SYN-ACKs retransmitted, by timer or for a retransmitted SYN.
    pub const SYN_ACK_RETRANSMITTED: usize = COOKIE_DROPPED + 3;
    /// Resets sent, whatever for.
    pub const RESET_SENT: usize = COOKIE_DROPPED + 4;
    /// Requests ended by the peer's RST or SYN.
    pub const REQUEST_RESET: usize = COOKIE_DROPPED + 5;
    /// Requests ended by our RST, because the accept queue was full and `tcp_abort_on_overflow` is 1.
    pub const REQUEST_ABORTED: usize = COOKIE_DROPPED + 6;
    /// Requests given up by their timer.
    pub const REQUEST_EXPIRED: usize = COOKIE_DROPPED + 7;
    /// Timers of requests that fired, the last one included.
    pub const REQUEST_TIMEOUT: usize = COOKIE_DROPPED + 8;
    /// Retransmission timers of sockets that fired, also those that sent nothing.
    pub const TIMEOUT: usize = COOKIE_DROPPED + 9;
    /// Tail loss probes sent, those of new data included.
    pub const LOSS_PROBE: usize = COOKIE_DROPPED + 10;
    /// Segments that the kernel counted as sent again and could not send, of which it tells from 6.17 on.
    pub const RETRANSMIT_FAILED: usize = COOKIE_DROPPED + 11;
    /// Sockets that the kernel gave up before they were established (`tcp_done`).
    pub const ATTEMPT_FAILED: usize = COOKIE_DROPPED + 12;
    /// Requests that the peer's RST or SYN was to end and another CPU had ended already.
    pub const REQUEST_STOLEN: usize = COOKIE_DROPPED + 13;
    /// Segments sent again, by [`class`]: this is the first.
    pub const RETRANSMITTED: usize = COOKIE_DROPPED + 14;
    /// Losses that the kernel took back, by [`way`]: this is the first.
    pub const UNDONE: usize = RETRANSMITTED + class::COUNTED;
    pub const COUNT: usize = UNDONE + way::COUNT;
}

/// Cumulative per namespace since the eBPF side first counted anything there, indexed by [`count`].
pub type Counts = [u64; count::COUNT];

/// Which namespace: an inode alone is given to the next one as soon as its namespace is gone.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
)]
#[repr(C)]
pub struct NetnsId {
    /// `net.ns.inum`; 0 stands for all that found no room of their own.
    pub inode: u32,
    /// `net.hash_mix`: a random number drawn when the namespace was made.
    pub mix: u32,
}

/// The kernel's counters that are read: index into [`KernelCounts`] and [`KERNEL`].
pub mod kernel {
    pub const LISTEN_OVERFLOWS: usize = 0;
    pub const LISTEN_DROPS: usize = 1;
    pub const REQ_Q_FULL_DROP: usize = 2;
    pub const REQ_Q_FULL_DO_COOKIES: usize = 3;
    pub const SYNCOOKIES_SENT: usize = 4;
    pub const SYNCOOKIES_RECV: usize = 5;
    pub const SYNCOOKIES_FAILED: usize = 6;
    pub const SYN_RETRANS: usize = 7;
    pub const EMBRYONIC_RSTS: usize = 8;
    pub const TIMEOUTS: usize = 9;
    pub const FAST_RETRANS: usize = 10;
    pub const SLOW_START_RETRANS: usize = 11;
    pub const LOSS_PROBES: usize = 12;
    /// `RetransSegs` that could not be sent.
    pub const RETRANS_FAIL: usize = 13;
    pub const RETRANS_SEGS: usize = 14;
    pub const OUT_RSTS: usize = 15;
    pub const ATTEMPT_FAILS: usize = 16;
    pub const LOSS_UNDO: usize = 17;
    pub const FULL_UNDO: usize = 18;
    pub const PARTIAL_UNDO: usize = 19;
    pub const DSACK_UNDO: usize = 20;
    pub const COUNT: usize = 21;

    /// Whether a counter is of `struct tcp_mib`; the others are of `struct linux_mib`.
    #[must_use]
    #[inline]
    pub const fn is_of_tcp(counter: usize) -> bool {
        counter >= RETRANS_SEGS && counter <= ATTEMPT_FAILS
    }
}

/// The kernel's names of the counters: in its enumerations, and in /proc/net/netstat and /proc/net/snmp.
pub const KERNEL: [(&str, &str); kernel::COUNT] = [
    ("LINUX_MIB_LISTENOVERFLOWS", "ListenOverflows"),
    ("LINUX_MIB_LISTENDROPS", "ListenDrops"),
    ("LINUX_MIB_TCPREQQFULLDROP", "TCPReqQFullDrop"),
    ("LINUX_MIB_TCPREQQFULLDOCOOKIES", "TCPReqQFullDoCookies"),
    ("LINUX_MIB_SYNCOOKIESSENT", "SyncookiesSent"),
    ("LINUX_MIB_SYNCOOKIESRECV", "SyncookiesRecv"),
    ("LINUX_MIB_SYNCOOKIESFAILED", "SyncookiesFailed"),
    ("LINUX_MIB_TCPSYNRETRANS", "TCPSynRetrans"),
    ("LINUX_MIB_EMBRYONICRSTS", "EmbryonicRsts"),
    ("LINUX_MIB_TCPTIMEOUTS", "TCPTimeouts"),
    ("LINUX_MIB_TCPFASTRETRANS", "TCPFastRetrans"),
    ("LINUX_MIB_TCPSLOWSTARTRETRANS", "TCPSlowStartRetrans"),
    ("LINUX_MIB_TCPLOSSPROBES", "TCPLossProbes"),
    ("LINUX_MIB_TCPRETRANSFAIL", "TCPRetransFail"),
    ("TCP_MIB_RETRANSSEGS", "RetransSegs"),
    ("TCP_MIB_OUTRSTS", "OutRsts"),
    ("TCP_MIB_ATTEMPTFAILS", "AttemptFails"),
    ("LINUX_MIB_TCPLOSSUNDO", "TCPLossUndo"),
    ("LINUX_MIB_TCPFULLUNDO", "TCPFullUndo"),
    ("LINUX_MIB_TCPPARTIALUNDO", "TCPPartialUndo"),
    ("LINUX_MIB_TCPDSACKUNDO", "TCPDSACKUndo"),
];

/// The kernel's counters of one namespace, summed over CPUs.
pub type KernelCounts = [u64; kernel::COUNT];

/// What the kernel should have counted, by what the eBPF side counted.
#[must_use]
pub const fn expected(counts: &Counts) -> KernelCounts {
    use self::count as c;
    use syn_outcome as o;
    let syn_overflows = counts[o::ACCEPT_QUEUE_FULL];
    let cookies = counts[o::COOKIE];
    let mut sums = [0; kernel::COUNT];
    sums[kernel::LISTEN_OVERFLOWS] = syn_overflows.wrapping_add(counts[o::ACK_OVERFLOW]);
    sums[kernel::LISTEN_DROPS] = syn_overflows
        .wrapping_add(counts[o::SYN_QUEUE_FULL])
        .wrapping_add(counts[o::SYN_QUEUE_PRESSURE])
        .wrapping_add(counts[o::NO_ROUTE])
        .wrapping_add(counts[o::OTHER])
        .wrapping_add(counts[o::ACK_OVERFLOW])
        .wrapping_add(counts[o::ACK_OTHER]);
    sums[kernel::REQ_Q_FULL_DROP] = counts[o::SYN_QUEUE_FULL];
    sums[kernel::REQ_Q_FULL_DO_COOKIES] = cookies.wrapping_add(counts[c::COOKIE_DROPPED]);
    sums[kernel::SYNCOOKIES_SENT] = cookies;
    sums[kernel::SYNCOOKIES_RECV] = counts[c::COOKIE_VALID];
    sums[kernel::SYNCOOKIES_FAILED] = counts[c::COOKIE_INVALID];
    let mut again = counts[c::SYN_ACK_RETRANSMITTED];
    let mut index = 0;
    while index < class::COUNTED {
        again = again.wrapping_add(counts[c::RETRANSMITTED + index]);
        index += 1;
    }
    sums[kernel::SYN_RETRANS] = counts[c::SYN_ACK_RETRANSMITTED]
        .wrapping_add(counts[c::RETRANSMITTED + class::SYN as usize])
        .wrapping_add(counts[c::RETRANSMITTED + class::SYN_NOT_CONGESTION as usize])
        .wrapping_add(counts[c::RETRANSMITTED + class::SYN_ACK as usize]);
    sums[kernel::EMBRYONIC_RSTS] =
        counts[c::REQUEST_RESET].wrapping_add(counts[c::REQUEST_ABORTED]);
    sums[kernel::TIMEOUTS] = counts[c::TIMEOUT].wrapping_add(counts[c::REQUEST_TIMEOUT]);
    sums[kernel::FAST_RETRANS] = counts[c::RETRANSMITTED + class::FAST as usize];
    sums[kernel::SLOW_START_RETRANS] = counts[c::RETRANSMITTED + class::SLOW_START as usize]
        .wrapping_add(counts[c::RETRANSMITTED + class::NOT_CONGESTION as usize])
        .wrapping_add(counts[c::RETRANSMITTED + class::SYN_NOT_CONGESTION as usize]);
    sums[kernel::LOSS_PROBES] = counts[c::LOSS_PROBE];
    sums[kernel::RETRANS_FAIL] = counts[c::RETRANSMIT_FAILED];
    sums[kernel::RETRANS_SEGS] = again;
    sums[kernel::OUT_RSTS] = counts[c::RESET_SENT];
    sums[kernel::ATTEMPT_FAILS] = counts[c::ATTEMPT_FAILED]
        .wrapping_add(counts[c::REQUEST_RESET])
        .wrapping_add(counts[c::REQUEST_STOLEN]);
    sums[kernel::LOSS_UNDO] = counts[c::UNDONE + way::LOSS as usize];
    sums[kernel::FULL_UNDO] = counts[c::UNDONE + way::FULL as usize];
    sums[kernel::PARTIAL_UNDO] = counts[c::UNDONE + way::PARTIAL as usize];
    sums[kernel::DSACK_UNDO] = counts[c::UNDONE + way::DSACK as usize];
    sums
}

/// The kernel's counters as they are compared: of `RetransSegs`, those that were sent.
#[must_use]
pub const fn comparable(counts: &KernelCounts) -> KernelCounts {
    let mut figures = *counts;
    figures[kernel::RETRANS_SEGS] =
        figures[kernel::RETRANS_SEGS].wrapping_sub(counts[kernel::RETRANS_FAIL]);
    figures
}

/// How far the kernel's count is ahead of ours (below 0: behind), where ours was read before and after
/// the kernel's: 0 when the kernel's may have been passed in between.
#[must_use]
pub fn residue(kernel: u64, before: u64, after: u64) -> i64 {
    let distance = |from: u64| i64::try_from(i128::from(kernel) - i128::from(from));
    if kernel < before {
        distance(before).unwrap_or(i64::MIN)
    } else if kernel > after {
        distance(after).unwrap_or(i64::MAX)
    } else {
        0
    }
}

/// CPUs that one run of the `netns_look` program reads.
pub const CPUS_AT_ONCE: u32 = 16;

/// What a run of `netns_look` found: one `struct net`, and the next in the kernel's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Look {
    /// Address of the `struct net`.
    pub net: u64,
    /// Address that the next one in `net_namespace_list` has, if it is not the list's head.
    pub next: u64,
    /// `net.ns.ops`: the same in every network namespace, and in nothing else.
    pub ops: u64,
    pub id: NetnsId,
    pub kernel: KernelCounts,
    /// Where the list leads back to, read after the counters.
    pub previous: u64,
}

impl Look {
    /// Whether it was in the list when its counters had been read: they are freed only after it has left (`cleanup_net`).
    #[must_use]
    pub const fn is_listed(&self) -> bool {
        // `list_del_rcu` leaves LIST_POISON2 there, 0x122 and what makes it no address: that is no multiple of 8.
        self.previous != 0 && self.previous.is_multiple_of(align_of::<u64>() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_residue_is_the_distance_from_what_ours_can_have_been() {
        assert_eq!(residue(5, 5, 5), 0);
        assert_eq!(residue(5, 4, 6), 0);
        assert_eq!(residue(7, 4, 6), 1);
        assert_eq!(residue(3, 4, 6), -1);
        assert_eq!(residue(u64::MAX, 0, 0), i64::MAX);
        assert_eq!(residue(0, u64::MAX, u64::MAX), i64::MIN);
    }

    #[test]
    fn every_count_but_the_healthy_ones_and_expiry_is_expected_of_some_counter() {
        for index in 0..count::COUNT {
            let mut counts = [0; count::COUNT];
            counts[index] = 1;
            let expected = expected(&counts).iter().sum::<u64>() != 0;
            let healthy = matches!(
                index,
                syn_outcome::ADDED | syn_outcome::COMPLETED | count::REQUEST_EXPIRED
            );
            assert_eq!(expected, !healthy, "{index}");
        }
    }

    #[test]
    fn a_retransmission_that_could_not_be_sent_is_not_compared() {
        let mut counts = [0; kernel::COUNT];
        counts[kernel::RETRANS_SEGS] = 5;
        counts[kernel::RETRANS_FAIL] = 2;
        assert_eq!(comparable(&counts)[kernel::RETRANS_SEGS], 3);
    }
}
