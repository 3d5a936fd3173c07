//! `dropped_here`: this host itself drops the segments of a connection that a finding is about.
//!
//! No finding of its own: what the eBPF side counted of the connection's two ends is laid beside every finding about
//! one, and where it explains the finding it is the cause, first in the sentence.
//!
//! **Rule.** It explains a finding where as many segments at least were dropped here as half of what the finding counts,
//! the last of them not before the trouble began. Fewer are evidence and no cause: most is lost elsewhere. What a
//! connection lost is its own: of segments dropped in another namespace the sequence number must be near the
//! connection's, for two pairs of namespaces may have the same addresses and ports.

mod words;

use std::{net::SocketAddr, time::Duration};

use super::context::{Context, Draft};
use crate::{
    event::Dropped,
    table::dropped::{Ends, Whose},
    time::Ktime,
};

/// The word of the output contract.
pub(crate) const CAUSE: &str = "dropped_here";

/// A drop is seen before the trouble that it makes: by a retransmission timeout, which is 3 s where no round trip was
/// measured (`TCP_TIMEOUT_FALLBACK`), by a delayed ACK, and by a poll.
const BEFORE: Duration = Duration::from_secs(5);

/// What this host dropped of the connections that a finding is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Here {
    /// Place by place, the most first.
    places: Vec<Dropped>,
    /// Of how many connections.
    connections: u64,
    /// How much was lost that it is held against; 0: what the finding counts.
    lost: u64,
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

    fn explains(&self, draft: &Draft) -> bool {
        self.explains_loss(if self.lost > 0 {
            self.lost
        } else {
            draft.count
        })
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

impl Context<'_> {
    /// What this host dropped of a connection, and went on to drop since a moment.
    pub(crate) fn dropped_of(&self, whose: &Whose<'_>, since: Ktime) -> Here {
        let began = since.before(BEFORE);
        let places = self.dropped.of(whose.local, whose.remote).iter();
        let mut places: Vec<Dropped> = places
            .filter(|dropped| dropped.last >= began && whose.lost(dropped))
            .copied()
            .collect();
        places.sort_by_key(|place| std::cmp::Reverse(place.count));
        let connections = u64::from(!places.is_empty());
        Here {
            places,
            connections,
            lost: 0,
        }
    }

    /// The same of all sockets of a namespace, or of every one, whose ends are asked for.
    pub(crate) fn dropped_where(
        &self,
        netns: Option<u32>,
        asked: impl Fn(&Ends) -> bool,
        since: Ktime,
    ) -> Here {
        let began = since.before(BEFORE);
        let mut here = Here::default();
        for (_, places) in self
            .dropped
            .of_sockets(netns)
            .filter(|(ends, _)| asked(ends))
        {
            let places = places.iter().filter(|place| place.last >= began);
            let places: Vec<Dropped> = places.copied().collect();
            let connections = u64::from(!places.is_empty());
            here.add(Here {
                places,
                connections,
                lost: 0,
            });
        }
        here
    }
}

/// A finding with what this host dropped: as its cause where that explains it.
pub(super) fn told(mut draft: Draft, cx: &Context<'_>) -> Draft {
    let Some(here) = draft.here.take().filter(|here| !here.is_empty()) else {
        return draft;
    };
    if here.explains(&draft) {
        words::explained(draft, &here, cx)
    } else {
        words::beside(draft, &here, cx)
    }
}
