//! Segments that were retransmitted, by what is known of them.

use conntracer_common::record::RetransmitTotals;

use super::interfaces::Interfaces;
use crate::{detect::path_mtu::Sizes, event::RetransmitType};

/// Retransmissions (and what failed to be one), for every scope they belong to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segments {
    /// Segments that left, by type.
    pub(super) types: [u64; RetransmitType::ALL.len()],
    pub(super) failed: u64,
    /// Of those that left: full-sized ones (one MSS or more), ones into a window that is shut, where its kernel
    /// repeats in place of probing, and ones that were repeated for nothing.
    pub(super) full: u64,
    pub(super) shut: u64,
    pub(super) spurious: u64,
    /// Of the latter, those that an undo told of; and how often the kernel took a loss back.
    pub(super) undone: u64,
    pub(super) undos: u64,
    /// Repeats of the first segment that is not acknowledged, how many of them were full-sized, and what is known
    /// of the path that those are for.
    pub(super) heads: u64,
    pub(super) full_heads: u64,
    pub(super) sizes: Sizes,
    /// Those that they left by, or were to.
    pub(super) interfaces: Interfaces,
    /// The smallest round trip in microseconds.
    pub(super) min_rtt_us: Option<u32>,
    /// Data segments their connections sent meanwhile.
    pub(super) sent: u64,
    /// Repeats before which the peer acknowledged, or sent, something.
    pub(super) progress: u64,
    pub(super) peer_spoke: u64,
    /// Records by which the peer has some of what came after the first segment that is not acknowledged.
    pub(super) peer_has_later: u64,
    /// Those by which that is full-sized.
    pub(super) carried: u64,
}

impl Segments {
    /// What one connection's totals gained.
    pub(super) fn of(gained: &RetransmitTotals, failures_traced: bool) -> Self {
        let mut segments = Self {
            failed: gained.failed,
            full: gained.full,
            shut: gained.shut,
            heads: gained.heads,
            full_heads: gained.full_heads,
            sizes: Sizes::of(gained),
            min_rtt_us: known(gained.min_rtt_us),
            progress: gained.progress,
            peer_spoke: gained.peer_spoke,
            ..Self::default()
        };
        for (class, count) in (0..).zip(gained.segments) {
            segments.left(RetransmitType::of(class), count);
        }
        segments.unseen(gained.unseen, failures_traced);
        segments
    }

    /// Segments of one type, and nothing else.
    pub(super) fn of_type(kind: RetransmitType, count: u64) -> Self {
        let mut segments = Self::default();
        segments.left(kind, count);
        segments
    }

    fn left(&mut self, kind: RetransmitType, count: u64) {
        let of_type = &mut self.types[kind as usize];
        *of_type = of_type.saturating_add(count);
    }

    /// What the socket counted and no event told: attempts that failed, where the kernel is silent about
    /// them, and otherwise what was lost on its way here.
    pub(super) fn unseen(&mut self, count: u64, failures_traced: bool) {
        if failures_traced {
            self.left(RetransmitType::Unknown, count);
        } else {
            self.failed = self.failed.saturating_add(count);
        }
    }

    pub(super) fn add(&mut self, more: &Self) {
        let sum = |sum: &mut u64, more: u64| *sum = sum.saturating_add(more);
        for (types, more) in self.types.iter_mut().zip(more.types) {
            sum(types, more);
        }
        sum(&mut self.failed, more.failed);
        sum(&mut self.full, more.full);
        sum(&mut self.spurious, more.spurious);
        sum(&mut self.undone, more.undone);
        sum(&mut self.undos, more.undos);
        sum(&mut self.shut, more.shut);
        sum(&mut self.heads, more.heads);
        sum(&mut self.full_heads, more.full_heads);
        sum(&mut self.sent, more.sent);
        sum(&mut self.progress, more.progress);
        sum(&mut self.peer_spoke, more.peer_spoke);
        sum(&mut self.peer_has_later, more.peer_has_later);
        sum(&mut self.carried, more.carried);
        self.interfaces.add(&more.interfaces);
        self.sizes.add(&more.sizes);
        self.min_rtt_us = self.min_rtt_us.into_iter().chain(more.min_rtt_us).min();
    }

    pub(super) const fn of_kind(&self, kind: RetransmitType) -> u64 {
        self.types[kind as usize]
    }

    /// Segments that left.
    pub(super) fn count(&self) -> u64 {
        self.types
            .iter()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Segments that left and those that did not.
    pub(super) fn moved(&self) -> u64 {
        self.count().saturating_add(self.failed)
    }

    /// Retransmitted segments that carried data (or a FIN).
    pub(super) fn data(&self) -> u64 {
        self.count()
            .saturating_sub(self.of_kind(RetransmitType::Syn))
            .saturating_sub(self.of_kind(RetransmitType::SynAck))
    }

    /// Whether timeouts repeat the same segments over and over, with next to nothing acknowledged.
    pub(super) const fn is_stuck(&self) -> bool {
        self.of_kind(RetransmitType::Timeout) > 0 && self.progress <= self.heads / 10
    }

    /// Share of retransmitted among sent data segments, where the kernel counts those.
    pub(super) fn ratio(&self) -> Option<f64> {
        (self.sent > 0).then(|| (self.data() as f64 / self.sent as f64).min(1.0))
    }
}

fn known(value: u32) -> Option<u32> {
    // `tcp_init_sock` has no round trip yet: all ones.
    (value != 0 && value != u32::MAX).then_some(value)
}
