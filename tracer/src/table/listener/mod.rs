//! Listeners as people name them: the eBPF side's cumulative totals per socket, added up by address.
//!
//! An address can have many listening sockets (`SO_REUSEPORT`), and a restarted server a new one; the
//! totals of each start at zero when the eBPF side first sees it, and stay when it closes; a closed one
//! makes room before any that listens, whose history would count again. What is drained from a queue, and how
//! fast, is here too; what is wrong with it is the detectors' to say.

mod service;

use std::net::SocketAddr;

use conntracer_common::record::{SynTotals, syn_outcome};
use serde::Serialize;

pub use self::service::{AcceptCoverage, Acceptor, Member, Service};
use crate::{
    event::{Body, Owner, Socket, Syn, TcpState},
    finding,
    id::SocketId,
    table::Bounded,
    time::Ktime,
};

/// Listeners that a summary names at most: what a person reads, and a line carries.
const SUMMARIES: usize = 64;

/// Which listener, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    pub netns: u32,
    pub local: SocketAddr,
}

impl ListenerKey {
    #[must_use]
    pub const fn of(socket: &Socket) -> Self {
        Self {
            netns: socket.netns,
            local: socket.local,
        }
    }
}

/// Which clients an IPv6 any-address takes; `None` for any other address, which tells by itself.
pub(crate) const fn takes(local: SocketAddr, v6_only: bool) -> Option<&'static str> {
    match local {
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            Some(if v6_only { "IPv6" } else { "IPv6 and IPv4" })
        }
        _ => None,
    }
}

/// One listener in numbers, for the `stats` line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    pub local: SocketAddr,
    pub takes: Option<&'static str>,
    pub netns: u32,
    pub owner: Option<finding::Owner>,
    pub members: usize,
    pub accepts_per_s: Option<f64>,
    pub since_last_accept_s: Option<f64>,
    /// Of the member whose queue was the fullest.
    pub ack_backlog: u32,
    pub peak_ack_backlog: u32,
    pub max_ack_backlog: u32,
    /// `syn_arrivals = syn_added + syn_cookies_sent + syn_drops`.
    pub syn_arrivals: u64,
    pub syn_added: u64,
    pub syn_cookies_sent: u64,
    pub syn_drops: u64,
}

/// What a record changed.
pub(crate) struct Applied {
    /// What its totals gained.
    pub(crate) gained: SynTotals,
    /// Whether any of its sockets still listens.
    pub(crate) is_listening: bool,
    /// The listener that had to make room, with its key.
    pub(crate) gone: Option<(ListenerKey, Service)>,
}

/// What a record changed of its socket.
struct Updated {
    /// What its totals gained.
    gained: SynTotals,
    /// What was drained from its queue so far.
    drained: u64,
    is_closed: bool,
}

/// All listeners.
#[derive(Debug)]
pub(crate) struct Listeners {
    services: Bounded<ListenerKey, Service>,
    members: Bounded<(SocketId, ListenerKey), Member>,
    /// Whose a listener was last, for when nobody listens there any more.
    owners: Bounded<ListenerKey, Owner>,
}

impl Listeners {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            services: Bounded::new(limit),
            members: Bounded::new(limit),
            owners: Bounded::new(limit),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.services
            .evicted()
            .saturating_add(self.members.evicted())
            .saturating_add(self.owners.evicted())
    }

    pub(crate) fn get(&self, key: &ListenerKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// Whose the listener was last, whether or not anybody listens there any more.
    pub(crate) fn last_owner(&self, key: &ListenerKey) -> Option<&Owner> {
        self.owners.get(key)
    }

    /// Those that listen on a port of a namespace, at whatever address, as records told since a moment.
    pub(crate) fn at_port(
        &self,
        (netns, port): (u32, u16),
        since: Ktime,
    ) -> Vec<(&ListenerKey, &Service)> {
        let mut found: Vec<_> = self
            .services
            .iter()
            .filter(|(key, service)| {
                key.netns == netns && key.local.port() == port && service.listens_after(since)
            })
            .collect();
        found.sort_unstable_by_key(|(key, _)| **key);
        found
    }

    /// The namespace of a listener of this host, known now or before, that attempts of a namespace to an address reach; the
    /// address is taken for this host's wherever one listens at its port.
    pub(crate) fn served(&self, netns: u32, address: SocketAddr) -> Option<u32> {
        let takes = |key: &ListenerKey| {
            let ip = key.local.ip();
            key.local.port() == address.port() && (ip == address.ip() || ip.is_unspecified())
        };
        let near = |key: &ListenerKey| key.netns == netns;
        let all = || {
            self.owners
                .iter()
                .map(|(key, _)| key)
                .filter(|key| takes(key))
        };
        let found = all()
            .find(|key| near(key))
            .or_else(|| all().find(|_| !address.ip().is_loopback()));
        found.map(|key| key.netns)
    }

    /// Whether a socket that is younger than a moment listens on a port of a namespace, at whatever address.
    pub(crate) fn has_begun(&self, (netns, port): (u32, u16), moment: Ktime) -> bool {
        self.at_port((netns, port), moment)
            .iter()
            .any(|(_, service)| service.members.iter().any(|member| member.born > moment))
    }

    /// Another namespace has this inode by now: who listened in the one before is nobody there.
    pub(crate) fn forget_netns(&mut self, inode: u32) {
        let gone: Vec<ListenerKey> = self
            .owners
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| key.netns == inode)
            .collect();
        for key in gone {
            self.owners.remove(&key);
        }
    }

    /// A socket of the listener; also one that closed a while ago.
    pub(crate) fn member(&self, key: &ListenerKey, id: SocketId) -> Option<&Member> {
        self.members.get(&(id, *key))
    }

    /// Takes in a listener's record.
    pub(crate) fn apply(&mut self, syn: &Syn, now: Ktime) -> Applied {
        let key = ListenerKey::of(&syn.socket);
        let id = syn.socket.id;
        if let Some(owner) = syn.owner {
            match self.owners.touch(&key) {
                Some(known) => *known = owner,
                None => drop(self.owners.insert(key, owner)),
            }
        }
        let mut gone = None;
        if self.services.touch(&key).is_none() {
            let is_over = |service: &Service| service.members.is_empty();
            gone = self
                .services
                .insert_over(key, Service::new(syn, now), is_over);
        }
        let Updated {
            gained,
            drained,
            is_closed,
        } = self.update(key, syn);
        let Some(service) = self.services.get_mut(&key) else {
            return Applied {
                gained,
                is_listening: false,
                gone,
            };
        };
        for (total, more) in service.totals.iter_mut().zip(gained) {
            *total = total.saturating_add(more);
        }
        // A kernel address belongs to one socket at a time: an earlier one is closed.
        service
            .members
            .retain(|member| member.sk != id.sk || *member == id);
        if is_closed {
            if let Some(at) = service.members.iter().position(|member| *member == id) {
                service.members.remove(at);
                service.drained_before = service.drained_before.saturating_add(drained);
            }
        } else if !service.members.contains(&id) {
            service.members.push(id);
        }
        service.owner = syn.owner.or(service.owner);
        let remote = service.latest.socket.remote;
        service.latest = *syn;
        service.told = now;
        if syn.socket.remote.port() == 0 {
            // A poll has no peer: the last one that a record named stays.
            service.latest.socket.remote = remote;
        }
        service.last_accept = service.last_accept.max(syn.last_accept);
        service.observed = service.observed.max(syn.last.unwrap_or_default());
        let members = &self.members;
        let drained = service
            .members
            .iter()
            .filter_map(|id| members.get(&(*id, key)))
            .fold(service.drained_before, |sum, member| {
                sum.saturating_add(member.drained())
            });
        service.seen.at(now, service.totals[syn_outcome::ACCEPTED]);
        service.inferred.at(now, drained);
        Applied {
            gained,
            is_listening: !service.members.is_empty(),
            gone,
        }
    }

    fn update(&mut self, key: ListenerKey, syn: &Syn) -> Updated {
        let id = syn.socket.id;
        let is_closed = syn.socket.state == TcpState::Close;
        let Some(member) = self.members.touch(&(id, key)) else {
            let mut member = Member::new(syn);
            member.is_closed = is_closed;
            if let Some(((gone, of), _)) = self
                .members
                .insert_over((id, key), member, |member| member.is_closed)
                && let Some(service) = self.services.get_mut(&of)
            {
                service.members.retain(|member| *member != gone);
            }
            return Updated {
                gained: syn.totals,
                drained: member.drained(),
                is_closed,
            };
        };
        let mut gained = [0; syn_outcome::COUNT];
        let mut totals = member.latest.totals;
        for ((gained, total), now) in gained.iter_mut().zip(&mut totals).zip(syn.totals) {
            *gained = now.saturating_sub(*total);
            // Records of two CPUs may arrive out of order: an older total takes nothing back.
            *total = (*total).max(now);
        }
        member.owner = syn.owner.or(member.owner);
        // One that listens again has another birth: what comes after the last record is only late.
        member.is_closed |= is_closed;
        if member.latest.last <= syn.last {
            member.latest = *syn;
        }
        member.latest.totals = totals;
        Updated {
            gained,
            drained: member.drained(),
            is_closed: member.is_closed,
        }
    }

    /// Folds an event in; `None` when it changes no listener.
    pub(crate) fn event(&mut self, body: &Body, now: Ktime) -> Option<Applied> {
        match body {
            Body::Syn(body) => return Some(self.apply(body, now)),
            Body::Tick => self.tick(now),
            _ => {}
        }
        None
    }

    /// Time goes on, also where nothing happens.
    fn tick(&mut self, now: Ktime) {
        self.services.for_each(|_, service| {
            let (seen, inferred) = (service.seen.total, service.inferred.total);
            service.seen.at(now, seen);
            service.inferred.at(now, inferred);
        });
    }

    /// The member whose queue was the fullest; of several alike, the first.
    pub(crate) fn fullest(&self, key: &ListenerKey) -> Option<&Member> {
        let service = self.services.get(key)?;
        let mut members = service
            .members
            .iter()
            .filter_map(|id| self.members.get(&(*id, *key)));
        let first = members.next()?;
        Some(members.fold(first, |fullest, member| {
            if member.is_fuller_than(fullest) {
                member
            } else {
                fullest
            }
        }))
    }

    /// The listeners that saw the most SYNs, at most 64, and how many are left out.
    pub(crate) fn summaries(
        &self,
        now: Ktime,
        seen: bool,
        told_apart: bool,
    ) -> (Vec<Summary>, u64) {
        let mut busiest: Vec<(&ListenerKey, &Service)> = self
            .services
            .iter()
            .filter(|(_, service)| service.arrivals() > 0 && !service.members.is_empty())
            .collect();
        busiest.sort_by_key(|(key, service)| (std::cmp::Reverse(service.arrivals()), **key));
        let left_out = busiest.len().saturating_sub(SUMMARIES) as u64;
        busiest.truncate(SUMMARIES);
        let summaries = busiest
            .into_iter()
            .map(|(key, service)| {
                let queue = self
                    .fullest(key)
                    .map_or(&service.latest, |member| &member.latest);
                let acceptor = service.acceptor(now, seen, told_apart);
                Summary {
                    local: key.local,
                    takes: takes(key.local, service.latest.v6_only),
                    netns: key.netns,
                    owner: service.owner.map(Into::into),
                    members: service.members.len(),
                    accepts_per_s: acceptor.per_s.map(rounded),
                    since_last_accept_s: acceptor.idle.map(|idle| rounded(idle.as_secs_f64())),
                    ack_backlog: queue.ack_backlog,
                    peak_ack_backlog: queue.peak_ack_backlog.max(queue.ack_backlog),
                    max_ack_backlog: queue.max_ack_backlog,
                    syn_arrivals: service.arrivals(),
                    syn_added: service.totals[syn_outcome::ADDED],
                    syn_cookies_sent: service.totals[syn_outcome::COOKIE],
                    syn_drops: service.drops(),
                }
            })
            .collect();
        (summaries, left_out)
    }
}

/// To the thousandth: finer than what it was measured with.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        decode::decode,
        event::{Body, Event},
        testing::{Run, listener},
    };

    /// A record of member `sk` of one of two listeners, `Close` where it is the last.
    fn syn(port: u16, sk: u64, totals: [u64; syn_outcome::SYNS], closes: bool) -> Syn {
        let mut run = Run::new();
        run.syn(
            listener(&format!("10.0.0.1:{port}"), "10.0.0.2:4000"),
            |record| {
                record.socket.sk = sk;
                record.totals[..syn_outcome::SYNS].copy_from_slice(&totals);
            },
        );
        let Ok(Event {
            body: Body::Syn(mut syn),
            ..
        }) = decode(&run.fed[0])
        else {
            panic!("a SYN record decodes");
        };
        if closes {
            syn.socket.state = TcpState::Close;
        }
        syn
    }

    proptest! {
        /// arrivals = added + cookies + drops in every summary, and together they are what the sockets
        /// counted, whichever of them closed or spoke out of turn.
        #[test]
        fn summaries_add_up(
            records in prop::collection::vec(
                (80..82_u16, 1..4_u64, any::<[u8; syn_outcome::SYNS]>(), any::<bool>()),
                1..60,
            ),
        ) {
            let mut listeners = Listeners::new(16);
            let mut highest = std::collections::BTreeMap::new();
            for (port, sk, totals, closes) in records {
                let totals = totals.map(u64::from);
                let syn = syn(port, sk, totals, closes);
                listeners.apply(&syn, Ktime(1));
                let known = highest.entry((port, sk)).or_insert([0; syn_outcome::SYNS]);
                for (known, total) in known.iter_mut().zip(totals) {
                    *known = total.max(*known);
                }
            }
            for (key, service) in listeners.services.iter() {
                let counted: u64 = highest
                    .iter()
                    .filter(|((port, _), _)| *port == key.local.port())
                    .flat_map(|(_, totals)| totals)
                    .sum();
                prop_assert_eq!(service.arrivals(), counted);
            }
            let (summaries, left_out) = listeners.summaries(Ktime(2), true, true);
            prop_assert_eq!(left_out, 0);
            for summary in summaries {
                prop_assert_eq!(
                    summary.syn_arrivals,
                    summary.syn_added + summary.syn_cookies_sent + summary.syn_drops
                );
                prop_assert!(summary.members > 0);
            }
        }
    }

    #[test]
    fn summaries_are_of_the_busiest() {
        let mut listeners = Listeners::new(100);
        for port in 1..=70 {
            let mut totals = [0; syn_outcome::SYNS];
            totals[syn_outcome::ADDED] = u64::from(port);
            listeners.apply(&syn(port, u64::from(port), totals, false), Ktime(1));
        }
        let (summaries, left_out) = listeners.summaries(Ktime(2), true, true);
        let ports: Vec<u16> = summaries
            .iter()
            .map(|summary| summary.local.port())
            .collect();
        assert_eq!(ports, (7..=70).rev().collect::<Vec<_>>());
        assert_eq!(left_out, 6);
    }

    #[test]
    fn closed_listeners_make_room_before_a_quiet_one() {
        let mut listeners = Listeners::new(4);
        let mut totals = [0; syn_outcome::SYNS];
        totals[syn_outcome::ADDED] = 1000;
        listeners.apply(&syn(22, 1, totals, false), Ktime(1));
        for port in 1000..1010 {
            for closes in [false, true] {
                let syn = syn(port, port.into(), [1; syn_outcome::SYNS], closes);
                let applied = listeners.apply(&syn, Ktime(2));
                assert_eq!(applied.is_listening, !closes);
            }
        }
        totals[syn_outcome::ADDED] = 1001;
        let quiet = syn(22, 1, totals, false);
        let applied = listeners.apply(&quiet, Ktime(3));
        assert_eq!(applied.gained[syn_outcome::ADDED], 1);
        let service = listeners.get(&ListenerKey::of(&quiet.socket)).unwrap();
        assert_eq!(service.arrivals(), 1001);
    }

    #[test]
    fn a_late_record_of_a_closed_socket_counts_and_opens_nothing() {
        let mut listeners = Listeners::new(4);
        let mut totals = [0; syn_outcome::SYNS];
        let mut added = |added, closes| {
            totals[syn_outcome::ADDED] = added;
            listeners.apply(&syn(80, 1, totals, closes), Ktime(1))
        };
        assert!(added(1, false).is_listening);
        assert!(!added(2, true).is_listening);
        let late = added(3, false);
        assert!(!late.is_listening);
        assert_eq!(late.gained[syn_outcome::ADDED], 1);
        assert!(listeners.summaries(Ktime(2), true, true).0.is_empty());
    }

    #[test]
    fn an_evicted_socket_is_no_member_of_its_listener() {
        let mut listeners = Listeners::new(2);
        for sk in 1..=3 {
            listeners.apply(&syn(80, sk, [1; syn_outcome::SYNS], false), Ktime(1));
        }
        let key = ListenerKey::of(&syn(80, 1, [0; syn_outcome::SYNS], false).socket);
        let members: Vec<u64> = listeners
            .get(&key)
            .unwrap()
            .members
            .iter()
            .map(|member| member.sk)
            .collect();
        assert_eq!(members, [2, 3]);
        assert_eq!(listeners.evicted(), 1);
    }
}
