//! The numbers that `connection_drop` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{section, some};

section! {
    "detect.connection_drop";
    Thresholds {
        /// Connections that died alike that open `connection_drop`: each is an error that an application was told, or
        /// made.
        connections: u64 = 1 => some;
        /// Seconds: deaths further apart are not one finding. Longer than the idle timeout of nearly every middlebox
        /// (350 s at some clouds), so that its pattern shows.
        quiet_s: u64 = 600;
        /// Shortest idle time in seconds before a death that can be a pattern: below it are the timeouts of requests,
        /// not of idle connections.
        idle_s: u64 = 10;
        /// Seconds: a connection that carries nothing and that its opener resets sooner is a check whether somebody
        /// listens, by a load balancer or a scanner. Those of common ones take milliseconds.
        check_s: u64 = 1;
    }
}

impl Thresholds {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }

    pub(crate) const fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_s)
    }

    pub(crate) const fn check_within(&self) -> Duration {
        Duration::from_secs(self.check_s)
    }
}
