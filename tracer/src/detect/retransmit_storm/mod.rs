//! `retransmit_storm`: so many segments are sent again that it is a condition, not an accident.
//!
//! **Rule.** Per connection, remote address and host: the rate over the last 3 s reaches the scope's
//! floor, retransmissions are at least [`RetransmitStorm::ratio`] of what the connections sent, and
//! they come for longer than one burst. Opens at the segment that crosses (`onset`), updates as it
//! grows (`peak`), resolves when the rate stayed below half the floor for
//! [`RetransmitStorm::quiet_s`] (`end`).
//!
//! **Scope.** The narrowest that explains it: a wider scope stays silent while one narrower scope
//! holds [`RetransmitStorm::explained`] of its segments, and a narrower one once the wider is open.
//!
//! **Count.** Every segment the scope sent again since its activity began, from before the opening to
//! the end, so that it equals `Tcp RetransSegs` of a namespace that has just this storm. What did not
//! leave the host (`tcp_retransmit_skb` with an error, or before Linux 6.17 only `total_retrans`) is counted
//! apart, and so is what the peer said came twice (duplicate SACKs, RFC 2883), which is part of the count.
//! What was lost on its way here is in the count of its connection by `total_retrans`, without a type.
//! Repeated SYN-ACKs count, but open nothing: [`super::half_open::handshake`] tells what they mean. Those
//! of a flood, of which not every one is a record, are in the host's count from the listeners' totals, and
//! in no other.
//!
//! **False positives.** A link that loses several percent by nature; raise the ratio there. A burst
//! that is repaired at once, stray tail loss probes and RTO backoff of a single dead peer open
//! nothing.

mod activity;
mod words;

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use conntracer_common::record::{SynTotals, syn_outcome};

use self::activity::{Activity, Segments};
use super::{Context, RetransmitStorm as Thresholds};
use crate::{
    event::{Retransmit, RetransmitType, SynAck, TcpState},
    finding::{Ktime, Subject},
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey, advanced},
    },
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct RemoteKey {
    netns: u32,
    remote: IpAddr,
}

/// A scope with an open finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Connection(ConnectionKey),
    Remote(RemoteKey),
    Host,
}

#[derive(Debug)]
struct OfConnection {
    /// As of its last retransmission: other records tell of it meanwhile, a timeout's before each of these.
    connection: Connection,
    activity: Activity<()>,
    /// [`Retransmit::duplicates`] of the last record.
    duplicates: u32,
}

impl OfConnection {
    /// What became of it between its last record and `body`.
    fn since_last(&self, body: &Retransmit, segments: &mut Segments) {
        let (before, now) = (&self.connection.tcp, &body.tcp);
        segments.sent = now
            .data_segs_out
            .saturating_sub(before.data_segs_out)
            .into();
        segments.progress = advanced(before.snd_una, now.snd_una);
        segments.peer_spoke = advanced(before.rcv_nxt, now.rcv_nxt);
        segments.spurious = body.duplicates.saturating_sub(self.duplicates).into();
    }

    /// What the socket counted between its last record and `body`, and no record told: attempts that failed,
    /// where the kernel is silent about them, and otherwise what was lost on its way here.
    fn unseen(&self, body: &Retransmit) -> Segments {
        let before = self.connection.tcp.total_retrans;
        let counted = body.tcp.total_retrans.wrapping_sub(before);
        // Of two records the newer may come first, when they are of two CPUs.
        let counted = if counted < 1 << 31 { counted } else { 0 };
        Segments {
            count: counted.saturating_sub(body.counted()).into(),
            failed: !body.failures_traced,
            ..NOTHING
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct RetransmitStorm {
    connections: Bounded<ConnectionKey, OfConnection>,
    remotes: Bounded<RemoteKey, Activity<ConnectionKey>>,
    host: Activity<RemoteKey>,
    /// Repeated SYN-ACKs counted as records, and as the listeners' totals tell.
    syn_acks: [u64; 2],
    open: BTreeMap<u64, Scope>,
}

impl RetransmitStorm {
    pub(crate) fn new(connections: usize, remotes: usize) -> Self {
        Self {
            connections: Bounded::new(connections),
            remotes: Bounded::new(remotes),
            host: Activity::new(Ktime(0)),
            syn_acks: [0; 2],
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.connections.evicted() + self.remotes.evicted()
    }

    pub(crate) fn retransmit(
        &mut self,
        body: &Retransmit,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) {
        let length = body.end_seq.wrapping_sub(body.seq);
        let mut segments = Segments {
            kind: body.kind,
            count: body.segments.into(),
            failed: body.errno != 0,
            full: body.tcp.mss_bytes > 0
                && u64::from(length) >= u64::from(body.tcp.mss_bytes) * u64::from(body.segments),
            head_bytes: (body.seq == body.tcp.snd_una).then_some(length / body.segments),
            shut: body.tcp.snd_wnd_bytes == 0,
            spurious: 0,
            sent: 0,
            progress: false,
            peer_spoke: false,
        };
        let remote = RemoteKey {
            netns: body.socket.netns,
            remote: body.socket.remote.ip(),
        };
        // Unanswered connects are many short-lived sockets: only wider scopes make sense of them.
        if matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv) {
            self.widen(remote, &segments, None, cx);
            return;
        }
        let key = change.connection.key;
        if let Some(entry) = self.connections.get(&key) {
            entry.since_last(body, &mut segments);
            let unseen = entry.unseen(body);
            if unseen.count > 0 {
                let child = self.of_connection(&unseen, change, cx);
                self.widen(remote, &unseen, Some(child), cx);
            }
        } else if cx.now.since(key.id.born) <= YOUNG {
            segments.sent = body.tcp.data_segs_out.into();
        } else {
            // What a connection sent in an hour says nothing about now: of one that is not new, only what it
            // sent since its first retransmission is held against it.
            segments.sent = segments.count;
        }
        let child = self.of_connection(&segments, change, cx);
        if let Some(entry) = self.connections.get_mut(&key) {
            entry.duplicates = body.duplicates;
        }
        self.widen(remote, &segments, Some(child), cx);
    }

    pub(crate) fn syn_ack(&mut self, body: &SynAck, cx: &mut Context<'_>) {
        let segments = syn_acks(1);
        let key = RemoteKey {
            netns: body.socket.netns,
            remote: body.socket.remote.ip(),
        };
        self.syn_acks[0] = self.syn_acks[0].saturating_add(1);
        self.widen(key, &segments, None, cx);
    }

    /// What a listener's totals gained: repeated SYN-ACKs of which no record came.
    pub(crate) fn syn_acks(&mut self, gained: &SynTotals, cx: &Context<'_>) {
        let [counted, told] = &mut self.syn_acks;
        *told = told.saturating_add(gained[syn_outcome::REPEATED]);
        let uncounted = told.saturating_sub(*counted);
        if uncounted == 0 {
            return;
        }
        *counted = *told;
        let storm = &cx.thresholds.retransmit_storm;
        let segments = syn_acks(uncounted);
        self.host
            .add(&segments, false, storm.host_per_s, storm.quiet(), cx.now);
    }

    /// Counts for the connection; says which it is and whether its activity just began.
    fn of_connection(
        &mut self,
        segments: &Segments,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) -> (ConnectionKey, bool) {
        let storm = &cx.thresholds.retransmit_storm;
        let key = change.connection.key;
        if self.connections.touch(&key).is_none() {
            let entry = OfConnection {
                connection: *change.connection,
                activity: Activity::new(cx.now),
                duplicates: 0,
            };
            if let Some((_, mut gone)) = self.connections.insert(key, entry)
                && let Some(life) = gone.activity.life.take()
            {
                self.open.remove(&life.id);
                cx.resolve(
                    life,
                    words::connection(&gone.connection, &gone.activity, "end", cx),
                );
            }
        }
        let Some(entry) = self.connections.get_mut(&key) else {
            return (key, false);
        };
        entry.connection = *change.connection;
        let begun = entry.activity.add(
            segments,
            false,
            storm.connection_per_s,
            storm.quiet(),
            cx.now,
        );
        (key, begun)
    }

    /// Counts for the remote and the host, then opens or updates what crossed, narrowest first.
    fn widen(
        &mut self,
        remote: RemoteKey,
        segments: &Segments,
        child: Option<(ConnectionKey, bool)>,
        cx: &mut Context<'_>,
    ) {
        let storm = &cx.thresholds.retransmit_storm;
        let first_of_connection = child.is_some_and(|(_, begun)| begun);
        if self.remotes.touch(&remote).is_none()
            && let Some((key, mut gone)) = self.remotes.insert(remote, Activity::new(cx.now))
            && let Some(life) = gone.life.take()
        {
            self.open.remove(&life.id);
            cx.resolve(life, words::remote(key.netns, key.remote, &gone, "end", cx));
        }
        let Some(of_remote) = self.remotes.get_mut(&remote) else {
            return;
        };
        of_remote.add(
            segments,
            first_of_connection,
            storm.remote_per_s,
            storm.quiet(),
            cx.now,
        );
        if let Some((key, _)) = child
            && let Some(entry) = self.connections.get(&key)
        {
            of_remote.contributed(key, entry.activity.moved());
        }
        self.host.add(
            segments,
            first_of_connection,
            storm.host_per_s,
            storm.quiet(),
            cx.now,
        );
        self.host.contributed(remote, of_remote.moved());
        self.judge(remote, child.map(|(key, _)| key), cx);
    }

    fn judge(&mut self, remote: RemoteKey, child: Option<ConnectionKey>, cx: &mut Context<'_>) {
        let storm = &cx.thresholds.retransmit_storm;
        let now = cx.now;
        let Some(of_remote) = self.remotes.get_mut(&remote) else {
            return;
        };
        let host_open = self.host.life.is_some();
        let host_storms = crosses(&self.host, storm.host_per_s, storm, now);
        let remote_storms = crosses(of_remote, storm.remote_per_s, storm, now);
        if let Some(key) = child
            && let Some(entry) = self.connections.get_mut(&key)
        {
            let may_open = !host_open
                && of_remote.life.is_none()
                && (!remote_storms || of_remote.is_explained(storm.explained))
                && crosses(&entry.activity, storm.connection_per_s, storm, now);
            let connection = &entry.connection;
            step(&mut entry.activity, may_open, cx, |activity, stage, cx| {
                words::connection(connection, activity, stage, cx)
            })
            .map(|id| self.open.insert(id, Scope::Connection(key)));
        }
        let may_open = !host_open
            && remote_storms
            && !of_remote.is_explained(storm.explained)
            && (!host_storms || self.host.is_explained(storm.explained));
        step(of_remote, may_open, cx, |activity, stage, cx| {
            words::remote(remote.netns, remote.remote, activity, stage, cx)
        })
        .map(|id| self.open.insert(id, Scope::Remote(remote)));
        let may_open = host_storms && !self.host.is_explained(storm.explained);
        step(&mut self.host, may_open, cx, words::host).map(|id| self.open.insert(id, Scope::Host));
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let quiet = cx.thresholds.retransmit_storm.quiet();
        let (connections, remotes, host) =
            (&mut self.connections, &mut self.remotes, &mut self.host);
        self.open.retain(|_, scope| match scope {
            Scope::Connection(key) => connections.get_mut(key).is_some_and(|entry| {
                let connection = &entry.connection;
                lives(&mut entry.activity, quiet, cx, |activity, stage, cx| {
                    words::connection(connection, activity, stage, cx)
                })
            }),
            Scope::Remote(key) => remotes.get_mut(key).is_some_and(|activity| {
                lives(activity, quiet, cx, |activity, stage, cx| {
                    words::remote(key.netns, key.remote, activity, stage, cx)
                })
            }),
            Scope::Host => lives(host, quiet, cx, words::host),
        });
        while let Some((_, entry)) = connections.oldest()
            && is_idle(&entry.activity, quiet, cx.now)
        {
            connections.pop_oldest();
        }
        while let Some((_, activity)) = remotes.oldest()
            && is_idle(activity, quiet, cx.now)
        {
            remotes.pop_oldest();
        }
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for scope in self.open.values() {
            match scope {
                Scope::Connection(key) => {
                    if let Some(entry) = self.connections.get_mut(key) {
                        let connection = &entry.connection;
                        last_word(&mut entry.activity, cx, |activity, stage, cx| {
                            words::connection(connection, activity, stage, cx)
                        });
                    }
                }
                Scope::Remote(key) => {
                    if let Some(activity) = self.remotes.get_mut(key) {
                        last_word(activity, cx, |activity, stage, cx| {
                            words::remote(key.netns, key.remote, activity, stage, cx)
                        });
                    }
                }
                Scope::Host => last_word(&mut self.host, cx, words::host),
            }
        }
    }
}

const fn syn_acks(count: u64) -> Segments {
    Segments {
        kind: RetransmitType::SynAck,
        count,
        ..NOTHING
    }
}

const NOTHING: Segments = Segments {
    kind: RetransmitType::Unknown,
    count: 0,
    failed: false,
    full: false,
    head_bytes: None,
    shut: false,
    spurious: 0,
    sent: 0,
    progress: false,
    peer_spoke: false,
};

/// Up to this age everything a connection sent belongs to its first retransmission's ratio.
const YOUNG: Duration = Duration::from_secs(10);

fn crosses<C: Copy + PartialEq>(
    activity: &Activity<C>,
    floor: f64,
    storm: &Thresholds,
    now: Ktime,
) -> bool {
    activity.storms(floor, storm.ratio, storm.burst(), now)
}

/// Opens or updates after an event; says the id of what it opened.
fn step<C: Copy + PartialEq>(
    activity: &mut Activity<C>,
    may_open: bool,
    cx: &mut Context<'_>,
    draft: impl Fn(&Activity<C>, &'static str, &Context<'_>) -> super::Draft,
) -> Option<u64> {
    match activity.life {
        None if may_open => {
            activity.onset_per_s = activity.rate(cx.now);
            let mut life = cx.open(draft(activity, "onset", cx));
            life.said_count = activity.moved();
            activity.life = Some(life);
            Some(life.id)
        }
        Some(mut life) if life.due(cx.now, activity.moved()) => {
            cx.update(&mut life, draft(activity, "peak", cx));
            life.said_count = activity.moved();
            activity.life = Some(life);
            None
        }
        _ => None,
    }
}

/// Resolves what is over and says whether it goes on.
fn lives<C: Copy + PartialEq>(
    activity: &mut Activity<C>,
    quiet: Duration,
    cx: &mut Context<'_>,
    draft: impl Fn(&Activity<C>, &'static str, &Context<'_>) -> super::Draft,
) -> bool {
    let Some(mut life) = activity.life else {
        return false;
    };
    if activity.is_over(quiet, cx.now) {
        cx.resolve(life, draft(activity, "end", cx));
        *activity = Activity::new(cx.now);
        return false;
    }
    if life.due(cx.now, activity.moved()) {
        cx.update(&mut life, draft(activity, "peak", cx));
        life.said_count = activity.moved();
        activity.life = Some(life);
    }
    true
}

fn last_word<C: Copy + PartialEq>(
    activity: &mut Activity<C>,
    cx: &mut Context<'_>,
    draft: impl Fn(&Activity<C>, &'static str, &Context<'_>) -> super::Draft,
) {
    if let Some(mut life) = activity.life
        && life.stale(activity.moved())
    {
        cx.update(&mut life, draft(activity, "peak", cx));
        life.said_count = activity.moved();
        activity.life = Some(life);
    }
}

fn is_idle<C: Copy + PartialEq>(activity: &Activity<C>, quiet: Duration, now: Ktime) -> bool {
    activity.life.is_none() && now.since(activity.last) >= quiet
}

/// The subject of a remote-scope finding.
fn remote_subject(netns: u32, remote: IpAddr) -> Subject {
    Subject::Remote { netns, remote }
}
