//! The numbers that `retransmit_storm` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{factor, rate, section, share, some};

section! {
    "detect.retransmit_storm";
    Thresholds {
        /// Retransmitted segments a second, over the last 3 s, from which on one connection storms. RTO backoff
        /// alone stays below 2, so a peer that is merely gone is not a storm.
        connection_per_s: f64 = 5.0 => rate;
        /// The same for all connections to one remote address: two storming connections.
        remote_per_s: f64 = 10.0 => rate;
        /// The same for a network (/24, /48), a listener, a process, a network namespace and the whole host: below
        /// 50 are a busy server's ordinary internet losses.
        host_per_s: f64 = 50.0 => rate;
        /// A storm is at least so many times what is usual in its scope (`usual_per_s` in the evidence), learned over
        /// 10 minutes outside of storms: what chance makes of a usual rate near the floor stays below twice.
        usual_factor: f64 = 3.0 => factor;
        /// Share of retransmitted among sent data segments from which on a connection storms: at 3 % loss alone
        /// holds a connection of 50 ms round trip to about 1.6 Mbit/s.
        ratio: f64 = 0.03 => share;
        /// Losses of a connection from which on they are worth a finding whatever their ratio, where loss alone holds its
        /// window down: a window that is small by chance has grown again by then.
        costly_losses: u64 = 20 => some;
        /// Seconds that this must have lasted: a connection begins with a small window.
        costly_s: u64 = 3;
        /// Milliseconds within which retransmissions are one loss and its repair: more than two round trips of
        /// nearly every path.
        burst_ms: u64 = 500;
        /// Seconds below half the floor after which a storm has ended: longer than the gaps that RTO backoff
        /// leaves in a storm (up to 6.4 s after five timeouts).
        quiet_s: u64 = 10;
        /// A wider scope stays silent while one narrower scope holds this share of its segments: one connection
        /// that storms is not its remote's storm.
        explained: f64 = 0.8 => share;
    }
}

impl Thresholds {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }

    /// How many losses, and for how long.
    pub(super) const fn costly(&self) -> (u64, Duration) {
        (self.costly_losses, Duration::from_secs(self.costly_s))
    }

    pub(crate) const fn burst(&self) -> Duration {
        Duration::from_millis(self.burst_ms)
    }
}
