//! The connections of one process that would not notice the death of their peer.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::{
    count::Grow,
    event::{Idle, Owner, Role},
    time::Ktime,
};

/// Remote ends told apart in one group: many more than are named.
const REMOTES: usize = 256;
/// Those that are named, the most frequent first.
const NAMED: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct GroupKey {
    pub(super) netns: u32,
    /// 0 when the owner is unknown.
    pub(super) pid: u32,
    pub(super) without_timer: bool,
}

/// The other end of a connection: of those that others opened the port says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Remote {
    Service(SocketAddr),
    Host(IpAddr),
}

impl Remote {
    pub(super) const fn of(event: &Idle) -> Self {
        let remote = event.socket.remote;
        match event.socket.role {
            Role::Active => Self::Service(remote),
            Role::Passive | Role::Unknown | Role::Listener => Self::Host(remote.ip()),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(remote) => remote.fmt(f),
            Self::Host(remote) => remote.fmt(f),
        }
    }
}

/// What one audit found of a group.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) count: u64,
    pub(super) oldest: Option<Oldest>,
    pub(super) remotes: BTreeMap<Remote, u64>,
    /// Connections to further remote ends.
    pub(super) elsewhere: u64,
    pub(super) waiting_bytes: u64,
}

/// The connection that is idle for longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Oldest {
    pub(super) idle: Duration,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

impl Found {
    pub(super) fn add(&mut self, event: &Idle) {
        self.count.grow(1);
        self.waiting_bytes
            .grow(u64::from(event.tcp.waiting_bytes()));
        if self.oldest.is_none_or(|oldest| event.idle > oldest.idle) {
            self.oldest = Some(Oldest {
                idle: event.idle,
                local: event.socket.local,
                remote: event.socket.remote,
            });
        }
        let remote = Remote::of(event);
        if self.remotes.len() < REMOTES || self.remotes.contains_key(&remote) {
            self.remotes.entry(remote).or_default().grow(1);
        } else {
            self.elsewhere.grow(1);
        }
    }

    /// The most frequent remote ends.
    pub(super) fn named(&self) -> String {
        let mut remotes: Vec<(Remote, u64)> = self
            .remotes
            .iter()
            .map(|(remote, count)| (*remote, *count))
            .collect();
        remotes.sort_by_key(|(remote, count)| (std::cmp::Reverse(*count), *remote));
        let left_out = remotes.len().saturating_sub(NAMED);
        let mut named: Vec<String> = remotes
            .iter()
            .take(NAMED)
            .map(|(remote, count)| match count {
                1 => remote.to_string(),
                count => format!("{remote} ({count})"),
            })
            .collect();
        if self.elsewhere > 0 {
            named.push(format!("{left_out} more at least"));
        } else if left_out > 0 {
            named.push(format!("{left_out} more"));
        }
        named.join(", ")
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) owner: Option<Owner>,
    /// Found since the last audit ended, and by it.
    pub(super) finding: Found,
    pub(super) found: Found,
    pub(super) limit: Duration,
    pub(super) peak: u64,
    pub(super) since: Ktime,
}
