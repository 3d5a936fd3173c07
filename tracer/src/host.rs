//! What is known of the host before the first record: kernel, clocks, and the names that only the
//! running kernel can give its numbers.
//!
//! Written into the head of a recording; a replay reads it back instead of asking its own kernel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::Plan;

/// Facts of the traced host. Everything a detector or sink may use that is not in a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// `uname -n`, `uname -r`, `uname -m`.
    pub hostname: String,
    pub kernel: String,
    pub arch: String,
    /// CLOCK_REALTIME − CLOCK_MONOTONIC at start, nanoseconds; a `Clock` record tells when it changes.
    pub realtime_offset_ns: i64,
    /// When every hook was attached: before, none that is silent says anything by that. 0 where a recording does not
    /// tell it.
    #[serde(default)]
    pub attached_ns: u64,
    /// `enum skb_drop_reason` and `enum sk_rst_reason` of the running kernel by value, without their
    /// prefixes; empty when the kernel has none.
    pub drop_reasons: BTreeMap<u32, String>,
    pub reset_reasons: BTreeMap<u32, String>,
    /// Inode of the tracer's own netns; `None` where a recording does not tell it.
    pub netns: Option<u32>,
    /// `net.core.somaxconn` and `net.ipv4.tcp_retries2` and the like of that netns, by sysctl name; what
    /// advice is phrased with.
    pub sysctls: BTreeMap<String, String>,
    pub plan: Plan,
}
