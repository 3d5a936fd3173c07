//! `half_open` / `idle_without_keepalive` and `idle_without_timer`.

use std::time::Duration;

use conntracer_common::record::{Socket, idle_flag, role};

use crate::{
    detect::Thresholds,
    finding::{Status, Subject, Value},
    testing::{Run, evidence, socket},
};

const HOUR: Duration = Duration::from_hours(1);

fn service(local: &str, remote: &str) -> Socket {
    Socket {
        role: role::ACTIVE,
        ..socket(local, remote)
    }
}

#[test]
fn what_an_audit_tells_is_one_finding_of_its_process() {
    let mut run = Run::new();
    for port in 0..12_u16 {
        let local = format!("10.0.0.1:{}", 40_000 + port);
        let idle = HOUR + Duration::from_secs(port.into());
        run.idle(service(&local, "10.0.0.9:443"), idle, |_| {});
    }
    run.idle(socket("10.0.0.1:80", "10.0.0.7:5001"), 2 * HOUR, |_| {});
    assert!(run.findings.is_empty(), "the audit is not over");
    run.idle_totals(0);
    let finding = run.only();
    assert_eq!(
        (finding.cause.as_ref(), finding.count),
        ("idle_without_keepalive", 13)
    );
    assert_eq!(
        finding.subject,
        Subject::Process {
            netns: 4026,
            pid: 1234,
            comm: "server".to_owned()
        }
    );
    assert_eq!(
        finding.summary,
        "process 1234 holds 13 connections idle for 900.0 s or longer, the oldest for 7200.0 s, without \
         keepalive: should the peer be gone, this host's kernel will not notice"
    );
    assert_eq!(evidence(finding, "oldest_idle_s"), &Value::Number(7200.0));
    assert_eq!(
        evidence(finding, "most_frequent_remotes"),
        &Value::Text("10.0.0.9:443 (12), 10.0.0.7".into())
    );

    run.skip(Duration::from_mins(1));
    run.idle(socket("10.0.0.1:80", "10.0.0.7:5001"), 2 * HOUR, |_| {});
    run.idle_totals(0);
    assert_eq!(run.only().count, 1);
    run.idle_totals(3);
    assert_eq!(
        run.only().status,
        Status::Update,
        "it may be among the lost"
    );
    run.idle_totals(0);
    assert_eq!(run.only().status, Status::Resolved);
    assert_eq!(run.only().count, 13);
    run.assert_replays(Thresholds::default());
}

#[test]
fn remotes_beyond_those_named_are_counted() {
    let mut run = Run::new();
    for port in 0..300_u16 {
        let remote = format!("10.0.{}.{}:5000", port / 256, port % 256);
        run.idle(socket("10.0.0.1:80", &remote), HOUR, |_| {});
    }
    run.idle_totals(0);
    let named = evidence(run.only(), "most_frequent_remotes");
    assert_eq!(
        named,
        &Value::Text("10.0.0.0, 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4, 251 more at least".into())
    );
}

#[test]
fn data_that_no_timer_will_send_is_another_matter_than_keepalive() {
    let mut run = Run::new();
    run.idle(socket("10.0.0.1:80", "10.0.0.7:5001"), HOUR, |idle| {
        idle.flags = idle_flag::NO_TIMER;
        idle.tcp.snd_una = u32::MAX - 9;
        idle.tcp.write_seq = 90;
    });
    run.idle_totals(0);
    let finding = run.only();
    assert_eq!(finding.cause, "idle_without_timer");
    assert_eq!(evidence(finding, "waiting_bytes"), &Value::Count(100));
}

#[test]
fn a_longer_limit_judges_a_recording_anew() {
    let mut thresholds = Thresholds::default();
    thresholds.half_open.idle_after_s = 3601;
    let mut run = Run::with(thresholds);
    run.idle(socket("10.0.0.1:80", "10.0.0.7:5001"), HOUR, |_| {});
    run.idle_totals(0);
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}
