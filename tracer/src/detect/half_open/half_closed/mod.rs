//! `half_open` / `half_closed`: one side has closed, the other has not, for too long.
//!
//! **Rule.** Every poll lists the sockets that are in CLOSE_WAIT or FIN_WAIT2 for longer than
//! [`Thresholds::half_closed_after_s`]. Those on which nothing came through for as long, which are neither sent to with
//! success nor received on, are grouped
//! by process and state. Opens at
//! [`Thresholds::half_closed_sockets`]; resolves when two
//! polls find none. The count is how many there are; of a resolved finding, how many there were at
//! most. Of very many a poll lists a part, and counts the others by process (`unlisted_sockets`).
//!
//! **Reading.** CLOSE_WAIT: the peer closed and the application did not. Sockets that nobody has accepted are no
//! process's to close: they wait for accept(), and are a group of their own. A number that grows again and again, by
//! [`Thresholds::leak_per_minute`], is a descriptor leak; sockets that
//! still have something to deliver belong to a slow peer; those of which the application has not even read the end are
//! not looked at by it; the others are forgotten.
//! FIN_WAIT2: the application shut its sending side, and the peer does not close; where what it sends is not read, it may
//! not be able to.
//!
//! **Older than conntracer.** A socket that was half-closed before conntracer began is so at least since
//! the kernel last did anything with it; its age is said to be that at least.
//!
//! **Healthy.** Protocols that half-close by design stay so for as long as the other direction sends: progress tells.
//!
//! **False positives.** The same where the other direction says nothing for longer than the limit; raise it there.

#[cfg(test)]
pub(crate) mod claims;
mod group;
#[cfg(test)]
mod tests;
mod words;

use std::{collections::HashSet, time::Duration};

use conntracer_common::{retransmit::advanced, stats::hook};
use foldhash::quality::RandomState;

use self::group::{Group, GroupKey, Oldest, Seen};
use super::{KIND, thresholds::Thresholds};
use crate::{
    count::Grow,
    detect::{
        dropped_here,
        room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec},
    },
    event::{HalfClosed as Unlisted, Snapshot, Tcp, TcpState},
    finding::{Severity, Status},
    id::SocketId,
    table::{Bounded, dropped::Whose},
    time::Ktime,
};

pub(crate) static SPEC: Spec = Spec {
    detector: "half_open.half_closed",
    kind: KIND,
    causes: &[
        ("half_closed", Severity::Warning),
        (dropped_here::CAUSE, Severity::Critical),
    ],
    hooks: &[hook::STATE, hook::DESTROY, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// Sockets of one poll that are told apart: four times the eBPF side's default table.
const SEEN: usize = 1 << 18;

/// Sockets of which the last look is kept: those that a poll lists, and as many that were.
const LOOKS: usize = 16_384;

impl Case for Group {
    type Key = GroupKey;
    type Rules = Thresholds;

    fn draft(&self, key: &GroupKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        let count = if at.status == Status::Resolved {
            self.peak
        } else {
            self.count
        };
        Some(words::draft(&SPEC, key, self, count, at.rules, at.cx))
    }

    fn news(&self) -> u64 {
        self.count
    }

    /// A poll tells, and not the time.
    fn is_over(&mut self, _: &GroupKey, _: &Thresholds, _: &Context<'_>) -> bool {
        false
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct HalfClosed {
    groups: Cases<Group>,
    /// Sockets counted since the last tick: a watched one is listed twice in a poll.
    seen: HashSet<SocketId, RandomState>,
    /// What each of them was like at the last look.
    looks: Bounded<SocketId, Look>,
}

/// A half-closed socket at a look, and when it was last seen in use.
#[derive(Clone, Copy, Debug)]
struct Look {
    snd_una: u32,
    rcv_nxt: u32,
    progress: Ktime,
}

/// Whether the peer acknowledges nothing of what it is sent.
const fn is_unanswered(tcp: &Tcp) -> bool {
    tcp.retransmits > 0 || tcp.probes_out > 1
}

impl Seen {
    fn saw(&mut self, body: &Snapshot) {
        let tcp = &body.tcp;
        let delivers = body.socket.state == TcpState::CloseWait && tcp.waiting_bytes() > 0;
        self.delivering.grow(u64::from(delivers));
        self.unanswered
            .grow(u64::from(delivers && is_unanswered(tcp)));
        if let Some(about) = body.about {
            self.told.grow(1);
            let is_unread = about.unread_bytes > 0 || about.end_unread;
            self.unread.grow(u64::from(is_unread));
            self.unread_bytes.grow(about.unread_bytes.into());
        }
    }
}

impl HalfClosed {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            groups: Cases::new(limits.processes, thresholds),
            seen: HashSet::default(),
            looks: Bounded::new(LOOKS),
        }
    }

    /// A look at a socket. `delay`: the finding that says why connections wait for accept() where it came to.
    pub(crate) fn snapshot(&mut self, body: &Snapshot, delay: Option<u64>, cx: &mut Context<'_>) {
        let socket = &body.socket;
        if !matches!(socket.state, TcpState::CloseWait | TcpState::FinWait2) {
            return;
        }
        let Some(since) = body.since else { return };
        let limit = Duration::from_secs(self.groups.rules.half_closed_after_s);
        if cx.now.since(since) < limit || self.seen.len() >= SEEN || !self.seen.insert(socket.id) {
            return;
        }
        let progress = self.progress(body, since, cx.now);
        if cx.now.since(progress) < limit {
            return;
        }
        let key = GroupKey {
            netns: socket.netns,
            pid: body.owner.map_or(0, |owner| owner.pid),
            state: socket.state,
            queued: body.about.is_some_and(|about| about.not_accepted),
        };
        let here = cx.dropped_of(&Whose::seen(socket, &body.tcp), since);
        let is_why = match socket.state {
            TcpState::FinWait2 => here.has_fin_to(socket.local),
            _ => is_unanswered(&body.tcp) && here.explains_loss(body.tcp.retransmits.into()),
        };
        let Some(group) = self.groups.begin(key, cx, Group::default) else {
            return;
        };
        group.owner = body.owner.or(group.owner);
        group.delay = delay.filter(|_| key.queued).or(group.delay);
        if group.counting == 0 {
            group.oldest = None;
        }
        group.counting.grow(1);
        let holders = body.owner.and_then(|owner| owner.holders);
        group.sharing.grow(u64::from(holders > Some(1)));
        group.seeing.saw(body);
        if is_why {
            group.seeing.dropped.grow(1);
            group.dropping.add(here);
        }
        if group.oldest.is_none_or(|oldest| since < oldest.since) {
            group.oldest = Some(Oldest {
                id: socket.id,
                since,
                progress,
                before: socket.older && since < socket.id.born,
                local: socket.local,
                remote: socket.remote,
                bytes_acked: body.tcp.bytes_acked,
                retransmitted: body.tcp.total_retrans,
            });
        }
    }

    /// When something last came through on a half-closed socket, or it became one: data that came, or that the peer
    /// acknowledged. One in use is healthy however long it is half-closed.
    ///
    /// What was sent last is acknowledged where nothing is in flight, and came through after it was sent. What is in
    /// flight may have been sent again and again: then only that less is than at the look before tells.
    fn progress(&mut self, body: &Snapshot, since: Ktime, now: Ktime) -> Ktime {
        let tcp = &body.tcp;
        let mut progress = since;
        let ago = |ago: Duration| now.before(ago);
        if let Some(about) = body.about {
            let received = about.received_idle.map(ago);
            let sent = about
                .sent_idle
                .filter(|_| tcp.unacked_bytes() == 0)
                .map(ago);
            progress = progress.max(received.max(sent).unwrap_or(since));
        }
        let new = Look {
            snd_una: tcp.snd_una,
            rcv_nxt: tcp.rcv_nxt,
            progress,
        };
        let Some(look) = self.looks.touch(&body.socket.id) else {
            self.looks.insert(body.socket.id, new);
            return progress;
        };
        if advanced(look.snd_una, tcp.snd_una) || advanced(look.rcv_nxt, tcp.rcv_nxt) {
            *look = Look {
                progress: now,
                ..new
            };
        }
        progress.max(look.progress)
    }

    /// Which namespace they are in is not known: they count where most of the process's others do.
    pub(crate) fn unlisted(&mut self, body: &Unlisted) {
        let pid = body.owner.map_or(0, |owner| owner.pid);
        let key = self
            .groups
            .iter()
            .filter(|(key, _)| !key.queued && (key.pid, key.state) == (pid, body.state))
            .max_by_key(|(_, group)| group.counting)
            .map(|(key, _)| *key);
        if let Some(group) = key.and_then(|key| self.groups.get_mut(&key)) {
            group.counting_unlisted = group.counting_unlisted.saturating_add(body.count);
        }
    }
}

impl Room for HalfClosed {
    /// A tick ends a poll: what was neither listed nor counted is gone.
    fn tick(&mut self, cx: &mut Context<'_>) {
        self.seen.clear();
        let keys: Vec<GroupKey> = self.groups.iter().map(|(key, _)| *key).collect();
        let worth = self.groups.rules.half_closed_sockets;
        for key in keys {
            let Some(group) = self.groups.get_mut(&key) else {
                continue;
            };
            let count = group.take_count();
            if count > 0 {
                group.absent_polls = 0;
                self.groups.judge(&key, count >= worth, cx);
                let rules = self.groups.rules.clone();
                if let Some(group) = self.groups.get_mut(&key) {
                    group.sample(&rules, cx.now);
                }
                continue;
            }
            group.absent_polls.grow(1);
            // One poll may have lost its snapshots to a full ring.
            if group.absent_polls >= 2 {
                self.groups.end(&key, cx);
            }
        }
    }

    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.groups]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("processes_evicted", self.groups.evicted())
    }
}
