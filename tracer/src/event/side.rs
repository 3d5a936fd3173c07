//! A connection that a finding is about, as one of its ends has it.

use std::net::SocketAddr;

use super::Socket;

/// The two ends of a connection, whichever way a segment goes.
pub type Ends = [SocketAddr; 2];

/// They, in one order.
#[must_use]
pub fn ends(one: SocketAddr, other: SocketAddr) -> Ends {
    if one <= other {
        [one, other]
    } else {
        [other, one]
    }
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    pub netns: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

impl Side {
    /// `None` of a socket without a remote end.
    #[must_use]
    pub const fn of(socket: &Socket) -> Option<Self> {
        if socket.remote.port() == 0 {
            return None;
        }
        Some(Self {
            netns: socket.netns,
            local: socket.local,
            remote: socket.remote,
        })
    }
}
