//! The per-hook counters behind the conservation law: seen = emitted + aggregated + filtered + lost.
//!
//! Incremented per CPU by the eBPF side, summed and shown by userspace.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Every hook, in the order of the `COUNTERS` map: [`hook`] has the indices, [`HOOKS`] the names.
macro_rules! hooks {
    ($($(#[$doc:meta])* $hook:ident = $name:literal;)*) => {
        /// Index of a hook in the `COUNTERS` map and in [`HOOKS`].
        pub mod hook {
            #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "named as the constants")]
            enum Index { $($hook,)* COUNT }

            $($(#[$doc])* pub const $hook: u32 = Index::$hook as u32;)*
            pub const COUNT: u32 = Index::COUNT as u32;
        }

        /// Names of the hooks, in the order of [`hook`].
        pub const HOOKS: [&str; hook::COUNT as usize] = [$($name),*];
    };
}

hooks! {
    CONNECT = "connect";
    ACCEPT = "accept";
    STATE = "state";
    RETRANSMIT = "retransmit";
    SYNACK = "synack";
    SYN = "syn";
    ACK = "ack";
    RESET_SENT = "reset_sent";
    RESET_RECEIVED = "reset_received";
    DROP = "drop";
    PROBE = "probe";
    DESTROY = "destroy";
    RTO = "rto";
    COOKIE = "cookie";
    /// Ends of requests that made no connection.
    REQUEST = "request";
    /// Retransmission timers that fire.
    TIMEOUT = "timeout";
    /// Tail loss probes.
    LOSS_PROBE = "loss_probe";
    /// What connect() returned.
    FAILURE = "failure";
    /// Sockets met by the walk at start.
    SEED = "seed";
    /// Descriptors of sockets that a process received from another.
    PASS = "pass";
    /// Losses that the kernel took back, because nothing was lost.
    UNDO = "undo";
    /// Processes that fork.
    FORK = "fork";
    /// What bind() and listen() returned.
    BIND = "bind";
}

/// What happened to the events of one hook on one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct HookCounters {
    /// Events of this hook that the eBPF side looked at.
    pub seen: u64,
    /// Written to a ring.
    pub emitted: u64,
    /// Folded into a map: a healthy connection's events, and the SYNs behind a cumulative record.
    pub aggregated: u64,
    /// Another protocol, or excluded by the filter.
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
