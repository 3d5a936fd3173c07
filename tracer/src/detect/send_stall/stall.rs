//! A connection that has data to send and sends none of it.

use crate::{event::Tcp, table::connection::Connection, time::Ktime};

/// Why nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    ReceiverStalled,
    LocalDrop,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Stall {
    pub(super) connection: Connection,
    pub(super) cause: Cause,
    pub(super) stage: Stage,
    /// Probes in a row, with those before the first record.
    pub(super) probes: u64,
    /// It had begun when it was first seen, and no look has told since when yet.
    pub(super) older: bool,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
}

impl Stall {
    /// One of which a record tells at `now`; `older` where it has begun before.
    pub(super) const fn new(
        connection: &Connection,
        cause: Cause,
        older: bool,
        now: Ktime,
    ) -> Self {
        Self {
            connection: *connection,
            cause,
            stage: Stage::Stalled,
            probes: 0,
            older,
            since: now,
            last: now,
        }
    }
}

/// How it goes on with one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Stalled,
    /// It sends again.
    Resumed,
    /// The peer answers no more.
    Unanswered,
    Closed,
    Forgotten,
}

impl Stage {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Resumed => "resumed",
            Self::Unanswered => "unanswered",
            Self::Closed => "closed",
            Self::Forgotten => "forgotten",
        }
    }
}

/// Whether data waits and none is in flight. The timer does not tell: while it fires, `icsk_pending` is clear.
pub(super) const fn is_stalled(tcp: &Tcp) -> bool {
    tcp.packets_out == 0 && tcp.write_seq != tcp.snd_nxt
}

/// Whether the peer's window takes another segment. A receiver whose buffer is full offers nothing, or less
/// than a segment (RFC 9293, 3.8.6.2.2).
pub(super) const fn has_room(tcp: &Tcp) -> bool {
    tcp.snd_wnd_bytes > 0 && tcp.snd_wnd_bytes >= tcp.unacked_bytes().saturating_add(tcp.mss_bytes)
}
