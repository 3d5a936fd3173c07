//! Which deaths are alike, and which are none.

use std::net::{IpAddr, SocketAddr};

use super::{
    ends::By,
    how::{How, Met},
    thresholds::Thresholds,
};
use crate::event::{Close, Role, Socket};

/// Nothing passed, it was not even as old as a request takes, and the one who opened it ended it by a RST: a check
/// whether somebody listens. It cost nobody anything.
pub(super) fn is_check(ending: &Close, how: How, rules: &Thresholds) -> bool {
    let by_opener = match how {
        How::ResetReceived | How::GaveUp => ending.socket.role == Role::Passive,
        How::Linger => ending.socket.role == Role::Active,
        _ => false,
    };
    by_opener && !ending.has_data() && ending.age.is_some_and(|age| age < rules.check_within())
}

/// The end of a connection that others share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Service(SocketAddr),
    Listener(SocketAddr),
    /// Who opened it was not seen.
    Remote(IpAddr),
}

impl Place {
    pub(super) const fn of(socket: &Socket) -> Self {
        match socket.role {
            Role::Active => Self::Service(socket.remote),
            Role::Passive => Self::Listener(socket.local),
            Role::Unknown | Role::Listener => Self::Remote(socket.remote.ip()),
        }
    }
}

/// Which deaths are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct DeathKey {
    pub(super) netns: u32,
    /// 0 when the owner is unknown.
    pub(super) pid: u32,
    pub(super) place: Place,
    pub(super) how: How,
    pub(super) subflow: bool,
    /// Of a RST that was received.
    pub(super) met: Option<Met>,
    pub(super) by: By,
}
