//! A connection whose process does not read.

use std::{net::SocketAddr, time::Duration};

use crate::{
    detect::syn_drop::{Hindrance, Why},
    event::{Owner, Receive},
    finding::Subject,
    id::SocketId,
    time::Ktime,
};

/// Why nothing is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The process that is to read cannot run.
    Stopped,
    /// It can, as far as is known, and does something else.
    NotReading,
}

impl Cause {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::NotReading => "not_reading",
        }
    }
}

/// How it goes on with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Stalled,
    /// It reads again.
    Resumed,
    /// The connection can receive nothing any more.
    Over,
    Forgotten,
}

impl Stage {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Resumed => "resumed",
            Self::Over => "closed",
            Self::Forgotten => "forgotten",
        }
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Stall {
    pub(super) netns: u32,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) id: SocketId,
    pub(super) owner: Option<Owner>,
    pub(super) stage: Stage,
    /// Up to where it has read, since which look nothing was, and the last look that showed that.
    copied_seq: u32,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// What the last look at a shut window showed.
    pub(super) latest: Receive,
    /// What keeps the process from reading, as the last look at it showed.
    pub(super) why: Option<Why>,
}

impl Stall {
    pub(super) fn new(look: &Receive, now: Ktime) -> Self {
        Self {
            netns: look.socket.netns,
            local: look.socket.local,
            remote: look.socket.remote,
            id: look.socket.id,
            owner: look.owner,
            stage: Stage::Stalled,
            copied_seq: look.copied_seq,
            since: now,
            last: now,
            latest: *look,
            why: None,
        }
    }

    /// Whether a look shows that something was read since the first one, or that more may come.
    pub(super) const fn is_resumed_by(&self, look: &Receive) -> bool {
        !look.is_shut || look.copied_seq != self.copied_seq
    }

    /// Takes in a look that shows the same as before.
    pub(super) fn see(&mut self, look: &Receive, why: Option<Why>, now: Ktime) {
        self.owner = look.owner.or(self.owner);
        self.latest = *look;
        self.last = now;
        self.why = why.or(self.why.take());
    }

    /// For how long nothing was read, as far as was looked.
    pub(super) const fn unread_for(&self) -> Duration {
        self.last.since(self.since)
    }

    /// What the last look showed of the only process that holds the connection, as far as is known.
    pub(super) fn reader(&self) -> Option<&Why> {
        let why = self.why.as_ref()?;
        let mut holders = why.processes();
        let first = holders.next()?;
        let is_known = why.is_of_holders || first.pid == first.owner_pid;
        (is_known && holders.next().is_none()).then_some(why)
    }

    /// What keeps it from running; what keeps it from accepting is no reason not to read.
    pub(super) fn hindrance(&self) -> Option<&Why> {
        let why = self.reader()?;
        let (hindrance, _) = why.hindrance?;
        (!matches!(hindrance, Hindrance::NoDescriptors(..))).then_some(why)
    }

    pub(super) fn cause(&self) -> Cause {
        match self.hindrance() {
            Some(_) => Cause::Stopped,
            None => Cause::NotReading,
        }
    }

    pub(super) const fn subject(&self) -> Subject {
        Subject::Connection {
            netns: self.netns,
            local: self.local,
            remote: self.remote,
            id: self.id.sk,
            born: self.id.born,
        }
    }
}
