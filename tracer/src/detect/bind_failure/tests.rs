use std::time::Duration;

use conntracer_common::record::{Bind, BindHolders};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Severity, Status, Subject, Value},
    testing::{Run, evidence, only_of},
};

pub(super) const ASKED: &str = "0.0.0.0:8080";
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// A call that fails for a holder that is looked up, and nothing more for three seconds.
pub(super) fn fails(
    run: &mut Run,
    call: impl FnOnce(&mut Bind),
    held: impl FnOnce(&mut BindHolders),
) {
    run.bind(ASKED, call);
    run.bind_holders(ASKED, ASKED, held);
    run.pass(6 * SECOND);
}

pub(super) fn silent(run: &Run) {
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_port_that_another_listens_on_is_told_with_its_holder() {
    let mut run = Run::new();
    run.bind(ASKED, |_| ());
    run.bind_holders(ASKED, ASKED, |_| ());
    run.pass(SECOND);
    silent(&run);
    run.pass(2 * SECOND);
    let finding = run.only();
    assert_eq!(finding.kind.name(), "bind_failure");
    assert_eq!((finding.cause.as_ref(), finding.count), ("in_use", 1));
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(
        finding.summary,
        "bind() of process 1234 to 0.0.0.0:8080 failed: the port is held by process 77 (holder), which listens on \
         0.0.0.0:8080"
    );
    assert_eq!(evidence(finding, "holder_pid"), &Value::Count(77));
    let Subject::Listener { local, .. } = finding.subject else {
        panic!("{finding:#?}");
    };
    assert_eq!(local.to_string(), ASKED);
    run.bind(ASKED, |bind| {
        bind.error = 0;
        bind.owner.pid = 1235;
    });
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("bound"));
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_program_that_is_started_again_and_again_is_one_finding() {
    let mut run = Run::new();
    for pid in 100..110 {
        run.bind(ASKED, |bind| bind.owner.pid = pid);
        run.bind_holders(ASKED, ASKED, |_| ());
        run.pass(5 * SECOND);
    }
    run.pass(331 * SECOND);
    let finding = run.only();
    assert_eq!(finding.count, 10);
    assert_eq!(evidence(finding, "processes"), &Value::Count(10));
    assert_eq!(finding.stage.as_deref(), Some("quiet"));
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_failure_that_goes_on_is_told_though_it_does_not_pause() {
    let mut run = Run::new();
    for count in 1..6 {
        run.bind(ASKED, |bind| {
            bind.count = count;
            bind.first_ns = 1_000_000_000_000;
        });
        run.pass(SECOND / 2);
    }
    run.finish();
    assert_eq!(only_of(&run, "bind_failure").count, 5);
}

#[rstest]
#[case::the_next_port("0.0.0.0:8081")]
#[case::any_port_near("0.0.0.0:8003")]
fn a_search_for_a_free_port_that_ends_with_one_is_none(#[case] got: &str) {
    let mut run = Run::new();
    run.bind(ASKED, |_| ());
    run.bind_holders(ASKED, ASKED, |_| ());
    run.pass(SECOND / 10);
    run.bind(got, |bind| bind.error = 0);
    run.pass(10 * SECOND);
    run.finish();
    silent(&run);
}

#[test]
fn a_long_search_is_none_either_and_its_failures_may_come_late() {
    let mut run = Run::new();
    for port in 40_000..40_100 {
        run.bind(&format!("127.0.0.1:{port}"), |_| ());
        run.pass(SECOND / 20);
    }
    silent(&run);
    run.bind("127.0.0.1:40100", |bind| bind.error = 0);
    // Polled after the success, and before it by its time.
    run.bind("127.0.0.1:40099", |bind| bind.last_ns -= 1_000_000);
    run.pass(10 * SECOND);
    run.finish();
    silent(&run);
}

#[test]
fn a_search_that_finds_none_is_one_finding() {
    let mut run = Run::new();
    for port in [8888, 8889, 8890, 8850] {
        run.bind(&format!("127.0.0.1:{port}"), |_| ());
    }
    run.pass(6 * SECOND);
    let finding = run.only();
    assert_eq!(evidence(finding, "ports_tried"), &Value::Count(4));
    assert!(
        finding
            .summary
            .contains("127.0.0.1:8888 and 3 other ports failed 4 times"),
        "{finding:#?}"
    );
}

#[test]
fn a_server_that_gets_only_its_other_port_is_told() {
    let mut run = Run::new();
    run.bind("0.0.0.0:80", |_| ());
    run.bind("0.0.0.0:443", |bind| bind.error = 0);
    run.pass(6 * SECOND);
    assert_eq!(run.only().cause, "in_use");
}

#[test]
fn the_same_socket_may_take_any_other_port() {
    let mut run = Run::new();
    run.bind("0.0.0.0:80", |bind| bind.inode = 5);
    run.bind("0.0.0.0:8443", |bind| (bind.error, bind.inode) = (0, 5));
    run.pass(6 * SECOND);
    run.finish();
    silent(&run);
}

#[test]
fn one_that_gets_it_at_the_second_try_is_none() {
    let mut run = Run::new();
    run.bind(ASKED, |_| ());
    run.pass(SECOND);
    run.bind(ASKED, |bind| bind.error = 0);
    run.pass(10 * SECOND);
    run.finish();
    silent(&run);
}

#[test]
fn another_program_that_gets_it_ends_nothing() {
    let mut run = Run::new();
    run.bind(ASKED, |_| ());
    run.bind(ASKED, |bind| {
        bind.error = 0;
        bind.owner.comm = *b"other\0\0\0\0\0\0\0\0\0\0\0";
        bind.owner.pid = 99;
    });
    run.pass(6 * SECOND);
    assert_ne!(run.only().status, Status::Resolved);
}

#[test]
fn who_serves_it_already_by_a_socket_for_both_families_is_none() {
    let mut run = Run::new();
    run.bind(ASKED, |_| ());
    run.bind_holders(ASKED, "[::]:8080", |held| held.holders[0].owner.pid = 1234);
    run.pass(10 * SECOND);
    run.finish();
    silent(&run);
}
