//! conntracer's own JSON lines, read back: of each kind what an outlet needs of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

/// One line.
#[derive(Debug)]
pub(super) enum Incoming {
    Start(Start),
    Finding(Finding),
    Stats(Box<Stats>),
    /// Of no interest here.
    Other,
}

#[derive(Debug, Deserialize)]
pub(super) struct Start {
    pub(super) version: String,
    pub(super) host: Host,
    pub(super) plan: Plan,
}

#[derive(Debug, Deserialize)]
pub(super) struct Host {
    pub(super) kernel: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Plan {
    pub(super) hooks: Vec<HookPlan>,
}

#[derive(Debug, Deserialize)]
pub(super) struct HookPlan {
    pub(super) hook: String,
    pub(super) hook_type: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Finding {
    pub(super) id: u64,
    #[serde(rename = "finding")]
    pub(super) name: String,
    pub(super) cause: String,
    pub(super) status: String,
    pub(super) incident: u64,
    pub(super) count: u64,
    #[serde(default)]
    pub(super) severity: String,
    #[serde(default)]
    pub(super) summary: String,
    #[serde(default)]
    pub(super) subject: Map<String, Value>,
    #[serde(default)]
    pub(super) owner: Option<Owner>,
}

/// Of `stats` and of `stop`.
#[derive(Debug, Deserialize)]
pub(super) struct Stats {
    pub(super) hooks: BTreeMap<String, Account>,
    pub(super) tallies: BTreeMap<String, u64>,
    pub(super) reconciliation: Reconciliation,
    #[serde(default)]
    pub(super) listeners: Vec<Listener>,
    #[serde(default)]
    pub(super) listeners_left_out: u64,
    #[serde(default)]
    pub(super) sinks: Vec<Sink>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Account {
    pub(super) seen: u64,
    pub(super) emitted: u64,
    pub(super) lost: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reconciliation {
    pub(super) sums: BTreeMap<String, Reconciled>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reconciled {
    pub(super) kernel: u64,
    pub(super) residue: i64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Listener {
    pub(super) local: String,
    pub(super) netns: u32,
    pub(super) owner: Option<Owner>,
    pub(super) ack_backlog: u32,
    pub(super) peak_ack_backlog: u32,
    pub(super) max_ack_backlog: u32,
    pub(super) syn_added: u64,
    pub(super) syn_cookies_sent: u64,
    pub(super) syn_drops: u64,
    pub(super) accepts_per_s: Option<f64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Owner {
    pub(super) pid: u64,
    pub(super) comm: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Sink {
    #[serde(rename = "sink")]
    pub(super) name: String,
    pub(super) events_lost: u64,
    pub(super) lines_lost: u64,
}

/// One line with its time, for whom every line is a message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) time: Timestamp,
    pub(super) kind: String,
    pub(super) of: Incoming,
    pub(super) whole: String,
}

#[derive(Deserialize)]
struct Kind<'a> {
    kind: &'a str,
}

#[derive(Deserialize)]
struct Envelope {
    time: Timestamp,
    kind: String,
}

impl Message {
    pub(super) fn parse(line: &str) -> serde_json::Result<Self> {
        let Envelope { time, kind } = serde_json::from_str(line)?;
        Ok(Self {
            time,
            of: Incoming::of(&kind, line)?,
            kind,
            whole: line.to_owned(),
        })
    }
}

impl Incoming {
    pub(super) fn parse(line: &str) -> serde_json::Result<Self> {
        let Kind { kind } = serde_json::from_str(line)?;
        Self::of(kind, line)
    }

    fn of(kind: &str, line: &str) -> serde_json::Result<Self> {
        Ok(match kind {
            "start" => Self::Start(serde_json::from_str(line)?),
            "finding" => Self::Finding(serde_json::from_str(line)?),
            "stats" | "stop" => Self::Stats(serde_json::from_str(line)?),
            _ => Self::Other,
        })
    }
}
