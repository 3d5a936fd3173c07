//! A finding: what the detectors say and the sinks print.
//!
//! Plain data. Detectors (`crate::detect`) fill it, sinks (`crate::sink`) render it; nothing here
//! knows the kernel or a format beyond serde's names.

use std::{borrow::Cow, net::SocketAddr};

use serde::{Deserialize, Serialize, Serializer};

use crate::{id::SocketId, time::Ktime};

/// What sort of finding it is. Each is declared in the room of its detector ([`crate::detect`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FindingKind {
    /// Among the others, where all are told.
    place: u8,
    name: &'static str,
}

impl FindingKind {
    #[must_use]
    pub const fn new(place: u8, name: &'static str) -> Self {
        Self { place, name }
    }

    /// The word of the output contract, as serde writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }
}

impl Serialize for FindingKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name)
    }
}

/// Where a finding stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Open,
    Update,
    Resolved,
}

impl Status {
    /// The word of the output contract, as serde writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Update => "update",
            Self::Resolved => "resolved",
        }
    }
}

/// Whether every hook the finding stands on saw everything, or something was concluded from fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    Exact,
    Inferred,
}

/// How bad it is for those who use this host, the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Clients fail now.
    Critical,
    /// They will, or some do.
    Warning,
    /// Worth knowing.
    Notice,
}

impl Severity {
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Notice => "notice",
        }
    }
}

/// A process as the eBPF side last learned it; DESIGN.md's owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    pub pid: u32,
    /// As the process set it: any characters. Sinks escape it.
    pub comm: String,
    pub uid: u32,
    pub cgroup_id: u64,
    /// `connect`, `accept`, `listener`, `seeded`, `passed`, `forked`.
    pub source: Cow<'static, str>,
    /// With the pid an identity; only its names are told.
    #[serde(skip)]
    pub started_ms: u32,
    #[serde(flatten)]
    pub names: Names,
}

/// What an owner is called beyond its pid and comm; what is not known is `None`. Any characters: sinks
/// escape them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Names {
    /// RFC 3339, UTC.
    pub started: Option<String>,
    /// A path that was too long begins with `…`, here and below.
    pub executable: Option<String>,
    /// Path of the control group.
    pub cgroup: Option<String>,
    pub container: Option<Container>,
    /// The innermost systemd unit.
    pub unit: Option<String>,
    /// The network namespace's, as `ip netns` has it.
    pub netns_name: Option<String>,
}

/// A container as its runtime names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Container {
    pub runtime: Cow<'static, str>,
    pub id: String,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "scope", rename_all = "snake_case")]
pub enum Subject {
    Listener {
        netns: u32,
        local: SocketAddr,
    },
    Connection {
        netns: u32,
        local: SocketAddr,
        remote: SocketAddr,
        id: u64,
        born: Ktime,
    },
    Remote {
        netns: u32,
        remote: std::net::IpAddr,
    },
    /// One remote end, with its port; port 0 stands for all ports.
    Peer {
        netns: u32,
        remote: SocketAddr,
    },
    /// A network of remotes.
    Prefix {
        netns: u32,
        prefix: std::net::IpAddr,
        length: u8,
    },
    Process {
        netns: u32,
        pid: u32,
        comm: String,
    },
    Netns {
        netns: u32,
    },
    Host,
}

impl Subject {
    /// The namespace it is in; none for the whole host.
    #[must_use]
    pub const fn netns(&self) -> Option<u32> {
        match self {
            Self::Listener { netns, .. }
            | Self::Connection { netns, .. }
            | Self::Remote { netns, .. }
            | Self::Peer { netns, .. }
            | Self::Prefix { netns, .. }
            | Self::Process { netns, .. }
            | Self::Netns { netns } => Some(*netns),
            Self::Host => None,
        }
    }
}

/// One number (or word) that proves the cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Stable key in snake_case, unit as a suffix where it has one (`_ms`, `_bytes`, `_segments`).
    pub name: Cow<'static, str>,
    pub value: Value,
}

/// The value of an [`Evidence`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Count(u64),
    Number(f64),
    Text(Cow<'static, str>),
}

/// A diagnosis with a cause, evidence, an owner and advice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// Stable from open to resolved; unique within one run.
    pub id: u64,
    pub kind: FindingKind,
    /// `accept_queue_full`, `dead_peer`, `path_loss`, …: the words of DESIGN.md section 4.
    pub cause: Cow<'static, str>,
    pub status: Status,
    pub severity: Severity,
    /// The incident that it belongs to: the id of the oldest finding in it, which is its own where it stands alone.
    pub incident: u64,
    /// The finding whose cause explains this one.
    pub explained_by: Option<u64>,
    /// Other findings of its incident, those that nothing explains first.
    pub related: Vec<u64>,
    /// A cause's own stage, where it has one: `suspected`, `confirmed`, `recovered`; for storms
    /// `onset`, `peak`, `end`.
    pub stage: Option<Cow<'static, str>>,
    pub certainty: Certainty,
    /// Why `inferred`, in one clause; `None` when exact.
    pub because: Option<Cow<'static, str>>,
    pub subject: Subject,
    pub owner: Option<Owner>,
    /// Of a socket that several processes hold: the first of them, the owner among them. Of the sockets of a
    /// process: of their sample.
    pub owners: Vec<Owner>,
    /// Processes that hold the socket; `None` where nobody looked, or it is about more than one socket.
    pub holders: Option<u32>,
    /// Of the sockets of a process, the one whose holders are told: the oldest.
    #[serde(skip)]
    pub sample: Option<SocketId>,
    /// First and last event behind it, and when this status was reached.
    pub since: Ktime,
    pub last: Ktime,
    pub at: Ktime,
    /// Events behind it: dropped SYNs, requests or timeouts, retransmitted segments.
    pub count: u64,
    /// One sentence, no trailing period, for a person.
    pub summary: String,
    pub evidence: Vec<Evidence>,
    /// What to change, one clause each.
    pub advice: Vec<Cow<'static, str>>,
}
