//! `half_open` / `dead_peer`: this host holds a connection whose other end does not answer.
//!
//! **Rule.** `suspected` after [`Thresholds::timeouts`] consecutive
//! retransmission timeouts, or [`Thresholds::probes`] unanswered
//! keepalive or window probes. `confirmed` when the kernel gives up (ETIMEDOUT and its kin),
//! `recovered` when anything is acknowledged, `reset` when the peer answers that it knows nothing of
//! the connection, `closed` when the socket went for another reason. The last four resolve. A socket that is gone
//! without a word, after a silence as long as the kernel bears, is taken for `confirmed`. A connection that the
//! eBPF side has no room for is `forgotten` when it shows neither timeouts nor its end any more.
//!
//! **Count.** Consecutive timeouts, with the one at which the kernel gave up: what `TcpExt
//! TCPTimeouts` counts for the connection since it went silent. Of a connection that only probes, the
//! unanswered probes.
//!
//! **Others.** While a finding is open, the other connections of this host to the same address are asked about: a peer that
//! answers those is up. Where all that fails are full-sized segments and nothing smaller is under way, both a narrow path
//! and a dead peer explain it, and both are said, with what the others show.
//!
//! **Not dead.** A peer that still sends something, or has what came after the segment that fails, while each
//! segment that fails is a full-sized one, and none that it has: the path is too narrow for those (`looks_like`
//! `path_mtu`). Few such connections are no storm, and this is what tells of them.
//!
//! **False positives.** A peer that is rebooted or roams for a few seconds; it is resolved as
//! `recovered` or `reset`. A peer with a closed window answers probes and opens nothing. An idle
//! connection without keepalive shows nothing and cannot be seen.

#[cfg(test)]
pub(crate) mod claims;
mod narrow;
mod patience;
mod peers;
mod silence;
mod stage;
#[cfg(test)]
mod tests;
mod words;

use std::{net::IpAddr, time::Duration};

use conntracer_common::{
    stats::hook,
    tcp::{AF_INET, AF_INET6},
};

use self::{
    patience::RTO_MAX,
    peers::{Peer, PeerKey},
    silence::{Gone, Silence},
    stage::{End, Stage},
};
use super::{KIND, thresholds::Thresholds};
use crate::{
    count::Grow,
    detect::{
        dropped_here,
        room::{Case, Cases, Context, Draft, Entry, Limits, Open, Room, Saying, Spec},
    },
    event::{
        Beside, Body, Close, Event, Probe, Reset, Retransmit, Seed, Snapshot, State, Tcp, TcpState,
    },
    finding::Severity,
    id::SocketId,
    source::Silent,
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey},
    },
    time::Ktime,
};

pub(crate) static SPEC: Spec = Spec {
    detector: "half_open.dead_peer",
    kind: KIND,
    causes: &[
        ("dead_peer", Severity::Warning),
        (dropped_here::CAUSE, Severity::Critical),
    ],
    hooks: &[
        hook::RETRANSMIT,
        hook::RTO,
        hook::PROBE,
        hook::STATE,
        hook::SEED,
    ],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// The others at an address are asked again after so long.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// An address as records have it.
fn words(address: IpAddr) -> [u32; 4] {
    let v6 = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    zerocopy::transmute!(v6.octets())
}

/// A silence that nobody asks about is over after as long as the longest RTO twice over without a record.
const FORGOTTEN_AFTER: Duration = RTO_MAX.saturating_mul(2);

impl Case for Silence {
    type Key = ConnectionKey;
    type Rules = Thresholds;

    fn draft(&self, _: &ConnectionKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::draft(&SPEC, self, at.cx))
    }

    fn news(&self) -> u64 {
        self.count()
    }

    fn has_other_news(&self) -> bool {
        self.peer_is_news
    }

    fn told(&mut self) {
        self.peer_is_news = false;
    }

    fn is_over(&mut self, key: &ConnectionKey, _: &Thresholds, cx: &Context<'_>) -> bool {
        match &mut self.gone {
            // The rings are read once more.
            Some(gone) if !gone.is_settled => gone.is_settled = true,
            Some(gone) => {
                let at = gone.at;
                self.vanish(at, cx);
            }
            None if key.is_untracked() && cx.now.since(self.last) > FORGOTTEN_AFTER => {
                self.forget();
            }
            None => {}
        }
        self.stage != Stage::Suspected
    }

    fn is_idle(&self, _: &Thresholds, now: Ktime) -> bool {
        self.gone.is_some() || now.since(self.last) > FORGOTTEN_AFTER
    }

    fn forget(&mut self) {
        self.stage = Stage::after(End::Unwatched);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DeadPeer {
    silences: Cases<Silence>,
    peers: Bounded<PeerKey, Peer>,
}

impl DeadPeer {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            silences: Cases::new(limits.connections, thresholds),
            peers: Bounded::new(limits.remotes),
        }
    }

    /// Connections whose next change no record may tell, the longest silent last; at most `limit`, and
    /// how many more there are.
    pub(crate) fn watched(&self, limit: usize) -> (Vec<SocketId>, u64) {
        let mut more = 0;
        let mut watched = Vec::new();
        for (key, silence) in self.silences.iter() {
            // Without a birth the eBPF side cannot tell the socket from a later one.
            if !silence.is_silent() || silence.gone.is_some() || key.is_untracked() {
                continue;
            }
            if watched.len() < limit {
                watched.push(key.id);
            } else {
                more.grow(1);
            }
        }
        (watched, more)
    }

    /// A silent connection with an open finding, of whose address the others were not asked lately.
    pub(crate) fn asks_about(&self, now: Ktime) -> Option<Silent> {
        let due = |key: &PeerKey| {
            let asked = self.peers.get(key).and_then(|peer| peer.asked);
            asked.is_none_or(|asked| now.since(asked) >= ASKED_AGAIN_AFTER)
        };
        let (_, silence) = self
            .silences
            .open()
            .find(|(key, silence)| !key.is_untracked() && due(&silence.peer_key()))?;
        Some(Silent {
            netns: silence.connection.netns,
            family: if silence.connection.remote.is_ipv4() {
                AF_INET
            } else {
                AF_INET6
            },
            remote_addr: words(silence.connection.remote.ip()),
            since: silence.since_when().unwrap_or(silence.since),
        })
    }

    /// What others show of an address.
    pub(crate) fn beside(&mut self, body: &Beside, cx: &mut Context<'_>) {
        let now = cx.now;
        self.learn((body.netns, body.remote), |peer| peer.asked(body, now), cx);
    }

    /// Learns something of an address, for all that are silent there.
    fn learn(&mut self, key: PeerKey, change: impl FnOnce(&mut Peer), cx: &mut Context<'_>) {
        if self.peers.touch(&key).is_none() {
            self.peers.insert(key, Peer::default());
        }
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let before = *peer;
        change(peer);
        let peer = *peer;
        if peer == before {
            return;
        }
        let silent: Vec<ConnectionKey> = self
            .silences
            .iter()
            .filter(|(_, silence)| silence.peer_key() == key)
            .map(|(connection, _)| *connection)
            .collect();
        for connection in silent {
            if let Some(silence) = self.silences.get_mut(&connection) {
                silence.learn(&peer);
            }
            self.judge(connection, cx);
        }
    }

    pub(crate) fn change(&mut self, event: &Event, change: &Change<'_>, cx: &mut Context<'_>) {
        match &event.body {
            Body::Retransmit(body) => self.retransmit(event.time, body, change, cx),
            Body::Probe(body) => self.probe(event.time, body, change, cx),
            Body::Snapshot(body) if body.socket.state == TcpState::Close => {
                self.gone(event.time, change.connection.key);
            }
            Body::Snapshot(Snapshot {
                socket, tcp, about, ..
            }) => {
                let heard = about.and_then(|about| about.heard_idle);
                let stamp = about.and_then(|about| about.retransmits_since);
                self.looked_at((event.time, socket.state, tcp), (heard, stamp), change, cx);
            }
            Body::Seed(Seed {
                socket,
                tcp,
                heard_idle,
                retransmits_since,
                ..
            }) => {
                let told = (*heard_idle, *retransmits_since);
                self.looked_at((event.time, socket.state, tcp), told, change, cx);
            }
            _ => {}
        }
    }

    /// A socket as it is, and what it tells of before: how long ago it heard of the peer, and since when it sends again.
    fn looked_at(
        &mut self,
        (at, state, tcp): (Ktime, TcpState, &Tcp),
        (heard_idle, sends_again_since): (Option<Duration>, Option<Ktime>),
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) {
        if matches!(state, TcpState::SynSent | TcpState::SynRecv) {
            return;
        }
        let Some(silence) = self.observe(at, tcp, false, change, cx) else {
            return;
        };
        silence.heard = heard_idle.map(|ago| at.before(ago)).or(silence.heard);
        silence.sends_again_since = sends_again_since.or(silence.sends_again_since);
        self.judge(change.connection.key, cx);
    }

    fn retransmit(
        &mut self,
        at: Ktime,
        body: &Retransmit,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) {
        // A connect() that is not answered never was a connection.
        if matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv) {
            return;
        }
        let Some(silence) = self.observe(at, &body.tcp, false, change, cx) else {
            return;
        };
        if body.errno == 0 {
            silence.sent.grow(1);
            silence.narrow.retransmitted(body);
        } else {
            silence.not_sent.grow(1);
        }
        // A second timeout is as many as chance does not make.
        let narrow = (silence.is_narrow() && silence.timeouts > 1).then(|| silence.peer_key());
        if let Some(key) = narrow {
            self.learn(key, |peer| peer.narrow = Some(at), cx);
        }
        self.judge(change.connection.key, cx);
    }

    fn probe(&mut self, at: Ktime, body: &Probe, change: &Change<'_>, cx: &mut Context<'_>) {
        let Some(silence) = self.observe(at, &body.tcp, true, change, cx) else {
            return;
        };
        silence.keepalive = body.keepalive;
        if body.has_left() {
            silence.sent.grow(1);
        } else {
            silence.not_sent.grow(1);
        }
        self.judge(change.connection.key, cx);
    }

    /// The socket was not found. Why it went may still wait in a ring, behind the poll's answer.
    fn gone(&mut self, at: Ktime, key: ConnectionKey) {
        if let Some(silence) = self.silences.get_mut(&key) {
            silence.gone.get_or_insert(Gone {
                at,
                is_settled: false,
            });
        }
    }

    /// Folds the counters in. The kernel sets both to 0 at every ACK (`tcp_ack`), so that a smaller
    /// number means that the peer was heard in between, but for [`Silence::leaves`].
    fn observe(
        &mut self,
        at: Ktime,
        tcp: &Tcp,
        is_probe: bool,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) -> Option<&mut Entry<Silence>> {
        let key = change.connection.key;
        if let Some(silence) = self.silences.get_mut(&key) {
            if at < silence.last {
                return None;
            }
            silence.has_left |= silence.leaves(tcp, change);
            let heard = change.progress
                || tcp.retransmits < silence.timeouts
                || (tcp.probes_out < silence.probes && !silence.has_left);
            if heard {
                silence.connection = *change.connection;
                self.end(key, End::Heard, cx);
            } else if change.peer_spoke {
                silence.narrow.talks = true;
            }
        }
        let counts_nothing = tcp.retransmits == 0 && tcp.probes_out == 0;
        let known = self.silences.get(&key);
        if counts_nothing && known.is_none_or(|silence| !silence.has_left) {
            self.silences.take(&key);
            return None;
        }
        let now = cx.now;
        let peer = (change.connection.netns, change.connection.remote.ip());
        let peer = self.peers.get(&peer).copied().unwrap_or_default();
        let new = || Silence {
            peer,
            ..Silence::new(change.connection, now)
        };
        let silence = self.silences.begin(key, cx, new)?;
        silence.connection = *change.connection;
        silence.timeouts = tcp.retransmits;
        silence.probed(tcp.probes_out, is_probe, at);
        silence.last = at;
        Some(silence)
    }

    fn judge(&mut self, key: ConnectionKey, cx: &mut Context<'_>) {
        let rules = &self.silences.rules;
        let is_worth = self.silences.get(&key).is_some_and(|silence| {
            silence.timeouts >= rules.timeouts
                || (silence.timeouts == 0 && silence.unanswered_probes() >= rules.probes)
        });
        self.silences.judge(&key, is_worth, cx);
    }

    /// The end of a socket, whether or not it was in any table.
    pub(crate) fn state(&mut self, body: &State, cx: &mut Context<'_>) {
        if body.new != TcpState::Close
            || matches!(
                body.old,
                TcpState::SynSent | TcpState::SynRecv | TcpState::Listen
            )
        {
            return;
        }
        let key = ConnectionKey::of(&body.socket);
        let known = self.silences.take(&key);
        let stage = Stage::after(End::Failed(body.errno));
        if !matches!(stage, Stage::Confirmed(_)) {
            if let Some(mut silence) = known {
                silence.stage = stage;
                // Up to 6.9 an application may take the error before the end.
                if body.errno == 0 {
                    silence.vanish(cx.now, cx);
                }
                self.silences.close(&key, silence, cx);
            }
            return;
        }
        let had_no_trouble = body.retransmits == 0 && body.probes_out == 0;
        // Its ending may have been told already.
        if known.is_none() && (had_no_trouble || key.is_untracked()) {
            return;
        }
        let mut silence = known.unwrap_or_else(|| {
            let connection = Connection::seen(&body.socket, body.owner, Tcp::default(), cx.now);
            Entry::new(Silence::new(&connection, cx.now))
        });
        silence.connection.owner = body.owner.or(silence.connection.owner);
        silence.timeouts = silence.timeouts.max(body.retransmits);
        silence.probes = silence.probes.max(body.probes_out);
        // The kernel gives up where the last one is late, too.
        silence.in_flight = false;
        silence.fatal = silence.timeouts > 0;
        silence.last = cx.now;
        silence.stage = stage;
        // The kernel may give up before anybody could suspect: a short user timeout, or few retries.
        self.silences.close_worth(&key, silence, cx);
    }

    /// How a connection ended, which for one that the eBPF side has no room for is its only word.
    pub(crate) fn close(&mut self, body: &Close, cx: &mut Context<'_>) {
        if ConnectionKey::of(&body.socket).is_untracked() {
            let state = State {
                socket: body.socket,
                owner: body.owner,
                old: body.old,
                new: TcpState::Close,
                errno: body.errno,
                retransmits: body.tcp.retransmits,
                probes_out: body.tcp.probes_out,
            };
            self.state(&state, cx);
        }
    }

    /// A reset from the peer ends the doubt: it is there, and knows nothing of the connection.
    pub(crate) fn reset(&mut self, body: &Reset, cx: &mut Context<'_>) {
        let key = ConnectionKey::of(&body.socket);
        if body.received
            && let Some(silence) = self.silences.get_mut(&key)
        {
            silence.last = cx.now;
            self.end(key, End::ResetReceived, cx);
        }
    }

    fn end(&mut self, key: ConnectionKey, end: End, cx: &mut Context<'_>) {
        if let Some(mut silence) = self.silences.take(&key) {
            silence.stage = Stage::after(end);
            self.silences.close(&key, silence, cx);
        }
    }
}

impl Room for DeadPeer {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.silences]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("dead_peers_evicted", self.silences.evicted())
    }
}
