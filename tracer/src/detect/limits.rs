//! What is remembered at most. What falls out is counted in [`crate::pipeline::Tallies`].

use crate::section::{entries, entries_or_none, section};

section! {
    "detect.limits";
    /// What is remembered at most. What falls out is counted and shown in the totals.
    Limits {
        /// Connections in trouble, per detector: about 10 MB in all.
        connections: usize = 16_384 => entries;
        /// Listeners.
        listeners: usize = 4_096 => entries;
        /// Addresses and ports that SYNs were dropped on their way to: several times what the eBPF side keeps.
        #[serde(alias = "refusals")]
        early_drops: usize = 16_384 => entries;
        /// Remote addresses that are retransmitted to, and the networks, listeners, processes and namespaces that
        /// retransmit, together.
        remotes: usize = 16_384 => entries;
        /// Processes with half-closed sockets.
        processes: usize = 4_096 => entries;
        /// Remote ends that processes failed to connect to: what the eBPF side keeps.
        failures: usize = 4_096 => entries;
        /// Remote ends, listeners and processes whose connections died alike.
        drops: usize = 4_096 => entries;
        /// Connections whose state is asked for at every poll: about 4 ms a second.
        watched: usize = 4_096 => entries_or_none;
    }
}
