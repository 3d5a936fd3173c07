//! `half_open` / `dead_peer`: this host holds a connection whose other end does not answer.
//!
//! **Rule.** `suspected` after [`HalfOpen::timeouts`](crate::detect::HalfOpen::timeouts) consecutive
//! retransmission timeouts, or [`HalfOpen::probes`](crate::detect::HalfOpen::probes) unanswered
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
//! **Not dead.** A peer that still sends something, or has what came after the segment that fails, while each
//! segment that fails is a full-sized one, and none that it has: the path is too narrow for those (`looks_like`
//! `path_mtu`). Few such connections are no storm, and this is what tells of them.
//!
//! **False positives.** A peer that is rebooted or roams for a few seconds; it is resolved as
//! `recovered` or `reset`. A peer with a closed window answers probes and opens nothing. An idle
//! connection without keepalive shows nothing and cannot be seen.

mod narrow;
mod words;

use std::{collections::BTreeMap, time::Duration};

use self::{
    narrow::Narrow,
    words::{RTO_MAX, draft, is_outlasted},
};
use crate::{
    count::Grow,
    detect::{Context, Life, errno},
    event::{Body, Close, Event, Probe, Reset, Retransmit, Seed, Snapshot, State, Tcp, TcpState},
    id::SocketId,
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey},
    },
    time::Ktime,
};

/// A silence that nobody asks about is over after as long as the longest RTO twice over without a record.
const FORGOTTEN_AFTER: Duration = RTO_MAX.saturating_mul(2);

/// The silence of one connection.
#[derive(Clone, Copy, Debug)]
struct Silence {
    life: Option<Life>,
    connection: Connection,
    timeouts: u8,
    probes: u8,
    /// What was probed for has left the host since, and the kernel counts timeouts from then on.
    has_left: bool,
    /// The kernel's last timeout, which it does not add to `timeouts`.
    fatal: bool,
    keepalive: bool,
    /// Retransmissions and probes that left the host, and those that did not.
    sent: u32,
    not_sent: u32,
    narrow: Narrow,
    since: Ktime,
    last: Ktime,
    /// It was seen from its first timeout or probe on.
    is_whole: bool,
    gone: Option<Gone>,
}

/// A poll did not find the socket.
#[derive(Clone, Copy, Debug)]
struct Gone {
    at: Ktime,
    /// The tick of that poll is over.
    is_settled: bool,
}

impl Silence {
    fn new(connection: &Connection, now: Ktime) -> Self {
        Self {
            life: None,
            connection: *connection,
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

    fn count(&self) -> u64 {
        if self.timeouts > 0 {
            u64::from(self.timeouts).saturating_add(u64::from(self.fatal))
        } else {
            self.probes.into()
        }
    }

    /// The connection was over at `end`, without a word of how. Whether its silence had lasted for as long as the
    /// kernel bears; then a last timeout ended it.
    fn give_up(&mut self, end: Ktime, cx: &Context<'_>) -> bool {
        let is_over = is_outlasted(self, end, cx);
        if is_over {
            self.fatal = true;
            self.last = end;
        }
        is_over
    }

    fn is_silent(&self) -> bool {
        self.timeouts > 0 || self.probes > 0
    }

    /// Nothing of the connection left this host: it says nothing about the peer. Up to 6.12 the
    /// kernel does not tell of a retransmission that failed; then timeouts without any tell it.
    const fn is_local(&self) -> bool {
        self.sent == 0 && (self.not_sent > 0 || (self.is_whole && self.timeouts > 1))
    }

    /// Whether what was probed for leaves because this host sends it at last. The kernel counts no probes then
    /// (`tcp_send_probe0`); had the peer answered, the window would have moved.
    const fn leaves(&self, tcp: &Tcp, change: &Change<'_>) -> bool {
        let before = &self.connection.tcp;
        self.probes > 0
            && before.packets_out == 0
            && tcp.packets_out > 0
            && before.snd_wnd_bytes == tcp.snd_wnd_bytes
            && !change.peer_spoke
    }

    /// The peer is there, and full-sized segments do not reach it.
    const fn is_narrow(&self) -> bool {
        !self.is_local() && self.narrow.is_likely()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DeadPeer {
    table: Bounded<ConnectionKey, Silence>,
    open: BTreeMap<u64, ConnectionKey>,
}

impl DeadPeer {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            table: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    /// Connections whose next change no record may tell, the longest silent last; at most `limit`, and
    /// how many more there are.
    pub(crate) fn watched(&self, limit: usize) -> (Vec<SocketId>, u64) {
        let mut more = 0;
        let mut watched = Vec::new();
        for (key, silence) in self.table.iter() {
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

    pub(crate) fn change(&mut self, event: &Event, change: &Change<'_>, cx: &mut Context<'_>) {
        match &event.body {
            Body::Retransmit(body) => self.retransmit(event.time, body, change, cx),
            Body::Probe(body) => self.probe(event.time, body, change, cx),
            Body::Snapshot(body) => self.snapshot(event.time, body, change, cx),
            Body::Seed(body) => self.seed(event.time, body, change, cx),
            _ => {}
        }
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
        let Some(silence) = self.observe(at, &body.tcp, change, cx) else {
            return;
        };
        if body.errno == 0 {
            silence.sent.grow(1);
            silence.narrow.repeated(body);
        } else {
            silence.not_sent.grow(1);
        }
        self.judge(change.connection.key, cx);
    }

    fn probe(&mut self, at: Ktime, body: &Probe, change: &Change<'_>, cx: &mut Context<'_>) {
        let Some(silence) = self.observe(at, &body.tcp, change, cx) else {
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

    fn snapshot(&mut self, at: Ktime, body: &Snapshot, change: &Change<'_>, cx: &mut Context<'_>) {
        if body.socket.state == TcpState::Close {
            self.gone(at, change.connection.key);
        } else if !matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv)
            && self.observe(at, &body.tcp, change, cx).is_some()
        {
            self.judge(change.connection.key, cx);
        }
    }

    /// A connection that was silent before conntracer began.
    fn seed(&mut self, at: Ktime, body: &Seed, change: &Change<'_>, cx: &mut Context<'_>) {
        if !matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv)
            && self.observe(at, &body.tcp, change, cx).is_some()
        {
            self.judge(change.connection.key, cx);
        }
    }

    /// The socket was not found. Why it went may still wait in a ring, behind the poll's answer.
    fn gone(&mut self, at: Ktime, key: ConnectionKey) {
        if let Some(silence) = self.table.get_mut(&key) {
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
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) -> Option<&mut Silence> {
        let key = change.connection.key;
        if let Some(silence) = self.table.get_mut(&key) {
            if at < silence.last {
                return None;
            }
            silence.has_left |= silence.leaves(tcp, change);
            let heard = change.progress
                || tcp.retransmits < silence.timeouts
                || (tcp.probes_out < silence.probes && !silence.has_left);
            if heard && let Some(mut silence) = self.table.remove(&key) {
                silence.connection = *change.connection;
                self.resolve(&silence, "recovered", None, cx);
            }
            if let Some(silence) = self.table.get_mut(&key)
                && change.peer_spoke
            {
                silence.narrow.talks = true;
            }
        }
        let counts_nothing = tcp.retransmits == 0 && tcp.probes_out == 0;
        if counts_nothing && self.table.get(&key).is_none_or(|silence| !silence.has_left) {
            self.table.remove(&key);
            return None;
        }
        if self.table.touch(&key).is_none()
            && let Some((_, silence)) = self
                .table
                .insert(key, Silence::new(change.connection, cx.now))
        {
            self.resolve(&silence, "forgotten", None, cx);
        }
        let silence = self.table.get_mut(&key)?;
        silence.connection = *change.connection;
        silence.timeouts = tcp.retransmits;
        silence.probes = if silence.has_left {
            silence.probes.max(tcp.probes_out)
        } else {
            tcp.probes_out
        };
        silence.last = at;
        Some(silence)
    }

    /// Opens or updates.
    fn judge(&mut self, key: ConnectionKey, cx: &mut Context<'_>) {
        let Some(silence) = self.table.get_mut(&key) else {
            return;
        };
        let thresholds = &cx.thresholds.half_open;
        match silence.life {
            None if silence.timeouts >= thresholds.timeouts
                || (silence.timeouts == 0 && silence.probes >= thresholds.probes) =>
            {
                let life = cx.open(draft(silence, "suspected", None, cx));
                silence.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(mut life) if life.due(cx.now, silence.count()) => {
                cx.update(&mut life, draft(silence, "suspected", None, cx));
                silence.life = Some(life);
            }
            _ => {}
        }
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
        let known = self.table.remove(&key);
        let gave_up = matches!(
            body.errno,
            errno::ETIMEDOUT | errno::EHOSTUNREACH | errno::ENETUNREACH | errno::EHOSTDOWN
        );
        if !gave_up {
            let Some(mut silence) = known else {
                return;
            };
            // Up to 6.9 an application may take the error before the end.
            let stage = match body.errno {
                errno::ECONNRESET | errno::EPIPE => "reset",
                0 if silence.give_up(cx.now, cx) => "confirmed",
                _ => "closed",
            };
            self.resolve(&silence, stage, None, cx);
            return;
        }
        let had_no_trouble = body.retransmits == 0 && body.probes_out == 0;
        // Its ending may have been told already.
        if known.is_none() && (had_no_trouble || key.is_untracked()) {
            return;
        }
        let mut silence = known.unwrap_or_else(|| {
            let connection = Connection::seen(&body.socket, body.owner, Tcp::default(), cx.now);
            Silence::new(&connection, cx.now)
        });
        silence.connection.owner = body.owner.or(silence.connection.owner);
        silence.timeouts = silence.timeouts.max(body.retransmits);
        silence.probes = silence.probes.max(body.probes_out);
        silence.fatal = silence.timeouts > 0;
        silence.last = cx.now;
        if silence.life.is_none() {
            // The kernel gave up before anybody could suspect: a short user timeout, or few retries.
            silence.life = Some(cx.open(draft(&silence, "confirmed", Some(body.errno), cx)));
        }
        self.resolve(&silence, "confirmed", Some(body.errno), cx);
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
        if body.received
            && let Some(mut silence) = self.table.remove(&ConnectionKey::of(&body.socket))
        {
            silence.last = cx.now;
            self.resolve(&silence, "reset", None, cx);
        }
    }

    fn resolve(
        &mut self,
        silence: &Silence,
        stage: &'static str,
        errno: Option<u32>,
        cx: &mut Context<'_>,
    ) {
        if let Some(life) = silence.life {
            self.open.remove(&life.id);
            cx.resolve(life, draft(silence, stage, errno, cx));
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let table = &mut self.table;
        self.open.retain(|_, key| {
            let Some(silence) = table.get_mut(key) else {
                return false;
            };
            let Some(mut life) = silence.life else {
                return false;
            };
            match &mut silence.gone {
                // The rings are read once more.
                Some(gone) if !gone.is_settled => gone.is_settled = true,
                Some(gone) => {
                    let at = gone.at;
                    let stage = if silence.give_up(at, cx) {
                        "confirmed"
                    } else {
                        "closed"
                    };
                    cx.resolve(life, draft(silence, stage, None, cx));
                    table.remove(key);
                    return false;
                }
                None if key.is_untracked() && cx.now.since(silence.last) > FORGOTTEN_AFTER => {
                    cx.resolve(life, draft(silence, "forgotten", None, cx));
                    table.remove(key);
                    return false;
                }
                None => {}
            }
            if life.due(cx.now, silence.count()) {
                cx.update(&mut life, draft(silence, "suspected", None, cx));
                silence.life = Some(life);
            }
            true
        });
        // Never worth a finding.
        while let Some((_, silence)) = self.table.oldest()
            && silence.life.is_none()
            && (silence.gone.is_some() || cx.now.since(silence.last) > FORGOTTEN_AFTER)
        {
            self.table.pop_oldest();
        }
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for key in self.open.values() {
            let Some(silence) = self.table.get_mut(key) else {
                continue;
            };
            let Some(mut life) = silence.life else {
                continue;
            };
            if cx.owes(&life, silence.count()) {
                cx.update(&mut life, draft(silence, "suspected", None, cx));
                silence.life = Some(life);
            }
        }
    }
}
