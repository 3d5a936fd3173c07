use base64::{Engine as _, engine::general_purpose::STANDARD};
use rstest::rstest;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{STYLE, STYLE_HASH, html};
use crate::view::report::Report;

fn start() -> serde_json::Value {
    json!({
        "schema": 1, "time": "2026-01-01T00:00:00Z", "kind": "start",
        "host": { "hostname": "web1", "kernel": "6.12.0", "arch": "x86_64" },
    })
}

fn finding(id: u64, second: u64, count: u64) -> serde_json::Value {
    json!({
        "schema": 1, "time": format!("2026-01-01T00:00:{second:02}Z"), "kind": "finding", "id": id,
        "finding": "syn_drop", "cause": "accept_queue_full", "status": "update", "severity": "critical",
        "incident": 1, "explained_by": null, "stage": null, "because": null,
        "subject": { "scope": "listener", "netns": 7, "local": "10.0.0.1:80" },
        "owner": { "pid": 12, "comm": "ng<b>inx", "unit": null },
        "since": "2026-01-01T00:00:01Z", "last": format!("2026-01-01T00:00:{second:02}Z"),
        "count": count, "summary": "SYNs <script>alert(1)</script>",
        "evidence": { "ack_backlog": 9, "max_ack_backlog": 8 }, "advice": ["run 'ss -ltn' & look"],
    })
}

fn retransmit(second: u64, sent: u64) -> serde_json::Value {
    json!({
        "schema": 1, "time": format!("2026-01-01T00:00:{second:02}Z"), "kind": "retransmit",
        "socket": "0x1", "born_ktime_ns": 5, "segments": 2, "data_segs_out": sent,
    })
}

fn page(lines: &[serde_json::Value]) -> String {
    let mut report = Report::default();
    for line in lines {
        report.add(line.to_string().as_bytes());
    }
    html(&report)
}

/// A section of the page.
fn section<'a>(page: &'a str, id: &str) -> &'a str {
    let (_, rest) = page
        .split_once(&format!("<section id=\"{id}\">"))
        .unwrap_or_else(|| panic!("no section {id}"));
    rest.split_once("</section>").unwrap().0
}

fn marks(section: &str, mark: &str) -> usize {
    section.matches(&format!("data-mark=\"{mark}\"")).count()
}

#[test]
fn the_style_is_the_one_that_browsers_are_told_to_apply() {
    let hash = STANDARD.encode(Sha256::digest(STYLE.as_bytes()));
    assert_eq!(STYLE_HASH, format!("sha256-{hash}"));
}

#[test]
fn every_chart_has_its_marks_and_its_table() {
    let page = page(&[
        start(),
        finding(1, 1, 1),
        finding(1, 4, 20),
        finding(2, 9, 3),
        retransmit(2, 10),
        retransmit(5, 60),
    ]);
    // One incident of two findings, a queue in three steps, segments in two.
    assert_eq!(marks(section(&page, "incidents"), "bar"), 1);
    let queues = section(&page, "queues");
    assert_eq!((marks(queues, "bar"), marks(queues, "line")), (3, 1));
    assert!(
        queues.contains("<td>00:00:04</td><td>9</td><td>9</td>"),
        "{queues}"
    );
    let segments = section(&page, "segments");
    assert_eq!((marks(segments, "bar"), marks(segments, "line")), (2, 1));
    assert!(
        segments.contains("<td>00:00:05</td><td>2</td><td>50</td>"),
        "{segments}"
    );
    assert_eq!(marks(section(&page, "ends"), "bar"), 1);
    assert_eq!(marks(section(&page, "processes"), "bar"), 1);
    assert!(section(&page, "peers").contains("None."));
    assert_eq!(section(&page, "findings").matches("<article>").count(), 2);
    assert!(
        page.contains("2 findings in 1 incident; 1 still open at the end."),
        "{page}"
    );
}

/// Whatever the file holds, nothing is asked of anybody, nothing runs, and nothing is markup that is not ours.
#[test]
fn the_page_needs_nothing_and_runs_nothing() {
    let page = page(&[start(), finding(1, 1, 1)]);
    for foreign in [
        "<script",
        "<b>",
        "src=",
        "http:",
        "https:",
        "url(",
        "@import",
        "javascript:",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("ng&lt;b&gt;inx[12]"));
    assert!(page.contains("default-src 'none'"));
    // No attribute of style: the policy would refuse it.
    assert!(!page.contains(" style="));
}

#[test]
fn what_is_not_in_the_file_is_said() {
    let page = page(&[start()]);
    assert!(page.contains("Nothing was found."));
    for id in ["queues", "segments"] {
        assert!(section(&page, id).contains("No data"), "{id}");
    }
    assert!(html(&Report::default()).contains("a host that is not named"));
}

/// A page stays a page.
#[rstest]
#[case::an_incident(60, 200_000)]
#[case::many(5_000, 500_000)]
fn the_page_is_bounded(#[case] findings: u64, #[case] bytes: usize) {
    let mut lines = vec![start()];
    for id in 1..=findings {
        let mut line = finding(id, id % 60, id);
        line["incident"] = id.into();
        line["subject"]["local"] = format!("10.0.{}.{}:80", id / 250, id % 250).into();
        lines.push(line);
    }
    let page = page(&lines);
    assert!(page.len() < bytes, "{} bytes", page.len());
    if findings > 60 {
        assert!(section(&page, "findings").contains("4940 findings more left out."));
        assert!(section(&page, "incidents").contains("4980 incidents more left out."));
    }
}
