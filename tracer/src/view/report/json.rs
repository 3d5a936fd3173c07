//! The report for programs: one object.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fold::{Found, Report};
use crate::finding::{Severity, Status};

/// Findings that are told one by one, the worst first.
const MAX_TOLD: usize = 1_000;

#[derive(Serialize)]
struct Object<'a> {
    host: Option<&'a str>,
    from: Option<String>,
    to: Option<String>,
    runs: u64,
    lines: &'a BTreeMap<String, u64>,
    foreign_lines: u64,
    lost: &'a BTreeMap<String, u64>,
    ends: &'a BTreeMap<&'static str, u64>,
    incidents: Vec<Incident<'a>>,
    findings_left_out: u64,
}

#[derive(Serialize)]
struct Incident<'a> {
    id: String,
    severity: Severity,
    is_over: bool,
    findings: Vec<Told<'a>>,
}

#[derive(Serialize)]
struct Told<'a> {
    id: String,
    finding: &'a str,
    cause: &'a str,
    status: Status,
    place: String,
    process: Option<String>,
    since: String,
    last: String,
    count: u64,
    summary: &'a str,
    evidence: &'a serde_json::Map<String, serde_json::Value>,
    advice: &'a [String],
}

/// One line.
pub fn json(report: &Report) -> serde_json::Result<String> {
    let mut room = MAX_TOLD;
    let mut incidents = Vec::new();
    for incident in report.incidents() {
        if room == 0 {
            break;
        }
        let told = incident.findings.iter().take(room);
        let findings: Vec<Told<'_>> = told
            .map(|(key, Found { latest, .. })| Told {
                id: report.number(*key),
                finding: &latest.finding,
                cause: &latest.cause,
                status: latest.status,
                place: latest.place(),
                process: latest.process(),
                since: format!("{:.9}", latest.since),
                last: format!("{:.9}", latest.last),
                count: latest.count,
                summary: &latest.summary,
                evidence: &latest.evidence,
                advice: &latest.advice,
            })
            .collect();
        room = room.saturating_sub(findings.len());
        incidents.push(Incident {
            id: report.number(incident.key),
            severity: incident.severity,
            is_over: incident.is_over(),
            findings,
        });
    }
    let told = MAX_TOLD.saturating_sub(room);
    let object = Object {
        host: report.host.as_deref(),
        from: report.span.map(|(first, _)| format!("{first:.9}")),
        to: report.span.map(|(_, last)| format!("{last:.9}")),
        runs: report.runs,
        lines: &report.kinds,
        foreign_lines: report.foreign,
        lost: &report.lost,
        ends: &report.ends,
        incidents,
        findings_left_out: report.forgotten.saturating_add(
            u64::try_from(report.findings.len().saturating_sub(told)).unwrap_or(u64::MAX),
        ),
    };
    let mut line = serde_json::to_string(&object)?;
    line.push('\n');
    Ok(line)
}
