//! `half_open` / `half_closed`: one side has closed, the other has not, for too long.
//!
//! **Rule.** Every poll lists the sockets that are in CLOSE_WAIT or FIN_WAIT2 for longer than
//! [`Thresholds::half_closed_after_s`], which are grouped
//! by process and state. Opens at
//! [`Thresholds::half_closed_sockets`]; resolves when two
//! polls find none. The count is how many there are; of a resolved finding, how many there were at
//! most. Of very many a poll lists a part, and counts the others by process (`unlisted_sockets`).
//!
//! **Reading.** CLOSE_WAIT: the peer closed and the application did not. A number that grows again and again, by
//! [`Thresholds::leak_per_minute`], is a descriptor leak; sockets that
//! still have something to deliver belong to a slow peer; the others are forgotten, or their task is stuck.
//! FIN_WAIT2: the application shut its sending side, and the peer does not close.
//!
//! **Older than conntracer.** A socket that was half-closed before conntracer began is so at least since
//! the kernel last did anything with it; its age is said to be that at least.
//!
//! **False positives.** Protocols that half-close by design (rsh, some proxies) stay so for as long
//! as the other direction sends; raise the age there.

mod group;
#[cfg(test)]
mod tests;
mod words;

use std::{collections::HashSet, time::Duration};

use conntracer_common::stats::hook;
use foldhash::quality::RandomState;

use self::group::{Group, GroupKey, Oldest};
use super::{KIND, thresholds::Thresholds};
use crate::{
    count::Grow,
    detect::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec},
    event::{HalfClosed as Unlisted, Snapshot, TcpState},
    finding::Status,
    id::SocketId,
};

pub(crate) static SPEC: Spec = Spec {
    detector: "half_open.half_closed",
    kind: KIND,
    causes: &["half_closed"],
    hooks: &[hook::STATE, hook::DESTROY, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// Sockets of one poll that are told apart: four times the eBPF side's default table.
const SEEN: usize = 1 << 18;

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
}

impl HalfClosed {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            groups: Cases::new(limits.processes, thresholds),
            seen: HashSet::default(),
        }
    }

    pub(crate) fn snapshot(&mut self, body: &Snapshot, cx: &mut Context<'_>) {
        let socket = &body.socket;
        if !matches!(socket.state, TcpState::CloseWait | TcpState::FinWait2) {
            return;
        }
        let Some(since) = body.since else { return };
        let limit = Duration::from_secs(self.groups.rules.half_closed_after_s);
        if cx.now.since(since) < limit || self.seen.len() >= SEEN || !self.seen.insert(socket.id) {
            return;
        }
        let key = GroupKey {
            netns: socket.netns,
            pid: body.owner.map_or(0, |owner| owner.pid),
            state: socket.state,
        };
        let Some(group) = self.groups.begin(key, cx, Group::default) else {
            return;
        };
        group.owner = body.owner.or(group.owner);
        if group.counting == 0 {
            group.oldest = None;
        }
        group.counting.grow(1);
        let holders = body.owner.and_then(|owner| owner.holders);
        group.sharing.grow(u64::from(holders > Some(1)));
        group.counting_delivering.grow(u64::from(
            socket.state == TcpState::CloseWait && body.tcp.waiting_bytes() > 0,
        ));
        if group.oldest.is_none_or(|oldest| since < oldest.since) {
            group.oldest = Some(Oldest {
                id: socket.id,
                since,
                before: socket.older && since < socket.id.born,
                local: socket.local,
                remote: socket.remote,
                bytes_acked: body.tcp.bytes_acked,
                retransmitted: body.tcp.total_retrans,
            });
        }
    }

    /// Which namespace they are in is not known: they count where most of the process's others do.
    pub(crate) fn unlisted(&mut self, body: &Unlisted) {
        let pid = body.owner.map_or(0, |owner| owner.pid);
        let key = self
            .groups
            .iter()
            .filter(|(key, _)| (key.pid, key.state) == (pid, body.state))
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
