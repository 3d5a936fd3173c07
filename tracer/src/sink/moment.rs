//! What one look at a host comes to, besides its findings.

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Moment {
    /// How much was looked at.
    pub namespaces: u64,
    pub listeners: u64,
    pub connections: u64,
    /// For how long events were listened to, seconds.
    pub watched_s: f64,
    /// The findings, whose lines follow, and the incidents that they belong to.
    pub findings: u64,
    pub incidents: u64,
    /// Accept queues that were at least half full when they were looked at, the fullest first; and how many more.
    pub filling: Vec<Filling>,
    pub filling_left_out: u64,
    /// What is nearly used up; and how much more.
    pub tight: Vec<Tight>,
    pub tight_left_out: u64,
    /// Detectors that do not see everything here.
    pub not_exact: Vec<String>,
}

impl Moment {
    #[must_use]
    pub const fn is_well(&self) -> bool {
        self.findings == 0 && self.tight.is_empty()
    }
}

/// An accept queue at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filling {
    pub netns: u32,
    pub local: SocketAddr,
    pub waiting: u32,
    /// The most that it takes (`sk_acceptq_is_full`).
    pub most: u32,
    pub pid: Option<u32>,
    pub comm: Option<String>,
}

/// A table or range that is nearly used up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tight {
    pub what: Store,
    pub netns: u32,
    pub used: u64,
    pub limit: u64,
    /// Of ports: from where to where they are used.
    pub local: Option<IpAddr>,
    pub remote: Option<SocketAddr>,
}

/// What can be used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    Conntrack,
    LocalPorts,
}
