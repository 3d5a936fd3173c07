//! What is known of a listener whose connections wait, and why its acceptor does not take them.

use std::{collections::BTreeMap, time::Duration};

use super::{queue::Queue, thresholds::Thresholds};
use crate::{
    detect::{
        room::Context,
        syn_drop::{Hindrance, Why, sees_accepts, tells_members_apart},
    },
    event::{AcceptQueue, Owner, OwnerSource},
    finding::Severity,
    id::SocketId,
    table::listener::ListenerKey,
    time::Ktime,
};

/// Sockets of one listener that are kept apart; a server has one for each CPU or worker.
const SOCKETS: usize = 64;
/// For so long what hindered an acceptor stays its cause after a look that does not show it any more: the queue takes a
/// while to be worked off.
const STAYS: Duration = Duration::from_secs(3);

/// Why connections are not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    NoDescriptors,
    Stopped,
    NeverAccepts,
    Slow,
}

impl Cause {
    /// The words of all, and how bad each is. What is slow serves some.
    pub(super) const ALL: &[(&str, Severity)] = &[
        ("no_descriptors", Severity::Critical),
        ("stopped", Severity::Critical),
        ("never_accepts", Severity::Critical),
        ("slow", Severity::Warning),
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NoDescriptors => "no_descriptors",
            Self::Stopped => "stopped",
            Self::NeverAccepts => "never_accepts",
            Self::Slow => "slow",
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Delay {
    /// When the first that waited too long began to, and when one last did.
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    pub(super) queues: BTreeMap<SocketId, Queue>,
    /// The most that waited at one socket at once, and the longest that one did.
    pub(super) peak: u32,
    pub(super) longest: Duration,
    pub(super) cause: Cause,
    pub(super) said_cause: Cause,
    /// What the looks at those who may accept showed, and since when a hindrance is not seen any more.
    pub(super) why: Option<Why>,
    free_since: Option<Ktime>,
    /// The process that called listen(), or the first one that accepted.
    pub(super) opener: Option<Owner>,
    pub(super) owner: Option<Owner>,
    /// Some were accepted meanwhile.
    pub(super) takes: bool,
    /// When the first look was.
    pub(super) begun: Ktime,
}

impl Delay {
    pub(super) fn new(look: &AcceptQueue, now: Ktime) -> Self {
        Self {
            since: now.before(look.oldest.unwrap_or_default()),
            last: now,
            queues: BTreeMap::new(),
            peak: 0,
            longest: Duration::ZERO,
            cause: Cause::Slow,
            said_cause: Cause::Slow,
            why: None,
            free_since: None,
            opener: None,
            owner: None,
            takes: false,
            begun: now,
        }
    }

    /// Takes in a look at one of its sockets.
    pub(super) fn see(
        &mut self,
        key: &ListenerKey,
        look: &AcceptQueue,
        rules: &Thresholds,
        cx: &Context<'_>,
    ) {
        let (id, now) = (look.socket.id, cx.now);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.see(look, now);
        } else if self.queues.len() < SOCKETS {
            self.queues.insert(id, Queue::new(look, now));
        }
        let oldest = look.oldest.unwrap_or_default();
        if oldest.saturating_mul(2) >= rules.wait() {
            self.last = now;
        }
        self.peak = self.peak.max(look.ack_backlog);
        self.longest = self.longest.max(oldest);
        let worst = self.worst().map(|(id, queue)| (id, *queue));
        let Some((worst, queue)) = worst.filter(|(worst, _)| *worst == id) else {
            return;
        };
        self.owner = look.owner.or(self.owner);
        let opens = |owner: &Owner| {
            matches!(
                owner.source,
                OwnerSource::Listener | OwnerSource::Accept | OwnerSource::Forked
            )
        };
        if let Some(owner) = look.owner.filter(opens) {
            self.opener = Some(owner);
        }
        if look.is_late {
            self.takes |= self.taken(&queue, cx).is_some_and(|(taken, _)| taken > 0);
            self.look(key, worst, &queue, rules, cx);
        }
    }

    /// Takes in the last look at those who may accept from the worst socket.
    pub(super) fn look_again(&mut self, key: &ListenerKey, rules: &Thresholds, cx: &Context<'_>) {
        if let Some((worst, queue)) = self.worst().map(|(id, queue)| (id, *queue)) {
            self.look(key, worst, &queue, rules, cx);
        }
    }

    fn look(
        &mut self,
        key: &ListenerKey,
        worst: SocketId,
        queue: &Queue,
        rules: &Thresholds,
        cx: &Context<'_>,
    ) {
        if let Some(why) = cx.acceptors(key, worst).map(Why::of) {
            self.remember(why.of_holders(), cx.now);
        }
        self.cause = self.of(queue, rules, cx);
    }

    /// Whether all is known that is known soon: who holds the listener, and how they stand.
    pub(super) fn is_known(&self) -> bool {
        self.why.as_ref().is_some_and(|why| why.is_of_holders)
    }

    /// The socket whose oldest connection waits the longest; of several alike, the one with the lowest address.
    pub(super) fn worst(&self) -> Option<(SocketId, &Queue)> {
        let all = self.queues.iter().rev();
        all.max_by_key(|(_, queue)| queue.oldest())
            .map(|(id, queue)| (*id, queue))
    }

    /// When one of its queues was last looked at.
    pub(super) fn looked(&self) -> Ktime {
        let looks = self.queues.values().map(|queue| queue.at);
        looks.max().unwrap_or_default()
    }

    /// Sockets in whose queues one waits too long.
    pub(super) fn late(&self) -> usize {
        let late = |queue: &&Queue| queue.latest.is_late;
        self.queues.values().filter(late).count()
    }

    /// Clients whose FIN, and whose RST, came while they waited.
    pub(super) fn ended(&self) -> (u64, u64) {
        self.queues.values().map(Queue::ended).fold(
            (0, 0),
            |(fins, resets), (more_fins, more_resets)| {
                (
                    u64::saturating_add(fins, more_fins),
                    u64::saturating_add(resets, more_resets),
                )
            },
        )
    }

    /// Keeps what hinders for as long as it may be why connections still wait.
    fn remember(&mut self, why: Why, now: Ktime) {
        let Some(known) = &self.why else {
            self.why = Some(why);
            return;
        };
        if known.at >= why.at && (known.is_of_holders || !why.is_of_holders) {
            return;
        }
        if why.hindrance.is_some() || known.hindrance.is_none() {
            self.free_since = None;
            self.why = Some(why);
            return;
        }
        if why.is_of_holders && !known.is_of_holders {
            // Who was hindered may hold nothing of it.
            self.why = Some(known.borne_out(&why).unwrap_or(why));
            return;
        }
        let since = *self.free_since.get_or_insert(now);
        if now.since(since) >= STAYS {
            self.free_since = None;
            self.why = Some(why);
        }
    }

    fn of(&self, queue: &Queue, rules: &Thresholds, cx: &Context<'_>) -> Cause {
        let hindrance = self.why.as_ref().and_then(|why| why.hindrance);
        match hindrance.map(|(hindrance, _)| hindrance) {
            Some(Hindrance::NoDescriptors(..)) => return Cause::NoDescriptors,
            Some(_) if !self.others_take(queue, cx) => return Cause::Stopped,
            _ => {}
        }
        let is_begun = queue.listens_for() < rules.begin() && !self.is_inherited();
        if self.is_virgin(queue, cx) && !is_begun {
            Cause::NeverAccepts
        } else {
            Cause::Slow
        }
    }

    /// Whether processes that nothing hinders go on accepting beside one that is stopped.
    fn others_take(&self, queue: &Queue, cx: &Context<'_>) -> bool {
        let has_others = self.why.as_ref().is_some_and(|why| !why.others.is_empty());
        has_others
            && self
                .taken(queue, cx)
                .is_some_and(|(taken, _)| taken > 0 && queue.untouched(self.sees(cx)) < STAYS)
    }

    /// Nobody who holds it is the process that called listen().
    pub(super) fn is_inherited(&self) -> bool {
        let (Some(why), Some(opener)) = (&self.why, &self.opener) else {
            return false;
        };
        why.is_of_holders && why.processes().next().is_some() && {
            let is_opener = |pid: u32| pid == opener.pid;
            !why.processes().any(|process| is_opener(process.pid))
        }
    }

    pub(super) fn sees(&self, cx: &Context<'_>) -> bool {
        let queue = self.worst().map(|(_, queue)| queue);
        sees_accepts(cx.host) || queue.is_some_and(|queue| queue.latest.last_accept.is_some())
    }

    /// What was completed at one socket is known where it is told apart from the others of its address.
    fn counts(&self, cx: &Context<'_>) -> bool {
        self.sees(cx) || self.queues.len() < 2 && !self.is_group(cx) || tells_members_apart(cx.host)
    }

    pub(super) fn members(&self, cx: &Context<'_>) -> usize {
        let key = self.worst().map(|(_, queue)| queue.latest.socket);
        let service = key.and_then(|socket| cx.listeners.get(&ListenerKey::of(&socket)));
        let known = service.map_or(0, |service| service.members.len());
        known.max(self.queues.len())
    }

    fn is_group(&self, cx: &Context<'_>) -> bool {
        self.members(cx) > 1
    }

    /// Connections accepted since this began, and in what time; `None` where it is not known.
    pub(super) fn taken(&self, queue: &Queue, cx: &Context<'_>) -> Option<(u64, Duration)> {
        self.counts(cx).then(|| queue.taken(self.sees(cx)))
    }

    pub(super) fn is_virgin(&self, queue: &Queue, cx: &Context<'_>) -> bool {
        self.counts(cx) && queue.is_virgin(self.sees(cx))
    }
}
