//! What is known of a network namespace in trouble.

use conntracer_common::record::{self, UNKNOWN_TOTAL, netns_fact};

/// Figures of one network namespace, as /proc showed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsFacts {
    /// Inode.
    pub netns: u32,
    figures: [u64; netns_fact::COUNT],
}

impl NetnsFacts {
    pub(super) const fn decode(raw: &record::NetnsFacts) -> Self {
        Self {
            netns: raw.netns,
            figures: raw.figures,
        }
    }

    /// One of [`netns_fact`], where it is known.
    #[must_use]
    pub fn figure(&self, index: usize) -> Option<u64> {
        let figure = self.figures.get(index).copied()?;
        (figure != UNKNOWN_TOTAL).then_some(figure)
    }
}
