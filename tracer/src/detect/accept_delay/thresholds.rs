//! The numbers that `accept_delay` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{section, some};

section! {
    "detect.accept_delay";
    Thresholds {
        /// Milliseconds for which a connection waits for accept() that open a finding. A server that comes round at all
        /// does so many times a second, and a burst that it works off is over by then; from a second on clients give up.
        wait_ms: u64 = 1_000 => some;
        /// Seconds without a connection that waits half as long, after which the acceptor has recovered.
        quiet_s: u64 = 3 => some;
        /// Seconds for which a listener nobody has ever accepted from is given to begin: longer than what most servers
        /// do between listen() and their first accept().
        begin_s: u64 = 30;
    }
}

impl Thresholds {
    pub(crate) const fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }

    /// [`Self::wait_ms`] in the unit of records.
    pub(crate) const fn wait_ns(&self) -> u64 {
        self.wait_ms.saturating_mul(1_000_000)
    }

    pub(super) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }

    pub(super) const fn begin(&self) -> Duration {
        Duration::from_secs(self.begin_s)
    }
}
