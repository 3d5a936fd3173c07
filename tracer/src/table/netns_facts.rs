//! What is known of network namespaces in trouble: the first look of a trouble, and the last.

use crate::{event::NetnsFacts, table::Bounded, time::Ktime};

/// Namespaces of which something is kept: as many as are compared with the kernel's counters.
const MAX_NAMESPACES: usize = 1024;

/// The looks at one namespace.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    first: NetnsFacts,
    last: NetnsFacts,
    pub at: Ktime,
}

impl Known {
    /// One of [`conntracer_common::record::netns_fact`], where it is known.
    #[must_use]
    pub fn now(&self, figure: usize) -> Option<u64> {
        self.last.figure(figure)
    }

    /// What it grew by since the first look; `None` where it is not known.
    #[must_use]
    pub fn grown(&self, figure: usize) -> Option<u64> {
        let (first, last) = (self.first.figure(figure)?, self.last.figure(figure)?);
        Some(last.saturating_sub(first))
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct NetnsTroubles {
    known: Bounded<u32, Known>,
}

impl Default for NetnsTroubles {
    fn default() -> Self {
        Self {
            known: Bounded::new(MAX_NAMESPACES),
        }
    }
}

impl NetnsTroubles {
    pub(crate) const fn evicted(&self) -> u64 {
        self.known.evicted()
    }

    pub(crate) fn apply(&mut self, facts: &NetnsFacts, now: Ktime) {
        if let Some(known) = self.known.touch(&facts.netns) {
            known.last = *facts;
            known.at = now;
        } else {
            let known = Known {
                first: *facts,
                last: *facts,
                at: now,
            };
            self.known.insert(facts.netns, known);
        }
    }

    /// Another namespace has this inode by now.
    pub(crate) fn forget(&mut self, netns: u32) {
        self.known.remove(&netns);
    }

    pub(crate) fn of(&self, netns: u32) -> Option<&Known> {
        self.known.get(&netns)
    }
}
