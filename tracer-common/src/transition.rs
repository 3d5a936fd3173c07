//! What a change of a TCP socket's state calls for (`inet_sock_set_state`).

use crate::tcp::state;

/// A change of state; the socket is still in the former.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    pub old: u8,
    pub new: u8,
}

/// What it calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing that anybody waits for.
    Nothing,
    /// connect() begins.
    Connect,
    /// A third ACK made a child of a listener, whose state and address are still the listener's.
    ChildMade,
    /// A child is established. Its request's repeats became its retransmissions (`tcp_create_openreq_child`).
    ChildEstablished,
    Listen,
    ListenerClosed,
    AttemptFailed,
    ConnectionClosed,
    /// One side has closed.
    HalfClosed,
}

impl Transition {
    /// `by_state` is whether this hook stands in for connect()'s, `by_skb` whether it does for the third ACK's;
    /// `is_orphan`, whether the application has closed the socket already.
    #[must_use]
    #[inline]
    pub fn action(self, by_state: bool, by_skb: bool, is_orphan: impl FnOnce() -> bool) -> Action {
        match self.new {
            state::SYN_SENT if by_state => Action::Connect,
            state::SYN_RECV if self.old == state::LISTEN && by_skb => Action::ChildMade,
            state::ESTABLISHED if self.old == state::SYN_RECV && by_skb => Action::ChildEstablished,
            state::LISTEN => Action::Listen,
            state::CLOSE => match self.old {
                state::LISTEN => Action::ListenerClosed,
                state::SYN_SENT => Action::AttemptFailed,
                state::SYN_RECV | state::CLOSE => Action::Nothing,
                _ => Action::ConnectionClosed,
            },
            // Nobody holds one that is closed, and the kernel ends it (`tcp_fin_timeout`).
            state::FIN_WAIT2 if is_orphan() => Action::Nothing,
            state::CLOSE_WAIT | state::FIN_WAIT2 => Action::HalfClosed,
            _ => Action::Nothing,
        }
    }

    /// Whether `tcp_done` may be ending a socket that was never established, which it counts in `Tcp AttemptFails`
    /// where [`counts_as_failed`](Self::counts_as_failed) says so.
    #[must_use]
    #[inline]
    pub const fn gives_up(self) -> bool {
        self.old == state::SYN_SENT || self.old == state::SYN_RECV
    }

    /// Of one that [gives up](Self::gives_up): `tcp_done` is called with the error stored; `tcp_close`,
    /// `tcp_disconnect` and a failing connect() set the state alone and before any error. A child that could not be
    /// finished (`put_and_exit` of `tcp_v4/v6_syn_recv_sock`) has no error, and is dead before it is done.
    #[must_use]
    #[inline]
    pub fn counts_as_failed(self, error: u32, is_orphan: impl FnOnce() -> bool) -> bool {
        error != 0 || (self.old == state::SYN_RECV && is_orphan())
    }

    /// Whether it is what a process does that closes a connection which it holds, or shuts it down, if the socket is
    /// locked by one and has no error. Other processes lock a socket too, to look at it, and then act on the segments
    /// that came meanwhile; or they kill it, which is an error to it (`tcp_abort`). Neither makes these changes
    /// without one.
    #[must_use]
    #[inline]
    pub const fn is_by_holder(self) -> bool {
        self.new == state::FIN_WAIT1
            || self.new == state::LAST_ACK
            || self.new == state::CLOSE && self.is_without_fin()
    }

    /// Whether there is no orderly way from the former state to CLOSE (`tcp_set_state` counts EstabResets).
    #[must_use]
    #[inline]
    pub const fn is_without_fin(self) -> bool {
        self.old == state::ESTABLISHED || self.old == state::CLOSE_WAIT
    }
}

/// Bytes that the application has not read, where the peer's FIN came or not: `close()` drains the queue and leaves
/// `copied_seq` as it is. A FIN has a number and is no byte.
#[must_use]
#[inline]
pub const fn unread(rcv_nxt: u32, copied_seq: u32, fin_came: bool) -> u32 {
    let fin = fin_came as u32;
    let unread = rcv_nxt.wrapping_sub(copied_seq).wrapping_sub(fin);
    // An end that was read as well.
    if unread > i32::MAX as u32 { 0 } else { unread }
}

/// Bytes that the peer may send now (`tcp_receive_window`, include/net/tcp.h).
#[must_use]
#[inline]
pub const fn receive_window(rcv_wup: u32, rcv_wnd: u32, rcv_nxt: u32) -> u32 {
    let window = rcv_wup.wrapping_add(rcv_wnd).wrapping_sub(rcv_nxt);
    if window > i32::MAX as u32 { 0 } else { window }
}

/// What a socket knows of the time that passed before it died, each in nanoseconds before its end; `u64::MAX` where it
/// does not know.
#[derive(Clone, Copy, Debug)]
pub struct Pause {
    /// Data was last sent, or sent again.
    pub sent_ns: u64,
    /// Data or an acknowledgement last came.
    pub heard_ns: u64,
    /// `tcp_sock.first_tx_mstamp`: with nothing acknowledged since, when the first segment that is not was sent
    /// (`tcp_rate_skb_sent`); otherwise when the last one that was acknowledged was. Nothing that is sent again renews
    /// it.
    pub first_tx_ns: u64,
    /// Something is not acknowledged.
    pub in_flight: bool,
}

impl Pause {
    /// For how long nothing had passed before the first segment that was not answered; without one, before the end.
    /// 0 where something was in flight when the peer was last heard.
    #[must_use]
    #[inline]
    pub const fn before_ns(self) -> u64 {
        if self.in_flight {
            if self.first_tx_ns == u64::MAX || self.heard_ns == u64::MAX {
                return u64::MAX;
            }
            return self.heard_ns.saturating_sub(self.first_tx_ns);
        }
        if self.sent_ns < self.heard_ns {
            self.sent_ns
        } else {
            self.heard_ns
        }
    }

    /// Since the first segment that was not answered; `u64::MAX` where there is none, or it is not known which.
    #[must_use]
    #[inline]
    pub const fn unanswered_ns(self) -> u64 {
        if !self.in_flight || self.first_tx_ns == u64::MAX || self.heard_ns == u64::MAX {
            u64::MAX
        } else if self.first_tx_ns < self.heard_ns {
            self.first_tx_ns
        } else {
            self.heard_ns
        }
    }
}

/// Since data last went either way, in jiffies; `sent` and `received` are when, 0 where none ever was. `u32::MAX`
/// where neither was.
#[must_use]
#[inline]
pub const fn idle_jiffies(now: u32, sent: u32, received: u32) -> u32 {
    let mut idle = u32::MAX;
    if sent != 0 {
        idle = now.wrapping_sub(sent);
    }
    if received != 0 && now.wrapping_sub(received) < idle {
        idle = now.wrapping_sub(received);
    }
    idle
}

/// How long ago `then` was, in jiffies; `u32::MAX` where it never was.
#[must_use]
#[inline]
pub const fn ago_jiffies(now: u32, then: u32) -> u32 {
    if then == 0 {
        u32::MAX
    } else {
        now.wrapping_sub(then)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: core::ops::RangeInclusive<u8> = state::ESTABLISHED..=state::NEW_SYN_RECV;

    fn action(old: u8, new: u8) -> Action {
        Transition { old, new }.action(true, true, || false)
    }

    #[test]
    fn every_end_of_a_connection_is_one_but_of_what_was_never_one() {
        for old in STATES {
            let expected = match old {
                state::LISTEN => Action::ListenerClosed,
                state::SYN_SENT => Action::AttemptFailed,
                state::SYN_RECV | state::CLOSE => Action::Nothing,
                _ => Action::ConnectionClosed,
            };
            assert_eq!(action(old, state::CLOSE), expected, "{old}");
        }
    }

    #[test]
    fn births_are_left_to_the_hooks_that_see_more() {
        let births = [
            (state::CLOSE, state::SYN_SENT, Action::Connect),
            (state::LISTEN, state::SYN_RECV, Action::ChildMade),
            (
                state::SYN_RECV,
                state::ESTABLISHED,
                Action::ChildEstablished,
            ),
        ];
        for (old, new, birth) in births {
            assert_eq!(action(old, new), birth);
            let left = Transition { old, new }.action(false, false, || false);
            assert_eq!(left, Action::Nothing);
        }
        assert_eq!(action(state::CLOSE, state::LISTEN), Action::Listen);
        assert_eq!(
            action(state::SYN_SENT, state::ESTABLISHED),
            Action::Nothing,
            "an active open that succeeds"
        );
    }

    #[test]
    fn only_what_somebody_holds_is_half_closed() {
        assert_eq!(
            action(state::ESTABLISHED, state::CLOSE_WAIT),
            Action::HalfClosed
        );
        assert_eq!(
            action(state::FIN_WAIT1, state::FIN_WAIT2),
            Action::HalfClosed
        );
        let orphan = |new| Transition { old: 1, new }.action(true, true, || true);
        assert_eq!(orphan(state::FIN_WAIT2), Action::Nothing);
        assert_eq!(orphan(state::CLOSE_WAIT), Action::HalfClosed);
    }

    #[test]
    fn an_attempt_fails_with_an_error_or_as_an_orphaned_child() {
        let given_up = |old| Transition {
            old,
            new: state::CLOSE,
        };
        for old in STATES {
            let expected = matches!(old, state::SYN_SENT | state::SYN_RECV);
            assert_eq!(given_up(old).gives_up(), expected, "{old}");
        }
        assert!(given_up(state::SYN_SENT).counts_as_failed(110, || false));
        assert!(!given_up(state::SYN_SENT).counts_as_failed(0, || true));
        assert!(given_up(state::SYN_RECV).counts_as_failed(0, || true));
        assert!(!given_up(state::SYN_RECV).counts_as_failed(0, || false));
    }

    #[test]
    fn a_holder_closes_or_shuts_down() {
        let is = |old, new| Transition { old, new }.is_by_holder();
        assert!(is(state::ESTABLISHED, state::FIN_WAIT1));
        assert!(is(state::CLOSE_WAIT, state::LAST_ACK));
        assert!(is(state::ESTABLISHED, state::CLOSE));
        assert!(is(state::CLOSE_WAIT, state::CLOSE));
        assert!(!is(state::LAST_ACK, state::CLOSE));
        assert!(!is(state::ESTABLISHED, state::CLOSE_WAIT));
    }

    #[test]
    fn a_fin_is_no_byte_that_was_left_unread() {
        assert_eq!(unread(110, 100, false), 10);
        assert_eq!(unread(111, 100, true), 10);
        assert_eq!(unread(101, 100, true), 0);
        assert_eq!(unread(100, 100, true), 0, "read to its end");
        assert_eq!(unread(5, u32::MAX - 4, false), 10);
    }

    #[test]
    fn a_pause_ends_with_the_first_segment_that_was_not_answered() {
        const S: u64 = 1_000_000_000;
        let pause = Pause {
            sent_ns: 0,
            heard_ns: 25 * S,
            first_tx_ns: 13 * S,
            in_flight: true,
        };
        // Sent again just now: the first time was 13 s ago, after 12 s without anything.
        assert_eq!(pause.before_ns(), 12 * S);
        assert_eq!(pause.unanswered_ns(), 13 * S);
        // In the middle of a transfer: the peer was heard after the last acknowledged segment was sent.
        let busy = Pause {
            heard_ns: 3 * S,
            first_tx_ns: 4 * S,
            ..pause
        };
        assert_eq!((busy.before_ns(), busy.unanswered_ns()), (0, 3 * S));
        let idle = Pause {
            sent_ns: 40 * S,
            heard_ns: 30 * S,
            in_flight: false,
            ..pause
        };
        assert_eq!((idle.before_ns(), idle.unanswered_ns()), (30 * S, u64::MAX));
        let unknown = Pause {
            first_tx_ns: u64::MAX,
            ..pause
        };
        assert_eq!(unknown.before_ns(), u64::MAX);
        assert_eq!(unknown.unanswered_ns(), u64::MAX);
    }

    #[test]
    fn idle_is_since_the_later_of_both_ways() {
        assert_eq!(idle_jiffies(100, 90, 80), 10);
        assert_eq!(idle_jiffies(100, 80, 90), 10);
        assert_eq!(idle_jiffies(100, 0, 70), 30);
        assert_eq!(idle_jiffies(100, 70, 0), 30);
        assert_eq!(idle_jiffies(100, 0, 0), u32::MAX);
        assert_eq!(idle_jiffies(5, u32::MAX - 4, 0), 10, "jiffies wrap");
    }
}
