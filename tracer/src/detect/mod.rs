//! The detectors: events and changes in, findings out. One room a finding, and here the list of them.
//!
//! Time comes from records alone, order from the lists of [`crate::table::Bounded`] and from finding
//! ids, so that the same records make the same findings, byte for byte. What all share lies beside the rooms: what a
//! detector is (`spec`), the life of a finding (`case`), what a detector is given (`context`), and how its figures are
//! written (`facts`, `phrase`).
//!
//! **Order.** What a connection's own record says of it comes first: a dead peer and a stall are known before the
//! storm that they are part of. At a listener the handshake comes before the drops, which point to the flood that
//! it finds, and the storm counts last. A tick and the end of input go through the rooms as they are listed.

mod accept_delay;
mod bind_failure;
mod case;
#[cfg(test)]
pub(crate) mod claims;
mod connect_failure;
mod connection_drop;
mod context;
mod dropped_here;
mod early_drop;
pub(crate) mod errno;
mod facts;
mod half_open;
mod limits;
mod path_mtu;
mod phrase;
mod receive_stall;
mod restart;
mod retransmit_storm;
mod room;
mod send_stall;
mod spec;
mod syn_drop;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use conntracer_common::record::close_flag;
use serde::{Deserialize, Serialize};

pub(crate) use self::{
    context::{Context, Missed},
    syn_drop::summaries,
};
use self::{
    half_open::{dead_peer, half_closed, handshake, idle},
    room::Room,
};
pub use self::{
    limits::Limits,
    spec::{Spec, words},
};
use crate::{
    count::Grow,
    event::{Body, Event, Socket},
    host::Host,
    section::Section,
    source::Watched,
    table::{
        connection::Change,
        listener::{Applied, ListenerKey},
    },
    time::Ktime,
};

/// Every detector, in the order in which they are told.
pub static SPECS: [&Spec; 15] = [
    &syn_drop::SPEC,
    &early_drop::SPEC,
    &syn_drop::COOKIES,
    &handshake::SPEC,
    &dead_peer::SPEC,
    &half_closed::SPEC,
    &idle::SPEC,
    &retransmit_storm::SPEC,
    &retransmit_storm::REORDERING,
    &send_stall::SPEC,
    &receive_stall::SPEC,
    &connect_failure::SPEC,
    &bind_failure::SPEC,
    &connection_drop::SPEC,
    &accept_delay::SPEC,
];

/// The host with what each detector can see there: for whoever makes one, of the running kernel or of a recording.
#[must_use]
pub fn with_coverage(mut host: Host) -> Host {
    host.plan.detectors = SPECS.iter().map(|spec| spec.plan(&host.plan)).collect();
    host
}

/// The tables of the config file that the detectors judge by, in order.
pub(crate) fn sections() -> Vec<Section> {
    let mut sections: Vec<Section> = SPECS.iter().map(|spec| spec.section).collect();
    sections.dedup();
    sections.push(Limits::SECTION);
    sections
}

/// The `[detect]` table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Thresholds {
    pub syn_drop: syn_drop::Thresholds,
    pub accept_delay: accept_delay::Thresholds,
    pub half_open: half_open::Thresholds,
    pub retransmit_storm: retransmit_storm::Thresholds,
    pub send_stall: send_stall::Thresholds,
    pub receive_stall: receive_stall::Thresholds,
    pub connect_failure: connect_failure::Thresholds,
    pub bind_failure: bind_failure::Thresholds,
    pub connection_drop: connection_drop::Thresholds,
    pub limits: Limits,
}

impl Thresholds {
    /// What makes no sense, as one sentence naming the key and the remedy.
    pub fn check(&self) -> Result<(), String> {
        self.syn_drop.check()?;
        self.accept_delay.check()?;
        self.half_open.check()?;
        self.retransmit_storm.check()?;
        self.send_stall.check()?;
        self.receive_stall.check()?;
        self.connect_failure.check()?;
        self.bind_failure.check()?;
        self.connection_drop.check()?;
        self.limits.check()
    }
}

/// All rooms of [`Detectors`], in the order of a tick.
macro_rules! rooms {
    ($detectors:ident $(, $mut:tt)?) => {
        [
            &$($mut)? $detectors.syn_drop as &$($mut)? dyn Room,
            &$($mut)? $detectors.early_drop,
            &$($mut)? $detectors.handshake,
            &$($mut)? $detectors.dead_peer,
            &$($mut)? $detectors.half_closed,
            &$($mut)? $detectors.idle,
            &$($mut)? $detectors.storm,
            &$($mut)? $detectors.stall,
            &$($mut)? $detectors.receive_stall,
            &$($mut)? $detectors.connect_failure,
            &$($mut)? $detectors.bind_failure,
            &$($mut)? $detectors.connection_drop,
            &$($mut)? $detectors.accept_delay,
        ]
    };
}

/// All detectors.
#[derive(Debug)]
pub(crate) struct Detectors {
    syn_drop: syn_drop::SynDrop,
    early_drop: early_drop::EarlyDrop,
    handshake: handshake::Handshake,
    dead_peer: dead_peer::DeadPeer,
    half_closed: half_closed::HalfClosed,
    idle: idle::Idle,
    storm: retransmit_storm::RetransmitStorm,
    stall: send_stall::SendStall,
    receive_stall: receive_stall::ReceiveStall,
    connect_failure: connect_failure::ConnectFailure,
    bind_failure: bind_failure::BindFailure,
    connection_drop: connection_drop::ConnectionDrop,
    accept_delay: accept_delay::AcceptDelay,
    /// For how long a connection waits for accept() that is told of.
    waiting_ns: u64,
    /// Connections that are watched at most; and how many more should be, at the last poll.
    watched: usize,
    unwatched: u64,
}

impl Detectors {
    pub(crate) fn new(thresholds: Thresholds) -> Self {
        let Thresholds {
            syn_drop,
            accept_delay,
            half_open,
            retransmit_storm,
            send_stall,
            receive_stall,
            connect_failure,
            bind_failure,
            connection_drop,
            limits,
        } = thresholds;
        let limits = &limits;
        Self {
            handshake: handshake::Handshake::new(limits, half_open.clone(), syn_drop.quiet()),
            early_drop: early_drop::EarlyDrop::new(limits, syn_drop.clone()),
            syn_drop: syn_drop::SynDrop::new(limits, syn_drop),
            dead_peer: dead_peer::DeadPeer::new(limits, half_open.clone()),
            half_closed: half_closed::HalfClosed::new(limits, half_open.clone()),
            idle: idle::Idle::new(limits, half_open),
            storm: retransmit_storm::RetransmitStorm::new(limits, retransmit_storm),
            stall: send_stall::SendStall::new(limits, send_stall),
            receive_stall: receive_stall::ReceiveStall::new(limits, receive_stall),
            connect_failure: connect_failure::ConnectFailure::new(limits, connect_failure),
            bind_failure: bind_failure::BindFailure::new(limits, bind_failure),
            connection_drop: connection_drop::ConnectionDrop::new(limits, connection_drop),
            waiting_ns: accept_delay.wait_ns(),
            accept_delay: accept_delay::AcceptDelay::new(limits, accept_delay),
            watched: limits.watched,
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
            self.stall.change(event, change, cx);
        }
        match &event.body {
            Body::Retransmit(body) => {
                self.connect_failure.retransmit(body);
                self.storm.retransmit(event.time, body, change, cx);
            }
            Body::Undo(body) => self.storm.undo(body, cx),
            Body::Syn(body) => {
                let Some(applied) = applied else { return };
                self.handshake.syn(body, applied, cx);
                let flood = self.handshake.flood(&ListenerKey::of(&body.socket));
                let key = ListenerKey::of(&body.socket);
                let delay = self.accept_delay.finding(&key);
                self.syn_drop.syn(body, applied, (flood, delay), cx);
                self.accept_delay.syn(body, cx);
                self.storm.syn_acks(&applied.gained, cx);
            }
            Body::AcceptQueue(body) => {
                let key = ListenerKey::of(&body.socket);
                let told = self.syn_drop.tells_of_queue(&key);
                self.accept_delay.accept_queue(body, told, cx);
            }
            Body::SynAck(body) => {
                self.handshake.syn_ack(body, cx);
                self.storm.syn_ack(body, cx);
            }
            Body::Sources(body) => self.handshake.sources(body, cx),
            Body::EarlyDrop(body) => self.early_drop.early_drop(body, cx),
            Body::Failure(body) => {
                let attempt = connect_failure::Route {
                    netns: body.socket.netns,
                    from: body.socket.local,
                    to: body.socket.remote,
                };
                let turned_away = self.syn_drop.turned_away(&attempt);
                let here = turned_away.or_else(|| self.early_drop.dropped(&attempt));
                if let (Some(here), Some(met)) = (here, cx.met) {
                    cx.meetings.push((here.finding, met));
                }
                self.connect_failure.failure(body, here, cx);
            }
            Body::Bind(body) => self.bind_failure.bind(body, cx),
            Body::BindHolders(body) => self.bind_failure.holders(body),
            Body::State(body) => {
                self.dead_peer.state(body, cx);
                self.stall.state(body, cx);
            }
            Body::Close(body) => {
                self.dead_peer.close(body, cx);
                self.stall.close(body, cx);
                let delay = self.waits_at(&body.socket, body.has(close_flag::NOT_ACCEPTED), cx);
                self.connection_drop.close(body, delay, cx);
            }
            Body::Reset(body) => self.dead_peer.reset(body, cx),
            Body::Snapshot(body) => {
                let waits = body.about.is_some_and(|about| about.not_accepted);
                let delay = self.waits_at(&body.socket, waits, cx);
                self.half_closed.snapshot(body, delay, cx);
            }
            Body::HalfClosed(body) => self.half_closed.unlisted(body),
            Body::Receive(body) => self.receive_stall.receive(body, cx),
            Body::Idle(body) => self.idle.idle(body, cx),
            Body::Beside(body) => self.dead_peer.beside(body, cx),
            Body::IdleTotals(body) => self.idle.idle_totals(body, cx),
            Body::Tick => {
                for room in rooms!(self, mut) {
                    room.tick(cx);
                }
            }
            Body::Checkpoint => self.say_open(true, cx),
            Body::Netns(body) if body.gone => {
                for room in rooms!(self, mut) {
                    room.end_of(body.id.inode, cx);
                }
            }
            // What no detector judges.
            _ => {}
        }
    }

    /// The finding that tells of a connection that waits for accept(), and has met it then.
    fn waits_at(&self, socket: &Socket, waits: bool, cx: &mut Context<'_>) -> Option<u64> {
        let delays = || self.accept_delay.finding_at(socket.netns, socket.local);
        let delay = waits.then(delays).flatten()?;
        cx.meetings.extend(cx.met.map(|met| (delay, met)));
        Some(delay)
    }

    /// The end of input: what waited for more, and the findings that are open and have news.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for room in rooms!(self, mut) {
            room.finish(cx);
        }
        self.say_open(false, cx);
    }

    /// Says the findings that are open: those that have news, or all.
    fn say_open(&mut self, all: bool, cx: &mut Context<'_>) {
        for room in rooms!(self, mut) {
            room.say_open(all, cx);
        }
    }

    /// What the next poll is to show: silent and stalled connections, whose recovery no hook tells, and listeners with
    /// an open finding.
    pub(crate) fn watched(&mut self, now: Ktime) -> Watched {
        let limit = self.watched;
        let (mut connections, mut unwatched) = self.dead_peer.watched(limit);
        for id in self.stall.watched() {
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
            queues: self.accept_delay.watched(),
            waiting_ns: self.waiting_ns,
            receivers: self.receive_stall.watched().take(limit).collect(),
            silent: self.dead_peer.asks_about(now),
        }
    }

    /// Connections that should be watched and are not, at the last poll.
    pub(crate) const fn unwatched(&self) -> u64 {
        self.unwatched
    }

    /// Entries that had to make room, under the names by which that is told.
    pub(crate) fn evicted(&self) -> BTreeMap<&'static str, u64> {
        let mut evicted = BTreeMap::new();
        for (name, count) in rooms!(self).map(Room::evicted) {
            evicted.entry(name).or_insert(0).grow(count);
        }
        evicted
    }
}
