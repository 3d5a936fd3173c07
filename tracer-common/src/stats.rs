//! The per-hook counters behind the conservation law: seen = emitted + aggregated + filtered + lost.
//!
//! Incremented per CPU by the eBPF side, summed and shown by userspace.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Index of a hook in the `COUNTERS` map and in [`HOOKS`].
pub mod hook {
    pub const CONNECT: u32 = 0;
    pub const ACCEPT: u32 = 1;
    pub const STATE: u32 = 2;
    pub const RETRANSMIT: u32 = 3;
    pub const SYNACK: u32 = 4;
    pub const SYN: u32 = 5;
    pub const ACK: u32 = 6;
    pub const RESET_SENT: u32 = 7;
    pub const RESET_RECEIVED: u32 = 8;
    pub const DROP: u32 = 9;
    pub const PROBE: u32 = 10;
    pub const DESTROY: u32 = 11;
    pub const RTO: u32 = 12;
    pub const COOKIE: u32 = 13;
    /// Ends of requests that made no connection.
    pub const REQUEST: u32 = 14;
    /// Retransmission timers that fire.
    pub const TIMEOUT: u32 = 15;
    /// Tail loss probes.
    pub const LOSS_PROBE: u32 = 16;
    /// What connect() returned.
    pub const FAILURE: u32 = 17;
    /// Sockets met by the walk at start.
    pub const SEED: u32 = 18;
    /// Descriptors of sockets that a process received from another.
    pub const PASS: u32 = 19;
    /// Losses that were none.
    pub const UNDO: u32 = 20;
    /// Processes that fork.
    pub const FORK: u32 = 21;
    pub const COUNT: u32 = 22;
}

/// Names of the hooks, in the order of [`hook`].
pub const HOOKS: [&str; hook::COUNT as usize] = [
    "connect",
    "accept",
    "state",
    "retransmit",
    "synack",
    "syn",
    "ack",
    "reset_sent",
    "reset_received",
    "drop",
    "probe",
    "destroy",
    "rto",
    "cookie",
    "request",
    "timeout",
    "loss_probe",
    "failure",
    "seed",
    "pass",
    "undo",
    "fork",
];

/// What happened to the events of one hook on one CPU.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct HookCounters {
    /// Events of this hook that the eBPF side looked at.
    pub seen: u64,
    /// Written to a ring.
    pub emitted: u64,
    /// Folded into a map: a healthy connection's events, and the SYNs behind a cumulative record.
    pub aggregated: u64,
    /// Not asked for: another protocol, or outside the filter.
    pub filtered: u64,
    /// The ring or a map was full.
    pub lost: u64,
}

impl HookCounters {
    /// The law: every event seen is accounted for.
    #[must_use]
    pub const fn balances(&self) -> bool {
        let accounted = self
            .emitted
            .saturating_add(self.aggregated)
            .saturating_add(self.filtered)
            .saturating_add(self.lost);
        self.seen == accounted
    }

    /// Adds another CPU's counters.
    pub const fn add(&mut self, other: &Self) {
        self.seen = self.seen.saturating_add(other.seen);
        self.emitted = self.emitted.saturating_add(other.emitted);
        self.aggregated = self.aggregated.saturating_add(other.aggregated);
        self.filtered = self.filtered.saturating_add(other.filtered);
        self.lost = self.lost.saturating_add(other.lost);
    }
}
