//! What a connection retransmitted, and what of it was unnecessary.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket, Tcp};
use crate::{
    retransmit::{Attempt, advanced, class, counted},
    tcp::state,
    undo::way,
};

/// One `tcp_retransmit_skb`: one buffer of one or more segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Retransmit {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    pub tcp: Tcp,
    pub seq: u32,
    pub end_seq: u32,
    /// Segments in the buffer (`tcp_gso_segs`, at least 1).
    pub segs: u32,
    /// 0, or a positive errno: the segment was not sent (kernels from 6.17 on say so).
    pub error: u32,
    pub tcp_flags: u8,
    pub sacked: u8,
    /// 1: the kernel tells of what it could not send, so that every attempt is a record.
    pub failures_traced: u8,
    /// 1: the socket came to the state Loss without a timeout; 0 in older recordings.
    pub without_timeout: u8,
    /// Segments that the peer said came twice (`tcp_sock.dsack_dups`), in the socket's life.
    pub dsack_dups: u32,
}

/// What one connection sent again, cumulative. Whole events are counted, so that two readings subtract.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct RetransmitTotals {
    /// ktime of the first event, which tells this count from an earlier one of the same connection.
    pub first_ns: u64,
    /// Events: buffers, each of one or more segments.
    pub events: u64,
    /// Segments that left, by [`class`].
    pub segments: [u64; class::COUNT],
    /// Segments that were not sent.
    pub failed: u64,
    /// Segments that the socket counted between two events (`total_retrans`): attempts that failed, where the
    /// kernel is silent about those, and otherwise events that no program saw.
    pub unseen: u64,
    /// Of those that left: full-sized ones, and ones sent into a window that is shut.
    pub full: u64,
    pub shut: u64,
    /// Events that repeated the first segment that is not acknowledged, and of them the full-sized ones.
    pub heads: u64,
    pub full_heads: u64,
    /// Events before which the peer acknowledged, or sent, something since the last one.
    pub progress: u64,
    pub peer_spoke: u64,
    /// The smallest segment among `full_heads` in bytes; 0 when there is none.
    pub full_head_bytes: u32,
    /// At the last event: the smallest round trip lately (`net.ipv4.tcp_min_rtt_wlen`), and the path MTU that
    /// the kernel believes in; 0 where it does not tell.
    pub min_rtt_us: u32,
    pub pmtu: u32,
    /// 1: read from the map by userspace, beside the records that tell of single events.
    pub polled: u8,
    /// 1: the kernel tells whether ICMP told of a smaller path.
    pub tells_icmp: u8,
    /// The largest packet that passes, as the last such ICMP message about the socket said (`tcp_sock.mtu_info`);
    /// 0 when none came.
    pub icmp_mtu: u16,
}

/// The interface that a connection sends by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Egress {
    /// `net_device.name`, NUL-padded; empty when not known.
    pub device: [u8; 16],
    pub ifindex: u32,
    pub pad: u32,
}

/// The last `tcp_retransmit_skb` of a connection and all there were: emitted for the first one and then at
/// most once in [`RETRANSMIT_INTERVAL_NS`], polled otherwise, so that a storm of any size is counted exactly.
/// What finds no room to be counted in, and what a handshake repeats, comes as a [`Retransmit`] each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Retransmits {
    pub last: Retransmit,
    pub totals: RetransmitTotals,
    /// Of the last one.
    pub egress: Egress,
}

/// What the kernel took back of what it did about one connection's losses, cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct UndoTotals {
    /// How often, by [`way`].
    pub undos: [u64; way::COUNT],
    /// Segments retransmitted without need. Of those that the peer had said came twice by then, none.
    pub segments: u64,
}

/// The kernel took back what it did about a loss because nothing was lost (`tcp_undo_cwnd_reduction`), as told with the
/// connection's [`Retransmits`]: the first one, and then at most once in [`RETRANSMIT_INTERVAL_NS`], polled
/// otherwise. Where its retransmissions find no room to be counted in, a record each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Undo {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// [`RetransmitTotals::first_ns`] of the count that it belongs to; 0 when it is of one alone.
    pub first_ns: u64,
    pub totals: UndoTotals,
    /// `tcp_sock.dsack_dups` at the last one, as in [`Retransmit`].
    pub dsack_dups: u32,
    pub pad: u32,
}

/// Shortest time between two [`Retransmits`] records of one connection: a rate over three seconds needs no
/// more, and 1,000 connections that lose cost 4 MB a second at most, whatever they send.
pub const RETRANSMIT_INTERVAL_NS: u64 = 100_000_000;

impl Attempt {
    /// What a record holds of it.
    #[must_use]
    #[inline]
    pub const fn of(record: &Retransmit) -> Self {
        Self {
            state: record.socket.state,
            tcp_flags: record.tcp_flags,
            sacked: record.sacked,
            ca_state: record.tcp.ca_state,
            pending: record.tcp.pending,
            without_timeout: record.without_timeout,
            retransmits: record.tcp.retransmits,
            backoff: record.tcp.backoff,
        }
    }
}

impl RetransmitTotals {
    /// Counts one more event; `before` are the socket's fields at the last one.
    #[inline]
    pub fn count(&mut self, event: &Retransmit, before: Option<&Tcp>) {
        let tcp = &event.tcp;
        let segments = u64::from(event.segs);
        if let Some(before) = before {
            self.progress += u64::from(advanced(before.snd_una, tcp.snd_una));
            self.peer_spoke += u64::from(advanced(before.rcv_nxt, tcp.rcv_nxt));
            let gained = tcp.total_retrans.wrapping_sub(before.total_retrans);
            self.unseen += u64::from(gained.saturating_sub(counted(event.segs, event.error)));
        } else {
            self.first_ns = event.header.ktime_ns;
        }
        self.events += 1;
        if event.error != 0 {
            self.failed += segments;
            return;
        }
        if let Some(of_class) = self
            .segments
            .get_mut(usize::from(class::told(class(&Attempt::of(event)))))
        {
            *of_class += segments;
        }
        let bytes = event.end_seq.wrapping_sub(event.seq);
        let is_full = tcp.mss != 0 && u64::from(bytes) >= u64::from(tcp.mss) * segments;
        self.full += u64::from(is_full) * segments;
        self.shut += u64::from(tcp.snd_wnd == 0) * segments;
        if event.seq != tcp.snd_una {
            return;
        }
        self.heads += 1;
        self.full_heads += u64::from(is_full);
        // Of many, all but the last are of one MSS.
        let bytes = if event.segs > 1 { tcp.mss } else { bytes };
        if is_full && (self.full_head_bytes == 0 || bytes < self.full_head_bytes) {
            self.full_head_bytes = bytes;
        }
    }

    /// What was counted since `before`, an earlier reading of the same connection. Of two readings the newer
    /// may come first, when they are of two CPUs: nothing then.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        if self.first_ns != before.first_ns {
            return *self;
        }
        if self.events <= before.events {
            return Self::default();
        }
        let mut gained = *self;
        gained.events -= before.events;
        for (gained, before) in gained.segments.iter_mut().zip(before.segments) {
            *gained = gained.saturating_sub(before);
        }
        gained.failed = self.failed.saturating_sub(before.failed);
        gained.unseen = self.unseen.saturating_sub(before.unseen);
        gained.full = self.full.saturating_sub(before.full);
        gained.shut = self.shut.saturating_sub(before.shut);
        gained.heads = self.heads.saturating_sub(before.heads);
        gained.full_heads = self.full_heads.saturating_sub(before.full_heads);
        gained.progress = self.progress.saturating_sub(before.progress);
        gained.peer_spoke = self.peer_spoke.saturating_sub(before.peer_spoke);
        gained
    }

    /// The count of a single event.
    #[must_use]
    pub fn of(event: &Retransmit) -> Self {
        let mut totals = Self::default();
        totals.count(event, None);
        // The peer's window is not known yet.
        if matches!(event.socket.state, state::SYN_SENT | state::SYN_RECV) {
            totals.shut = 0;
        }
        totals
    }
}

impl UndoTotals {
    /// Counts one more, by its [`way`], that found `segments` retransmitted without need.
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
    use crate::tcp::{ca, pending, sacked};

    /// Of `retransmit::is_untried`.
    const EBUSY: u32 = 16;

    fn event(change: impl FnOnce(&mut Retransmit)) -> Retransmit {
        let mut event = Retransmit {
            seq: 1000,
            end_seq: 1000 + 2 * 1448,
            segs: 2,
            ..Retransmit::default()
        };
        event.header.ktime_ns = 7;
        event.tcp.snd_una = 1000;
        event.tcp.snd_wnd = 64_000;
        event.tcp.mss = 1448;
        event.tcp.ca_state = ca::RECOVERY;
        event.tcp.pending = pending::RETRANS;
        event.sacked = sacked::LOST;
        change(&mut event);
        event
    }

    #[test]
    fn a_single_event_counts_its_segments() {
        let totals = RetransmitTotals::of(&event(|_| ()));
        let mut expected = RetransmitTotals {
            first_ns: 7,
            events: 1,
            full: 2,
            heads: 1,
            full_heads: 1,
            full_head_bytes: 1448,
            ..RetransmitTotals::default()
        };
        expected.segments[usize::from(class::FAST)] = 2;
        assert_eq!(totals, expected);
        let failed = RetransmitTotals::of(&event(|event| event.error = 1));
        assert_eq!((failed.failed, failed.segments), (2, [0; class::COUNT]));
        let small = RetransmitTotals::of(&event(|event| event.end_seq -= 1));
        assert_eq!((small.full, small.heads, small.full_heads), (0, 1, 0));
        let shut = RetransmitTotals::of(&event(|event| event.tcp.snd_wnd = 0));
        assert_eq!(shut.shut, 2);
    }

    #[test]
    fn what_the_socket_counted_beside_its_events_is_unseen() {
        let mut totals = RetransmitTotals::default();
        let first = event(|event| event.tcp.total_retrans = 4);
        totals.count(&first, None);
        assert_eq!(totals.unseen, 0, "what was before the first is not known");
        let next = event(|event| event.tcp.total_retrans = 9);
        totals.count(&next, Some(&first.tcp));
        assert_eq!(totals.unseen, 3);
        // Tried in vain: the socket did not count it.
        let untried = event(|event| {
            event.tcp.total_retrans = 10;
            event.error = EBUSY;
        });
        totals.count(&untried, Some(&next.tcp));
        assert_eq!(totals.unseen, 4);
    }

    #[test]
    fn readings_subtract() {
        let mut before = RetransmitTotals::of(&event(|_| ()));
        let mut now = before;
        now.count(&event(|_| ()), Some(&event(|_| ()).tcp));
        let gained = now.since(&before);
        assert_eq!((gained.events, gained.full), (1, 2));
        assert_eq!(before.since(&now).events, 0, "an older reading");
        before.first_ns = 6;
        assert_eq!(now.since(&before), now, "another count");
    }

    #[test]
    fn readings_of_undos_subtract() {
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
}
