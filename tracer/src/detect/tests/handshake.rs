use std::time::Duration;

use super::evidence;
use crate::{
    detect::Thresholds,
    finding::{FindingKind, Status, Subject, Value},
    testing::{Run, listener},
};

const LOCAL: &str = "10.0.0.1:80";

/// One request that is never answered: repeats after 1, 2, 4, … s.
fn unanswered(run: &mut Run, remote: &str, repeats: u8, acked: bool) {
    for repeat in 0..repeats {
        run.pass(Duration::from_secs(1 << repeat));
        run.syn_ack(listener(LOCAL, remote), repeat, acked);
    }
}

#[test]
fn an_unanswered_request_opens_at_its_second_repeat_and_counts_every_repeat() {
    let mut run = Run::new();
    unanswered(&mut run, "10.0.0.2:4000", 1, false);
    assert!(run.findings.is_empty());
    run.pass(Duration::from_secs(2));
    run.syn_ack(listener(LOCAL, "10.0.0.2:4000"), 1, false);
    let finding = run.only();
    assert_eq!(finding.kind, FindingKind::HalfOpen);
    assert_eq!(finding.cause, "handshake");
    assert_eq!(finding.count, 2);
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: 4026,
            local: LOCAL.parse().unwrap()
        }
    );
    assert_eq!(
        evidence(finding, "looks_like"),
        &Value::Text("one_client".into())
    );
}

#[test]
fn it_resolves_after_twice_the_time_to_the_next_repeat() {
    let mut run = Run::new();
    unanswered(&mut run, "10.0.0.2:4000", 5, false);
    run.pass(Duration::from_secs(63));
    assert!(!run.statuses().contains(&Status::Resolved));
    run.pass(Duration::from_secs(2));
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.count, 5);
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_discarded_third_ack_is_told_from_one_that_never_came() {
    let mut run = Run::new();
    unanswered(&mut run, "10.0.0.2:4000", 3, true);
    let finding = run.only();
    assert!(
        finding.summary.contains("did arrive and was discarded"),
        "{}",
        finding.summary
    );
    assert_eq!(evidence(finding, "repeats_ack_discarded"), &Value::Count(3));
    assert_eq!(evidence(finding, "repeats_unanswered"), &Value::Count(0));
}

#[test]
fn many_sources_look_like_a_flood() {
    let mut run = Run::new();
    run.pass(Duration::from_secs(1));
    for host in 1..=100 {
        run.syn_ack(listener(LOCAL, &format!("192.0.2.{host}:4000")), 0, false);
    }
    run.finish();
    let finding = run.only();
    assert_eq!(finding.count, 100);
    assert_eq!(
        evidence(finding, "looks_like"),
        &Value::Text("flood".into())
    );
    assert_eq!(evidence(finding, "sources"), &Value::Count(100));
}

#[test]
fn single_lost_handshake_packets_are_no_finding() {
    let mut run = Run::new();
    for client in 0..20 {
        run.syn_ack(listener(LOCAL, &format!("192.0.2.{client}:4000")), 0, false);
        run.pass(Duration::from_secs(5));
    }
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}
