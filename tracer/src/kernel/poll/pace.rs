//! How often a costly look or search is taken: the more of a CPU the last one took, the longer until the next.

use std::ops::RangeInclusive;

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    /// Of the time that it may take of a CPU, as a divisor.
    share: u64,
    shortest_ns: u64,
    longest_ns: u64,
    pub(super) next_ns: u64,
}

impl Pace {
    /// One that rests for a time within `rest_ns`, whatever it costs.
    pub(super) const fn new(share: u64, rest_ns: RangeInclusive<u64>) -> Self {
        Self {
            share,
            shortest_ns: *rest_ns.start(),
            longest_ns: *rest_ns.end(),
            next_ns: 0,
        }
    }

    pub(super) const fn is_due(&self, now_ns: u64) -> bool {
        now_ns >= self.next_ns
    }

    /// The next is taken whenever it is asked for.
    pub(super) const fn hurry(&mut self) {
        self.next_ns = 0;
    }

    /// From `now_ns` on, after what took so much of a CPU.
    pub(super) fn rest(&mut self, cost_ns: u64, now_ns: u64) {
        let rest_ns = self.share.saturating_mul(cost_ns);
        self.next_ns = now_ns.saturating_add(rest_ns.clamp(self.shortest_ns, self.longest_ns));
    }
}
