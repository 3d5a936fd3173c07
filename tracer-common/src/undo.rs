//! What the kernel takes back: it took segments for lost, slowed down and repeated them, and learned that they
//! were not (`tcp_undo_cwnd_reduction`, net/ipv4/tcp_input.c). Each way to learn it has a counter of its own.

use crate::{record::UndoTotals, tcp::ca};

/// How the kernel learned it: the index into [`crate::record::UndoTotals::undos`].
pub mod way {
    /// After a timeout: the acknowledgement is of the first transmission, as its timestamp (Eifel, RFC 3522)
    /// or what it acknowledges (F-RTO, RFC 5682) tells, or the peer said that all came twice (`TCPLossUndo`).
    pub const LOSS: u8 = 0;
    /// At the end of a recovery, by timestamps or by duplicate SACKs (`TCPFullUndo`).
    pub const FULL: u8 = 1;
    /// Within a recovery, by timestamps (`TCPPartialUndo`).
    pub const PARTIAL: u8 = 2;
    /// Within a recovery or after it, by duplicate SACKs (`TCPDSACKUndo`).
    pub const DSACK: u8 = 3;
    pub const COUNT: usize = 4;
}

/// One of [`way`], by the congestion state that is left, by whether what was marked lost is unmarked, and by
/// whether all that was in flight when the recovery began is acknowledged.
///
/// A timeout is undone in the state Loss alone, and nothing else is. Of the others only an acknowledgement of a
/// part unmarks anything, and only the end of a recovery is looked at in the state Recovery with everything
/// acknowledged.
#[must_use]
#[inline]
pub const fn way(ca_state: u8, unmarks: bool, is_over: bool) -> u8 {
    if ca_state == ca::LOSS {
        way::LOSS
    } else if unmarks {
        way::PARTIAL
    } else if ca_state == ca::RECOVERY && is_over {
        way::FULL
    } else {
        way::DSACK
    }
}

/// Segments that were repeated for nothing, by `tcp_sock.undo_retrans`: those repeated since the loss was
/// concluded, but for those of which the peer said that they came twice. Below 0 where none was.
#[must_use]
#[inline]
pub const fn repeated(undo_retrans: u32) -> u32 {
    if undo_retrans > i32::MAX as u32 {
        0
    } else {
        undo_retrans
    }
}

impl UndoTotals {
    /// Counts one more, by its [`way`], that found `segments` repeated for nothing.
    #[inline]
    pub fn count(&mut self, way: u8, segments: u32) {
        // Each by its number: the eBPF side cannot index what is on its stack.
        for (known, undos) in (0..).zip(&mut self.undos) {
            *undos = undos.wrapping_add(u64::from(way == known));
        }
        self.segments = self.segments.wrapping_add(segments.into());
    }

    /// How often, whatever the way.
    #[must_use]
    #[inline]
    pub fn undos(&self) -> u64 {
        let [loss, full, partial, dsack] = self.undos;
        loss.wrapping_add(full)
            .wrapping_add(partial)
            .wrapping_add(dsack)
    }

    /// What was counted since `before`, an earlier reading of the same connection. Of two readings the newer may
    /// come first: nothing then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut gained = *self;
        for (gained, before) in gained.undos.iter_mut().zip(before.undos) {
            *gained = gained.saturating_sub(before);
        }
        gained.segments = gained.segments.saturating_sub(before.segments);
        gained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_undone_in_loss_however_it_is_learned() {
        for (unmarks, is_over) in [(false, false), (true, false), (false, true), (true, true)] {
            assert_eq!(way(ca::LOSS, unmarks, is_over), way::LOSS);
        }
    }

    #[test]
    fn a_recovery_is_undone_in_part_at_its_end_or_by_what_came_twice() {
        assert_eq!(way(ca::RECOVERY, true, false), way::PARTIAL);
        assert_eq!(way(ca::RECOVERY, false, true), way::FULL);
        assert_eq!(way(ca::RECOVERY, false, false), way::DSACK);
        for ca_state in [ca::OPEN, ca::DISORDER] {
            assert_eq!(way(ca_state, false, true), way::DSACK);
            assert_eq!(way(ca_state, false, false), way::DSACK);
        }
    }

    #[test]
    fn readings_subtract() {
        let mut before = UndoTotals::default();
        before.count(way::FULL, 2);
        let mut now = before;
        now.count(way::FULL, 1);
        now.count(way::DSACK, 0);
        assert_eq!(now.undos(), 3);
        let gained = UndoTotals {
            undos: [0, 1, 0, 1],
            segments: 1,
        };
        assert_eq!(now.since(&before), gained);
        assert_eq!(before.since(&now), UndoTotals::default());
    }

    #[test]
    fn nothing_repeated_is_nothing_in_vain() {
        assert_eq!(repeated(3), 3);
        assert_eq!(repeated(0), 0);
        assert_eq!(repeated(u32::MAX), 0, "`tcp_init_undo`: -1, none yet");
    }
}
