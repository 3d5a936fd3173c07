//! What this host dropped of connections: plain figures.

use std::net::SocketAddr;

use crate::event::Dropped;

/// The word of the output contract.
pub(crate) const CAUSE: &str = "dropped_here";

/// What this host dropped of the connections that a finding is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Here {
    /// Place by place, the most first.
    pub(super) places: Vec<Dropped>,
    /// Of how many connections.
    pub(super) connections: u64,
    /// How much was lost that it is held against; 0: what the finding counts.
    pub(super) lost: u64,
}

impl Here {
    /// Segments in all.
    pub(crate) fn count(&self) -> u64 {
        self.places
            .iter()
            .fold(0, |sum, place| sum.saturating_add(place.count))
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Held against so much that was lost.
    pub(crate) const fn against(mut self, lost: u64) -> Self {
        self.lost = lost;
        self
    }

    /// Whether it explains that so much was lost of a connection.
    pub(crate) fn explains_loss(&self, lost: u64) -> bool {
        !self.is_empty() && self.count().saturating_mul(2) >= lost
    }

    /// Whether FINs to a local end were among it.
    pub(crate) fn has_fin_to(&self, local: SocketAddr) -> bool {
        self.places
            .iter()
            .any(|place| place.to == local && place.fins > 0)
    }

    /// Adds what was dropped of one more connection: what was dropped alike becomes one.
    pub(crate) fn add(&mut self, other: Self) {
        let is_alike = |one: &Dropped, other: &Dropped| {
            (one.netns, one.reason, one.layer, one.hook)
                == (other.netns, other.reason, other.layer, other.hook)
                && (one.rule, one.table, one.chain) == (other.rule, other.table, other.chain)
        };
        for place in other.places {
            match self.places.iter_mut().find(|known| is_alike(known, &place)) {
                Some(known) => {
                    known.count = known.count.saturating_add(place.count);
                    known.fins = known.fins.saturating_add(place.fins);
                    known.last = known.last.max(place.last);
                }
                None => self.places.push(place),
            }
        }
        self.connections = self.connections.saturating_add(other.connections);
        self.lost = self.lost.saturating_add(other.lost);
        self.places
            .sort_by_key(|place| std::cmp::Reverse(place.count));
    }
}
