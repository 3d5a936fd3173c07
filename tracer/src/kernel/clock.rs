//! The wall clock against the clock of records: NTP sets it, and CLOCK_MONOTONIC stands still while the machine
//! sleeps.

use conntracer_common::record::{self, kind};
use rustix::time::{ClockId, Timespec, clock_gettime};

use super::live::header;

/// What is told: shorter than anybody reads in a log, and longer than it takes to read two clocks.
const STEP_NS: u64 = 10_000_000;

/// As last told.
#[derive(Debug)]
pub(super) struct Clock {
    realtime_offset_ns: i64,
}

impl Clock {
    pub(super) const fn new(realtime_offset_ns: i64) -> Self {
        Self { realtime_offset_ns }
    }

    /// The record of a clock that was set since.
    pub(super) fn set(&mut self, realtime_offset_ns: i64, now_ns: u64) -> Option<record::Clock> {
        if realtime_offset_ns.abs_diff(self.realtime_offset_ns) < STEP_NS {
            return None;
        }
        self.realtime_offset_ns = realtime_offset_ns;
        Some(record::Clock {
            header: header::<record::Clock>(kind::CLOCK, now_ns),
            realtime_offset_ns,
        })
    }
}

/// CLOCK_REALTIME − CLOCK_MONOTONIC.
pub(super) fn realtime_offset_ns() -> i64 {
    let read = |clock| {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
        i128::from(tv_sec) * 1_000_000_000 + i128::from(tv_nsec)
    };
    // Another task may have the CPU in between: of some tries the fastest is right.
    let tries = [(); 4].map(|()| {
        let before = read(ClockId::Monotonic);
        let realtime = read(ClockId::Realtime);
        (read(ClockId::Monotonic) - before, realtime - before)
    });
    let offset = tries.iter().min().map_or(0, |(_, offset)| *offset);
    i64::try_from(offset).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_is_told_once() {
        let mut clock = Clock::new(1_000_000_000);
        assert_eq!(clock.set(1_009_999_999, 5), None);
        let told = clock.set(400_000_000, 6).unwrap();
        assert_eq!(
            (told.realtime_offset_ns, told.header.ktime_ns),
            (400_000_000, 6)
        );
        assert_eq!(clock.set(400_000_000, 7), None);
    }
}
