//! The report for people, in one screen.

use std::{collections::BTreeMap, fmt::Write as _};

use super::fold::{FindingKey, Found, Report};
use crate::{count::Grow, finding::Status, sink::escape::Escaped};

/// Findings told in full; the rest are in the counts.
const SHOWN_FINDINGS: usize = 20;

#[must_use]
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    line(
        &mut text,
        "host",
        report.host.as_deref().unwrap_or("not said"),
    );
    if let Some((first, last)) = report.span {
        line(&mut text, "from", &format!("{first:.9}"));
        line(&mut text, "to", &format!("{last:.9}"));
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
    for Found { latest, .. } in report.findings.values() {
        let (findings, events) = causes.entry((&latest.finding, &latest.cause)).or_default();
        findings.grow(1);
        *events = events.saturating_add(latest.count);
    }
    text.push_str("\nfindings\n");
    for ((finding, cause), (findings, events)) in causes {
        row(
            text,
            &format!("  {finding:<18}{cause:<22}{findings:>6} found {events:>10} events"),
        );
    }
    let mut worst: Vec<(&FindingKey, &Found)> = report.findings.iter().collect();
    worst.sort_by_key(|(_, found)| {
        (
            found.latest.status == Status::Resolved,
            std::cmp::Reverse(found.latest.count),
        )
    });
    text.push_str("\nwhat is open first, then by events\n");
    for (key, Found { latest, .. }) in worst.iter().take(SHOWN_FINDINGS) {
        let state = if latest.status == Status::Resolved {
            "resolved"
        } else {
            "open"
        };
        let number = report.number(**key);
        row(
            text,
            &format!("  #{number:<5}{state:<10}{}", latest.summary),
        );
        row(
            text,
            &format!("{:18}{:.9} to {:.9}", "", latest.since, latest.last),
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
