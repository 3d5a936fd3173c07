//! What one connection retransmitted unnecessarily, as its peer says (duplicate SACKs, RFC 2883) and as the kernel
//! finds out before the peer does, or where the peer does not say (an undo).

use conntracer_common::record::UndoTotals;

use crate::{event::Undo, time::Ktime};

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
        self.awaited = self.awaited.saturating_sub(awaited);
        gained.saturating_sub(awaited)
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

#[cfg(test)]
mod tests {
    use conntracer_common::undo::way;

    use super::*;
    use crate::{
        event::Body,
        testing::{Run, socket},
    };

    #[test]
    fn what_both_tell_counts_once() {
        let mut spurious = Spurious::new(7);
        assert_eq!(spurious.doubled(7), 0, "told before");
        assert_eq!(spurious.undone(2), 2);
        assert_eq!(spurious.doubled(8), 0, "one of the two");
        assert_eq!(spurious.doubled(8), 0);
        assert_eq!(spurious.doubled(11), 2, "the other, and two more");
        assert_eq!(spurious.doubled(10), 0, "an older record");
        assert_eq!(spurious.doubled(12), 1);
    }

    fn undo(began: u64, undos: u64) -> Undo {
        let mut run = Run::new();
        run.undo(socket("10.0.0.1:80", "10.0.0.2:4000"), |undo| {
            undo.first_ns = began;
            undo.totals.undos[usize::from(way::LOSS)] = undos;
            undo.totals.segments = 2 * undos;
        });
        let event = crate::decode::decode(&run.fed[0]).unwrap();
        let Body::Undo(undo) = event.body else {
            panic!("{event:?}");
        };
        undo
    }

    #[test]
    fn totals_are_of_one_count() {
        let mut told = Undone::default();
        let mut gained = |began, undos| {
            let gained = told.gained(&undo(began, undos));
            (gained.undos(), gained.segments)
        };
        assert_eq!(gained(1, 3), (3, 6));
        assert_eq!(gained(1, 3), (0, 0), "told again by a poll");
        assert_eq!(gained(1, 2), (0, 0), "of another CPU");
        assert_eq!(gained(1, 4), (1, 2));
        assert_eq!(gained(2, 1), (1, 2), "a count that began since");
        assert_eq!(gained(0, 1), (1, 2), "one alone");
        assert_eq!(gained(2, 2), (1, 2));
    }
}
