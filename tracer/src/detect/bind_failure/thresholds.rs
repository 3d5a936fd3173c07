//! The numbers that `bind_failure` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{section, some};

section! {
    "detect.bind_failure";
    Thresholds {
        /// Seconds after a failure for which a process may get the port after all, or another one, before the failure is
        /// worth a finding. A search for a free port takes milliseconds, a server that tries again (nginx) some 500 ms.
        patience_s: u64 = 2 => some;
        /// Seconds without another failure after which a finding is over. A service that ends for it is started again
        /// within that: kubelet waits for 300 s at most.
        quiet_s: u64 = 330 => some;
    }
}

impl Thresholds {
    pub(super) const fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_s)
    }

    pub(super) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}
