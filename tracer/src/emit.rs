//! The kinds of lines that are printed only when asked for, and what they ask of the eBPF side.

use clap::ValueEnum;
use conntracer_common::{filter::emit_bit, record::kind};
use serde::{Deserialize, Serialize};

use crate::event::Body;

/// Kinds of lines that are printed only when asked for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Emit {
    /// Connections opened by this host.
    Connect,
    /// Connections handed to an application.
    Accept,
    /// State changes.
    State,
    /// Retransmitted segments and SYN-ACKs.
    Retransmit,
    /// What became of SYNs at a listener.
    Syn,
    /// Resets sent and received.
    Reset,
    /// Dropped segments.
    Drop,
    /// SYNs dropped before they reached a listener, counted by where they were to go and why.
    #[serde(alias = "refusal")]
    #[value(name = "early_drop", alias = "refusal")]
    EarlyDrop,
    /// A summary of each connection at its end.
    Connection,
    /// Attempts to connect that failed, counted by process, remote end and error.
    Failure,
    /// Keepalive and window probes.
    Probe,
    /// Sockets that were there before conntracer, found at start.
    Seed,
    /// The counters of every hook, each 10 s.
    Stats,
    /// All of these.
    All,
}

/// Which kinds of lines are printed beyond the default ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Emits {
    /// Bits of [`emit_bit`].
    records: u32,
    pub stats: bool,
}

impl Emits {
    #[must_use]
    pub fn of(kinds: &[Emit]) -> Self {
        kinds.iter().fold(Self::default(), |emits, kind| Self {
            records: emits.records | record_bits(*kind),
            stats: emits.stats || matches!(kind, Emit::Stats | Emit::All),
        })
    }

    /// These and those.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            records: self.records | other.records,
            stats: self.stats || other.stats,
        }
    }

    /// What the eBPF side is to write to the rings.
    #[must_use]
    pub const fn records(self) -> u32 {
        self.records
    }

    /// Whether an event of this kind is printed. Snapshots, ticks and losses are between the two sides;
    /// a loss is shown by its gap.
    #[must_use]
    pub const fn prints(self, body: &Body) -> bool {
        self.records & emit_bit(body.about().kind) != 0
    }
}

fn record_bits(kind: Emit) -> u32 {
    match kind {
        Emit::Connect => emit_bit(kind::CONNECT),
        Emit::Accept => emit_bit(kind::ACCEPT),
        Emit::State => emit_bit(kind::STATE),
        Emit::Retransmit => emit_bit(kind::RETRANSMIT) | emit_bit(kind::SYNACK),
        Emit::Syn => emit_bit(kind::SYN),
        Emit::Reset => emit_bit(kind::RESET),
        Emit::Drop => emit_bit(kind::DROP),
        Emit::EarlyDrop => emit_bit(kind::EARLY_DROP),
        Emit::Failure => emit_bit(kind::FAILURE),
        Emit::Connection => emit_bit(kind::CLOSE),
        Emit::Probe => emit_bit(kind::PROBE),
        Emit::Seed => emit_bit(kind::SEED),
        Emit::Stats => 0,
        Emit::All => Emit::value_variants()
            .iter()
            .filter(|kind| **kind != Emit::All)
            .fold(0, |bits, kind| bits | record_bits(*kind)),
    }
}
