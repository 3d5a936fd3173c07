use std::time::Duration;

use conntracer_common::record::{syn_evidence, syn_outcome};
use rstest::rstest;

use super::evidence;
use crate::{
    detect::Thresholds,
    finding::{Certainty, FindingKind, Status, Subject, Value},
    testing::{Run, listener},
};

#[rstest]
#[case::v4("10.0.0.1:80", "10.0.0.2:4000")]
#[case::v6("[fd00::1]:80", "[fd00::2]:4000")]
fn accept_queue_full_opens_at_the_first_drop_and_counts_the_kernels_total(
    #[case] local: &str,
    #[case] remote: &str,
) {
    let mut run = Run::new();
    for drops in 1..=18 {
        run.syn(listener(local, remote), |syn| {
            syn.totals[syn_outcome::ADDED] = 2;
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = drops;
            syn.outcome = 2;
            syn.last_accept_ns = 999_000_000_000;
        });
        run.skip(Duration::from_millis(10));
    }
    run.finish();
    let finding = run.only();
    assert_eq!(finding.kind, FindingKind::SynDrop);
    assert_eq!(finding.cause, "accept_queue_full");
    assert_eq!(finding.count, 18);
    assert_eq!(finding.certainty, Certainty::Exact);
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: 4026,
            local: local.parse().unwrap()
        }
    );
    assert_eq!(finding.owner.as_ref().unwrap().pid, 1234);
    assert_eq!(evidence(finding, "syn_arrivals"), &Value::Count(20));
    assert_eq!(run.statuses(), [Status::Open, Status::Update]);
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_poll_tells_the_drops_that_rate_limited_records_left_out() {
    let mut run = Run::new();
    let socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    run.syn(socket, |syn| syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1);
    run.pass(Duration::from_secs(2));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 40;
    });
    run.pass(Duration::from_secs(11));
    assert_eq!(
        run.statuses(),
        [Status::Open, Status::Update, Status::Resolved]
    );
    assert_eq!(run.only().count, 40);
}

#[test]
fn drops_after_the_end_are_a_new_finding_with_its_own_count() {
    let mut run = Run::new();
    let socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    run.syn(socket, |syn| syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5);
    run.pass(Duration::from_secs(11));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 12;
    });
    run.finish();
    let counts: Vec<u64> = run
        .last_words()
        .iter()
        .map(|finding| finding.count)
        .collect();
    assert_eq!(counts, [5, 7]);
}

#[test]
fn each_cause_is_its_own_finding() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        for outcome in 0..syn_outcome::COUNT {
            syn.totals[outcome] = 1 + outcome as u64;
        }
    });
    let found: Vec<_> = run
        .findings
        .iter()
        // The repeats among the totals are another detector's.
        .filter(|finding| finding.kind != FindingKind::HalfOpen)
        .map(|finding| (finding.kind, finding.cause.as_ref(), finding.count))
        .collect();
    assert_eq!(
        found,
        [
            (FindingKind::SynDrop, "accept_queue_full", 3),
            (FindingKind::SynDrop, "ack_overflow", 11),
            (FindingKind::SynDrop, "abort_on_overflow", 18),
            (FindingKind::SynDrop, "syn_queue_full", 4),
            (FindingKind::SynDrop, "syn_queue_pressure", 5),
            (FindingKind::SynDrop, "no_route", 6),
            (FindingKind::SynDrop, "other", 7 + 10),
            (FindingKind::SynCookies, "syn_queue_full", 2),
        ]
    );
}

#[test]
fn cookies_that_are_always_asked_for_are_no_finding() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::COOKIE] = 100;
        syn.syncookies = 2;
    });
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn accepted_connections_are_no_finding() {
    let mut run = Run::new();
    for added in 1..1000 {
        run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.totals[syn_outcome::ADDED] = added;
        });
    }
    run.pass(Duration::from_secs(20));
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_cause_concluded_from_fields_says_so() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::SYN_QUEUE_FULL] = 1;
        syn.evidence = syn_evidence::FIELDS;
    });
    let finding = run.only();
    assert_eq!(finding.certainty, Certainty::Inferred);
    assert!(finding.because.as_ref().unwrap().contains("queue lengths"));
}

#[test]
fn sockets_that_share_an_address_add_up() {
    let mut run = Run::new();
    for worker in 0..4 {
        let mut socket = listener("10.0.0.1:80", "10.0.0.2:4000");
        socket.sk += worker;
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 10;
        });
    }
    run.finish();
    assert_eq!(run.only().count, 40);
}

#[test]
fn a_record_that_arrives_late_takes_nothing_back() {
    let mut run = Run::new();
    let socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    for total in [1, 9, 8, 10] {
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = total;
        });
    }
    run.finish();
    assert_eq!(run.only().count, 10);
}

#[test]
fn the_words_name_queue_limit_and_remedy() {
    let mut run = Run::new();
    run.skip(Duration::from_millis(12_400));
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 18;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    insta::assert_json_snapshot!(run.only());
}
