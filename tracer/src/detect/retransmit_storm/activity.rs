//! What one scope retransmitted lately: the rate over the last seconds,
//! and the totals that a finding will stand on.

use std::time::Duration;

use conntracer_common::record::RetransmitTotals;

use super::{interfaces::Interfaces, scope::Scope, words::Cause};
use crate::{
    count::Grow,
    decode::retransmit_type,
    detect::{Life, path_mtu::Sizes},
    event::RetransmitType,
    time::Ktime,
};

/// The rate is that of the last three seconds: one alone swings with RTO backoff.
const BUCKETS: usize = 3;
const BUCKET_NS: u64 = 1_000_000_000;

/// Before a storm opens, totals reach back over one to two such spans: long enough to hold its first
/// segments, short enough that yesterday's strays are not among them.
const LOOKBACK: Duration = Duration::from_secs(30);

/// What is usual is learned over such a time, outside of storms: an hour's rhythm is followed, a burst is not.
const LEARNED_OVER: Duration = Duration::from_mins(10);

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
            segments.left(retransmit_type(class), count);
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

    fn add(&mut self, more: &Self) {
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
    pub(super) life: Option<Life>,
    /// The cause that its last word told.
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
            life: None,
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

    /// Counts `segments`. Says whether they are the first since a pause of `quiet`.
    pub(super) fn add(
        &mut self,
        segments: &Segments,
        first_of_connection: bool,
        floor: f64,
        quiet: Duration,
        now: Ktime,
    ) -> bool {
        let empty = self.recent.first.is_none() && self.older.first.is_none();
        let paused = empty || (self.life.is_none() && now.since(self.last) >= quiet);
        if paused {
            self.renew(now);
        } else if self.life.is_none() && now.since(self.recent_from) >= LOOKBACK {
            self.older = std::mem::take(&mut self.recent);
            self.recent_from = now;
            self.top = None;
        }
        self.recent.add(segments, first_of_connection, now);
        self.last = now;
        if self.life.is_none() {
            self.learn(segments.moved(), now);
        }
        let syn_acks = segments.of_kind(RetransmitType::SynAck);
        let count = segments.moved().saturating_sub(syn_acks);
        if count > 0 {
            self.fill_bucket(segments, count, now);
        }
        if self.rate(now) >= floor / 2.0 {
            self.busy = now;
        }
        paused
    }

    /// Adds what became known of segments that were counted before.
    pub(super) fn learned(&mut self, segments: &Segments, quiet: Duration, now: Ktime) {
        // What begins anew with the next segment has nothing to do with these.
        if self.life.is_some() || now.since(self.last) < quiet {
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

    /// Whether rate, ratio and duration make it a storm.
    pub(super) fn storms(&self, floor: f64, ratio: f64, burst: Duration, now: Ktime) -> bool {
        if self.rate(now) < floor {
            return false;
        }
        let (mut data, mut sent, mut first) = (0_u64, 0_u64, now);
        for bucket in self.live(now) {
            data = data.saturating_add(bucket.data);
            sent = sent.saturating_add(bucket.sent);
            first = first.min(bucket.first);
        }
        let worth = data == 0 || sent == 0 || data as f64 >= ratio * sent as f64;
        worth && now.since(first) >= burst
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

    /// Rises with everything that there is to tell: with each segment, and with each that turns out to have been
    /// repeated for nothing.
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
