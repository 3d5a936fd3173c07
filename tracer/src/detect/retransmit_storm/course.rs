//! What one connection went through while it retransmitted: bytes, round trips, and how long nothing was
//! acknowledged.

use std::time::Duration;

use crate::{detect::facts::Facts, event::Tcp, time::Ktime};

/// Since the connection's activity began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Course {
    /// As the first retransmission left them: a retransmitted segment is no sample of the round trip (Karn), so
    /// that this is the round trip before.
    before: Tcp,
    min_rtt_before_us: Option<u32>,
    /// When `snd_una` was last seen to advance, and the longest time that it did not.
    progress: Ktime,
    stuck: Duration,
}

impl Course {
    pub(super) const fn new(tcp: &Tcp, min_rtt_us: Option<u32>, now: Ktime) -> Self {
        Self {
            before: *tcp,
            min_rtt_before_us: min_rtt_us,
            progress: now,
            stuck: Duration::ZERO,
        }
    }

    pub(super) fn goes_on(&mut self, progress: bool, now: Ktime) {
        self.stuck = self.stuck.max(now.since(self.progress));
        if progress {
            self.progress = now;
        }
    }

    /// The evidence; `tcp` is the connection's last.
    pub(super) fn facts(&self, facts: Facts, tcp: &Tcp) -> Facts {
        let retransmitted = tcp.bytes_retrans.saturating_sub(self.before.bytes_retrans);
        let facts = match self.min_rtt_before_us {
            Some(us) => facts.number("min_rtt_before_ms", f64::from(us) / 1e3),
            None => facts,
        };
        facts
            .count("bytes_retransmitted", retransmitted)
            .seconds("longest_without_progress_s", self.stuck)
            .number("srtt_before_ms", ms(self.before.srtt))
            .number("srtt_ms", ms(tcp.srtt))
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
