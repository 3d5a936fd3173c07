//! One socket's accept queue, look by look.

use std::{net::SocketAddr, time::Duration};

use crate::{event::AcceptQueue, time::Ktime};

/// See the module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub(super) latest: AcceptQueue,
    pub(super) at: Ktime,
    /// The look with which this began.
    first: AcceptQueue,
    first_at: Ktime,
    /// Since which look the same connection is the oldest: nobody has accepted from it since.
    head_since: Ktime,
}

impl Queue {
    pub(super) const fn new(look: &AcceptQueue, at: Ktime) -> Self {
        Self {
            latest: *look,
            at,
            first: *look,
            first_at: at,
            head_since: at,
        }
    }

    pub(super) fn see(&mut self, look: &AcceptQueue, at: Ktime) {
        if !self.has_same_head(look, at) {
            self.head_since = at;
        }
        self.latest = *look;
        self.at = at;
    }

    /// A client may come back from the same port.
    fn has_same_head(&self, look: &AcceptQueue, at: Ktime) -> bool {
        /// By which a time in ticks of the kernel may be off.
        const TICKS: Duration = Duration::from_millis(50);
        let (Some(before), Some(now)) = (self.latest.oldest, look.oldest) else {
            return false;
        };
        let grew = now.saturating_sub(before);
        self.latest.oldest_remote == look.oldest_remote
            && grew.saturating_add(TICKS) >= at.since(self.at)
            && now.saturating_add(TICKS) >= before
    }

    /// How long the oldest had waited at the last look.
    pub(super) fn oldest(&self) -> Duration {
        self.latest.oldest.unwrap_or_default()
    }

    pub(super) const fn oldest_remote(&self) -> Option<SocketAddr> {
        self.latest.oldest_remote
    }

    /// Clients whose FIN, and whose RST, came while they waited, since this began.
    pub(super) fn ended(&self) -> (u64, u64) {
        let since = |now: u64, first: u64, then: u32| {
            now.saturating_sub(first.saturating_sub(u64::from(then)))
        };
        let (latest, first) = (&self.latest, &self.first);
        (
            since(latest.fins, first.fins, first.fins_now).max(latest.fins_now.into()),
            since(latest.resets, first.resets, first.resets_now).max(latest.resets_now.into()),
        )
    }

    /// Connections that were accepted since this began, and in what time. `seen`: calls of accept() are; otherwise by
    /// what was completed and no longer waits.
    pub(super) fn taken(&self, seen: bool) -> (u64, Duration) {
        let (latest, first) = (&self.latest, &self.first);
        let taken = if seen {
            latest.accepted.saturating_sub(first.accepted)
        } else {
            left(latest).saturating_sub(left(first))
        };
        (taken, self.at.since(self.first_at))
    }

    /// Whether nobody ever accepted from it; not known of one that is older than conntracer.
    pub(super) fn is_virgin(&self, seen: bool) -> bool {
        let latest = &self.latest;
        let none = if seen {
            latest.accepted == 0 && latest.last_accept.is_none()
        } else {
            latest.completed > 0 && left(latest) == 0
        };
        none && !latest.socket.older
    }

    /// For how long nobody has accepted from it, at least.
    pub(super) fn untouched(&self, seen: bool) -> Duration {
        let last = self.latest.last_accept.filter(|_| seen);
        last.map_or_else(
            || self.at.since(self.head_since),
            |last| self.at.since(last),
        )
    }

    pub(super) const fn listens_for(&self) -> Duration {
        self.at.since(self.latest.socket.id.born)
    }
}

/// What left the queue.
fn left(look: &AcceptQueue) -> u64 {
    look.completed.saturating_sub(look.ack_backlog.into())
}
