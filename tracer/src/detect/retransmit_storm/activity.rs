//! What one scope retransmitted lately: the rate over the last seconds,
//! and the totals that a finding will stand on.

use std::time::Duration;

use super::{cause::Cause, scope::Scope, segments::Segments, thresholds::Thresholds};
use crate::{count::Grow, event::RetransmitType, time::Ktime};

/// The rate is that of the last three seconds: one alone swings with RTO backoff.
const BUCKETS: usize = 3;
const BUCKET_NS: u64 = 1_000_000_000;

/// Before a storm opens, totals reach back over one to two such spans: long enough to hold its first
/// segments, short enough that yesterday's strays are not among them.
const LOOKBACK: Duration = Duration::from_secs(30);

/// What is usual is learned over such a time, outside of storms: an hour's rhythm is followed, a burst is not.
const LEARNED_OVER: Duration = Duration::from_mins(10);

/// What a scope is held against: the segments a second from which on it storms, and how long it must have stayed
/// below half of that to be over.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rates {
    pub(super) floor: f64,
    pub(super) quiet: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    /// Seconds of the clock; the bucket is void in any other second.
    second: u64,
    /// Everything but SYN-ACKs, which `half_open` / `handshake` tells better.
    segments: u64,
    /// Of data, and what their connections sent.
    data: u64,
    sent: u64,
    first: Ktime,
}

/// Totals of one stretch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) sum: Segments,
    /// Connections that retransmitted; 0 in the scope of one.
    pub(super) connections: u64,
    first: Option<Ktime>,
}

impl Tally {
    fn add(&mut self, segments: &Segments, first_of_connection: bool, now: Ktime) {
        self.first.get_or_insert(now);
        self.connections.grow(u64::from(first_of_connection));
        self.sum.add(segments);
    }

    fn joined(&self, later: &Self) -> Self {
        let mut joined = *later;
        joined.sum.add(&self.sum);
        joined.connections.grow(self.connections);
        joined.first = self.first.or(later.first);
        joined
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Activity {
    /// The cause that its last line told.
    pub(super) told: Option<Cause>,
    buckets: [Bucket; BUCKETS],
    older: Tally,
    recent: Tally,
    recent_from: Ktime,
    pub(super) last: Ktime,
    /// When the rate was last at half the floor or above.
    busy: Ktime,
    /// Most segments within one second, and when; rate at the opening.
    pub(super) peak_per_s: u64,
    pub(super) peak_at: Ktime,
    pub(super) onset_per_s: f64,
    /// Segments a second that are usual here, and when that was learned last.
    usual_per_s: f64,
    learned: Ktime,
    /// The narrower scope with the most segments.
    top: Option<(Scope, u64)>,
}

impl Activity {
    pub(super) fn new(now: Ktime) -> Self {
        Self {
            told: None,
            buckets: [Bucket::default(); BUCKETS],
            older: Tally::default(),
            recent: Tally::default(),
            recent_from: now,
            last: now,
            busy: now,
            peak_per_s: 0,
            peak_at: now,
            onset_per_s: 0.0,
            usual_per_s: 0.0,
            learned: now,
            top: None,
        }
    }

    /// Begins anew, with what was learned.
    pub(super) fn renew(&mut self, now: Ktime) {
        *self = Self {
            usual_per_s: self.usual(now),
            ..Self::new(now)
        };
    }

    /// Segments a second that are usual here. What was learned fades in a straight line: powers may round
    /// differently where a recording is replayed.
    pub(super) fn usual(&self, now: Ktime) -> f64 {
        let faded = now.since(self.learned).as_secs_f64() / LEARNED_OVER.as_secs_f64();
        self.usual_per_s * (1.0 - faded).max(0.0)
    }

    fn learn(&mut self, count: u64, now: Ktime) {
        self.usual_per_s = self.usual(now) + count as f64 / LEARNED_OVER.as_secs_f64();
        self.learned = now;
    }

    /// Counts `segments`. Says whether they are the first since a pause as long as an end; an open storm has none.
    pub(super) fn add(
        &mut self,
        segments: &Segments,
        first_of_connection: bool,
        is_open: bool,
        rates: Rates,
        now: Ktime,
    ) -> bool {
        let empty = self.recent.first.is_none() && self.older.first.is_none();
        let paused = empty || (!is_open && now.since(self.last) >= rates.quiet);
        if paused {
            self.renew(now);
        } else if !is_open && now.since(self.recent_from) >= LOOKBACK {
            self.older = std::mem::take(&mut self.recent);
            self.recent_from = now;
            self.top = None;
        }
        self.recent.add(segments, first_of_connection, now);
        self.last = now;
        if !is_open {
            self.learn(segments.moved(), now);
        }
        let syn_acks = segments.of_kind(RetransmitType::SynAck);
        let count = segments.moved().saturating_sub(syn_acks);
        if count > 0 {
            self.fill_bucket(segments, count, now);
        }
        if self.rate(now) >= rates.floor / 2.0 {
            self.busy = now;
        }
        paused
    }

    /// Loss holds the connection down: as long as it does the storm is not over.
    pub(super) const fn costs(&mut self, now: Ktime) {
        self.busy = now;
    }

    /// Adds what became known of segments that were counted before.
    pub(super) fn learned(
        &mut self,
        segments: &Segments,
        is_open: bool,
        quiet: Duration,
        now: Ktime,
    ) {
        // What begins anew with the next segment has nothing to do with these.
        if is_open || now.since(self.last) < quiet {
            self.recent.sum.add(segments);
        }
    }

    #[cfg_attr(
        not(test),
        expect(clippy::arithmetic_side_effects, reason = "a remainder by a constant")
    )]
    fn fill_bucket(&mut self, segments: &Segments, count: u64, now: Ktime) {
        let second = now.0 / BUCKET_NS;
        let bucket = &mut self.buckets[(second % BUCKETS as u64) as usize];
        if bucket.second != second || bucket.segments == 0 {
            *bucket = Bucket {
                second,
                first: now,
                ..Bucket::default()
            };
        }
        bucket.segments = bucket.segments.saturating_add(count);
        let data = count.saturating_sub(segments.of_kind(RetransmitType::Syn));
        bucket.data = bucket.data.saturating_add(data);
        bucket.sent = bucket.sent.saturating_add(segments.sent);
        if bucket.segments > self.peak_per_s {
            self.peak_per_s = bucket.segments;
            self.peak_at = now;
        }
    }

    fn live(&self, now: Ktime) -> impl Iterator<Item = &Bucket> {
        let second = now.0 / BUCKET_NS;
        self.buckets.iter().filter(move |bucket| {
            bucket.segments > 0 && second.saturating_sub(bucket.second) < BUCKETS as u64
        })
    }

    /// Segments a second over the last three.
    pub(super) fn rate(&self, now: Ktime) -> f64 {
        let segments = self
            .live(now)
            .fold(0, |sum: u64, bucket| sum.saturating_add(bucket.segments));
        segments as f64 / BUCKETS as f64
    }

    /// Whether rate, ratio and duration make it a storm, and it is one that is not usual here.
    pub(super) fn storms(&self, floor: f64, thresholds: &Thresholds, now: Ktime) -> bool {
        let floor = floor.max(thresholds.usual_factor * self.usual(now));
        if self.rate(now) < floor {
            return false;
        }
        let (mut data, mut sent, mut first) = (0_u64, 0_u64, now);
        for bucket in self.live(now) {
            data = data.saturating_add(bucket.data);
            sent = sent.saturating_add(bucket.sent);
            first = first.min(bucket.first);
        }
        let worth = data == 0 || sent == 0 || data as f64 >= thresholds.ratio * sent as f64;
        worth && now.since(first) >= thresholds.burst()
    }

    /// Whether an open storm is over.
    pub(super) fn is_over(&self, quiet: Duration, now: Ktime) -> bool {
        now.since(self.busy) >= quiet
    }

    pub(super) fn total(&self) -> Tally {
        self.older.joined(&self.recent)
    }

    /// Segments that left and those that did not.
    pub(super) fn moved(&self) -> u64 {
        self.total().sum.moved()
    }

    /// The cause that the next line tells.
    pub(super) fn cause(&self) -> Cause {
        Cause::of(&self.total().sum).after(self.told)
    }

    /// Rises with everything that there is to tell: with each segment, and with each that turns out to have been
    /// unnecessary.
    pub(super) fn news(&self) -> u64 {
        let sum = self.total().sum;
        sum.moved().saturating_add(sum.spurious)
    }

    pub(super) fn since(&self) -> Ktime {
        self.older.first.or(self.recent.first).unwrap_or(self.last)
    }

    /// Notes that the narrower scope `child` has `count` segments by now.
    pub(super) fn contributed(&mut self, child: Scope, count: u64) {
        if self
            .top
            .is_none_or(|(top, most)| top == child || count > most)
        {
            self.top = Some((child, count));
        }
    }

    /// The narrower scope with the most segments, and how many, as last told.
    pub(super) const fn top(&self) -> Option<(Scope, u64)> {
        self.top
    }

    /// Whether one narrower scope holds `share` of this one's segments.
    pub(super) fn is_explained(&self, share: f64) -> bool {
        let all = self.moved();
        self.top
            .is_some_and(|(_, most)| most as f64 >= share * all as f64)
    }
}
