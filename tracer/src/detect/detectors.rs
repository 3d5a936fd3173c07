//! All detectors, and the order in which they judge.
//!
//! **Order.** What a connection's own record says of it comes first: a dead peer and a stall are known before the
//! storm that they are part of. At a listener the handshake comes before the drops, which point to the flood that
//! it finds, and the storm counts last. A tick and the end of input go through them as they are listed.
//!
//! Called by the pipeline, which has applied the event to the tables.

use super::{
    Context, Limits,
    connect_failure::ConnectFailure,
    connection_drop::ConnectionDrop,
    early_drop::EarlyDrop,
    half_open::{
        dead_peer::DeadPeer, half_closed::HalfClosed, handshake::Handshake, idle::IdleConnections,
    },
    retransmit_storm::RetransmitStorm,
    send_stall::SendStalls,
    syn_drop::SynDrop,
};
use crate::{
    count::Grow,
    event::{Body, Event},
    source::Watched,
    table::{
        connection::Change,
        listener::{Applied, ListenerKey},
    },
};

/// See the module.
#[derive(Debug)]
pub(crate) struct Detectors {
    syn_drop: SynDrop,
    early_drop: EarlyDrop,
    handshake: Handshake,
    dead_peer: DeadPeer,
    half_closed: HalfClosed,
    idle: IdleConnections,
    storm: RetransmitStorm,
    stalls: SendStalls,
    connect_failure: ConnectFailure,
    connection_drop: ConnectionDrop,
    unwatched: u64,
}

/// Entries that had to make room in a detector's table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evicted {
    pub(crate) listeners: u64,
    pub(crate) early_drops: u64,
    pub(crate) storms: u64,
    pub(crate) stalls: u64,
    pub(crate) dead_peers: u64,
    pub(crate) processes: u64,
    pub(crate) failures: u64,
    pub(crate) drops: u64,
}

impl Detectors {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            syn_drop: SynDrop::new(),
            early_drop: EarlyDrop::new(limits.early_drops, limits.listeners),
            handshake: Handshake::new(limits.listeners),
            dead_peer: DeadPeer::new(limits.connections),
            half_closed: HalfClosed::new(limits.processes),
            idle: IdleConnections::new(limits.processes),
            storm: RetransmitStorm::new(limits.connections, limits.remotes),
            stalls: SendStalls::new(limits.connections),
            connect_failure: ConnectFailure::new(limits.failures),
            connection_drop: ConnectionDrop::new(limits.drops),
            unwatched: 0,
        }
    }

    /// Judges an event, with what it changed of its connection and of its listener.
    pub(crate) fn event(
        &mut self,
        event: &Event,
        change: Option<&Change<'_>>,
        applied: Option<&Applied>,
        cx: &mut Context<'_>,
    ) {
        if let Some(change) = change {
            self.dead_peer.change(event, change, cx);
            self.stalls.change(event, change, cx);
        }
        match &event.body {
            Body::Retransmit(body) => self.storm.retransmit(event.time, body, change, cx),
            Body::Undo(body) => self.storm.undo(body, cx),
            Body::Syn(body) => {
                let Some(applied) = applied else { return };
                self.early_drop.listening(body);
                self.handshake.syn(body, applied, cx);
                let flood = self.handshake.flood(&ListenerKey::of(&body.socket), cx);
                self.syn_drop.syn(body, applied, flood, cx);
                self.storm.syn_acks(&applied.gained, cx);
            }
            Body::SynAck(body) => {
                self.handshake.syn_ack(body, cx);
                self.storm.syn_ack(body, cx);
            }
            Body::Sources(body) => self.handshake.sources(body, cx),
            Body::EarlyDrop(body) => self.early_drop.early_drop(body, cx),
            Body::Failure(body) => self.connect_failure.failure(body, cx),
            Body::State(body) => {
                self.dead_peer.state(body, cx);
                self.stalls.state(body, cx);
            }
            Body::Close(body) => {
                self.dead_peer.close(body, cx);
                self.stalls.close(body, cx);
                self.connection_drop.close(body, cx);
            }
            Body::Reset(body) => self.dead_peer.reset(body, cx),
            Body::Snapshot(body) => self.half_closed.snapshot(body, cx),
            Body::HalfClosed(body) => self.half_closed.unlisted(body),
            Body::Idle(body) => self.idle.idle(body, cx),
            Body::IdleTotals(body) => self.idle.idle_totals(body, cx),
            Body::Tick => self.tick(cx),
            Body::Connect(_)
            | Body::Accept(_)
            | Body::Drop(_)
            | Body::Probe(_)
            | Body::Loss(_)
            | Body::Netns(_)
            | Body::Clock(_)
            | Body::Process(_)
            | Body::Holders(_)
            | Body::Checkpoint
            | Body::Seed(_)
            | Body::Seeded(_) => {}
        }
    }

    /// Says what grew since a second or more, and resolves what is over.
    fn tick(&mut self, cx: &mut Context<'_>) {
        self.syn_drop.tick(cx);
        self.early_drop.tick(cx);
        self.handshake.tick(cx);
        self.dead_peer.tick(cx);
        self.half_closed.tick(cx);
        self.storm.tick(cx);
        self.stalls.tick(cx);
        self.connect_failure.tick(cx);
        self.connection_drop.tick(cx);
    }

    /// The last figures of every finding that is still open.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        self.syn_drop.finish(cx);
        self.early_drop.finish(cx);
        self.handshake.finish(cx);
        self.dead_peer.finish(cx);
        self.half_closed.finish(cx);
        self.idle.finish(cx);
        self.storm.finish(cx);
        self.stalls.finish(cx);
        self.connect_failure.finish(cx);
        self.connection_drop.finish(cx);
    }

    /// What the next poll is to show: at most `limit` silent and stalled connections, whose recovery no hook tells,
    /// and listeners with an open finding.
    pub(crate) fn watched(&mut self, limit: usize) -> Watched {
        let (mut connections, mut unwatched) = self.dead_peer.watched(limit);
        for id in self.stalls.watched() {
            if connections.contains(&id) {
                continue;
            }
            if connections.len() < limit {
                connections.push(id);
            } else {
                unwatched.grow(1);
            }
        }
        self.unwatched = unwatched;
        Watched {
            connections,
            listeners: self.handshake.watched(),
        }
    }

    /// Connections that should be watched and are not, at the last poll.
    pub(crate) const fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Another namespace has this inode by now.
    pub(crate) fn forget_netns(&mut self, inode: u32) {
        self.early_drop.forget_netns(inode);
    }

    pub(crate) const fn evicted(&self) -> Evicted {
        Evicted {
            listeners: self.handshake.evicted(),
            early_drops: self.early_drop.evicted(),
            storms: self.storm.evicted(),
            stalls: self.stalls.evicted(),
            dead_peers: self.dead_peer.evicted(),
            processes: self
                .half_closed
                .evicted()
                .saturating_add(self.idle.evicted()),
            failures: self.connect_failure.evicted(),
            drops: self.connection_drop.evicted(),
        }
    }
}
