//! What became of every event, by its hook: the counters of the conservation law.

use conntracer_common::filter::emit_bit;

use crate::{globals::global, maps::COUNTERS, table::add};

/// What became of one event: which of its hook's counters it goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Emitted,
    Aggregated,
    Filtered,
    Lost,
    /// Not an event of this hook at all (half of a bracket, an attach in flight): not counted.
    NotOurs,
}

/// Counts one event of `hook`.
#[inline(always)]
pub(crate) fn account(hook: u32, outcome: Outcome) -> i32 {
    if outcome == Outcome::NotOurs {
        return 0;
    }
    if let Some(counters) = COUNTERS.edit(hook) {
        add(&mut counters.seen, 1);
        let counter = match outcome {
            Outcome::Emitted => &mut counters.emitted,
            Outcome::Aggregated => &mut counters.aggregated,
            Outcome::Filtered => &mut counters.filtered,
            Outcome::Lost | Outcome::NotOurs => &mut counters.lost,
        };
        add(counter, 1);
    }
    0
}

/// Whether somebody asked for every record of `kind`.
#[inline(always)]
pub(crate) fn is_streamed(kind: u16) -> bool {
    global!(OPTIONS.emit) & emit_bit(kind) != 0
}
