//! How often what goes on is said: after 1, 2, 4 … s, at last every five minutes. A line costs a reader's time.

use std::time::Duration;

use crate::time::Ktime;

/// Lines come no closer than this: what a person or an alert can follow.
const SOONEST: Duration = Duration::from_secs(1);
/// And no further apart: for as long a reader may take it for over.
const LATEST: Duration = Duration::from_mins(5);

/// When it was said last, and until when that does. See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cadence {
    said_at: Ktime,
    interval: Duration,
}

impl Cadence {
    /// Of what is said for the first time.
    pub(crate) const fn begin(now: Ktime) -> Self {
        Self {
            said_at: now,
            interval: SOONEST,
        }
    }

    /// Whether the last line is old enough for one that says something else.
    pub(crate) fn may_change(&self, now: Ktime) -> bool {
        now.since(self.said_at) >= SOONEST
    }

    /// Whether it is old enough for one that says the same with other figures.
    pub(crate) fn is_due(&self, now: Ktime) -> bool {
        now.since(self.said_at) >= self.interval
    }

    /// It was said, whoever asked for it.
    pub(crate) const fn said(&mut self, now: Ktime) {
        self.said_at = now;
    }

    /// It was said because it was due: the next time is twice as far.
    pub(crate) fn lengthen(&mut self) {
        self.interval = self.interval.saturating_mul(2).min(LATEST);
    }
}
