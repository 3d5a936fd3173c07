//! The silence of one connection: what was counted while nothing was acknowledged.

use std::time::Duration;

use super::{
    narrow::Narrow,
    patience::{self, RTO_MIN},
    peers::{Peer, PeerKey},
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
    /// Probes as the kernel counts them, and when there was last one more.
    pub(super) probes: u8,
    pub(super) raised: Ktime,
    /// The last one may still be answered.
    pub(super) in_flight: bool,
    /// What was probed for has left the host since, and the kernel counts timeouts from then on.
    pub(super) has_left: bool,
    /// The kernel's last timeout, which it does not add to `timeouts`.
    pub(super) fatal: bool,
    pub(super) keepalive: bool,
    /// Retransmissions and probes that left the host, and those that did not.
    pub(super) sent: u32,
    pub(super) not_sent: u32,
    pub(super) narrow: Narrow,
    /// When it began for conntracer.
    pub(super) since: Ktime,
    pub(super) last: Ktime,
    /// It was seen from its first timeout or probe on.
    pub(super) is_whole: bool,
    /// What the socket tells of a beginning that was not seen: when it first sent again what is not acknowledged, and when
    /// it last heard of the peer.
    pub(super) sends_again_since: Option<Ktime>,
    pub(super) heard: Option<Ktime>,
    pub(super) gone: Option<Gone>,
    /// What other connections to the address show, and whether that was not told yet.
    pub(super) peer: Peer,
    pub(super) peer_is_news: bool,
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
            raised: now,
            in_flight: false,
            has_left: false,
            fatal: false,
            keepalive: false,
            sent: 0,
            not_sent: 0,
            narrow: Narrow::default(),
            since: now,
            last: now,
            is_whole: !connection.older
                && connection.tcp.retransmits <= 1
                && connection.tcp.probes_out <= 1,
            sends_again_since: None,
            heard: None,
            gone: None,
            peer: Peer::default(),
            peer_is_news: false,
        }
    }

    pub(super) fn count(&self) -> u64 {
        if self.timeouts > 0 {
            u64::from(self.timeouts).saturating_add(u64::from(self.fatal))
        } else {
            self.unanswered_probes().into()
        }
    }

    /// A probe in flight is not unanswered.
    pub(super) const fn unanswered_probes(&self) -> u8 {
        self.probes.saturating_sub(self.in_flight as u8)
    }

    /// Probes as a record tells them. That of a probe comes before the kernel counts it (`tcp_write_wakeup`): those it
    /// tells of are all late. The others count the last one, which is in flight until its answer is due.
    pub(super) fn probed(&mut self, told: u8, is_probe: bool, now: Ktime) {
        if told > self.probes {
            self.raised = now;
        }
        self.in_flight = !is_probe && told > 0 && now.since(self.raised) <= self.answer_time();
        self.probes = if self.has_left {
            self.probes.max(told)
        } else {
            told
        };
    }

    /// After which an answer is late: two round trips, and a second for whoever answers.
    fn answer_time(&self) -> Duration {
        const SLOW_ANSWER: Duration = Duration::from_secs(1);
        self.connection
            .tcp
            .srtt
            .saturating_mul(2)
            .saturating_add(SLOW_ANSWER)
    }

    /// Since when the peer is silent: since the first timeout or unanswered probe that was seen, and of what began before
    /// conntracer as the socket tells; `None` where neither does.
    pub(super) fn since_when(&self) -> Option<Ktime> {
        if self.is_whole {
            return Some(self.since);
        }
        if self.timeouts > 0 && self.sends_again_since.is_some() {
            return self.sends_again_since;
        }
        self.heard
    }

    /// Retransmissions and probes that did not leave this host. Up to 6.16 the kernel tells of none, and those that are
    /// missing among the timeouts tell; the last may be under way.
    pub(super) fn unsent(&self, traces_failures: bool) -> u32 {
        if traces_failures || !self.is_whole {
            return self.not_sent;
        }
        let tried = u32::from(self.timeouts).saturating_sub(1);
        self.not_sent.max(tried.saturating_sub(self.sent))
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

    /// Nothing of the connection left this host: it says nothing about the peer.
    pub(super) fn is_local(&self, traces_failures: bool) -> bool {
        self.sent == 0 && self.unsent(traces_failures) > 0
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
        self.sent > 0 && self.narrow.is_likely()
    }

    /// All that is sent again are full-sized segments, and nothing tells whether the peer is there: it may be the size.
    pub(super) const fn may_be_narrow(&self) -> bool {
        self.sent > 0 && self.narrow.is_full_sized_alone()
    }

    pub(super) const fn peer_key(&self) -> PeerKey {
        (self.connection.netns, self.connection.remote.ip())
    }

    pub(super) fn learn(&mut self, peer: &Peer) {
        let is_news = (self.answered(), self.peer.narrow.is_some());
        self.peer = *peer;
        self.peer_is_news |= (self.answered(), self.peer.narrow.is_some()) != is_news;
    }

    /// Other connections of this host that the peer answered meanwhile.
    pub(super) fn answered(&self) -> u32 {
        self.peer
            .answered_since(self.since_when().unwrap_or(self.since))
    }
}
