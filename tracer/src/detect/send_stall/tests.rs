use std::time::Duration;

use conntracer_common::{record, tcp::pending};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Status, Value},
    testing::{Run, evidence, only_of, socket},
};

pub(super) const LOCAL: &str = "10.0.0.1:80";
pub(super) const REMOTE: &str = "10.0.0.2:4000";

/// Window probes as the eBPF side tells them from the second on, to a peer with a window of so many bytes.
pub(super) fn probes(run: &mut Run, count: u8, window: u32, result: i32) {
    for backoff in 1..count {
        run.pass(Duration::from_millis(200 << backoff));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.result = result;
            stall(&mut probe.tcp, window);
            probe.tcp.backoff = backoff;
        });
    }
}

pub(super) fn stall(tcp: &mut record::Tcp, window: u32) {
    tcp.snd_wnd = window;
    tcp.mss = 1448;
    tcp.write_seq = 5000;
    tcp.pending = pending::PROBE0;
}

#[test]
fn a_receiver_that_does_not_read_is_no_storm() {
    let mut run = Run::new();
    probes(&mut run, 5, 0, 0);
    let finding = run.only();
    assert_eq!(finding.kind.name(), "send_stall");
    assert_eq!(
        (finding.cause.as_ref(), finding.count),
        ("receiver_stalled", 5)
    );
    assert_eq!(evidence(finding, "unsent_bytes"), &Value::Count(5000));
    assert_eq!(run.pipeline.watched().connections.len(), 1);
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        stall(&mut snapshot.tcp, 0);
        snapshot.tcp.pending = 0;
    });
    assert_ne!(run.only().status, Status::Resolved);
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        snapshot.tcp.packets_out = 3;
        snapshot.tcp.pending = pending::RETRANS;
    });
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("resumed"));
    run.assert_replays(Thresholds::default());
}

#[test]
fn probes_that_this_host_drops_with_the_window_open_are_its_own_doing() {
    let mut run = Run::new();
    probes(&mut run, 2, 64_000, -1);
    ended_as_local(&mut run);
}

/// The kernel probes every half second then, and counts no backoff.
#[test]
fn probes_that_a_queue_drops_with_the_window_open_are_this_hosts_doing() {
    let mut run = Run::new();
    for before in 0..2 {
        run.pass(Duration::from_millis(500));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.result = 1;
            stall(&mut probe.tcp, 64_000);
            probe.tcp.probes_out = before;
        });
    }
    ended_as_local(&mut run);
}

#[track_caller]
fn ended_as_local(run: &mut Run) {
    let finding = run.only();
    assert_eq!(finding.kind.name(), "send_stall");
    assert_eq!((finding.cause.as_ref(), finding.count), ("local_drop", 2));
    run.closed(socket(LOCAL, REMOTE), |_| {});
    assert_eq!(run.only().stage.as_deref(), Some("closed"));
}

/// A window probe after so many that came to nothing.
pub(super) fn unanswered(run: &mut Run, backoff: u8, probes_out: u8) {
    run.pass(Duration::from_millis(200 << backoff));
    run.probe(socket(LOCAL, REMOTE), |probe| {
        probe.keepalive = 0;
        stall(&mut probe.tcp, 0);
        probe.tcp.backoff = backoff;
        probe.tcp.probes_out = probes_out;
    });
}

#[test]
fn a_peer_that_answers_no_window_probe_is_dead_and_no_stalled_receiver() {
    let mut run = Run::new();
    for before in 1..=4 {
        unanswered(&mut run, before, before);
    }
    let finding = run.only();
    assert_eq!(finding.kind.name(), "half_open");
    assert_eq!(finding.cause, "dead_peer");
}

#[test]
fn a_stalled_receiver_that_answers_no_more_is_one_no_longer() {
    let mut run = Run::new();
    probes(&mut run, 5, 0, 0);
    unanswered(&mut run, 5, 1);
    let stalled = run.only();
    assert_eq!((stalled.status, stalled.count), (Status::Update, 6));
    unanswered(&mut run, 6, 2);
    let [stalled, dead] = run.last_words()[..] else {
        panic!("expected two findings, got {:#?}", run.last_words());
    };
    assert_eq!(stalled.status, Status::Resolved);
    assert_eq!(stalled.stage.as_deref(), Some("unanswered"));
    assert!(stalled.summary.contains("answers no more"));
    assert_eq!(dead.cause, "dead_peer");
    assert_eq!(dead.status, Status::Open);
    run.assert_replays(Thresholds::default());
}

#[rstest]
#[case::ended(true, "closed")]
#[case::not_told(false, "forgotten")]
fn a_stall_without_an_entry_ends_with_the_connection_or_its_last_probe(
    #[case] is_told: bool,
    #[case] stage: &str,
) {
    let untracked = || record::Socket {
        born_ns: 0,
        ..socket(LOCAL, REMOTE)
    };
    let mut run = Run::new();
    for backoff in 1..4 {
        run.pass(Duration::from_millis(200 << backoff));
        run.probe(untracked(), |probe| {
            probe.keepalive = 0;
            stall(&mut probe.tcp, 0);
            probe.tcp.backoff = backoff;
        });
    }
    if is_told {
        run.close(untracked(), |ending| ending.flags = 0);
    } else {
        run.pass(Duration::from_mins(4));
        assert_ne!(run.only().status, Status::Resolved);
        run.pass(Duration::from_secs(1));
    }
    let finding = only_of(&run, "send_stall");
    assert_eq!(finding.stage.as_deref(), Some(stage));
    assert_eq!((finding.status, finding.count), (Status::Resolved, 4));
}

/// Probes that were answered before conntracer began: since when data waits, the socket tells.
#[test]
fn a_stall_from_before_is_told_by_what_the_socket_knows() {
    let shut = |run: &mut Run, backoff: u8| {
        run.seed(socket(LOCAL, REMOTE), |seed| {
            stall(&mut seed.tcp, 0);
            seed.tcp.backoff = backoff;
        });
        if backoff > 2 {
            run.probe(socket(LOCAL, REMOTE), |probe| {
                probe.keepalive = 0;
                stall(&mut probe.tcp, 0);
                probe.tcp.backoff = backoff;
            });
            assert!(run.findings.is_empty(), "since when is not known yet");
        }
        run.pass(Duration::from_millis(500));
        let watched = run.pipeline.watched().connections.len();
        assert_eq!(watched, usize::from(backoff > 0));
        run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
            stall(&mut snapshot.tcp, 0);
            snapshot.tcp.backoff = backoff;
            snapshot.sent_idle_ns = 90_000_000_000;
        });
    };
    let mut run = Run::new();
    shut(&mut run, 6);
    let finding = only_of(&run, "send_stall");
    assert_eq!(
        (finding.cause.as_ref(), finding.count),
        ("receiver_stalled", 7)
    );
    assert_eq!(evidence(finding, "stalled_s"), &Value::Number(90.0));
    run.assert_replays(Thresholds::default());

    let mut run = Run::new();
    shut(&mut run, 2);
    assert!(run.findings.is_empty(), "it may read again soon");
    let mut run = Run::new();
    shut(&mut run, 0);
    assert!(run.findings.is_empty());
}

/// A probe comes before the walk of the sockets that were there: it does not tell since when, and a look does.
#[test]
fn a_stall_that_a_late_probe_begins_is_dated_by_a_look() {
    let mut run = Run::new();
    run.probe(socket(LOCAL, REMOTE), |probe| {
        probe.keepalive = 0;
        stall(&mut probe.tcp, 0);
        probe.tcp.backoff = 6;
    });
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
    assert_eq!(run.pipeline.watched().connections.len(), 1);
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        stall(&mut snapshot.tcp, 0);
        snapshot.tcp.backoff = 6;
        snapshot.sent_idle_ns = 30_000_000_000;
    });
    let finding = only_of(&run, "send_stall");
    assert_eq!(finding.count, 7);
    assert_eq!(evidence(finding, "stalled_s"), &Value::Number(30.0));
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_short_wait_is_nothing() {
    let mut run = Run::new();
    probes(&mut run, 2, 0, 0);
    run.retransmit(socket(LOCAL, REMOTE), |_| {});
    probes(&mut run, 2, 0, 0);
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}
