//! The clock of records, and the wall clock against it: NTP sets that one, and CLOCK_MONOTONIC stands still while
//! the machine sleeps.

use conntracer_common::record::{self, kind};
use rustix::time::{ClockId, Timespec, clock_gettime};
use zerocopy::IntoBytes;

use super::header::header;
use crate::time::Ktime;

/// What is told: shorter than anybody reads in a log, and longer than it takes to read two clocks.
const STEP_NS: u64 = 10_000_000;

/// As last told.
#[derive(Debug)]
pub(super) struct WallClock {
    realtime_offset_ns: i64,
}

impl WallClock {
    pub(super) const fn new(realtime_offset_ns: i64) -> Self {
        Self { realtime_offset_ns }
    }

    /// Feeds the record of a clock that was set since.
    pub(super) fn poll(&mut self, feed: &mut dyn FnMut(&[u8])) {
        if let Some(clock) = self.set(realtime_offset_ns(), ktime_ns()) {
            feed(clock.as_bytes());
        }
    }

    fn set(&mut self, realtime_offset_ns: i64, now_ns: u64) -> Option<record::Clock> {
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

/// CLOCK_MONOTONIC, which is what `bpf_ktime_get_ns` reads.
pub(super) fn ktime_ns() -> u64 {
    read_ns(ClockId::Monotonic)
}

/// How long this thread was on a CPU so far: what something costs, which on a busy host takes many times as long.
pub(super) fn cpu_ns() -> u64 {
    read_ns(ClockId::ThreadCPUTime)
}

fn read_ns(clock: ClockId) -> u64 {
    let Timespec { tv_sec, tv_nsec } = clock_gettime(clock);
    u64::try_from(tv_sec).unwrap_or_default() * 1_000_000_000
        + u64::try_from(tv_nsec).unwrap_or_default()
}

/// Now, by the clock of records.
#[must_use]
pub fn now() -> Ktime {
    Ktime(ktime_ns())
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
        let mut clock = WallClock::new(1_000_000_000);
        assert_eq!(clock.set(1_009_999_999, 5), None);
        let told = clock.set(400_000_000, 6).unwrap();
        assert_eq!(
            (told.realtime_offset_ns, told.header.ktime_ns),
            (400_000_000, 6)
        );
        assert_eq!(clock.set(400_000_000, 7), None);
    }
}
