//! Whether it is the size of its segments that a connection fails by, and not its peer.

use crate::{count::Grow, detect::path_mtu::Sizes, event::Retransmit};

/// What was seen since it went silent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Narrow {
    /// Retransmissions of the first segment that is not acknowledged, and how many of them were full-sized.
    heads: u32,
    full_heads: u32,
    /// The peer sent something, or has something of what came after that segment.
    pub(super) talks: bool,
    /// What it has of that is full-sized: the path carries those, and loses some.
    carries: bool,
    pub(super) sizes: Sizes,
}

impl Narrow {
    pub(super) fn retransmitted(&mut self, body: &Retransmit) {
        let is_head = body.is_head();
        self.heads.grow(u32::from(is_head));
        self.full_heads
            .grow(u32::from(is_head && body.is_full_sized()));
        self.sizes.add(&Sizes::of(&body.totals));
        self.talks |= body.tcp.peer_has_later();
        self.carries |= body.tcp.peer_has_full_sized_later();
    }

    /// Nothing but full-sized segments was sent again, and the peer was not heard meanwhile.
    pub(super) const fn is_full_sized_alone(&self) -> bool {
        !self.talks && self.heads > 0 && self.heads == self.full_heads
    }

    pub(super) const fn is_likely(&self) -> bool {
        self.talks && !self.carries && self.heads > 0 && self.heads == self.full_heads
    }
}
