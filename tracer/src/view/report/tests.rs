use super::{Report, text};

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
