//! What the kernel takes back: it took segments for lost, slowed down and retransmitted them, and learned that they
//! were not (`tcp_undo_cwnd_reduction`, net/ipv4/tcp_input.c). Each way to learn it has a counter of its own.

use crate::tcp::ca;

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

/// Segments retransmitted without need, by `tcp_sock.undo_retrans`: those retransmitted since the loss was
/// concluded, but for those of which the peer said that they came twice. Below 0 where none was.
#[must_use]
#[inline]
pub const fn unnecessary(undo_retrans: u32) -> u32 {
    if undo_retrans > i32::MAX as u32 {
        0
    } else {
        undo_retrans
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
    fn what_was_not_retransmitted_was_not_unnecessary() {
        assert_eq!(unnecessary(3), 3);
        assert_eq!(unnecessary(0), 0);
        assert_eq!(unnecessary(u32::MAX), 0, "`tcp_init_undo`: -1, none yet");
    }
}
