//! What travels to a sink: one value for each line (or block) of output.
//!
//! Owned and `Send`, because a sink renders on its own thread. Built by [`crate::run`] and the replay.

use std::{collections::BTreeMap, sync::Arc};

use conntracer_common::stats::HookCounters;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::moment::Moment;
use crate::{
    event::Event,
    finding::{Finding, FindingKind},
    host::Host,
    reconcile::Reconciliation,
    table::listener::Summary,
    time::Ktime,
};

/// One piece of output.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "events come by the hundred thousand: boxing them would cost an allocation each"
)]
pub enum Line {
    /// The hooks are attached (or the recording's head was read): records follow.
    Start {
        time: Ktime,
    },
    Finding(Box<Finding>),
    Event(Event),
    /// `lost` records of `hook` never reached the pipeline.
    Gap {
        time: Ktime,
        hook: &'static str,
        lost: u64,
    },
    /// What this sink could not take; the findings among it follow.
    SinkGap(Box<SinkGap>),
    /// The wall clock was set: prints nothing, and is where later lines take their time from.
    Clock {
        realtime_offset_ns: i64,
    },
    Stats {
        occasion: Occasion,
        account: Box<Account>,
    },
    /// What one look came to; the lines of its findings follow.
    Now {
        time: Ktime,
        moment: Box<Moment>,
    },
    Stop {
        reason: Reason,
        account: Box<Account>,
    },
}

impl Line {
    /// Whether a full queue drops it first: events come by the hundred thousand, the rest is what
    /// people run conntracer for.
    #[must_use]
    pub const fn is_bulk(&self) -> bool {
        matches!(self, Self::Event(_))
    }

    /// Whether even a full queue takes it: there are few, and without them the others cannot be read.
    #[must_use]
    pub const fn is_needed(&self) -> bool {
        matches!(
            self,
            Self::Start { .. } | Self::Clock { .. } | Self::Stop { .. }
        )
    }

    /// As the output contract names it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Finding(_) => "finding",
            Self::Event(event) => event.body.about().name,
            Self::Gap { .. } | Self::SinkGap(_) => "gap",
            Self::Clock { .. } => "clock",
            Self::Stats { .. } => "stats",
            Self::Now { .. } => "now",
            Self::Stop { .. } => "stop",
        }
    }

    /// When it was, or was said; of a clock that was set, nothing is known but what is behind it.
    #[must_use]
    pub fn time(&self) -> Ktime {
        match self {
            Self::Start { time } | Self::Gap { time, .. } | Self::Now { time, .. } => *time,
            Self::Finding(finding) => finding.at,
            Self::Event(event) => event.time,
            Self::SinkGap(gap) => gap.until,
            Self::Clock { .. } => Ktime(0),
            Self::Stats { account, .. } | Self::Stop { account, .. } => account.time,
        }
    }
}

/// Why a `stats` line is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Occasion {
    /// It is time.
    Interval,
    /// SIGUSR1: every open finding stands before it.
    Signal,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Duration,
    Signal,
    EndOfInput,
    BrokenPipe,
}

/// What was seen and what became of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    pub time: Ktime,
    /// The busiest listeners; only a `stats` line tells of them, and of how many are left out.
    pub listeners: Vec<Summary>,
    pub listeners_left_out: u64,
    /// Hook by hook; empty in a replay, which has no kernel to ask.
    pub hooks: Vec<(&'static str, HookCounters)>,
    /// Findings opened, by kind.
    pub findings: BTreeMap<FindingKind, u64>,
    /// Everything else that was counted, by name.
    pub tallies: BTreeMap<String, u64>,
    pub reconciliation: Reconciliation,
    /// What each sink could not take, where there are several.
    pub sinks: Vec<SinkAccount>,
}

/// What one sink could not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SinkAccount {
    pub sink: String,
    pub events_lost: u64,
    /// Findings, gaps and totals.
    pub lines_lost: u64,
    /// Why it takes no more.
    pub failed: Option<String>,
}

/// A gap in what a sink was handed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkGap {
    /// As its configuration names it.
    pub sink: String,
    /// Of the first line and of the last.
    pub since: Ktime,
    pub until: Ktime,
    pub kinds: BTreeMap<&'static str, u64>,
    /// Findings that follow, each as it stood last.
    pub said_again: u64,
}

impl SinkGap {
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.kinds
            .values()
            .fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// Turns record time into the wall's, with the offset as records told it last: the same in a replay.
#[derive(Clone, Copy, Debug)]
pub struct Wall {
    realtime_offset_ns: i64,
}

impl Wall {
    #[must_use]
    pub const fn of(host: &Host) -> Self {
        Self {
            realtime_offset_ns: host.realtime_offset_ns,
        }
    }

    /// What began before the clock was set is told by the new one.
    pub const fn set(&mut self, realtime_offset_ns: i64) {
        self.realtime_offset_ns = realtime_offset_ns;
    }

    /// RFC 3339 in UTC with nine digits; a ktime that is no date of jiff's range (a damaged
    /// recording) becomes the nearest one.
    #[must_use]
    pub fn time(self, ktime: Ktime) -> Time {
        let ns = i128::from(ktime.0) + i128::from(self.realtime_offset_ns);
        let nearest = if ns < 0 {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        };
        Time(Timestamp::from_nanosecond(ns).unwrap_or(nearest))
    }
}

/// A moment as the output contract writes it.
#[derive(Clone, Copy, Debug)]
pub struct Time(pub Timestamp);

impl std::fmt::Display for Time {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:.9}", self.0)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a sink needs to know of the traced host to render a line.
pub type SharedHost = Arc<Host>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_has_nine_digits_even_when_they_are_zero() {
        let wall = Wall {
            realtime_offset_ns: 1_700_000_000_000_000_000,
        };
        assert_eq!(
            wall.time(Ktime(0)).to_string(),
            "2023-11-14T22:13:20.000000000Z"
        );
        assert_eq!(
            wall.time(Ktime(1)).to_string(),
            "2023-11-14T22:13:20.000000001Z"
        );
    }

    #[test]
    fn a_damaged_time_is_still_a_time() {
        let wall = Wall {
            realtime_offset_ns: i64::MIN,
        };
        assert!(wall.time(Ktime(0)).to_string().ends_with('Z'));
        let wall = Wall {
            realtime_offset_ns: i64::MAX,
        };
        assert!(wall.time(Ktime(u64::MAX)).to_string().ends_with('Z'));
    }
}
