use std::time::Duration;

use conntracer_common::record::{Acceptor, Receive, acceptor_flag};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Severity, Status, Value},
    testing::{Run, evidence, only_of, socket},
};

pub(super) const LOCAL: &str = "10.0.0.1:80";
pub(super) const REMOTE: &str = "10.0.0.2:4000";

/// Looks at the connection, half a second apart, and each time at the process that holds it.
pub(super) fn looks(
    run: &mut Run,
    count: u64,
    look: impl Fn(u64, &mut Receive),
    process: impl Fn(u64, &mut Acceptor),
) {
    for step in 0..count {
        run.acceptor(socket(LOCAL, REMOTE), |record| process(step, record));
        run.receive(socket(LOCAL, REMOTE), |record| look(step, record));
        run.pass(Duration::from_millis(500));
    }
}

/// The same of a process that nothing keeps from running.
pub(super) fn unread(run: &mut Run, count: u64, look: impl Fn(u64, &mut Receive)) {
    looks(run, count, look, |_, _| ());
}

#[test]
fn a_process_that_does_not_read_is_told_until_it_does() {
    let mut run = Run::new();
    unread(&mut run, 10, |_, _| ());
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
    assert_eq!(run.pipeline.watched().receivers.len(), 1);
    unread(&mut run, 2, |_, _| ());
    let finding = run.only();
    assert_eq!(finding.kind.name(), "receive_stall");
    assert_eq!(
        (finding.cause.as_ref(), finding.count),
        ("not_reading", 60_000)
    );
    assert_eq!(finding.severity, Severity::Warning);
    assert_eq!(evidence(finding, "nothing_read_s"), &Value::Number(5.0));
    unread(&mut run, 1, |_, look| {
        (look.copied_seq, look.unread, look.flags) = (67_000, 0, 0);
    });
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("resumed"));
    assert!(finding.summary.ends_with("it reads again"), "{finding:#?}");
    assert!(run.pipeline.watched().receivers.is_empty());
    run.assert_replays(Thresholds::default());
}

#[test]
fn one_that_reads_slowly_is_no_finding() {
    let mut run = Run::new();
    unread(&mut run, 60, |step, look| {
        look.copied_seq = 7000 + u32::try_from(step / 8).unwrap() * 100;
    });
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_connection_that_can_receive_no_more_ends_it() {
    let mut run = Run::new();
    unread(&mut run, 12, |_, _| ());
    assert_ne!(run.only().status, Status::Resolved);
    run.pass(Duration::from_secs(4));
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("closed"));
    run.assert_replays(Thresholds::default());
}

#[rstest]
#[case::by_a_signal(|process: &mut Acceptor| (process.state, process.stopped) = (b'T', 1), "kill -CONT 1234")]
#[case::by_a_debugger(|process: &mut Acceptor| (process.state, process.stopped) = (b't', 1), "TracerPid")]
#[case::with_its_group(|process: &mut Acceptor| process.flags |= acceptor_flag::FROZEN, "thaw")]
fn a_process_that_cannot_run_is_why(#[case] stop: fn(&mut Acceptor), #[case] advice: &str) {
    let mut run = Run::new();
    looks(&mut run, 12, |_, _| (), |_, process| stop(process));
    let finding = only_of(&run, "receive_stall");
    assert_eq!(finding.cause, "stopped", "{finding:#?}");
    assert_eq!(finding.severity, Severity::Critical);
    assert!(finding.advice[0].contains(advice), "{finding:#?}");
    run.assert_replays(Thresholds::default());
}

#[test]
fn who_is_stopped_later_is_another_cause() {
    let mut run = Run::new();
    looks(
        &mut run,
        20,
        |_, _| (),
        |step, process| {
            if step > 14 {
                (process.state, process.stopped) = (b'T', 1);
            }
        },
    );
    assert_eq!(only_of(&run, "receive_stall").cause, "stopped");
}
