//! What one connection repeated for nothing, as its peer says (duplicate SACKs, RFC 2883) and as the kernel
//! finds out before the peer does, or where the peer does not say (an undo).

use conntracer_common::record::UndoTotals;

use crate::{event::Undo, finding::Ktime};

/// As last told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spurious {
    /// Segments that the peer said came twice, in the socket's life.
    duplicates: u32,
    /// Segments that an undo told of and the peer has not: it is yet to say that they came twice, or never
    /// will. Where it means others, they are not counted: the sum is no more than there were.
    awaited: u64,
}

impl Spurious {
    pub(super) const fn new(duplicates: u32) -> Self {
        Self {
            duplicates,
            awaited: 0,
        }
    }

    /// Segments that are news, where the peer said by now that so many came twice.
    pub(super) fn doubled(&mut self, duplicates: u32) -> u64 {
        let gained = u64::from(duplicates.saturating_sub(self.duplicates));
        self.duplicates = self.duplicates.max(duplicates);
        let awaited = gained.min(self.awaited);
        self.awaited -= awaited;
        gained - awaited
    }

    /// The same where an undo told of `segments` beside those.
    pub(super) fn undone(&mut self, segments: u64) -> u64 {
        self.awaited = self.awaited.saturating_add(segments);
        segments
    }
}

/// An undo's totals as last told, and the count that they belong to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Undone {
    began: Option<Ktime>,
    totals: UndoTotals,
}

impl Undone {
    /// What a record tells that none before it did.
    pub(super) fn gained(&mut self, body: &Undo) -> UndoTotals {
        let Some(began) = body.began else {
            return body.totals;
        };
        if self.began.replace(began) != Some(began) {
            self.totals = UndoTotals::default();
        }
        let gained = body.totals.since(&self.totals);
        if gained.undos() > 0 {
            self.totals = body.totals;
        }
        gained
    }
}
