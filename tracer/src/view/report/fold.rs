//! What a run has said: its lines, folded.

use std::collections::{BTreeMap, HashMap};

use foldhash::quality::RandomState;
use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{
    read::{Envelope, FindingLine},
    series::{Series, Step},
};
use crate::{
    count::Grow,
    finding::{Severity, Status},
};

/// Findings remembered: 65,536 take about 60 MB, and a report of more helps nobody.
const MAX_FINDINGS: usize = 65_536;
/// Of those, the ones whose evidence, advice and course are kept.
const MAX_DETAILED: usize = 2_000;
/// Changes of one finding that are kept: the first half of them and the last.
const MAX_CHANGES: usize = 24;
/// Accept queues over time, and sockets whose segments are counted.
const MAX_QUEUES: usize = 64;
const MAX_SOCKETS: usize = 65_536;

/// What a run has said.
#[derive(Debug, Default)]
pub struct Report {
    pub(super) lines: u64,
    /// `start` lines: output is appended to its file, run after run.
    pub(super) runs: u64,
    pub(super) foreign: u64,
    pub(super) forgotten: u64,
    pub(super) host: Option<String>,
    pub(super) span: Option<(Timestamp, Timestamp)>,
    /// When each run was last heard of, but for the last one.
    pub(super) run_ends: BTreeMap<u64, Timestamp>,
    pub(super) kinds: BTreeMap<String, u64>,
    pub(super) lost: BTreeMap<String, u64>,
    pub(super) findings: BTreeMap<FindingKey, Found>,
    /// By network namespace and address.
    pub(super) queues: BTreeMap<QueueKey, Series<Queue>>,
    pub(super) queues_left_out: u64,
    pub(super) segments: Series<Segments>,
    /// Segments that a socket had sent at its last line.
    pub(super) sent: HashMap<String, u64, RandomState>,
    /// How connections ended, as their own lines say it.
    pub(super) ends: BTreeMap<&'static str, u64>,
}

/// Which finding: ids begin anew in each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FindingKey {
    /// As [`Report::runs`] counts; 0 where the file begins in the middle of a run.
    pub(super) run: u64,
    pub(super) id: u64,
}

/// A finding, by its last line, and how it came to that.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) latest: FindingLine,
    /// Without evidence and advice.
    pub(super) is_brief: bool,
    pub(super) changes: Vec<Change>,
    pub(super) changes_left_out: u64,
}

/// One line of a finding.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) at: Timestamp,
    pub(super) status: Status,
    pub(super) cause: String,
    pub(super) stage: Option<String>,
    pub(super) count: u64,
}

/// The network namespace and the address of a listener.
pub(super) type QueueKey = (u64, String);

/// The length of an accept queue within a step, and its limit.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    pub(super) longest: u64,
    pub(super) limit: u64,
}

impl Step for Queue {
    fn join(&mut self, later: &Self) {
        self.longest = self.longest.max(later.longest);
        self.limit = later.limit;
    }
}

/// Segments retransmitted, and sent, within a step.
#[derive(Clone, Debug, Default)]
pub(super) struct Segments {
    pub(super) again: u64,
    pub(super) sent: u64,
}

impl Step for Segments {
    fn join(&mut self, later: &Self) {
        self.again = self.again.saturating_add(later.again);
        self.sent = self.sent.saturating_add(later.sent);
    }
}

impl Report {
    /// Folds in one line.
    pub fn add(&mut self, line: &[u8]) {
        match serde_json::from_slice::<Envelope>(line) {
            Ok(envelope) if envelope.schema == 1 => self.take(envelope),
            _ => self.foreign.grow(1),
        }
    }

    /// Lines of conntracer's.
    #[must_use]
    pub const fn lines(&self) -> u64 {
        self.lines
    }

    fn take(&mut self, envelope: Envelope) {
        let Envelope {
            time, kind, body, ..
        } = envelope;
        self.lines.grow(1);
        match kind.as_str() {
            "start" => {
                if let Some((_, last)) = self.span
                    && self.run_ends.len() < MAX_DETAILED
                {
                    self.run_ends.insert(self.runs, last);
                }
                self.runs.grow(1);
                self.host = body.get("host").and_then(host_name);
            }
            "gap" => {
                let hook = text_of(&body, "hook").unwrap_or("unknown");
                let lost = number_of(&body, "lost").unwrap_or(0);
                let sum = self.lost.entry(hook.to_owned()).or_default();
                *sum = sum.saturating_add(lost);
            }
            "finding" => match serde_json::from_value::<FindingLine>(Value::Object(body)) {
                Ok(finding) => self.keep(time, finding),
                Err(_) => self.foreign.grow(1),
            },
            "stats" => {
                for listener in body
                    .get("listeners")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    let Value::Object(listener) = listener else {
                        continue;
                    };
                    let local = text_of(listener, "local").map(str::to_owned);
                    if let Some(queue) = queue_in((listener, local), listener, "ack_backlog") {
                        self.queue(time, queue);
                    }
                }
            }
            "syn" | "seed" => {
                if let Some(queue) = queue_in((&body, local_end(&body)), &body, "ack_backlog") {
                    self.queue(time, queue);
                }
            }
            "retransmit" => self.retransmit(time, &body),
            "connection" => self.ends.entry(end_of(&body)).or_default().grow(1),
            _ => {}
        }
        self.kinds.entry(kind).or_default().grow(1);
        let (first, last) = self.span.unwrap_or((time, time));
        self.span = Some((first.min(time), last.max(time)));
    }

    fn keep(&mut self, at: Timestamp, mut finding: FindingLine) {
        let key = FindingKey {
            run: self.runs,
            id: finding.id,
        };
        let change = Change {
            at,
            status: finding.status,
            cause: finding.cause.clone(),
            stage: finding.stage.clone(),
            count: finding.count,
        };
        if let Some(queue) = queue_of(&finding) {
            self.queue(at, queue);
        }
        let known = self.findings.len();
        let found = self.findings.get_mut(&key);
        let is_brief = found
            .as_ref()
            .map_or(known >= MAX_DETAILED, |found| found.is_brief);
        if is_brief {
            finding.evidence = Map::new();
            finding.advice = Vec::new();
        }
        if let Some(found) = found {
            found.latest = finding;
            found.add(change);
        } else if known < MAX_FINDINGS {
            let found = Found {
                latest: finding,
                is_brief,
                changes: vec![change],
                changes_left_out: 0,
            };
            self.findings.insert(key, found);
        } else {
            self.forgotten.grow(1);
        }
    }

    fn queue(&mut self, at: Timestamp, (key, queue): (QueueKey, Queue)) {
        if self.queues.len() >= MAX_QUEUES && !self.queues.contains_key(&key) {
            self.queues_left_out.grow(1);
            return;
        }
        let series = self.queues.entry(key).or_default();
        series.at(at.as_nanosecond()).join(&queue);
    }

    fn retransmit(&mut self, at: Timestamp, body: &Map<String, Value>) {
        let step = self.segments.at(at.as_nanosecond());
        let again = number_of(body, "segments").unwrap_or(1);
        step.again = step.again.saturating_add(again);
        let (Some(sent), Some(socket)) =
            (number_of(body, "data_segs_out"), text_of(body, "socket"))
        else {
            return;
        };
        let born = number_of(body, "born_ktime_ns").unwrap_or(0);
        let key = format!("{socket} {born}");
        if let Some(known) = self.sent.get_mut(&key) {
            step.sent = step.sent.saturating_add(sent.saturating_sub(*known));
            *known = sent;
        } else if self.sent.len() < MAX_SOCKETS {
            // What it sent before its first retransmission was sent nobody knows when.
            self.sent.insert(key, sent);
        }
    }

    /// When a run ended, nanoseconds since the epoch: where it is not known, when all did.
    pub(super) fn end_of_run(&self, key: FindingKey, all_ns: i128) -> i128 {
        let end = self.run_ends.get(&key.run);
        end.map_or(all_ns, |end| end.as_nanosecond())
    }

    /// As people tell a finding: with its run, where there are several.
    pub(super) fn number(&self, key: FindingKey) -> String {
        if self.runs > 1 {
            format!("{}.{}", key.run, key.id)
        } else {
            key.id.to_string()
        }
    }

    /// Findings by incident, the worst first, and in each the cause before what it explains.
    pub(super) fn incidents(&self) -> Vec<Incident<'_>> {
        let mut incidents = BTreeMap::<FindingKey, Incident<'_>>::new();
        for (key, found) in &self.findings {
            let id = FindingKey {
                run: key.run,
                id: found.latest.incident.unwrap_or(key.id),
            };
            let severity = found.latest.severity.unwrap_or(Severity::Warning);
            let incident = incidents.entry(id).or_insert_with(|| Incident {
                key: id,
                severity,
                findings: Vec::new(),
            });
            incident.severity = incident.severity.min(severity);
            incident.findings.push((*key, found));
        }
        let mut incidents: Vec<Incident<'_>> = incidents.into_values().collect();
        for incident in &mut incidents {
            incident
                .findings
                .sort_by_key(|(key, found)| (found.latest.explained_by.is_some(), *key));
        }
        incidents.sort_by_key(|incident| (incident.severity, incident.is_over(), incident.key));
        incidents
    }
}

/// Findings that belong together.
pub(super) struct Incident<'a> {
    pub(super) key: FindingKey,
    pub(super) severity: Severity,
    pub(super) findings: Vec<(FindingKey, &'a Found)>,
}

impl Incident<'_> {
    pub(super) fn is_over(&self) -> bool {
        self.findings
            .iter()
            .all(|(_, found)| found.latest.status == Status::Resolved)
    }
}

impl Found {
    fn add(&mut self, change: Change) {
        if self.changes.len() >= MAX_CHANGES {
            self.changes.remove(MAX_CHANGES / 2);
            self.changes_left_out.grow(1);
        }
        self.changes.push(change);
    }
}

fn text_of<'a>(body: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    body.get(name)?.as_str()
}

fn number_of(body: &Map<String, Value>, name: &str) -> Option<u64> {
    body.get(name)?.as_u64()
}

/// An accept queue: whose it is, and its figures, the length under a name of its own.
fn queue_in(
    (place, local): (&Map<String, Value>, Option<String>),
    figures: &Map<String, Value>,
    length: &str,
) -> Option<(QueueKey, Queue)> {
    let queue = Queue {
        longest: number_of(figures, length)?,
        // It takes one more (`sk_acceptq_is_full`).
        limit: number_of(figures, "max_ack_backlog")?.saturating_add(1),
    };
    Some(((number_of(place, "netns")?, local?), queue))
}

/// The same of a finding about a listener.
fn queue_of(finding: &FindingLine) -> Option<(QueueKey, Queue)> {
    let subject = finding.subject.as_object()?;
    let local = text_of(subject, "local").map(str::to_owned);
    let length = if finding.finding == "accept_delay" {
        "waiting"
    } else {
        "ack_backlog"
    };
    queue_in((subject, local), &finding.evidence, length)
}

/// How a connection ended.
fn end_of(body: &Map<String, Value>) -> &'static str {
    const ETIMEDOUT: u64 = 110;
    let is = |name: &str| body.get(name).and_then(Value::as_bool) == Some(true);
    if is("reset_received") {
        "reset received"
    } else if is("reset_sent") {
        "reset sent"
    } else if number_of(body, "errno") == Some(ETIMEDOUT) {
        "timed out"
    } else if number_of(body, "errno").is_some_and(|errno| errno != 0) {
        "another error"
    } else if is("orderly") {
        "in order"
    } else {
        "without order"
    }
}

/// The local end of an event, as findings write one.
fn local_end(body: &Map<String, Value>) -> Option<String> {
    let address = text_of(body, "network.local.address")?.parse().ok()?;
    let port = number_of(body, "network.local.port")?.try_into().ok()?;
    Some(std::net::SocketAddr::new(address, port).to_string())
}

fn host_name(host: &Value) -> Option<String> {
    let field = |name| host.get(name).and_then(Value::as_str);
    Some(format!(
        "{}, Linux {} {}",
        field("hostname")?,
        field("kernel")?,
        field("arch")?
    ))
}
