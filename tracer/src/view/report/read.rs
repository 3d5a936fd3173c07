//! The lines that a report is made of, as far as it reads them. A line may be anybody's: what does not fit is no line.

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::finding::{Severity, Status};

/// What every line has.
#[derive(Debug, Deserialize)]
pub(super) struct Envelope {
    pub(super) schema: u64,
    pub(super) time: Timestamp,
    pub(super) kind: String,
    #[serde(flatten)]
    pub(super) body: Map<String, Value>,
}

/// A word on one finding.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct FindingLine {
    pub(super) id: u64,
    pub(super) finding: String,
    pub(super) cause: String,
    pub(super) status: Status,
    /// Not in the lines of an earlier conntracer, as all that has a default.
    #[serde(default)]
    pub(super) severity: Option<Severity>,
    #[serde(default)]
    pub(super) incident: Option<u64>,
    #[serde(default)]
    pub(super) explained_by: Option<u64>,
    #[serde(default)]
    pub(super) stage: Option<String>,
    #[serde(default)]
    pub(super) because: Option<String>,
    #[serde(default)]
    pub(super) subject: Value,
    #[serde(default)]
    pub(super) owner: Option<OwnerLine>,
    pub(super) since: Timestamp,
    pub(super) last: Timestamp,
    pub(super) count: u64,
    pub(super) summary: String,
    #[serde(default)]
    pub(super) evidence: Map<String, Value>,
    #[serde(default)]
    pub(super) advice: Vec<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct OwnerLine {
    pub(super) pid: u64,
    pub(super) comm: String,
    #[serde(default)]
    pub(super) unit: Option<String>,
}

impl FindingLine {
    /// Where it is, in a few words.
    pub(super) fn place(&self) -> String {
        let field = |name: &str| match self.subject.get(name) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        let ends = match (field("local"), field("remote")) {
            (Some(local), Some(remote)) => format!("{local} → {remote}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => field("prefix").unwrap_or_default(),
        };
        let scope = field("scope").unwrap_or_default();
        let netns = field("netns").map_or_else(String::new, |netns| format!(" netns {netns}"));
        let ends = if ends.is_empty() {
            ends
        } else {
            format!(" {ends}")
        };
        format!("{scope}{ends}{netns}")
    }

    /// The remote address that it is about, without a port.
    pub(super) fn peer(&self) -> Option<String> {
        let remote = self.subject.get("remote")?.as_str()?;
        let socket = remote.parse::<std::net::SocketAddr>();
        Some(socket.map_or_else(|_| remote.to_owned(), |socket| socket.ip().to_string()))
    }

    pub(super) fn process(&self) -> Option<String> {
        let owner = self.owner.as_ref()?;
        let unit = owner
            .unit
            .as_ref()
            .map_or_else(String::new, |unit| format!(" ({unit})"));
        Some(format!("{}[{}]{unit}", owner.comm, owner.pid))
    }
}
