//! What else is known of an address that does not answer: whether it answers other connections of this host, and
//! whether the path to it is too narrow for one of them.

use std::net::IpAddr;

use crate::{event::Beside, time::Ktime};

/// An address, as a network namespace sees it.
pub(super) type PeerKey = (u32, IpAddr);

/// As last told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    /// When the others were asked about, and what they showed: how many there are beside the silent one, how many of them
    /// it answered while that was silent, and when it was last heard by any.
    pub(super) asked: Option<Ktime>,
    pub(super) others: u32,
    answered: u32,
    pub(super) heard: Option<Ktime>,
    /// When full-sized segments of another connection did not reach it while it talked.
    pub(super) narrow: Option<Ktime>,
}

impl Peer {
    pub(super) fn asked(&mut self, body: &Beside, now: Ktime) {
        self.asked = Some(now);
        self.others = body.connections.saturating_sub(1);
        self.answered = body.answered;
        self.heard = body.heard_idle.map(|ago| now.before(ago)).or(self.heard);
    }

    /// Other connections that it answered after `since`; 0 where none is known of.
    pub(super) fn answered_since(&self, since: Ktime) -> u32 {
        if self.heard.is_some_and(|heard| heard > since) {
            self.answered.max(1)
        } else {
            0
        }
    }
}
