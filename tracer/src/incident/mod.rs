//! Incidents: findings that one cause explains, on this host or at both ends of a connection.
//!
//! Two findings belong together where evidence says so: both met the same connection, at one end or at both, or both
//! are about the same listener, or one process that serves the one has trouble with the other. Time alone, or one
//! address alone, joins nothing. Which of two is the cause is a matter of what they are ([`explains`]); where that is not
//! known they are one incident without a cause.
//!
//! The stage after attribution: judges no connection, and writes no sentence but the one that points at the cause.
//! Called by the pipeline.

mod explains;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use self::explains::{
    are_legs, explains, explains_at_listener, is_of_server, is_one_queue, is_one_story,
};
use crate::{
    event::{Ends, Side, ends},
    finding::{Finding, Status, Subject},
    table::Bounded,
    time::Ktime,
};

/// Connections of which is kept who met them: those of the trouble of some minutes. 1 MB when full.
const MAX_CONNECTIONS: usize = 8_192;
/// Findings that may be joined: those that are said again ([`crate::attribute`]), and four times as many. Some 4 MB when
/// full.
const MAX_FINDINGS: usize = 4_096;
/// Findings that met one connection. More kinds than these do not tell of one.
const MAX_MET: usize = 4;
/// Findings that one is compared with. An incident may have more: they are joined through others.
const MAX_LINKS: usize = 32;
/// Others of its incident that a line names: the cause, and what else fits a line.
const MAX_RELATED: usize = 16;
/// Open findings that one line may cause to be said again; the others say it with their next line.
const MAX_SAID_AGAIN: usize = 16;
/// For so long after its end a finding explains others: a client gives up a minute after the SYN that was dropped, and
/// its port is not used again before (`TCP_TIMEWAIT_LEN`).
const REMEMBERED: Duration = Duration::from_mins(1);

/// A connection as both ends have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair {
    /// Of a loopback connection, which is another one in another namespace; 0 otherwise.
    netns: u32,
    ends: Ends,
}

impl Pair {
    fn of(met: &Side) -> Self {
        let is_own = met.local.ip().is_loopback() || met.remote.ip().is_loopback();
        Self {
            netns: if is_own { met.netns } else { 0 },
            ends: ends(met.local, met.remote),
        }
    }
}

/// What a connection was met by, the latest of them, and where.
#[derive(Clone, Copy, Debug, Default)]
struct Meetings {
    latest: [Option<(u64, u32, SocketAddr)>; MAX_MET],
    next: usize,
}

impl Meetings {
    fn add(&mut self, id: u64, met: &Side) {
        if self.latest.iter().flatten().any(|(other, ..)| *other == id) {
            return;
        }
        if let Some(place) = self.latest.get_mut(self.next) {
            *place = Some((id, met.netns, met.local));
        }
        let next = self.next.wrapping_add(1);
        self.next = if next < MAX_MET { next } else { 0 };
    }

    /// Those that met the connection at the same end, or at the other one: the same end in another namespace is that of
    /// another connection with the same addresses.
    fn others(self, id: u64, met: Side) -> impl Iterator<Item = u64> {
        self.latest
            .into_iter()
            .flatten()
            .filter(move |(other, netns, local)| {
                *other != id && (*netns == met.netns || *local != met.local)
            })
            .map(|(other, ..)| other)
    }
}

/// What two findings have in common, the weakest evidence first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Link {
    /// A process that serves the one's clients and has trouble with the other's server.
    Process,
    Listener,
    Connection,
}

/// A finding that may be one of several, as last said.
#[derive(Debug, Default)]
struct Member {
    said: Option<Finding>,
    /// Address and port that every connection has which it met: both while it is one connection.
    common: Option<Vec<SocketAddr>>,
    /// What it has in common with others.
    links: BTreeMap<u64, Link>,
    incident: u64,
    explained_by: Option<u64>,
}

impl Member {
    fn met(&mut self, met: &Side) {
        let ends = [met.local, met.remote];
        match &mut self.common {
            None => self.common = Some(ends.to_vec()),
            Some(common) => common.retain(|end| ends.contains(end)),
        }
    }

    /// Whether all that it met has an end in common with what the other met. What is spread over many services says of none of
    /// them that it belongs to another's story.
    fn shares(&self, other: &Self) -> bool {
        let (Some(one), Some(two)) = (&self.common, &other.common) else {
            return false;
        };
        one.iter().any(|end| two.contains(end))
    }

    fn is_over(&self, now: Ktime) -> bool {
        self.said
            .as_ref()
            .is_some_and(|said| said.status == Status::Resolved && now.since(said.at) >= REMEMBERED)
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Incidents {
    connections: Bounded<Pair, Meetings>,
    members: Bounded<u64, Member>,
    /// Members of each incident, by its id.
    groups: BTreeMap<u64, BTreeSet<u64>>,
    listeners: BTreeMap<(u32, SocketAddr), BTreeSet<u64>>,
    /// Those of a process, by namespace and pid.
    processes: BTreeMap<(u32, u32), BTreeSet<u64>>,
}

impl Default for Incidents {
    fn default() -> Self {
        Self {
            connections: Bounded::new(MAX_CONNECTIONS),
            members: Bounded::new(MAX_FINDINGS),
            groups: BTreeMap::new(),
            listeners: BTreeMap::new(),
            processes: BTreeMap::new(),
        }
    }
}

impl Incidents {
    /// Findings and connections that had to make room.
    pub(crate) const fn evicted(&self) -> u64 {
        self.members
            .evicted()
            .saturating_add(self.connections.evicted())
    }

    /// A finding, which may not have been said yet, is also about a connection.
    pub(crate) fn met(&mut self, id: u64, met: &Side) {
        self.member(id).met(met);
        let pair = Pair::of(met);
        if self.connections.touch(&pair).is_none() {
            self.connections.insert(pair, Meetings::default());
        }
        let Some(meetings) = self.connections.get_mut(&pair) else {
            return;
        };
        let others = meetings.others(id, *met).collect::<Vec<_>>();
        meetings.add(id, met);
        for other in others {
            self.link(id, other, Link::Connection);
        }
    }

    /// Completes a finding by its incident, and hands it on, with those that it changes.
    pub(crate) fn pass(&mut self, finding: Finding, out: &mut dyn FnMut(&Finding)) {
        self.pass_all(vec![finding], out);
    }

    /// The same of findings of one moment: each is said once, with what all of them make of its incident.
    pub(crate) fn pass_all(&mut self, findings: Vec<Finding>, out: &mut dyn FnMut(&Finding)) {
        let Some(at) = findings.iter().map(|finding| finding.at).max() else {
            return;
        };
        let mut changed = BTreeSet::new();
        for finding in &findings {
            changed.extend(self.take(finding).into_iter().take(MAX_SAID_AGAIN));
        }
        for mut finding in findings {
            changed.remove(&finding.id);
            self.complete(&mut finding);
            out(&finding);
        }
        for other in changed {
            let open = self
                .members
                .get(&other)
                .and_then(|member| member.said.clone())
                .filter(|said| said.status != Status::Resolved);
            if let Some(mut said) = open {
                said.status = Status::Update;
                said.at = at;
                self.complete(&mut said);
                out(&said);
            }
        }
    }

    /// Joins a finding to what it belongs to; the others whose incident or cause that changes.
    fn take(&mut self, finding: &Finding) -> BTreeSet<u64> {
        let id = finding.id;
        self.forget_old(finding.at);
        self.member(id).said = Some(finding.clone());
        self.link_same_listener(finding);
        self.link_legs(finding);
        let mut changed = self.join(id);
        changed.remove(&id);
        changed
    }

    /// Its member, made the newest. What has to go for it is joined no more.
    fn member(&mut self, id: u64) -> &mut Member {
        if self.members.touch(&id).is_none() {
            let new = Member {
                incident: id,
                ..Member::default()
            };
            if let Some((gone, member)) = self.members.insert(id, new) {
                self.forget(gone, &member);
            }
            self.groups.entry(id).or_default().insert(id);
        }
        self.members
            .get_mut(&id)
            .expect("it was found or inserted above")
    }

    fn forget(&mut self, gone: u64, member: &Member) {
        if let Some(others) = self.groups.get_mut(&member.incident) {
            others.remove(&gone);
            if others.is_empty() {
                self.groups.remove(&member.incident);
            }
        }
        if let Some(Subject::Listener { netns, local }) =
            member.said.as_ref().map(|said| &said.subject)
            && let Some(same) = self.listeners.get_mut(&(*netns, *local))
        {
            same.remove(&gone);
            if same.is_empty() {
                self.listeners.remove(&(*netns, *local));
            }
        }
        if let Some(process) = member.said.as_ref().and_then(process_of)
            && let Some(same) = self.processes.get_mut(&process)
        {
            same.remove(&gone);
            if same.is_empty() {
                self.processes.remove(&process);
            }
        }
        for other in member.links.keys() {
            if let Some(other) = self.members.get_mut(other) {
                other.links.remove(&gone);
            }
        }
    }

    /// Findings that ended long ago explain no more.
    fn forget_old(&mut self, now: Ktime) {
        while let Some((id, member)) = self.members.oldest()
            && member.is_over(now)
        {
            let id = *id;
            if let Some(member) = self.members.remove(&id) {
                self.forget(id, &member);
            }
        }
    }

    fn link(&mut self, one: u64, other: u64, by: Link) {
        for (id, to) in [(one, other), (other, one)] {
            if self.members.get(&to).is_some()
                && let Some(member) = self.members.get_mut(&id)
                && (member.links.len() < MAX_LINKS || member.links.contains_key(&to))
            {
                let known = member.links.entry(to).or_insert(by);
                *known = (*known).max(by);
            }
        }
    }

    /// Findings about one listener are about the same sockets.
    fn link_same_listener(&mut self, finding: &Finding) {
        let Subject::Listener { netns, local } = finding.subject else {
            return;
        };
        let same = self.listeners.entry((netns, local)).or_default();
        same.insert(finding.id);
        let same: Vec<u64> = same.iter().copied().take(MAX_LINKS).collect();
        for other in same {
            if other != finding.id {
                self.link(finding.id, other, Link::Listener);
            }
        }
        self.link_bind_to_any(finding, (netns, local));
    }

    /// SYNs to one address that find nobody, and who was to listen on all addresses.
    fn link_bind_to_any(&mut self, finding: &Finding, (netns, local): (u32, SocketAddr)) {
        if local.ip().is_unspecified() || !explains::finds_nobody(finding) {
            return;
        }
        let any = [
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ];
        let serves = |ip: &IpAddr| ip.is_ipv6() || local.is_ipv4();
        let of_all: Vec<u64> = any
            .into_iter()
            .filter(serves)
            .filter_map(|ip| {
                self.listeners
                    .get(&(netns, SocketAddr::new(ip, local.port())))
            })
            .flatten()
            .copied()
            .filter(|id| {
                let said = self.members.get(id).and_then(|member| member.said.as_ref());
                said.is_some_and(explains::is_bind)
            })
            .take(MAX_LINKS)
            .collect();
        for other in of_all {
            self.link(finding.id, other, Link::Listener);
        }
    }

    /// What a proxy does to its clients while a server fails it: of one server, as of two neither may be the reason.
    fn link_legs(&mut self, finding: &Finding) {
        let Some(process) = process_of(finding) else {
            return;
        };
        let same = self.processes.entry(process).or_default();
        same.insert(finding.id);
        let same: Vec<u64> = same.iter().copied().take(MAX_LINKS).collect();
        let said = |id: u64| {
            self.members
                .get(&id)
                .and_then(|member| member.said.as_ref())
        };
        let servers: BTreeSet<u64> = same
            .iter()
            .filter(|id| said(**id).is_some_and(is_of_server))
            .filter_map(|id| self.members.get(id))
            .map(|member| member.incident)
            .collect();
        if servers.len() != 1 || !same.contains(&finding.id) {
            return;
        }
        let is_leg = |other: &Finding| are_legs(finding, other) || are_legs(other, finding);
        let legs: Vec<u64> = same
            .into_iter()
            .filter(|other| said(*other).is_some_and(is_leg))
            .collect();
        for other in legs {
            self.link(finding.id, other, Link::Process);
        }
    }

    /// Joins a finding with those that it has a connection or a listener in common with, and says which findings have
    /// another incident or cause by that, itself among them.
    fn join(&mut self, id: u64) -> BTreeSet<u64> {
        let mut changed = BTreeSet::new();
        let links = self.members.get(&id).map(|member| member.links.clone());
        for (other, by) in links.into_iter().flatten() {
            let (Some(one), Some(two)) = (self.members.get(&id), self.members.get(&other)) else {
                continue;
            };
            let (Some(said), Some(of_other)) = (&one.said, &two.said) else {
                continue;
            };
            let met = by == Link::Connection && one.shares(two);
            let explains = if met { explains } else { explains_at_listener };
            let causes = [
                (id, other, explains(of_other, said)),
                (other, id, explains(said, of_other)),
            ];
            let is_explained = causes.iter().any(|(.., is_so)| *is_so);
            let is_one = match by {
                Link::Process => true,
                Link::Listener | Link::Connection => {
                    met && is_one_story(said, of_other) || is_one_queue(said, of_other)
                }
            };
            if !is_one && !is_explained {
                continue;
            }
            let incidents = [one.incident, two.incident];
            for (symptom, cause, is_so) in causes {
                if let Some(member) = self.members.get_mut(&symptom)
                    && is_so
                    && member.explained_by.is_none()
                {
                    member.explained_by = Some(cause);
                    changed.insert(symptom);
                }
            }
            self.merge(incidents, &mut changed);
        }
        changed
    }

    /// Makes two incidents one, which has the older's id.
    fn merge(&mut self, [one, other]: [u64; 2], changed: &mut BTreeSet<u64>) {
        let (stays, goes) = (one.min(other), one.max(other));
        if stays == goes {
            return;
        }
        let gone = self.groups.remove(&goes).unwrap_or_default();
        for id in &gone {
            if let Some(member) = self.members.get_mut(id) {
                member.incident = stays;
                changed.insert(*id);
            }
        }
        self.groups.entry(stays).or_default().extend(gone);
    }

    /// Writes into a finding which incident it belongs to, what explains it, and what else belongs there.
    fn complete(&self, finding: &mut Finding) {
        let Some(member) = self.members.get(&finding.id) else {
            return;
        };
        finding.incident = member.incident;
        finding.explained_by = member.explained_by;
        let all = self.groups.get(&member.incident);
        let all = || all.into_iter().flatten().copied();
        let explained = |id: u64| {
            let member = self.members.get(&id);
            member.is_some_and(|member| member.explained_by.is_some())
        };
        finding.related = all()
            .filter(|id| !explained(*id))
            .chain(all().filter(|id| explained(*id)))
            .filter(|id| *id != finding.id)
            .take(MAX_RELATED)
            .collect();
        let cause = member.explained_by.and_then(|id| self.members.get(&id));
        if let Some(cause) = cause.and_then(|cause| cause.said.as_ref()) {
            let pointer = format!(
                "begin with finding {}: {} {} explains this one",
                cause.id,
                cause.kind.name(),
                cause.cause
            );
            if !finding
                .advice
                .iter()
                .any(|advice| advice.starts_with("begin with finding"))
            {
                finding.advice.insert(0, pointer.into());
            }
        }
    }
}

fn process_of(finding: &Finding) -> Option<(u32, u32)> {
    Some((finding.subject.netns()?, finding.owner.as_ref()?.pid))
}
