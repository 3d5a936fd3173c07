//! `conntracer now`: what is wrong at this moment, from the lines of a short run.
//!
//! No diagnosis of its own: findings are those of the run, as they stood at its end. Besides, sockets that were there at the
//! start are counted, and what they show to be nearly used up.

mod stores;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use self::stores::Ports;
pub use self::stores::{Conntrack, PortRange};
use crate::{
    detect::Thresholds,
    event::{Body, Role, Seed, TcpState},
    finding::{Finding, Status},
    plan::Coverage,
    sink::{
        Line,
        line::SharedHost,
        moment::{Filling, Moment},
    },
    time::Ktime,
};

/// Accept queues and stores that are told of one by one.
const MAX_TOLD: usize = 20;

/// The thresholds of a run that lasts for a moment: who does not read for a second may not read for longer.
#[must_use]
pub fn thresholds(mut thresholds: Thresholds) -> Thresholds {
    thresholds.receive_stall.at_a_look();
    thresholds
}

/// Folds the lines of the run.
#[derive(Debug)]
pub struct Now {
    host: SharedHost,
    findings: BTreeMap<u64, Finding>,
    namespaces: BTreeSet<u32>,
    listeners: u64,
    connections: u64,
    filling: Vec<Filling>,
    ports: Ports,
}

impl Now {
    #[must_use]
    pub fn new(host: SharedHost) -> Self {
        Self {
            ports: Ports::of(PortRange::of(&host)),
            host,
            findings: BTreeMap::new(),
            namespaces: BTreeSet::new(),
            listeners: 0,
            connections: 0,
            filling: Vec::new(),
        }
    }

    /// Takes one line.
    pub fn add(&mut self, line: Line) {
        match line {
            Line::Finding(finding) => {
                self.findings.insert(finding.id, *finding);
            }
            Line::Event(event) => {
                if let Body::Seed(seed) = event.body {
                    self.seed(&seed);
                }
            }
            _ => {}
        }
    }

    fn seed(&mut self, seed: &Seed) {
        let socket = &seed.socket;
        self.namespaces.insert(socket.netns);
        match socket.state {
            TcpState::Listen => {
                self.listeners = self.listeners.saturating_add(1);
                self.listener(seed);
            }
            // A request is no connection yet.
            TcpState::NewSynRecv => {}
            _ => {
                self.connections = self.connections.saturating_add(1);
                if socket.role != Role::Passive && self.host.netns == Some(socket.netns) {
                    self.ports.add(socket.local, socket.remote);
                }
            }
        }
    }

    fn listener(&mut self, seed: &Seed) {
        let (waiting, most) = (seed.ack_backlog, seed.max_ack_backlog.saturating_add(1));
        if waiting < 2 || waiting.saturating_mul(2) < most {
            return;
        }
        self.filling.push(Filling {
            netns: seed.socket.netns,
            local: seed.socket.local,
            waiting,
            most,
            pid: seed.owner.map(|owner| owner.pid),
            comm: seed.owner.map(|owner| owner.comm.to_text().into_owned()),
        });
    }

    /// The lines to print: what it comes to, and the findings, the worst incident first and in each the cause first.
    #[must_use]
    pub fn lines(self, at: Ktime, watched: Duration, conntrack: Option<Conntrack>) -> Vec<Line> {
        let mut findings: Vec<Finding> = self.findings.into_values().collect();
        let mut worst = BTreeMap::new();
        for finding in &mut findings {
            let incident = worst.entry(finding.incident).or_insert(finding.severity);
            *incident = finding.severity.min(*incident);
            // It is said for the first time.
            if finding.status == Status::Update {
                finding.status = Status::Open;
            }
        }
        findings.sort_by_key(|finding| {
            (
                worst.get(&finding.incident).copied(),
                finding.incident,
                finding.explained_by.is_some(),
                finding.id,
            )
        });
        let mut filling = self.filling;
        filling.sort_by_key(|one| {
            std::cmp::Reverse(u64::from(one.waiting) * 1000 / u64::from(one.most))
        });
        let mut tight = self.ports.tight(self.host.netns.unwrap_or_default());
        tight.extend(conntrack.and_then(|conntrack| conntrack.tight(&self.host)));
        tight.sort_by_key(|one| (one.what, std::cmp::Reverse(one.used)));
        let detectors = self.host.plan.detectors.iter();
        let moment = Moment {
            namespaces: self.namespaces.len() as u64,
            listeners: self.listeners,
            connections: self.connections,
            watched_s: watched.as_secs_f64(),
            findings: findings.len() as u64,
            incidents: worst.len() as u64,
            filling_left_out: filling.len().saturating_sub(MAX_TOLD) as u64,
            filling: filling.into_iter().take(MAX_TOLD).collect(),
            tight_left_out: tight.len().saturating_sub(MAX_TOLD) as u64,
            tight: tight.into_iter().take(MAX_TOLD).collect(),
            not_exact: detectors
                .filter(|detector| detector.coverage != Coverage::Exact)
                .map(|detector| detector.detector.clone())
                .collect(),
        };
        let moment = Line::Now {
            time: at,
            moment: Box::new(moment),
        };
        let findings = findings.into_iter().map(|one| Line::Finding(Box::new(one)));
        std::iter::once(moment).chain(findings).collect()
    }
}
