//! NDJSON: one object a line, keys stable, `schema` 1. The contract is
//! `tracer/schema/conntracer.schema.json`; the tests hold every line against it.

use std::collections::BTreeMap;

use conntracer_common::stats::HookCounters;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{
    escape::JsonSafe,
    fields::Named,
    line::{Account, Line, Occasion, Reason, SharedHost, SinkAccount, SinkGap, Time, Wall},
};
use crate::{
    finding::{Certainty, Evidence, Finding, FindingKind, Owner, Severity, Status, Subject},
    host::Host,
    plan::Plan,
    reconcile::Reconciliation,
    table::listener::Summary,
};

/// The version of the output contract. Grows when a key changes its meaning or goes away.
pub const SCHEMA: u32 = 1;

/// Renders lines as JSON.
#[derive(Debug)]
pub struct Json {
    host: SharedHost,
    wall: Wall,
}

impl Json {
    #[must_use]
    pub fn new(host: SharedHost) -> Self {
        let wall = Wall::of(&host);
        Self { host, wall }
    }

    /// Appends `line` and its newline.
    pub fn render(&mut self, line: &Line, into: &mut Vec<u8>) {
        let (wall, kind) = (self.wall, line.kind());
        let time = wall.time(line.time());
        match line {
            Line::Start { .. } => Self::write(into, time, kind, &self.start()),
            Line::Finding(finding) => Self::write(into, time, kind, &self.finding(finding)),
            Line::Event(event) => {
                let host = &self.host;
                Self::write(into, time, kind, &Named { event, host });
            }
            Line::Gap { hook, lost, .. } => {
                Self::write(into, time, kind, &Gap { hook, lost: *lost });
            }
            Line::SinkGap(gap) => Self::write(into, time, kind, &Self::sink_gap(wall, gap)),
            Line::Clock { realtime_offset_ns } => self.wall.set(*realtime_offset_ns),
            Line::Stats { occasion, account } => {
                let stats = Stats {
                    reason: *occasion,
                    totals: totals(account),
                    listeners: &account.listeners,
                    listeners_left_out: account.listeners_left_out,
                };
                Self::write(into, time, kind, &stats);
            }
            Line::Now { moment, .. } => Self::write(into, time, kind, moment.as_ref()),
            Line::Stop { reason, account } => {
                let stop = Stop {
                    reason: *reason,
                    totals: totals(account),
                };
                Self::write(into, time, kind, &stop);
            }
        }
    }

    fn sink_gap(wall: Wall, gap: &SinkGap) -> SinkGapLine<'_> {
        SinkGapLine {
            sink: &gap.sink,
            since: wall.time(gap.since),
            lost: gap.lost(),
            kinds: &gap.kinds,
            said_again: gap.said_again,
            cause: "reader",
            advice: [READ_FASTER],
        }
    }

    fn write<B: Serialize>(into: &mut Vec<u8>, time: Time, kind: &'static str, body: &B) {
        let start = into.len();
        let envelope = Envelope {
            schema: SCHEMA,
            time,
            kind,
            body,
        };
        let mut serializer = serde_json::Serializer::with_formatter(&mut *into, JsonSafe);
        if let Err(error) = envelope.serialize(&mut serializer) {
            // Half an object would spoil the stream; a missing line is at least said.
            into.truncate(start);
            log::error!("a {kind} line could not be written as JSON: {error}");
            return;
        }
        into.push(b'\n');
    }

    fn start(&self) -> Start<'_> {
        let host = &*self.host;
        Start {
            version: env!("CARGO_PKG_VERSION"),
            host: HostName::of(host),
            plan: &host.plan,
        }
    }

    fn finding<'a>(&self, finding: &'a Finding) -> FindingLine<'a> {
        FindingLine {
            id: finding.id,
            finding: finding.kind,
            cause: &finding.cause,
            status: finding.status,
            severity: finding.severity,
            incident: finding.incident,
            explained_by: finding.explained_by,
            related: &finding.related,
            stage: finding.stage.as_deref(),
            certainty: finding.certainty,
            because: finding.because.as_deref(),
            subject: SubjectObject(&finding.subject),
            owner: finding.owner.as_ref(),
            owners: &finding.owners,
            holders: finding.holders,
            since: self.wall.time(finding.since),
            last: self.wall.time(finding.last),
            count: finding.count,
            summary: &finding.summary,
            evidence: EvidenceObject(&finding.evidence),
            advice: &finding.advice,
        }
    }
}

#[derive(Serialize)]
struct Envelope<'a, B> {
    schema: u32,
    time: Time,
    kind: &'static str,
    #[serde(flatten)]
    body: &'a B,
}

#[derive(Serialize)]
struct Start<'a> {
    version: &'static str,
    host: HostName<'a>,
    plan: &'a Plan,
}

/// Which host, as the `start` line and `doctor` say it.
#[derive(Debug, Serialize)]
pub(crate) struct HostName<'a> {
    hostname: &'a str,
    kernel: &'a str,
    arch: &'a str,
}

impl<'a> HostName<'a> {
    pub(crate) fn of(host: &'a Host) -> Self {
        Self {
            hostname: &host.hostname,
            kernel: &host.kernel,
            arch: &host.arch,
        }
    }
}

#[derive(Serialize)]
struct Gap {
    hook: &'static str,
    lost: u64,
}

/// What to change where a sink could not take everything.
pub(super) const READ_FASTER: &str =
    "let its reader read faster, or ask for fewer lines: --emit names the kinds of events";

#[derive(Serialize)]
struct SinkGapLine<'a> {
    sink: &'a str,
    since: Time,
    lost: u64,
    kinds: &'a BTreeMap<&'static str, u64>,
    said_again: u64,
    cause: &'static str,
    advice: [&'static str; 1],
}

#[derive(Serialize)]
struct FindingLine<'a> {
    id: u64,
    finding: FindingKind,
    cause: &'a str,
    status: Status,
    severity: Severity,
    incident: u64,
    explained_by: Option<u64>,
    related: &'a [u64],
    stage: Option<&'a str>,
    certainty: Certainty,
    because: Option<&'a str>,
    subject: SubjectObject<'a>,
    owner: Option<&'a Owner>,
    owners: &'a [Owner],
    holders: Option<u32>,
    since: Time,
    last: Time,
    count: u64,
    summary: &'a str,
    evidence: EvidenceObject<'a>,
    advice: &'a [std::borrow::Cow<'static, str>],
}

/// A subject with the connection's identity under the names that events give it, as text where a
/// JSON reader would lose the low bits.
struct SubjectObject<'a>(&'a Subject);

impl Serialize for SubjectObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Subject::Connection {
            netns,
            local,
            remote,
            id,
            born,
        } = self.0
        else {
            return self.0.serialize(serializer);
        };
        let mut map = serializer.serialize_map(Some(6))?;
        map.serialize_entry("scope", "connection")?;
        map.serialize_entry("netns", netns)?;
        map.serialize_entry("local", local)?;
        map.serialize_entry("remote", remote)?;
        map.serialize_entry("socket", &format_args!("{id:#x}"))?;
        map.serialize_entry("born_ktime_ns", born)?;
        map.end()
    }
}

/// Evidence as one object in the detector's order.
struct EvidenceObject<'a>(&'a [Evidence]);

impl Serialize for EvidenceObject<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|evidence| (&evidence.name, &evidence.value)),
        )
    }
}

#[derive(Serialize)]
struct Stats<'a> {
    reason: Occasion,
    #[serde(flatten)]
    totals: Totals<'a>,
    listeners: &'a [Summary],
    listeners_left_out: u64,
}

#[derive(Serialize)]
struct Stop<'a> {
    reason: Reason,
    #[serde(flatten)]
    totals: Totals<'a>,
}

#[derive(Serialize)]
struct Totals<'a> {
    hooks: Hooks<'a>,
    findings: &'a BTreeMap<FindingKind, u64>,
    tallies: &'a BTreeMap<String, u64>,
    reconciliation: &'a Reconciliation,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    sinks: &'a [SinkAccount],
}

fn totals(account: &Account) -> Totals<'_> {
    Totals {
        hooks: Hooks(&account.hooks),
        findings: &account.findings,
        tallies: &account.tallies,
        reconciliation: &account.reconciliation,
        sinks: &account.sinks,
    }
}

struct Hooks<'a>(&'a [(&'static str, HookCounters)]);

impl Serialize for Hooks<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0
                .iter()
                .map(|(hook, counters)| (hook, Counters::of(counters))),
        )
    }
}

#[derive(Serialize)]
struct Counters {
    seen: u64,
    emitted: u64,
    aggregated: u64,
    filtered: u64,
    lost: u64,
}

impl Counters {
    const fn of(counters: &HookCounters) -> Self {
        let HookCounters {
            seen,
            emitted,
            aggregated,
            filtered,
            lost,
        } = *counters;
        Self {
            seen,
            emitted,
            aggregated,
            filtered,
            lost,
        }
    }
}
