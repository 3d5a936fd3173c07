//! `send_stall`: a connection has data to send, none of it in flight, and probes instead (the persist timer).
//!
//! **Rule.** `receiver_stalled` at [`SendStall::probes`](super::SendStall::probes) window probes in a row that
//! left this host while the peer's window has no room for a segment, and that it answers: the peer is there, and
//! its application does not read. `local_drop` at [`SendStall::failed_probes`](super::SendStall::failed_probes) that did not
//! leave this host although the window is open: what an output firewall or a full queue drops is never in
//! flight, so that nothing is retransmitted, and `ss` calls it persist. Resolves when the connection sends again (`resumed`),
//! is gone (`closed`), or when the peer answers no more (`unanswered`), which is a dead peer's doing. A connection
//! that the eBPF side has no room for is `forgotten` when it shows neither probes nor its end any more.
//!
//! **Count.** Probes since the stall began, as the kernel counts them in `icsk_backoff`; those that a queue dropped are
//! not among these (`tcp_send_probe0`), and a record each.
//!
//! **False positives.** A peer that is paused on purpose. Nothing is repeated and nothing is lost: this is
//! never a `retransmit_storm`.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use super::{Context, Draft, Facts, Life, hooks, plural, who};
use crate::{
    event::{Body, Close, Event, Probe, State, Tcp, TcpState},
    finding::FindingKind,
    id::SocketId,
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey},
    },
    time::Ktime,
};

/// A stall that nobody asks about, and without a probe for twice as long as probes can be apart (`TCP_RTO_MAX`), is
/// over.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(4);

/// Probes before the last that may be without an answer while the peer counts as there: one is easily lost.
const LOST_ANSWERS: u8 = 1;

/// Why nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    ReceiverStalled,
    LocalDrop,
}

#[derive(Clone, Copy, Debug)]
struct Stall {
    life: Option<Life>,
    connection: Connection,
    cause: Cause,
    /// Probes in a row, with those before the first record.
    probes: u64,
    since: Ktime,
    last: Ktime,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct SendStalls {
    table: Bounded<ConnectionKey, Stall>,
    open: BTreeMap<u64, ConnectionKey>,
}

impl SendStalls {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            table: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    /// Connections whose resumption no record tells.
    pub(crate) fn watched(&self) -> impl Iterator<Item = SocketId> {
        self.open
            .values()
            .filter(|key| !key.is_untracked())
            .map(|key| key.id)
    }

    pub(crate) fn change(&mut self, event: &Event, change: &Change<'_>, cx: &mut Context<'_>) {
        match &event.body {
            Body::Probe(body) if !body.keepalive => self.probe(body, change, cx),
            Body::Snapshot(body) if body.socket.state == TcpState::Close => {
                self.end(change.connection.key, "closed", cx);
            }
            Body::Snapshot(body) if !is_stalled(&body.tcp) => {
                self.end(change.connection.key, "resumed", cx);
            }
            Body::Retransmit(_) => self.end(change.connection.key, "resumed", cx),
            _ => {}
        }
    }

    fn probe(&mut self, body: &Probe, change: &Change<'_>, cx: &mut Context<'_>) {
        let key = change.connection.key;
        let cause = match (body.has_left(), has_room(&body.tcp)) {
            (false, true) => Cause::LocalDrop,
            (true, false) if body.tcp.probes_out > LOST_ANSWERS => {
                self.end(key, "unanswered", cx);
                return;
            }
            (true, false) => Cause::ReceiverStalled,
            _ => return,
        };
        if self
            .table
            .touch(&key)
            .is_none_or(|stall| stall.cause != cause)
        {
            self.end(key, "resumed", cx);
            let stall = Stall {
                life: None,
                connection: *change.connection,
                cause,
                probes: 0,
                since: cx.now,
                last: cx.now,
            };
            if let Some((_, gone)) = self.table.insert(key, stall) {
                self.resolve(&gone, "forgotten", cx);
            }
        }
        let Some(stall) = self.table.get_mut(&key) else {
            return;
        };
        stall.connection = *change.connection;
        // The kernel raises it once the probe is sent.
        stall.probes = stall
            .probes
            .max(u64::from(body.tcp.backoff))
            .saturating_add(1);
        stall.last = cx.now;
        let thresholds = &cx.thresholds.send_stall;
        let enough = match cause {
            Cause::ReceiverStalled => thresholds.probes,
            Cause::LocalDrop => thresholds.failed_probes,
        };
        match stall.life {
            None if stall.probes >= u64::from(enough) => {
                let life = cx.open(draft(stall, "stalled", cx));
                stall.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(mut life) if life.due(cx.now, stall.probes) => {
                cx.update(&mut life, draft(stall, "stalled", cx));
                stall.life = Some(life);
            }
            _ => {}
        }
    }

    /// The end of a socket.
    pub(crate) fn state(&mut self, body: &State, cx: &mut Context<'_>) {
        if body.new == TcpState::Close {
            self.end(ConnectionKey::of(&body.socket), "closed", cx);
        }
    }

    pub(crate) fn close(&mut self, body: &Close, cx: &mut Context<'_>) {
        self.end(ConnectionKey::of(&body.socket), "closed", cx);
    }

    fn end(&mut self, key: ConnectionKey, stage: &'static str, cx: &mut Context<'_>) {
        if let Some(stall) = self.table.remove(&key) {
            self.resolve(&stall, stage, cx);
        }
    }

    fn resolve(&mut self, stall: &Stall, stage: &'static str, cx: &mut Context<'_>) {
        if let Some(life) = stall.life {
            self.open.remove(&life.id);
            cx.resolve(life, draft(stall, stage, cx));
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let table = &self.table;
        let is_over = |key: &ConnectionKey| {
            key.is_untracked()
                && table
                    .get(key)
                    .is_some_and(|stall| cx.now.since(stall.last) > FORGOTTEN_AFTER)
        };
        let over: Vec<_> = self.open.values().copied().filter(is_over).collect();
        for key in over {
            self.end(key, "forgotten", cx);
        }
        while let Some((_, stall)) = self.table.oldest()
            && stall.life.is_none()
            && cx.now.since(stall.last) > FORGOTTEN_AFTER
        {
            self.table.pop_oldest();
        }
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for key in self.open.values() {
            if let Some(stall) = self.table.get_mut(key)
                && let Some(mut life) = stall.life
                && cx.owes(&life, stall.probes)
            {
                cx.update(&mut life, draft(stall, "stalled", cx));
                stall.life = Some(life);
            }
        }
    }
}

/// Whether data waits and none is in flight. The timer does not tell: while it fires, `icsk_pending` is clear.
const fn is_stalled(tcp: &Tcp) -> bool {
    tcp.packets_out == 0 && tcp.write_seq != tcp.snd_nxt
}

/// Whether the peer's window takes another segment. A receiver whose buffer is full offers nothing, or less
/// than a segment (RFC 9293, 3.8.6.2.2).
const fn has_room(tcp: &Tcp) -> bool {
    tcp.snd_wnd_bytes > 0 && tcp.snd_wnd_bytes >= tcp.unacked_bytes().saturating_add(tcp.mss_bytes)
}

fn draft(stall: &Stall, stage: &'static str, cx: &Context<'_>) -> Draft {
    let tcp = &stall.connection.tcp;
    let probes = plural(stall.probes, "window probe");
    let remote = stall.connection.remote;
    let (cause, summary, advice): (_, _, Vec<Cow<'static, str>>) = match stall.cause {
        Cause::ReceiverStalled if stage == "unanswered" => (
            "receiver_stalled",
            format!("{remote} had no room for {probes}, and answers no more"),
            Vec::new(),
        ),
        Cause::ReceiverStalled => (
            "receiver_stalled",
            format!(
                "{remote} has had no room for {probes}: its application does not read, the network is \
                 innocent"
            ),
            vec![
                "look at what the peer's process does instead of reading (ss -tnp there: Recv-Q is full)"
                    .into(),
            ],
        ),
        Cause::LocalDrop => (
            "local_drop",
            format!(
                "{probes} to {remote} did not leave this host, and nothing else does: it drops what \
                 {} sends",
                who(stall.connection.owner.as_ref())
            ),
            vec![
                "look at this host's output firewall (nft list ruleset), its qdisc (tc -s qdisc) and the \
                 link"
                    .into(),
            ],
        ),
    };
    Draft {
        kind: FindingKind::SendStall,
        cause,
        stage: Some(stage),
        doubt: cx.doubt("send_stall", &hooks::STALL),
        subject: stall.connection.subject(),
        owner: stall.connection.owner,
        sample: None,
        since: stall.since,
        last: stall.last,
        count: stall.probes,
        summary,
        evidence: Facts::default()
            .count("window_bytes", tcp.snd_wnd_bytes)
            .count("unsent_bytes", tcp.write_seq.wrapping_sub(tcp.snd_nxt))
            .count("mss_bytes", tcp.mss_bytes)
            .seconds("stalled_s", stall.last.since(stall.since)),
        advice,
    }
}
