//! `connect_failure`.

use std::time::Duration;

use conntracer_common::record::{Socket, failure_how};
use rstest::rstest;

use crate::{
    detect::{Thresholds, errno},
    finding::{Certainty, Status, Subject, Value},
    testing::{Run, evidence, socket},
};

fn attempt() -> Socket {
    socket("10.0.0.1:40000", "10.0.0.9:443")
}

#[rstest]
#[case::refused(errno::ECONNREFUSED, failure_how::RESET, "refused", "rst")]
#[case::refused_by_icmp(errno::ECONNREFUSED, 0, "refused", "icmp")]
#[case::timed_out(errno::ETIMEDOUT, 0, "timed_out", "timer")]
#[case::told_by_icmp(errno::EHOSTUNREACH, 0, "unreachable", "icmp")]
#[case::no_route(errno::ENETUNREACH, failure_how::AT_ONCE, "unreachable", "connect")]
#[case::reset(errno::ECONNRESET, failure_how::RESET, "reset", "rst")]
#[case::no_port(errno::EADDRNOTAVAIL, failure_how::AT_ONCE, "no_port", "connect")]
#[case::denied(errno::EACCES, failure_how::AT_ONCE, "denied", "connect")]
#[case::patience_ended(0, failure_how::PATIENT, "cancelled", "application")]
#[case::something_else(22, failure_how::AT_ONCE, "other", "connect")]
fn the_error_is_the_cause(
    #[case] error: u32,
    #[case] how: u8,
    #[case] cause: &str,
    #[case] told_by: &str,
) {
    let mut run = Run::new();
    run.failure(attempt(), 1, |failure| {
        failure.error = error;
        failure.how = how;
    });
    let finding = run.only();
    assert_eq!(finding.kind.name(), "connect_failure");
    assert_eq!((finding.cause.as_ref(), finding.count), (cause, 1));
    assert_eq!(finding.certainty, Certainty::Exact);
    let told = Value::Text(told_by.to_owned().into());
    assert_eq!(*evidence(finding, "told_by"), told);
    assert_eq!(
        finding.subject,
        Subject::Peer {
            netns: 4026,
            remote: "10.0.0.9:443".parse().expect("an address")
        }
    );
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_race_that_was_lost_is_no_failure() {
    let mut run = Run::new();
    run.failure(attempt(), 7, |_| {});
    run.pass(Duration::from_secs(2));
    assert!(run.findings.is_empty());
}

#[test]
fn many_alike_are_one_finding_that_ends_when_it_is_quiet() {
    let mut run = Run::new();
    for count in [1, 40, 39, 900] {
        run.failure(attempt(), count, |failure| {
            failure.error = errno::ECONNREFUSED;
        });
        run.pass(Duration::from_secs(2));
    }
    assert_eq!(run.only().count, 900);
    run.pass(Duration::from_mins(1));
    assert_eq!(run.only().status, Status::Resolved);
    assert_eq!(run.only().count, 900);
    run.assert_replays(Thresholds::default());
}

#[test]
fn what_nobody_saw_is_said_to_be_concluded() {
    let mut run = Run::new();
    run.failure(attempt(), 1, |failure| {
        failure.error = errno::EADDRNOTAVAIL;
        failure.how = failure_how::AT_ONCE | failure_how::CONCLUDED;
    });
    assert_eq!(run.only().certainty, Certainty::Inferred);
}
