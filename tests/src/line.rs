//! The lines conntracer prints, as its output contract has them.
//!
//! Types of their own and not conntracer's, with unknown fields refused: a change of the output that
//! nobody meant shows up here.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::schema;

/// The version of the contract these types are of.
const SCHEMA: u64 = 1;

/// One line.
#[derive(Clone)]
pub enum Line {
    Start(Start),
    Finding(Box<Finding>),
    Gap(Gap),
    SinkGap(SinkGap),
    /// The `stats` line that answers SIGUSR1.
    Checkpoint(Box<Totals>),
    Stop(Totals),
    /// A kind that only `--emit` brings: its name and everything in it, the time included.
    Event(String, Value),
}

impl fmt::Debug for Line {
    /// On one line, as it came.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(start) => write!(f, "{start:?}"),
            Self::Finding(finding) => write!(f, "{finding:?}"),
            Self::Gap(gap) => write!(f, "{gap:?}"),
            Self::Checkpoint(totals) => write!(f, "{totals:?}"),
            Self::Stop(totals) => write!(f, "{totals:?}"),
            Self::SinkGap(gap) => write!(f, "{gap:?}"),
            Self::Event(kind, event) => write!(f, "{kind} {event}"),
        }
    }
}

impl Line {
    /// Reads one line without its newline.
    pub fn parse(text: &str) -> Result<Self> {
        parse(text).with_context(|| format!("not a line of the output contract: {text}"))
    }
}

fn parse(text: &str) -> Result<Line> {
    let mut value: Value = serde_json::from_str(text)?;
    schema::hold(&value)?;
    let fields = value.as_object_mut().context("not an object")?;
    let schema = fields.remove("schema").context("no schema")?;
    ensure!(schema == SCHEMA, "schema {schema}");
    let time = fields.remove("time").context("no time")?;
    ensure!(
        time.as_str().is_some_and(|time| time.ends_with('Z')),
        "time {time}"
    );
    let Some(Value::String(kind)) = fields.remove("kind") else {
        anyhow::bail!("no kind");
    };
    Ok(match kind.as_str() {
        "start" => Line::Start(Start {
            time: time.as_str().unwrap_or_default().to_owned(),
            ..read(value)?
        }),
        "finding" => Line::Finding(Box::new(read(value)?)),
        "gap" if value.get("sink").is_some() => Line::SinkGap(read(value)?),
        "gap" => Line::Gap(read(value)?),
        "stop" => Line::Stop(read(value)?),
        "stats" if value["reason"] == "signal" => Line::Checkpoint(read(value)?),
        _ => {
            value["time"] = time;
            Line::Event(kind, value)
        }
    })
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

/// Hooks are attached.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Of the line itself.
    #[serde(skip)]
    pub time: String,
    pub version: String,
    pub host: Host,
    pub plan: Plan,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub hostname: String,
    pub kernel: String,
    pub arch: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub mode: String,
    pub transport: String,
    pub hooks: Vec<Hook>,
    pub detectors: Vec<Detector>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    pub hook: String,
    pub hook_type: String,
    pub attached: Vec<String>,
    pub refused: Vec<EarlyDrop>,
    pub blind_to: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EarlyDrop {
    pub hook_type: String,
    pub reason: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detector {
    pub detector: String,
    pub coverage: Coverage,
    pub because: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    Exact,
    Degraded,
    Off,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    pub id: u64,
    pub finding: String,
    pub cause: String,
    pub status: Status,
    pub severity: Severity,
    pub incident: u64,
    pub explained_by: Option<u64>,
    pub related: Vec<u64>,
    pub stage: Option<String>,
    pub certainty: Certainty,
    pub because: Option<String>,
    pub subject: Subject,
    pub owner: Option<Owner>,
    pub owners: Vec<Owner>,
    pub holders: Option<u32>,
    pub since: String,
    pub last: String,
    pub count: u64,
    pub summary: String,
    pub evidence: BTreeMap<String, Value>,
    pub advice: Vec<String>,
}

impl Finding {
    /// Its cause; where that is what this host drops, what it would be without: tests make the path and the peer out of
    /// namespaces and rules of this very host.
    #[must_use]
    pub fn symptom(&self) -> &str {
        if self.drops_here() {
            self.evidence
                .get("symptom")
                .and_then(Value::as_str)
                .unwrap_or(&self.cause)
        } else {
            &self.cause
        }
    }

    /// Whether its cause is what this host drops.
    #[must_use]
    pub fn drops_here(&self) -> bool {
        self.cause == "dropped_here"
    }

    /// A number among the evidence; panics where there is none, as a test wants it.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.evidence
            .get(name)
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("no number {name:?} in {self:#?}"))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Critical,
    Warning,
    Notice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Open,
    Update,
    Resolved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Certainty {
    Exact,
    Inferred,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "scope", rename_all = "snake_case", deny_unknown_fields)]
pub enum Subject {
    Listener {
        netns: u32,
        local: SocketAddr,
    },
    Connection {
        netns: u32,
        local: SocketAddr,
        remote: SocketAddr,
        /// Kernel address, in hexadecimal.
        socket: String,
        born_ktime_ns: u64,
    },
    Remote {
        netns: u32,
        remote: IpAddr,
    },
    Peer {
        netns: u32,
        remote: SocketAddr,
    },
    Prefix {
        netns: u32,
        prefix: IpAddr,
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
    pub fn netns(&self) -> Option<u32> {
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

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    pub pid: u32,
    pub comm: String,
    pub uid: u32,
    pub cgroup_id: u64,
    pub source: String,
    pub started: Option<String>,
    pub executable: Option<PathBuf>,
    pub cgroup: Option<String>,
    pub container: Option<Container>,
    pub unit: Option<String>,
    pub netns_name: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    pub runtime: String,
    pub id: String,
}

/// Records that were lost.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    pub hook: String,
    pub lost: u64,
}

/// Lines that this output had no room for.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SinkGap {
    pub sink: String,
    pub since: String,
    pub lost: u64,
    pub kinds: BTreeMap<String, u64>,
    pub said_again: u64,
    pub cause: String,
    pub advice: Vec<String>,
}

/// The accounts: of the last line, or of a checkpoint.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    pub reason: String,
    pub hooks: BTreeMap<String, Account>,
    pub findings: BTreeMap<String, u64>,
    pub tallies: BTreeMap<String, u64>,
    pub reconciliation: Reconciliation,
    /// Not at the end.
    pub listeners: Option<Value>,
    pub listeners_left_out: Option<u64>,
    /// Where there are several.
    pub sinks: Option<Value>,
    /// Which checkpoint it answers, the first being 1; whoever reads the lines counts.
    #[serde(skip)]
    pub checkpoint: u64,
    /// How far a second witness is ahead of what was seen, hook by hook: when the question was sent, and when the answer
    /// was read. Both began to count at another time, so only its growth means something.
    #[serde(skip)]
    pub ahead: BTreeMap<&'static str, [i64; 2]>,
}

impl Totals {
    /// Hooks whose events are not all accounted for.
    #[must_use]
    pub fn unbalanced(&self) -> Vec<(&str, Account)> {
        self.hooks
            .iter()
            .filter(|(_, account)| !account.balances())
            .map(|(hook, account)| (hook.as_str(), *account))
            .collect()
    }

    /// The counters of one namespace, where either side counted anything.
    #[must_use]
    pub fn reconciled(&self, inode: u32) -> Option<&Reconciled> {
        let mut namespaces = self.reconciliation.namespaces.iter();
        namespaces.find(|reconciled| reconciled.netns == inode)
    }
}

/// The kernel's own counters against conntracer's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconciliation {
    pub compared: u64,
    pub namespaces: Vec<Reconciled>,
    pub namespaces_left_out: u64,
    pub sums: BTreeMap<String, Figures>,
    pub not_reconciled: BTreeMap<String, String>,
}

/// One network namespace.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reconciled {
    pub netns: u32,
    pub since_birth: bool,
    pub counters: BTreeMap<String, Figures>,
}

/// One counter of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figures {
    pub kernel: u64,
    pub counted: u64,
    pub residue: i64,
    pub because: Option<String>,
}

/// What became of the events of one hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    pub seen: u64,
    pub emitted: u64,
    pub aggregated: u64,
    pub filtered: u64,
    pub lost: u64,
}

impl Account {
    /// Whether every event is accounted for.
    #[must_use]
    pub fn balances(&self) -> bool {
        self.seen == self.emitted + self.aggregated + self.filtered + self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_an_error() {
        let line = r#"{"schema":1,"time":"2026-01-01T00:00:00.000000000Z","kind":"gap","hook":"syn","lost":1"#;
        assert!(matches!(
            Line::parse(&format!("{line}}}")).unwrap(),
            Line::Gap(_)
        ));
        assert!(Line::parse(&format!(r#"{line},"more":2}}"#)).is_err());
    }

    #[test]
    fn another_schema_is_an_error() {
        let line = r#"{"schema":2,"time":"2026-01-01T00:00:00.000000000Z","kind":"gap","hook":"syn","lost":1}"#;
        assert!(Line::parse(line).is_err());
    }

    #[test]
    fn an_account_that_loses_an_event_does_not_balance() {
        let account = Account {
            seen: 4,
            emitted: 1,
            aggregated: 1,
            filtered: 1,
            lost: 1,
        };
        assert!(account.balances());
        assert!(!Account { seen: 5, ..account }.balances());
    }
}
