//! The numbers that `send_stall` judges by, and the reason for each.

use crate::section::{section, some};

section! {
    "detect.send_stall";
    Thresholds {
        /// Window probes in a row that open `receiver_stalled`: they come after 0.2, 0.6 and 1.4 s on a LAN, and an
        /// application that reads at all opens its window within that.
        probes: u8 = 3 => some;
        /// Those that did not leave this host that open `local_drop`: the first may have met a full queue.
        failed_probes: u8 = 2 => some;
    }
}
