//! The numbers that `receive_stall` judges by, and the reason for each.

use std::time::Duration;

use crate::section::{section, some};

section! {
    "detect.receive_stall";
    Thresholds {
        /// Seconds for which nothing was read while the window was shut, that open a finding. A process that is busy with
        /// what it has read, or with its disk, comes back within that; from then on its peers notice.
        unread_s: u64 = 5 => some;
    }
}

impl Thresholds {
    /// For a run that lasts for a moment: a second without a byte read is what two or three looks can show.
    pub(crate) const fn at_a_look(&mut self) {
        self.unread_s = 1;
    }

    pub(super) const fn unread(&self) -> Duration {
        Duration::from_secs(self.unread_s)
    }
}
