//! `retransmit_storm`: so many segments are sent again that it is a condition, not an accident.
//!
//! **Rule.** Per connection, remote address, network, listener, process, network namespace and host: the rate over the last 3 s reaches the scope's
//! floor and a multiple of what is usual there (learned outside of storms), retransmissions are at least [`RetransmitStorm::ratio`] of what the connections sent, and
//! they come for longer than one burst. Opens at the segment that crosses (`onset`), updates as it
//! grows (`peak`), resolves when the rate stayed below half the floor for
//! [`RetransmitStorm::quiet_s`] (`end`).
//!
//! **Scope.** The narrowest of these, in this order, that explains it: a wider scope stays silent while one narrower scope
//! holds [`RetransmitStorm::explained`] of its segments, and a narrower one once the wider is open.
//!
//! **Count.** Every segment the scope sent again since its activity began, from before the opening to
//! the end, so that it equals `Tcp RetransSegs` of a namespace that has just this storm. What did not
//! leave the host (`tcp_retransmit_skb` with an error, or before Linux 6.17 only `total_retrans`) is counted
//! apart, and so is what was repeated for nothing, which is part of the count: the peer says that it came twice
//! (duplicate SACKs, RFC 2883), or the kernel finds out first and takes back what it did about the loss.
//! Connections are counted in the kernel, and their records cumulative: a record that is lost takes nothing
//! away. What the eBPF side missed is in the count by `total_retrans`, without a type; before Linux 6.17 it cannot be
//! told from what did not leave the host.
//! Repeated SYN-ACKs count, but open nothing: [`super::half_open::handshake`] tells what they mean. Those
//! of a flood, of which not every one is a record, are in the host's count from the listeners' totals, and
//! in no other.
//!
//! **Cause.** From the whole count so far (`words::Cause`). One that is told apart by what fails outlasts the
//! repair, in which the rest comes through and reads like loss.
//!
//! **False positives.** A link that loses several percent by nature; raise the ratio there. A burst
//! that is repaired at once, stray tail loss probes and RTO backoff of a single dead peer open
//! nothing.

mod activity;
mod course;
mod interfaces;
mod scope;
mod spurious;
mod words;

use std::{collections::BTreeMap, time::Duration};

use conntracer_common::{
    record::{RetransmitTotals, SynTotals, syn_outcome},
    retransmit::advanced,
};

use self::{
    activity::{Activity, Segments},
    course::Course,
    interfaces::Interfaces,
    scope::{LEVELS, Scope, Wider, levels},
    spurious::{Spurious, Undone},
};
use super::{Context, RetransmitStorm as Thresholds};
use crate::{
    event::{Owner, Retransmit, RetransmitType, SynAck, TcpState, Undo},
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey},
    },
    time::Ktime,
};

#[derive(Debug)]
struct OfConnection {
    /// As of its last retransmission: other records tell of it meanwhile, a timeout's before each of these.
    connection: Connection,
    course: Course,
    activity: Activity,
    spurious: Spurious,
}

/// Cumulative records of one connection as last told.
#[derive(Debug, Default)]
struct Told {
    totals: RetransmitTotals,
    undone: Undone,
}

/// One scope of many connections.
#[derive(Debug)]
struct OfMany {
    activity: Activity,
    /// Where all of it is one's.
    owner: Option<Owner>,
}

impl OfConnection {
    /// What became of it between its last record and `body`. What is told of an event alone is compared with
    /// what the socket counted.
    fn since_last(&mut self, body: &Retransmit, segments: &mut Segments) {
        let (before, now) = (&self.connection.tcp, &body.tcp);
        segments.sent = now
            .data_segs_out
            .saturating_sub(before.data_segs_out)
            .into();
        segments.spurious = self.spurious.doubled(body.duplicates);
        if body.is_cumulative {
            return;
        }
        segments.progress = advanced(before.snd_una, now.snd_una).into();
        segments.peer_spoke = advanced(before.rcv_nxt, now.rcv_nxt).into();
        let counted = now.total_retrans.wrapping_sub(before.total_retrans);
        // Of two records the newer may come first, when they are of two CPUs.
        let counted = if counted < 1 << 31 { counted } else { 0 };
        let unseen = counted.saturating_sub(body.counted());
        segments.unseen(unseen.into(), body.failures_traced);
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RetransmitStorm {
    /// Kept when a connection's activity is over: what it repeats later adds to them.
    told: Bounded<ConnectionKey, Told>,
    connections: Bounded<ConnectionKey, OfConnection>,
    wider: Bounded<Wider, OfMany>,
    /// Repeated SYN-ACKs counted as records, and as the listeners' totals tell.
    syn_acks: [u64; 2],
    open: BTreeMap<u64, Scope>,
}

impl RetransmitStorm {
    pub(crate) fn new(connections: usize, wider: usize) -> Self {
        Self {
            told: Bounded::new(MAX_TOLD),
            connections: Bounded::new(connections),
            wider: Bounded::new(wider),
            syn_acks: [0; 2],
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.told
            .evicted()
            .saturating_add(self.connections.evicted())
            .saturating_add(self.wider.evicted())
    }

    pub(crate) fn retransmit(
        &mut self,
        at: Ktime,
        body: &Retransmit,
        change: Option<&Change<'_>>,
        cx: &mut Context<'_>,
    ) {
        // One that ended meanwhile is as its record says.
        let connection = &change.map_or_else(
            || Connection::seen(&body.socket, body.owner, body.tcp, at),
            |change| *change.connection,
        );
        let key = connection.key;
        let gained = self.gained(key, body);
        if gained.events == 0 {
            return;
        }
        let mut segments = Segments::of(&gained, body.failures_traced);
        segments.interfaces = Interfaces::of(body.socket.netns, body.egress, segments.moved());
        segments.peer_has_later = body.tcp.peer_has_later().into();
        segments.carried = body.tcp.peer_has_full_sized_later().into();
        let owner = connection.owner;
        let levels = levels(&body.socket, owner.as_ref());
        // Unanswered connects are many short-lived sockets: only wider scopes make sense of them.
        if matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv) {
            self.widen(&levels, owner, &segments, None, cx);
            return;
        }
        if let Some(entry) = self.connections.get_mut(&key) {
            entry.since_last(body, &mut segments);
        } else if !connection.older && cx.now.since(key.id.born) <= YOUNG {
            segments.sent = body.tcp.data_segs_out.into();
        } else {
            // What a connection sent in an hour says nothing about now: of one that is not new, only what it
            // sent since its first retransmission is held against it.
            segments.sent = segments.moved();
        }
        let child = self.of_connection(&segments, connection, body.duplicates, cx);
        self.widen(&levels, owner, &segments, Some(child), cx);
    }

    /// What a record tells that none before it did.
    fn gained(&mut self, key: ConnectionKey, body: &Retransmit) -> RetransmitTotals {
        if !body.is_cumulative {
            return body.totals;
        }
        let Some(told) = self.told(key) else {
            return body.totals;
        };
        let gained = body.totals.since(&told.totals);
        if gained.events > 0 {
            told.totals = body.totals;
        }
        gained
    }

    fn told(&mut self, key: ConnectionKey) -> Option<&mut Told> {
        if self.told.touch(&key).is_none() {
            self.told.insert(key, Told::default());
        }
        self.told.get_mut(&key)
    }

    /// The kernel found that it had repeated segments for nothing. That neither opens nor prolongs anything.
    pub(crate) fn undo(&mut self, body: &Undo, cx: &mut Context<'_>) {
        let key = ConnectionKey::of(&body.socket);
        let gained = self
            .told(key)
            .map_or(body.totals, |told| told.undone.gained(body));
        let Some(entry) = self.connections.get_mut(&key) else {
            return;
        };
        let doubled = entry.spurious.doubled(body.duplicates);
        let undone = entry.spurious.undone(gained.segments);
        let segments = Segments {
            spurious: doubled.saturating_add(undone),
            undone,
            undos: gained.undos(),
            ..Segments::default()
        };
        let quiet = cx.thresholds.retransmit_storm.quiet();
        entry.activity.learned(&segments, quiet, cx.now);
        let owner = entry.connection.owner;
        for wider in levels(&body.socket, owner.as_ref()).iter().flatten() {
            if let Some(entry) = self.wider.get_mut(wider) {
                entry.activity.learned(&segments, quiet, cx.now);
            }
        }
    }

    pub(crate) fn syn_ack(&mut self, body: &SynAck, cx: &mut Context<'_>) {
        let segments = Segments::of_type(RetransmitType::SynAck, 1);
        let levels = levels(&body.socket, body.owner.as_ref());
        self.syn_acks[0] = self.syn_acks[0].saturating_add(1);
        self.widen(&levels, body.owner, &segments, None, cx);
    }

    /// What a listener's totals gained: repeated SYN-ACKs of which no record came.
    pub(crate) fn syn_acks(&mut self, gained: &SynTotals, cx: &mut Context<'_>) {
        let [counted, told] = &mut self.syn_acks;
        *told = told.saturating_add(gained[syn_outcome::REPEATED]);
        let uncounted = told.saturating_sub(*counted);
        if uncounted == 0 {
            return;
        }
        *counted = *told;
        let segments = Segments::of_type(RetransmitType::SynAck, uncounted);
        self.add(Wider::Host, None, &segments, false, cx);
    }

    /// Counts for the connection; says which it is and whether its activity just began.
    fn of_connection(
        &mut self,
        segments: &Segments,
        connection: &Connection,
        duplicates: u32,
        cx: &mut Context<'_>,
    ) -> (ConnectionKey, bool) {
        let storm = &cx.thresholds.retransmit_storm;
        let key = connection.key;
        if self.connections.touch(&key).is_none() {
            let entry = OfConnection {
                connection: *connection,
                course: Course::new(&connection.tcp, segments.min_rtt_us, cx.now),
                activity: Activity::new(cx.now),
                spurious: Spurious::new(duplicates),
            };
            if let Some((_, mut gone)) = self.connections.insert(key, entry)
                && let Some(life) = gone.activity.life.take()
            {
                self.open.remove(&life.id);
                cx.resolve(
                    life,
                    words::connection(&gone.connection, &gone.course, &gone.activity, "end", cx),
                );
            }
        }
        let Some(entry) = self.connections.get_mut(&key) else {
            return (key, false);
        };
        entry.connection = *connection;
        let begun = entry.activity.add(
            segments,
            false,
            storm.connection_per_s,
            storm.quiet(),
            cx.now,
        );
        if begun {
            entry.course = Course::new(&connection.tcp, segments.min_rtt_us, cx.now);
        }
        entry.course.goes_on(segments.progress > 0, cx.now);
        (key, begun)
    }

    /// Counts for one wider scope.
    fn add(
        &mut self,
        wider: Wider,
        owner: Option<Owner>,
        segments: &Segments,
        first_of_connection: bool,
        cx: &mut Context<'_>,
    ) {
        if self.wider.touch(&wider).is_none() {
            let new = OfMany {
                activity: Activity::new(cx.now),
                owner: None,
            };
            if let Some((gone, mut entry)) = self.wider.insert(wider, new)
                && let Some(life) = entry.activity.life.take()
            {
                self.open.remove(&life.id);
                cx.resolve(
                    life,
                    words::wider(&gone, entry.owner, &entry.activity, "end", cx),
                );
            }
        }
        let storm = &cx.thresholds.retransmit_storm;
        if let Some(entry) = self.wider.get_mut(&wider) {
            if wider.is_owned() {
                entry.owner = owner.or(entry.owner);
            }
            entry.activity.add(
                segments,
                first_of_connection,
                wider.floor(storm),
                storm.quiet(),
                cx.now,
            );
        }
    }

    /// Counts for all scopes that a connection is in, then opens or updates what crossed.
    fn widen(
        &mut self,
        levels: &[Option<Wider>; LEVELS],
        owner: Option<Owner>,
        segments: &Segments,
        child: Option<(ConnectionKey, bool)>,
        cx: &mut Context<'_>,
    ) {
        let first_of_connection = child.is_some_and(|(_, begun)| begun);
        // The narrower scope with the most segments; of equals the narrowest.
        let mut most = child.and_then(|(key, _)| {
            let entry = self.connections.get(&key)?;
            Some((Scope::Connection(key), entry.activity.moved()))
        });
        for wider in levels.iter().flatten() {
            self.add(*wider, owner, segments, first_of_connection, cx);
            let Some(entry) = self.wider.get_mut(wider) else {
                continue;
            };
            if let Some((scope, count)) = most {
                entry.activity.contributed(scope, count);
            }
            let moved = entry.activity.moved();
            if most.is_none_or(|(_, count)| moved > count) {
                most = Some((Scope::Wider(*wider), moved));
            }
        }
        self.judge(levels, child.map(|(key, _)| key), cx);
    }

    /// A scope may open when nothing narrower explains it, and nothing wider is open or about to.
    fn judge(
        &mut self,
        levels: &[Option<Wider>; LEVELS],
        child: Option<ConnectionKey>,
        cx: &mut Context<'_>,
    ) {
        let storm = &cx.thresholds.retransmit_storm;
        let mut may_open = [false; LEVELS];
        let mut is_part = false;
        for (wider, may_open) in levels.iter().zip(&mut may_open).rev() {
            let Some((wider, entry)) =
                wider.and_then(|wider| Some((wider, self.wider.get(&wider)?)))
            else {
                continue;
            };
            let storms = crosses(&entry.activity, wider.floor(storm), storm, cx.now)
                && !entry.activity.is_explained(storm.explained);
            *may_open = storms && !is_part;
            is_part |= storms || entry.activity.life.is_some();
        }
        if let Some(key) = child
            && let Some(entry) = self.connections.get_mut(&key)
        {
            let may_open =
                !is_part && crosses(&entry.activity, storm.connection_per_s, storm, cx.now);
            let (connection, course) = (&entry.connection, entry.course);
            let opened = step(&mut entry.activity, may_open, cx, |activity, stage, cx| {
                words::connection(connection, &course, activity, stage, cx)
            });
            if let Some(id) = opened {
                self.open.insert(id, Scope::Connection(key));
            }
        }
        for (wider, may_open) in levels.iter().zip(may_open) {
            let Some((wider, entry)) =
                wider.and_then(|wider| Some((wider, self.wider.get_mut(&wider)?)))
            else {
                continue;
            };
            let owner = entry.owner;
            let opened = step(&mut entry.activity, may_open, cx, |activity, stage, cx| {
                words::wider(&wider, owner, activity, stage, cx)
            });
            if let Some(id) = opened {
                self.open.insert(id, Scope::Wider(wider));
            }
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let quiet = cx.thresholds.retransmit_storm.quiet();
        let (connections, wider) = (&mut self.connections, &mut self.wider);
        self.open.retain(|_, scope| match scope {
            Scope::Connection(key) => connections.get_mut(key).is_some_and(|entry| {
                let (connection, course) = (&entry.connection, entry.course);
                lives(&mut entry.activity, quiet, cx, |activity, stage, cx| {
                    words::connection(connection, &course, activity, stage, cx)
                })
            }),
            Scope::Wider(key) => wider.get_mut(key).is_some_and(|entry| {
                let owner = entry.owner;
                lives(&mut entry.activity, quiet, cx, |activity, stage, cx| {
                    words::wider(key, owner, activity, stage, cx)
                })
            }),
        });
        while let Some((_, entry)) = connections.oldest()
            && is_idle(&entry.activity, quiet, cx.now)
        {
            connections.pop_oldest();
        }
        while let Some((_, entry)) = wider.oldest()
            && is_idle(&entry.activity, quiet, cx.now)
        {
            wider.pop_oldest();
        }
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for scope in self.open.values() {
            match scope {
                Scope::Connection(key) => {
                    if let Some(entry) = self.connections.get_mut(key) {
                        let (connection, course) = (&entry.connection, entry.course);
                        last_word(&mut entry.activity, cx, |activity, stage, cx| {
                            words::connection(connection, &course, activity, stage, cx)
                        });
                    }
                }
                Scope::Wider(key) => {
                    if let Some(entry) = self.wider.get_mut(key) {
                        let owner = entry.owner;
                        last_word(&mut entry.activity, cx, |activity, stage, cx| {
                            words::wider(key, owner, activity, stage, cx)
                        });
                    }
                }
            }
        }
    }
}

/// Four times what the eBPF side keeps: what is still counted there is not forgotten here.
const MAX_TOLD: usize = 32_768;

/// Up to this age everything a connection sent belongs to its first retransmission's ratio.
const YOUNG: Duration = Duration::from_secs(10);

fn crosses(activity: &Activity, floor: f64, storm: &Thresholds, now: Ktime) -> bool {
    let floor = floor.max(storm.usual_factor * activity.usual(now));
    activity.storms(floor, storm.ratio, storm.burst(), now)
}

/// Opens or updates after an event; says the id of what it opened.
fn step(
    activity: &mut Activity,
    may_open: bool,
    cx: &mut Context<'_>,
    draft: impl Fn(&Activity, &'static str, &Context<'_>) -> super::Draft,
) -> Option<u64> {
    match activity.life {
        None if may_open => {
            activity.onset_per_s = activity.rate(cx.now);
            let mut life = cx.open(draft(activity, "onset", cx));
            life.said_count = activity.news();
            activity.told = Some(words::cause(activity));
            activity.life = Some(life);
            Some(life.id)
        }
        Some(mut life) if life.due(cx.now, activity.news()) => {
            cx.update(&mut life, draft(activity, "peak", cx));
            life.said_count = activity.news();
            activity.told = Some(words::cause(activity));
            activity.life = Some(life);
            None
        }
        _ => None,
    }
}

/// Resolves what is over and says whether it goes on.
fn lives(
    activity: &mut Activity,
    quiet: Duration,
    cx: &mut Context<'_>,
    draft: impl Fn(&Activity, &'static str, &Context<'_>) -> super::Draft,
) -> bool {
    let Some(mut life) = activity.life else {
        return false;
    };
    if activity.is_over(quiet, cx.now) {
        cx.resolve(life, draft(activity, "end", cx));
        activity.renew(cx.now);
        return false;
    }
    if life.due(cx.now, activity.news()) {
        cx.update(&mut life, draft(activity, "peak", cx));
        life.said_count = activity.news();
        activity.told = Some(words::cause(activity));
        activity.life = Some(life);
    }
    true
}

fn last_word(
    activity: &mut Activity,
    cx: &mut Context<'_>,
    draft: impl Fn(&Activity, &'static str, &Context<'_>) -> super::Draft,
) {
    if let Some(mut life) = activity.life
        && cx.owes(&life, activity.news())
    {
        cx.update(&mut life, draft(activity, "peak", cx));
        life.said_count = activity.news();
        activity.told = Some(words::cause(activity));
        activity.life = Some(life);
    }
}

fn is_idle(activity: &Activity, quiet: Duration, now: Ktime) -> bool {
    activity.life.is_none() && now.since(activity.last) >= quiet
}
