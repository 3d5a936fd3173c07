//! Deaths that are alike, and whether the pauses before them say something.

use std::time::Duration;

use super::{
    deaths::DeathKey,
    ends::{By, End},
    how::{How, Met},
    thresholds::Thresholds,
};
use crate::{
    detect::dropped_here::Here,
    event::{Close, Owner},
    time::Ktime,
};

/// The least and the most of a time.
pub(super) type Range = (Duration, Duration);

#[derive(Clone, Debug)]
pub(super) struct Deaths {
    pub(super) count: u64,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// Time without anything before the end; `None` when one is not known.
    pub(super) idle: Option<Range>,
    /// Since they began; `None` when one is not known.
    pub(super) age: Option<Range>,
    /// Of them, those that nobody had accepted.
    pub(super) queued: u64,
    pub(super) latest: Close,
    /// Whose the other end of the latest was, where it died on this host.
    pub(super) other: Option<Owner>,
    /// The finding that says why nobody accepted them.
    pub(super) delay: Option<u64>,
    /// Of how many this host dropped what was not answered, and what.
    pub(super) dropped: u64,
    pub(super) here: Here,
}

fn widen(count: u64, range: Option<Range>, one: Option<Duration>) -> Option<Range> {
    match (count, range, one) {
        (0, _, Some(one)) => Some((one, one)),
        (_, Some((least, most)), Some(one)) => Some((least.min(one), most.max(one))),
        _ => None,
    }
}

impl Deaths {
    pub(super) fn new(latest: &Close, now: Ktime) -> Self {
        Self {
            count: 0,
            since: now,
            last: now,
            idle: None,
            age: None,
            queued: 0,
            latest: *latest,
            other: None,
            delay: None,
            dropped: 0,
            here: Here::default(),
        }
    }

    pub(super) fn add(&mut self, ending: &Close, other: Option<&End>, now: Ktime) {
        self.idle = widen(self.count, self.idle, ending.idle);
        self.age = widen(self.count, self.age, ending.age);
        self.count = self.count.saturating_add(1);
        let is_queued = ending.has(conntracer_common::record::close_flag::NOT_ACCEPTED);
        self.queued = self.queued.saturating_add(is_queued.into());
        self.last = now;
        self.latest = *ending;
        self.other = other.and_then(|end| end.owner);
    }

    /// What this host dropped of one more.
    pub(super) fn lost(&mut self, here: Here) {
        let lost = self.latest.tcp.retransmits.max(self.latest.tcp.probes_out);
        if here.explains_loss(lost.into()) {
            self.dropped = self.dropped.saturating_add(1);
            self.here.add(here);
        }
    }

    /// What this host dropped, where that is why all of them died.
    pub(super) fn here(&self) -> Option<Here> {
        (self.dropped == self.count).then(|| self.here.clone())
    }

    /// The pause that all had in common before they died, and whose timer that says it is.
    pub(super) fn pattern(&self, key: &DeathKey, rules: &Thresholds) -> Option<Pattern> {
        /// Two may be chance.
        const ALIKE: u64 = 3;
        /// What happens within is one event, which ends all that there is.
        const MOMENT: Duration = Duration::from_secs(1);
        // Keepalive probes follow a pause of this kernel's own choice.
        let is_probed = key.how == How::UserTimeout && self.latest.waiting_data() == 0;
        if self.count < ALIKE || !key.how.follows_a_pause() || is_probed {
            return None;
        }
        let (shortest, longest) = self.idle?;
        // Timeouts are often looked at once a second, and by some in steps of a few.
        let spread = shortest.checked_div(20).map_or(shortest, |share| {
            share.saturating_add(Duration::from_secs(1))
        });
        let differ = longest.saturating_sub(shortest);
        let span = self.last.since(self.since);
        // One event ends pauses that differ by as much as their beginnings do.
        let is_one_event = span < MOMENT || differ.saturating_mul(2) > span;
        if shortest < rules.idle() || differ > spread || is_one_event {
            return None;
        }
        let whose = match (key.how, key.met, key.by) {
            (How::Unread | How::Linger, ..) => Whose::Own,
            (How::ResetReceived, Some(Met::Idle), By::Socket(Some(How::Unread | How::Linger))) => {
                Whose::OtherEnd
            }
            (How::ResetReceived, Some(Met::Idle), By::Unseen | By::NotKnown) => Whose::Sender,
            (How::ResetReceived, Some(Met::AfterPause), By::Unseen | By::NotKnown)
            | (How::Data | How::UserTimeout | How::OrphanTimeout, ..) => Whose::AtMost,
            _ => return None,
        };
        Some(Pattern {
            pause: shortest,
            whose,
        })
    }
}

/// See [`Deaths::pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pattern {
    pub(super) pause: Duration,
    pub(super) whose: Whose,
}

/// Whose idle timeout it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// The process closes them itself.
    Own,
    /// The process at the other end does, on this host.
    OtherEnd,
    /// The peer, or something between: it sent the RST of its own accord.
    Sender,
    /// The same, but the segment that met it was sent when this side chose to: the timeout may be shorter.
    AtMost,
}
