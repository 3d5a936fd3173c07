//! The silence of one connection: what was counted while nothing was acknowledged.

use super::{
    narrow::Narrow,
    patience::{self, RTO_MIN},
    stage::{End, Stage},
};
use crate::{
    detect::room::Context,
    event::Tcp,
    table::connection::{Change, Connection},
    time::Ktime,
};

/// The silence of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Silence {
    pub(super) connection: Connection,
    pub(super) stage: Stage,
    pub(super) timeouts: u8,
    pub(super) probes: u8,
    /// What was probed for has left the host since, and the kernel counts timeouts from then on.
    pub(super) has_left: bool,
    /// The kernel's last timeout, which it does not add to `timeouts`.
    pub(super) fatal: bool,
    pub(super) keepalive: bool,
    /// Retransmissions and probes that left the host, and those that did not.
    pub(super) sent: u32,
    pub(super) not_sent: u32,
    pub(super) narrow: Narrow,
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// It was seen from its first timeout or probe on.
    pub(super) is_whole: bool,
    pub(super) gone: Option<Gone>,
}

/// A poll did not find the socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gone {
    pub(super) at: Ktime,
    /// The tick of that poll is over.
    pub(super) is_settled: bool,
}

impl Silence {
    pub(super) fn new(connection: &Connection, now: Ktime) -> Self {
        Self {
            connection: *connection,
            stage: Stage::Suspected,
            timeouts: 0,
            probes: 0,
            has_left: false,
            fatal: false,
            keepalive: false,
            sent: 0,
            not_sent: 0,
            narrow: Narrow::default(),
            since: now,
            last: now,
            is_whole: connection.tcp.retransmits <= 1 && connection.tcp.probes_out <= 1,
            gone: None,
        }
    }

    pub(super) fn count(&self) -> u64 {
        if self.timeouts > 0 {
            u64::from(self.timeouts).saturating_add(u64::from(self.fatal))
        } else {
            self.probes.into()
        }
    }

    /// The connection was over at `end`, without a word of how. Where its silence had lasted for as long as the kernel
    /// bears, a last timeout ended it. It counts from the first transmission, a timeout before the first that is seen.
    pub(super) fn vanish(&mut self, end: Ktime, cx: &Context<'_>) {
        let is_outlasted = self.timeouts > 0
            && patience::limit(&self.connection, cx)
                .is_some_and(|limit| end.since(self.since).saturating_add(RTO_MIN) >= limit);
        if is_outlasted {
            self.fatal = true;
            self.last = end;
        }
        self.stage = Stage::after(End::Vanished { is_outlasted });
    }

    pub(super) fn is_silent(&self) -> bool {
        self.timeouts > 0 || self.probes > 0
    }

    /// Nothing of the connection left this host: it says nothing about the peer. Up to 6.12 the
    /// kernel does not tell of a retransmission that failed; then timeouts without any tell it.
    pub(super) const fn is_local(&self) -> bool {
        self.sent == 0 && (self.not_sent > 0 || (self.is_whole && self.timeouts > 1))
    }

    /// Whether what was probed for leaves because this host sends it at last. The kernel counts no probes then
    /// (`tcp_send_probe0`); had the peer answered, the window would have moved.
    pub(super) const fn leaves(&self, tcp: &Tcp, change: &Change<'_>) -> bool {
        let before = &self.connection.tcp;
        self.probes > 0
            && before.packets_out == 0
            && tcp.packets_out > 0
            && before.snd_wnd_bytes == tcp.snd_wnd_bytes
            && !change.peer_spoke
    }

    /// The peer is there, and full-sized segments do not reach it.
    pub(super) const fn is_narrow(&self) -> bool {
        !self.is_local() && self.narrow.is_likely()
    }
}
