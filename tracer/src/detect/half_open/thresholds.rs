//! The numbers that `half_open` judges by, and the reason for each.

use crate::section::{section, share, some};

section! {
    "detect.half_open";
    Thresholds {
        /// Repeats of one request's SYN-ACK that open `handshake`. The first repeat (after 1 s) is one lost
        /// packet, the second (3 s) takes two losses in a row.
        synack_repeats: u8 = 2 => some;
        /// Requests of one listener waiting at the same time after a repeat that open `handshake`: what one lost
        /// burst of a handful of clients does not reach.
        synack_requests: u64 = 5 => some;
        /// Distinct sources of SYNs in trouble from which on it reads like a flood of forged addresses: more than
        /// the clients one broken path usually has within a SYN-ACK's 63 s.
        flood_sources: u64 = 64;
        /// A flood completes a smaller share of its handshakes than this: forged addresses complete none, and a flood
        /// that is not ten times the real clients needs no finding of its own.
        flood_completed: f64 = 0.1 => share;
        /// Consecutive retransmission timeouts that open `dead_peer`. 3 is tcp_retries1, where the kernel itself
        /// starts to doubt the path; on a LAN that is 1.4 s of silence.
        timeouts: u8 = 3 => some;
        /// Unanswered keepalive or window probes that open `dead_peer`: a live peer answers each, so that the
        /// count passes 1 only when a probe or its answer was lost.
        probes: u8 = 2 => some;
        /// Age in seconds from which CLOSE_WAIT and FIN_WAIT2 count. 60 is tcp_fin_timeout, the kernel's own
        /// patience with a FIN_WAIT2 that nobody owns any more.
        half_closed_after_s: u64 = 60;
        /// Sockets of one process that open `half_closed`: a minute in CLOSE_WAIT is a close() that was
        /// forgotten, be it once.
        half_closed_sockets: u64 = 1 => some;
        /// Half-closed sockets gained in a minute from which on it reads like a leak: one slow peer holds one
        /// socket.
        leak_per_minute: u64 = 3;
        /// With --audit keepalive: seconds for which an established connection must have been idle. Servers and load
        /// balancers close what is idle for 1 to 10 minutes, so that what is left is meant to stay, or was forgotten.
        idle_after_s: u64 = 900;
    }
}

impl Thresholds {
    /// [`Self::half_closed_after_s`] in the unit of records.
    #[must_use]
    pub const fn half_closed_ns(&self) -> u64 {
        self.half_closed_after_s.saturating_mul(1_000_000_000)
    }

    /// [`Self::idle_after_s`] in the unit of records.
    #[must_use]
    pub const fn idle_ns(&self) -> u64 {
        self.idle_after_s.saturating_mul(1_000_000_000)
    }
}
