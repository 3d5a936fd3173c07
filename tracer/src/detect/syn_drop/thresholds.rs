//! The numbers that `syn_drop` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{section, some};

section! {
    "detect.syn_drop";
    Thresholds {
        /// Seconds without a drop after which a listener has recovered. A refused client comes back after 1, 2
        /// and 4 s, so a queue that is still full shows itself within 10.
        quiet_s: u64 = 10;
        /// SYNs to one address and port that open the causes before a listener (no_listener, filtered …): a stray
        /// probe sends one, and a client that wants in repeats its own twice within 3 s.
        refused_syns: u64 = 3 => some;
        /// Addresses and ports of one namespace, refused for one cause and fewer times each, from which on they are
        /// one finding: what the slowest port scan reaches in seconds. A port that is refused as often as so many of the
        /// others has its own finding.
        scan_ports: u64 = 16 => some;
    }
}

impl Thresholds {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}
