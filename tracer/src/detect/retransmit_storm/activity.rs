//! What one scope retransmitted lately: the rate over the last seconds,
//! and the totals that a finding will stand on.

use std::time::Duration;

use super::scope::Scope;
use crate::{detect::Life, event::RetransmitType, finding::Ktime};

/// The rate is that of the last three seconds: one alone swings with RTO backoff.
const BUCKETS: usize = 3;
const BUCKET_NS: u64 = 1_000_000_000;

/// Before a storm opens, totals reach back over one to two such spans: long enough to hold its first
/// segments, short enough that yesterday's strays are not among them.
const LOOKBACK: Duration = Duration::from_secs(30);

/// What is usual is learned over such a time, outside of storms: an hour's rhythm is followed, a burst is not.
const LEARNED_OVER: Duration = Duration::from_mins(10);

/// One retransmission (or what failed to be one), for every scope it belongs to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segments {
    pub(super) kind: RetransmitType,
    pub(super) count: u64,
    /// They did not leave this host.
    pub(super) failed: bool,
    /// All of them full-sized (one MSS or more).
    pub(super) full: bool,
    /// Bytes of the first segment that is not acknowledged, where these are it.
    pub(super) head_bytes: Option<u32>,
    /// The peer's window is shut: its kernel repeats in place of probing.
    pub(super) shut: bool,
    /// Segments that the peer said since the last record came twice.
    pub(super) spurious: u64,
    /// Data segments their connection sent since its last record.
    pub(super) sent: u64,
    /// Their connection's peer acknowledged, or sent, something since the last record.
    pub(super) progress: bool,
    pub(super) peer_spoke: bool,
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
    /// Segments that left, by type.
    pub(super) types: [u64; RetransmitType::ALL.len()],
    pub(super) segments: u64,
    pub(super) failed: u64,
    pub(super) full: u64,
    /// Of them, those that were not needed: they came twice.
    pub(super) spurious: u64,
    pub(super) sent: u64,
    pub(super) progress: u64,
    pub(super) peer_spoke: u64,
    /// Repeats of the first segment that is not acknowledged, how many of them were full-sized, and the
    /// smallest of those in bytes.
    pub(super) heads: u64,
    pub(super) full_heads: u64,
    pub(super) full_bytes: Option<u32>,
    /// Segments repeated into a window that is shut.
    pub(super) shut: u64,
    /// Connections that retransmitted; 0 in the scope of one.
    pub(super) connections: u64,
    first: Option<Ktime>,
}

impl Tally {
    fn add(&mut self, segments: &Segments, first_of_connection: bool, now: Ktime) {
        self.first.get_or_insert(now);
        self.connections += u64::from(first_of_connection);
        self.progress += u64::from(segments.progress);
        self.peer_spoke += u64::from(segments.peer_spoke);
        self.sent = self.sent.saturating_add(segments.sent);
        self.spurious = self.spurious.saturating_add(segments.spurious);
        if segments.failed {
            self.failed = self.failed.saturating_add(segments.count);
            return;
        }
        if segments.shut {
            self.shut = self.shut.saturating_add(segments.count);
        }
        if let Some(bytes) = segments.head_bytes {
            self.heads += 1;
            if segments.full {
                self.full_heads += 1;
                self.full_bytes = Some(self.full_bytes.map_or(bytes, |least| least.min(bytes)));
            }
        }
        self.segments = self.segments.saturating_add(segments.count);
        let of_type = &mut self.types[segments.kind as usize];
        *of_type = of_type.saturating_add(segments.count);
        if segments.full {
            self.full = self.full.saturating_add(segments.count);
        }
    }

    fn joined(&self, later: &Self) -> Self {
        let mut sum = *later;
        for (sum, more) in sum.types.iter_mut().zip(self.types) {
            *sum = sum.saturating_add(more);
        }
        sum.segments = sum.segments.saturating_add(self.segments);
        sum.failed = sum.failed.saturating_add(self.failed);
        sum.full = sum.full.saturating_add(self.full);
        sum.spurious = sum.spurious.saturating_add(self.spurious);
        sum.shut = sum.shut.saturating_add(self.shut);
        sum.heads += self.heads;
        sum.full_heads += self.full_heads;
        sum.full_bytes = match (sum.full_bytes, self.full_bytes) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        sum.sent = sum.sent.saturating_add(self.sent);
        sum.progress += self.progress;
        sum.peer_spoke += self.peer_spoke;
        sum.connections += self.connections;
        sum.first = self.first.or(later.first);
        sum
    }

    pub(super) const fn of(&self, kind: RetransmitType) -> u64 {
        self.types[kind as usize]
    }

    /// Retransmitted segments that carried data (or a FIN).
    pub(super) const fn data(&self) -> u64 {
        self.segments
            .saturating_sub(self.of(RetransmitType::Syn))
            .saturating_sub(self.of(RetransmitType::SynAck))
    }

    /// Whether timeouts repeat the same segments over and over, with next to nothing acknowledged.
    pub(super) const fn is_stuck(&self) -> bool {
        self.of(RetransmitType::Timeout) > 0 && 10 * self.progress <= self.heads
    }

    /// Share of retransmitted among sent data segments, where the kernel counts those.
    pub(super) fn ratio(&self) -> Option<f64> {
        (self.sent > 0).then(|| (self.data() as f64 / self.sent as f64).min(1.0))
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Activity {
    pub(super) life: Option<Life>,
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
            self.learn(segments.count, now);
        }
        if segments.kind != RetransmitType::SynAck {
            self.fill_bucket(segments, now);
        }
        if self.rate(now) >= floor / 2.0 {
            self.busy = now;
        }
        paused
    }

    fn fill_bucket(&mut self, segments: &Segments, now: Ktime) {
        let second = now.0 / BUCKET_NS;
        let bucket = &mut self.buckets[(second % BUCKETS as u64) as usize];
        if bucket.second != second || bucket.segments == 0 {
            *bucket = Bucket {
                second,
                first: now,
                ..Bucket::default()
            };
        }
        bucket.segments += segments.count;
        if segments.kind != RetransmitType::Syn {
            bucket.data += segments.count;
        }
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
        self.live(now).map(|bucket| bucket.segments).sum::<u64>() as f64 / BUCKETS as f64
    }

    /// Whether rate, ratio and duration make it a storm.
    pub(super) fn storms(&self, floor: f64, ratio: f64, burst: Duration, now: Ktime) -> bool {
        if self.rate(now) < floor {
            return false;
        }
        let (mut data, mut sent, mut first) = (0_u64, 0_u64, now);
        for bucket in self.live(now) {
            data += bucket.data;
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
        let total = self.total();
        total.segments.saturating_add(total.failed)
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
