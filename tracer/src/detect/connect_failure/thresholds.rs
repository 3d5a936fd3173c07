//! The numbers that `connect_failure` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{section, some};

section! {
    "detect.connect_failure";
    Thresholds {
        /// Failed attempts of one process to one remote end for one cause that open `connect_failure`: each is an
        /// error that an application was told.
        attempts: u64 = 1 => some;
        /// Seconds without a failure after which it is resolved: what most clients wait at most before they try
        /// again.
        quiet_s: u64 = 60;
    }
}

impl Thresholds {
    pub(crate) const fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}
