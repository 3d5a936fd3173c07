//! Whether it is the size of its segments that a connection fails by, and not its peer.

use conntracer_common::tcp::ca;

use crate::{detect::path_mtu::Sizes, event::Retransmit};

/// What was seen since it went silent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Narrow {
    /// Repeats of the first segment that is not acknowledged, and how many of them were full-sized.
    heads: u32,
    full_heads: u32,
    /// The peer sent something, or has something of what came after that segment.
    pub(super) talks: bool,
    pub(super) sizes: Sizes,
}

impl Narrow {
    pub(super) fn repeated(&mut self, body: &Retransmit) {
        let is_head = body.is_head();
        self.heads += u32::from(is_head);
        self.full_heads += u32::from(is_head && body.is_full_sized());
        self.sizes.add(&Sizes::of(&body.totals));
        // A timeout takes all for lost that the peer has not (`tcp_timeout_mark_lost`), but for what was sent
        // within the last round trip: by the next timeout, nothing was.
        let tcp = &body.tcp;
        self.talks |=
            tcp.ca_state == ca::LOSS && tcp.retransmits > 1 && tcp.packets_out > tcp.lost_out;
    }

    pub(super) const fn is_likely(&self) -> bool {
        self.talks && self.heads > 0 && self.heads == self.full_heads
    }
}
