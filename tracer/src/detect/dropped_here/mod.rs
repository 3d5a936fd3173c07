//! `dropped_here`: this host itself drops the segments of a connection that a finding is about.
//!
//! No finding of its own: what the eBPF side counted of the connection's two ends is laid beside every finding about
//! one, and where it explains the finding it is the cause, first in the sentence.
//!
//! **Rule.** It explains a finding where as many segments at least were dropped here as half of what the finding counts,
//! the last of them not before the trouble began. Fewer are evidence and no cause: most is lost elsewhere. What a
//! connection lost is its own: of segments dropped in another namespace the sequence number must be near the
//! connection's, for two pairs of namespaces may have the same addresses and ports.

pub(super) mod here;
mod words;

use std::time::Duration;

pub(super) use self::here::{CAUSE, Here};
use super::context::{Context, Draft};
use crate::{
    event::{Dropped, Ends},
    table::dropped::Whose,
    time::Ktime,
};

/// A drop is seen before the trouble that it makes: by a retransmission timeout, which is 3 s where no round trip was
/// measured (`TCP_TIMEOUT_FALLBACK`), by a delayed ACK, and by a poll.
const BEFORE: Duration = Duration::from_secs(5);

/// Whether what was dropped explains what a finding counts.
fn explains(here: &Here, draft: &Draft) -> bool {
    here.explains_loss(if here.lost > 0 {
        here.lost
    } else {
        draft.count
    })
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
    if explains(&here, &draft) {
        words::explained(draft, &here, cx)
    } else {
        words::beside(draft, &here, cx)
    }
}
