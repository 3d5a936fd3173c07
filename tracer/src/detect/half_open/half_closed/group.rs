//! The half-closed sockets of one process in one state, and what they look like.

use std::{collections::VecDeque, mem, net::SocketAddr, time::Duration};

use crate::{
    detect::{dropped_here::Here, half_open::thresholds::Thresholds},
    event::{Owner, TcpState},
    id::SocketId,
    time::Ktime,
};

/// Growth is measured over the age from which sockets count, by default a minute, in so many steps.
pub(super) const SAMPLES: u32 = 6;

pub(super) fn sample_interval(thresholds: &Thresholds) -> Duration {
    let age = Duration::from_secs(thresholds.half_closed_after_s);
    age.checked_div(SAMPLES)
        .map_or(age, |share| share.max(Duration::from_secs(1)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct GroupKey {
    pub(super) netns: u32,
    /// 0 when the owner is unknown.
    pub(super) pid: u32,
    pub(super) state: TcpState,
    /// Nobody has accepted them yet.
    pub(super) queued: bool,
}

/// The oldest socket of a group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) id: SocketId,
    /// When it entered the state, or an upper bound of that, and when anything last came through on it.
    pub(super) since: Ktime,
    pub(super) progress: Ktime,
    /// It did before conntracer began.
    pub(super) before: bool,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    /// What the kernel still knows of its life before.
    pub(super) bytes_acked: u64,
    pub(super) retransmitted: u32,
}

/// What a group of half-closed sockets looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// They wait for accept().
    NotAccepted,
    /// Ever more of them.
    Leak,
    /// The peer is the one that takes its time.
    SlowPeer,
    /// The application does not read what came, which is this host's own doing.
    Unread,
    /// The application has nothing left to do with them, and keeps them.
    Forgotten,
}

impl Reading {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NotAccepted => "not_accepted",
            Self::Leak => "leak",
            Self::Unread => "not_read",
            Self::SlowPeer => "slow_peer",
            Self::Forgotten => "forgotten",
        }
    }
}

/// What the sockets of a group are in, by number.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Those with something to deliver that the peer has not taken yet, and of these the ones on which it acknowledges
    /// nothing: timeouts or unanswered probes.
    pub(super) delivering: u64,
    pub(super) unanswered: u64,
    /// Those of which the application has not read all that came, the peer's end included; and the bytes.
    pub(super) unread: u64,
    pub(super) unread_bytes: u64,
    /// Those of which the socket told what the two are.
    pub(super) told: u64,
    /// Those of which this host drops what they send or are sent.
    pub(super) dropped: u64,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) owner: Option<Owner>,
    /// Counted since the last tick, and as of it; of those, held by more than one process.
    pub(super) counting: u64,
    pub(super) count: u64,
    /// Of those, counted and not listed: likewise.
    pub(super) counting_unlisted: u64,
    pub(super) unlisted: u64,
    pub(super) sharing: u64,
    pub(super) shared: u64,
    pub(super) peak: u64,
    /// What was seen of them: likewise.
    pub(super) seeing: Seen,
    pub(super) seen: Seen,
    pub(super) dropping: Here,
    pub(super) dropped: Here,
    pub(super) oldest: Option<Oldest>,
    pub(super) absent_polls: u8,
    /// The finding that says why nobody accepts them.
    pub(super) delay: Option<u64>,
    /// Counts at steps of [`sample_interval`], oldest first.
    pub(super) samples: VecDeque<(Ktime, u64)>,
}

impl Group {
    /// A poll is over: what it counted is what there is. Without any, what the last one counted stays to be told.
    pub(super) fn take_count(&mut self) -> u64 {
        let unlisted = mem::take(&mut self.counting_unlisted);
        let count = mem::take(&mut self.counting).saturating_add(unlisted);
        let shared = mem::take(&mut self.sharing);
        let seen = mem::take(&mut self.seeing);
        let dropped = mem::take(&mut self.dropping);
        if count > 0 {
            self.count = count;
            self.unlisted = unlisted;
            self.shared = shared;
            self.seen = seen;
            self.dropped = dropped;
            self.peak = self.peak.max(count);
        }
        count
    }

    /// Keeps the count for the growth to come, where a step is over.
    pub(super) fn sample(&mut self, thresholds: &Thresholds, now: Ktime) {
        let step = sample_interval(thresholds);
        if self
            .samples
            .back()
            .is_none_or(|(at, _)| now.since(*at) >= step)
        {
            if self.samples.len() == SAMPLES as usize {
                self.samples.pop_front();
            }
            self.samples.push_back((now, self.kept()));
        }
    }

    /// Sockets gained since the oldest sample, and over how long; `None` before there is one.
    pub(super) fn growth(&self, thresholds: &Thresholds, now: Ktime) -> Option<(u64, Duration)> {
        let (then, count) = *self.samples.front()?;
        let span = now.since(then);
        (span >= sample_interval(thresholds)).then(|| (self.kept().saturating_sub(count), span))
    }

    /// Those that nothing but the application keeps: they have nothing to deliver.
    fn kept(&self) -> u64 {
        self.count.saturating_sub(self.seen.delivering)
    }

    /// Grown fast enough, and again and again: a burst of clients that leave together is no leak.
    pub(super) fn leaks(&self, thresholds: &Thresholds, now: Ktime) -> bool {
        const RISES: usize = 3;
        let counts = self.samples.iter().map(|(_, count)| *count);
        let later = counts.clone().skip(1).chain([self.kept()]);
        let rises = counts
            .zip(later)
            .filter(|(before, after)| after > before)
            .count();
        self.growth(thresholds, now).is_some_and(|(gained, span)| {
            let per_minute = gained as f64 * 60.0 / span.as_secs_f64();
            rises >= RISES && per_minute >= thresholds.leak_per_minute.max(1) as f64
        })
    }

    /// Those of which a poll says more than that they are there.
    pub(super) const fn listed(&self) -> u64 {
        self.count.saturating_sub(self.unlisted)
    }

    /// What this host dropped, where that is why all of them are half-closed.
    pub(super) fn here(&self, reading: Reading) -> Option<Here> {
        let is_why = reading == Reading::SlowPeer && self.seen.dropped == self.count;
        is_why.then(|| self.dropped.clone())
    }

    /// From this host's own doing to the peer's. See [`Reading`].
    pub(super) fn reading(&self, key: &GroupKey, thresholds: &Thresholds, now: Ktime) -> Reading {
        let all = |count: u64| count > 0 && count == self.listed();
        if key.queued {
            Reading::NotAccepted
        } else if self.leaks(thresholds, now) {
            Reading::Leak
        } else if key.state == TcpState::FinWait2 {
            if all(self.seen.unread) {
                Reading::Unread
            } else {
                Reading::SlowPeer
            }
        } else if all(self.seen.delivering) {
            Reading::SlowPeer
        } else if all(self.seen.unread) {
            Reading::Unread
        } else {
            Reading::Forgotten
        }
    }
}
