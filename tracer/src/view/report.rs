//! `conntracer report`: what a run has said, in one screen.
//!
//! Folds the lines of NDJSON output; a recording is rendered to such lines first, so that both read the
//! same. Lines that are not conntracer's are counted and otherwise ignored.

use std::{collections::BTreeMap, fmt::Write as _};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{count::Grow, sink::escape::Escaped};

/// Findings told in full; the rest are in the counts.
const SHOWN_FINDINGS: usize = 20;
/// Findings remembered: 65,536 take about 60 MB, and a report of more helps nobody.
const MAX_FINDINGS: usize = 65_536;

/// What a run has said.
#[derive(Debug, Default)]
pub struct Report {
    lines: u64,
    /// `start` lines: output is appended to its file, run after run.
    runs: u64,
    foreign: u64,
    forgotten: u64,
    host: Option<String>,
    first: Option<String>,
    last: Option<String>,
    kinds: BTreeMap<String, u64>,
    lost: BTreeMap<String, u64>,
    findings: BTreeMap<FindingKey, FindingLine>,
}

/// Which finding: ids begin anew in each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FindingKey {
    /// As [`Report::runs`] counts; 0 where the file begins in the middle of a run.
    run: u64,
    id: u64,
}

#[derive(Debug, Deserialize)]
struct Envelope {
    schema: u64,
    time: String,
    kind: String,
    #[serde(flatten)]
    body: Map<String, Value>,
}

/// The latest word on one finding.
#[derive(Debug, Deserialize)]
struct FindingLine {
    id: u64,
    finding: String,
    cause: String,
    status: String,
    since: String,
    last: String,
    count: u64,
    summary: String,
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
                self.runs.grow(1);
                self.host = body.get("host").and_then(host_name);
            }
            "gap" => {
                let hook = body
                    .get("hook")
                    .and_then(Value::as_str)
                    .unwrap_or("unknown");
                let lost = body.get("lost").and_then(Value::as_u64).unwrap_or(0);
                let sum = self.lost.entry(hook.to_owned()).or_default();
                *sum = sum.saturating_add(lost);
            }
            "finding" => match serde_json::from_value::<FindingLine>(Value::Object(body)) {
                Ok(finding) => self.keep(finding),
                Err(_) => self.foreign.grow(1),
            },
            _ => {}
        }
        self.kinds.entry(kind).or_default().grow(1);
        self.first.get_or_insert_with(|| time.clone());
        self.last = Some(time);
    }

    fn keep(&mut self, finding: FindingLine) {
        let key = FindingKey {
            run: self.runs,
            id: finding.id,
        };
        if self.findings.len() < MAX_FINDINGS {
            self.findings.insert(key, finding);
        } else if let Some(known) = self.findings.get_mut(&key) {
            *known = finding;
        } else {
            self.forgotten.grow(1);
        }
    }
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

/// The report for people.
#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    line(
        &mut text,
        "host",
        report.host.as_deref().unwrap_or("not said"),
    );
    if let (Some(first), Some(last)) = (&report.first, &report.last) {
        line(&mut text, "from", first);
        line(&mut text, "to", last);
    }
    let kinds: Vec<String> = report
        .kinds
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    line(&mut text, "lines", &kinds.join(", "));
    if report.runs > 1 {
        line(
            &mut text,
            "runs",
            &format!("{}; #2.1 is the first finding of the second", report.runs),
        );
    }
    for (hook, lost) in &report.lost {
        line(
            &mut text,
            "lost",
            &format!("{lost} records of the {hook} hook"),
        );
    }
    if report.foreign > 0 {
        line(
            &mut text,
            "ignored",
            &format!("{} lines that are not conntracer's", report.foreign),
        );
    }
    if report.forgotten > 0 {
        line(
            &mut text,
            "left out",
            &format!("{} lines of further findings", report.forgotten),
        );
    }
    findings(&mut text, report);
    text
}

fn findings(text: &mut String, report: &Report) {
    if report.findings.is_empty() {
        line(text, "findings", "none");
        return;
    }
    let mut causes = BTreeMap::<(&str, &str), (u64, u64)>::new();
    for finding in report.findings.values() {
        let (findings, events) = causes
            .entry((&finding.finding, &finding.cause))
            .or_default();
        findings.grow(1);
        *events = events.saturating_add(finding.count);
    }
    text.push_str("\nfindings\n");
    for ((finding, cause), (findings, events)) in causes {
        row(
            text,
            &format!("  {finding:<18}{cause:<22}{findings:>6} found {events:>10} events"),
        );
    }
    let mut worst: Vec<(&FindingKey, &FindingLine)> = report.findings.iter().collect();
    worst.sort_by_key(|(_, finding)| {
        (
            finding.status == "resolved",
            std::cmp::Reverse(finding.count),
        )
    });
    text.push_str("\nwhat is open first, then by events\n");
    for (key, finding) in worst.iter().take(SHOWN_FINDINGS) {
        let number = if report.runs > 1 {
            format!("{}.{}", key.run, key.id)
        } else {
            key.id.to_string()
        };
        let state = if finding.status == "resolved" {
            "resolved"
        } else {
            "open"
        };
        row(
            text,
            &format!("  #{number:<5}{state:<10}{}", finding.summary),
        );
        row(
            text,
            &format!("{:18}{} to {}", "", finding.since, finding.last),
        );
    }
    if let Some(rest) = worst
        .len()
        .checked_sub(SHOWN_FINDINGS)
        .filter(|rest| *rest > 0)
    {
        row(text, &format!("  and {rest} more"));
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    row(text, &format!("{name:<10}{value}"));
}

/// Everything goes through here: the file may be anybody's.
fn row(text: &mut String, row: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", Escaped(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = r#"
{"schema":1,"time":"2026-01-01T00:00:00.000000000Z","kind":"start","version":"0.1.0","host":{"hostname":"web1","kernel":"6.12.0","arch":"x86_64"},"plan":{}}
{"schema":1,"time":"2026-01-01T00:00:01.000000000Z","kind":"finding","id":1,"finding":"syn_drop","cause":"accept_queue_full","status":"open","since":"2026-01-01T00:00:01.000000000Z","last":"2026-01-01T00:00:01.000000000Z","count":1,"summary":"1 SYN"}
{"schema":1,"time":"2026-01-01T00:00:02.000000000Z","kind":"finding","id":1,"finding":"syn_drop","cause":"accept_queue_full","status":"update","since":"2026-01-01T00:00:01.000000000Z","last":"2026-01-01T00:00:02.000000000Z","count":20,"summary":"20 SYNs \u001b[31m"}
{"schema":1,"time":"2026-01-01T00:00:03.000000000Z","kind":"gap","hook":"syn","lost":3}
not json
"#;

    #[test]
    fn the_last_word_on_each_finding_counts() {
        let mut report = Report::default();
        for line in OUTPUT.lines().filter(|line| !line.is_empty()) {
            report.add(line.as_bytes());
        }
        let text = text(&report);
        assert_eq!(report.lines(), 4);
        assert!(text.contains("web1, Linux 6.12.0 x86_64"), "{text}");
        assert!(text.contains("1 found         20 events"), "{text}");
        assert!(text.contains("3 records of the syn hook"), "{text}");
        assert!(text.contains("1 lines that are not"), "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn each_run_of_a_file_has_its_own_findings() {
        let mut report = Report::default();
        let again = OUTPUT.replace("accept_queue_full", "no_route");
        for line in OUTPUT.lines().chain(again.lines()) {
            report.add(line.as_bytes());
        }
        let text = text(&report);
        for part in [
            "runs      2; ",
            "accept_queue_full          1 found         20 events",
            "no_route                   1 found         20 events",
            "  #1.1  open      20 SYNs",
            "  #2.1  open      20 SYNs",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
    }

    #[test]
    fn nothing_found_is_said() {
        assert!(text(&Report::default()).contains("none"));
    }
}
