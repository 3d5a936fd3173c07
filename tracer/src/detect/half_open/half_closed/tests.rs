use std::time::Duration;

use conntracer_common::{
    record::{Snapshot, snapshot_flag, socket_flag},
    tcp::state,
};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Status, Subject, Value},
    testing::{Run, evidence, socket},
};

/// One poll: `count` sockets in `half`, entered a second apart, then the tick.
pub(super) fn poll(run: &mut Run, half: u8, count: u16, age: Duration) {
    for port in 0..count {
        let mut socket = socket("10.0.0.1:80", &format!("10.0.0.2:{}", 4000 + port));
        socket.state = half;
        let since_ns = run.ktime_ns() - u64::try_from(age.as_nanos()).unwrap() + u64::from(port);
        run.snapshot(socket, |snapshot| snapshot.since_ns = since_ns);
    }
    run.tick();
}

#[test]
fn forgotten_closes_are_grouped_by_process_and_resolve_when_gone() {
    let mut run = Run::new();
    poll(&mut run, state::CLOSE_WAIT, 5, Duration::from_secs(61));
    let finding = run.only();
    assert_eq!(finding.cause, "half_closed");
    assert_eq!(finding.count, 5);
    assert_eq!(
        finding.subject,
        Subject::Process {
            netns: 4026,
            pid: 1234,
            comm: "server".to_owned()
        }
    );
    assert_eq!(
        evidence(finding, "state"),
        &Value::Text("CLOSE_WAIT".into())
    );
    assert_eq!(evidence(finding, "oldest_s"), &Value::Number(61.0));

    run.skip(Duration::from_secs(1));
    poll(&mut run, state::CLOSE_WAIT, 3, Duration::from_secs(62));
    assert_eq!(run.only().count, 3);
    run.tick();
    assert_eq!(run.only().status, Status::Update);
    run.tick();
    assert_eq!(run.only().status, Status::Resolved);
    assert_eq!(run.only().count, 5);
    run.assert_replays(Thresholds::default());
}

fn looks_like(run: &Run) -> &Value {
    evidence(run.only(), "looks_like")
}

#[test]
fn growth_reads_like_a_leak_and_steadiness_does_not() {
    let mut run = Run::new();
    for step in 0..7_u16 {
        poll(
            &mut run,
            state::CLOSE_WAIT,
            1 + 2 * step,
            Duration::from_secs(61),
        );
        run.skip(Duration::from_secs(10));
    }
    assert!(
        run.only().summary.contains("leak"),
        "{}",
        run.only().summary
    );
    assert_eq!(looks_like(&run), &Value::Text("leak".into()));

    // A burst that left together.
    let mut run = Run::new();
    for count in [1, 4, 4, 9, 9, 9, 9] {
        poll(&mut run, state::CLOSE_WAIT, count, Duration::from_secs(61));
        run.skip(Duration::from_secs(10));
    }
    assert!(
        !run.only().summary.contains("leak"),
        "{}",
        run.only().summary
    );
    assert_eq!(looks_like(&run), &Value::Text("forgotten".into()));
    run.assert_replays(Thresholds::default());
}

#[test]
fn those_that_a_poll_only_counts_are_part_of_the_group() {
    let mut run = Run::new();
    for step in 0..7 {
        run.half_closed(state::CLOSE_WAIT, 1000 + 2 * step);
        poll(&mut run, state::CLOSE_WAIT, 4, Duration::from_secs(61));
        run.skip(Duration::from_secs(10));
    }
    // At the first poll nothing of the process was known yet.
    let finding = run.only();
    assert_eq!(finding.count, 4 + 1000 + 2 * 6);
    assert_eq!(evidence(finding, "unlisted_sockets"), &Value::Count(1012));
    assert_eq!(looks_like(&run), &Value::Text("leak".into()));

    // Those that were listed have closed, the others are still there.
    for _ in 0..2 {
        run.half_closed(state::CLOSE_WAIT, 1014);
        run.tick();
    }
    assert_ne!(run.only().status, Status::Resolved);
    run.half_closed(state::FIN_WAIT2, 1014);
    run.tick();
    run.tick();
    assert_eq!(run.only().status, Status::Resolved);
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_peer_that_is_slow_to_take_its_data_is_no_leak() {
    let mut run = Run::new();
    let mut slow = socket("10.0.0.1:80", "10.0.0.2:4000");
    slow.state = state::CLOSE_WAIT;
    let since_ns = run.ktime_ns() - 100_000_000_000;
    run.snapshot(slow, |snapshot| {
        snapshot.since_ns = since_ns;
        snapshot.tcp.write_seq = 5000;
    });
    run.tick();
    assert_eq!(looks_like(&run), &Value::Text("slow_peer".into()));
    assert!(run.only().summary.contains("slow"), "{:#?}", run.only());
    assert_eq!(evidence(run.only(), "still_sending"), &Value::Count(1));
}

#[test]
fn a_socket_listed_twice_in_a_poll_counts_once() {
    let mut run = Run::new();
    let mut twice = socket("10.0.0.1:80", "10.0.0.2:4000");
    twice.state = state::FIN_WAIT2;
    let since_ns = run.ktime_ns() - 100_000_000_000;
    run.snapshot(twice, |snapshot| snapshot.since_ns = since_ns);
    run.snapshot(twice, |snapshot| snapshot.since_ns = since_ns);
    run.tick();
    assert_eq!(run.only().count, 1);
}

#[test]
fn young_or_whole_connections_are_no_finding() {
    let mut run = Run::new();
    poll(&mut run, state::CLOSE_WAIT, 5, Duration::from_secs(59));
    poll(&mut run, state::ESTABLISHED, 5, Duration::from_mins(10));
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn what_was_half_closed_before_is_so_for_that_long_at_least() {
    let mut run = Run::new();
    let mut socket = socket("10.0.0.1:80", "10.0.0.2:5000");
    socket.state = state::CLOSE_WAIT;
    socket.flags = socket_flag::OLDER;
    run.snapshot(socket, |snapshot| {
        snapshot.since_ns = socket.born_ns - 62_000_000_000;
        snapshot.tcp.bytes_acked = 1234;
        snapshot.tcp.total_retrans = 7;
    });
    poll(&mut run, state::CLOSE_WAIT, 4, Duration::from_secs(61));
    let finding = run.only();
    assert_eq!(finding.count, 5);
    assert!(finding.summary.contains("for at least"), "{finding:#?}");
    assert_eq!(evidence(finding, "oldest_acked_bytes"), &Value::Count(1234));
    assert_eq!(
        evidence(finding, "oldest_segments_retransmitted"),
        &Value::Count(7)
    );
}

#[test]
fn a_close_that_only_one_of_two_holders_called_is_told_from_a_forgotten_one() {
    let told = |holders: &[u8]| {
        let mut run = Run::new();
        for (port, holders) in (4000..).zip(holders) {
            let mut socket = socket("10.0.0.1:80", &format!("10.0.0.2:{port}"));
            socket.state = state::CLOSE_WAIT;
            let since_ns = run.ktime_ns() - 61_000_000_000;
            run.snapshot(socket, |snapshot| {
                snapshot.since_ns = since_ns;
                snapshot.owner.holders = *holders;
            });
        }
        run.tick();
        let finding = run.only();
        let shared = finding
            .evidence
            .iter()
            .find(|evidence| evidence.name == "shared_sockets")
            .map(|evidence| evidence.value.clone());
        (shared, finding.advice[0].starts_with("close every copy"))
    };
    assert_eq!(told(&[0, 1]), (None, false));
    assert_eq!(told(&[1, 2]), (Some(Value::Count(1)), false));
    assert_eq!(told(&[2, 3]), (Some(Value::Count(2)), true));
}

/// What a socket that is half-closed for 100 s looks like at each of 300 polls within 75 s, and whether it is a finding.
pub(super) fn told_of(half: u8, look: impl Fn(u64, &mut Snapshot)) -> Run {
    let mut run = Run::new();
    let mut socket = socket("10.0.0.1:80", "10.0.0.2:4000");
    socket.state = half;
    let since_ns = run.ktime_ns() - 100_000_000_000;
    for poll in 0..300 {
        run.snapshot(socket, |snapshot| {
            snapshot.since_ns = since_ns;
            snapshot.tcp.snd_una = 1000;
            snapshot.tcp.snd_nxt = 1000;
            snapshot.tcp.write_seq = 1000;
            look(poll, snapshot);
        });
        run.tick();
        run.skip(Duration::from_millis(250));
    }
    run.assert_replays(Thresholds::default());
    run
}

const SECOND: u64 = 1_000_000_000;

/// Half-closed and in use is healthy: progress tells, and not bytes that wait at the moment of a look.
#[rstest]
#[case::a_line_a_second_is_acknowledged(state::CLOSE_WAIT, |poll, snapshot: &mut Snapshot| {
    let sent = 1000 + 10 * u32::try_from(poll / 4).unwrap();
    snapshot.tcp.snd_una = sent;
    snapshot.tcp.snd_nxt = sent;
    snapshot.tcp.write_seq = sent;
    snapshot.sent_idle_ns = poll % 4 * SECOND / 4;
}, false)]
#[case::one_each_50_s_is(state::CLOSE_WAIT, |poll, snapshot: &mut Snapshot| {
    snapshot.sent_idle_ns = (poll % 200) * SECOND / 4;
}, false)]
#[case::a_bulk_is_under_way(state::CLOSE_WAIT, |poll, snapshot: &mut Snapshot| {
    let una = 1000 + 1000 * u32::try_from(poll).unwrap();
    snapshot.tcp.snd_una = una;
    snapshot.tcp.snd_nxt = una + 50_000;
    snapshot.tcp.write_seq = una + 90_000;
}, false)]
#[case::the_other_side_sends(state::FIN_WAIT2, |poll, snapshot: &mut Snapshot| {
    snapshot.tcp.rcv_nxt = 10 * u32::try_from(poll / 100).unwrap();
    snapshot.received_idle_ns = poll % 100 * SECOND / 4;
}, false)]
#[case::an_older_recording_shows_progress(state::FIN_WAIT2, |poll, snapshot: &mut Snapshot| {
    snapshot.tcp.rcv_nxt = 10 * u32::try_from(poll).unwrap();
}, false)]
#[case::what_is_sent_again_is_no_progress(state::CLOSE_WAIT, |poll, snapshot: &mut Snapshot| {
    snapshot.tcp.snd_nxt = 3000;
    snapshot.tcp.write_seq = 3000;
    snapshot.tcp.retransmits = 5;
    snapshot.sent_idle_ns = poll % 4 * SECOND / 4;
}, true)]
#[case::nothing_came_for_a_minute(state::FIN_WAIT2, |_, snapshot: &mut Snapshot| {
    snapshot.received_idle_ns = 61 * SECOND;
}, true)]
#[case::nothing_was_sent_for_a_minute(state::CLOSE_WAIT, |_, snapshot: &mut Snapshot| {
    snapshot.sent_idle_ns = 61 * SECOND;
    snapshot.received_idle_ns = 99 * SECOND;
}, true)]
fn what_is_in_use_is_no_finding(
    #[case] half: u8,
    #[case] look: fn(u64, &mut Snapshot),
    #[case] is_told: bool,
) {
    // The first look of an older recording has nothing to compare with.
    let mut run = told_of(half, look);
    run.findings
        .retain(|finding| finding.cause == "half_closed");
    let after_first = run
        .findings
        .iter()
        .any(|finding| finding.status == Status::Update);
    let told = !run.findings.is_empty() && (after_first || run.only().status != Status::Resolved);
    assert_eq!(told, is_told, "{:#?}", run.findings);
}

/// Each reading needs its own evidence, and `close()` is blamed only on who has the descriptor and has read the end.
#[rstest]
#[case::forgotten(state::CLOSE_WAIT, |_: &mut Snapshot| {}, "forgotten", "close() was not called")]
#[case::not_accepted(state::CLOSE_WAIT, |snapshot: &mut Snapshot| {
    snapshot.flags = snapshot_flag::NOT_ACCEPTED | snapshot_flag::END_UNREAD;
}, "not_accepted", "1 connection in CLOSE_WAIT waits for accept() by process 1234")]
#[case::the_end_is_not_read(state::CLOSE_WAIT, |snapshot: &mut Snapshot| {
    snapshot.flags = snapshot_flag::END_UNREAD;
    snapshot.unread = 7;
}, "not_read", "what came before its end (7 bytes) is not read")]
#[case::slow(state::CLOSE_WAIT, |snapshot: &mut Snapshot| {
    snapshot.tcp.write_seq = 5000;
}, "slow_peer", "is slow to take what it is still sent")]
#[case::unanswered(state::CLOSE_WAIT, |snapshot: &mut Snapshot| {
    snapshot.tcp.write_seq = 5000;
    snapshot.tcp.retransmits = 3;
}, "slow_peer", "acknowledges nothing of what it is still sent")]
#[case::the_peer_does_not_close(state::FIN_WAIT2, |_: &mut Snapshot| {}, "slow_peer", "it has shut its side, and no end of the peer's has come through")]
#[case::this_host_does_not_read(state::FIN_WAIT2, |snapshot: &mut Snapshot| {
    snapshot.unread = 65_000;
}, "not_read", "does not read what the peer sends (65000 bytes)")]
fn each_reading_needs_its_own_evidence(
    #[case] half: u8,
    #[case] look: fn(&mut Snapshot),
    #[case] reading: &str,
    #[case] said: &str,
) {
    let mut run = told_of(half, |_, snapshot| look(snapshot));
    run.findings
        .retain(|finding| finding.cause == "half_closed");
    assert_eq!(looks_like(&run), &Value::Text(reading.to_owned().into()));
    let finding = run.only();
    assert!(finding.summary.contains(said), "{finding:#?}");
    let blamed = finding.summary.contains("close() was not");
    assert_eq!(blamed, reading == "forgotten", "{finding:#?}");
    assert_eq!(finding.count, 1);
}

/// Ever more peers that take nothing are no leak of this process's.
#[test]
fn what_still_delivers_is_no_part_of_a_leak() {
    let mut run = Run::new();
    for step in 0..7_u16 {
        for port in 0..=2 * step {
            let mut socket = socket("10.0.0.1:80", &format!("10.0.0.2:{}", 4000 + port));
            socket.state = state::CLOSE_WAIT;
            let since_ns = run.ktime_ns() - 61 * SECOND;
            run.snapshot(socket, |snapshot| {
                snapshot.since_ns = since_ns;
                snapshot.tcp.write_seq = 5000;
            });
        }
        run.tick();
        run.skip(Duration::from_secs(10));
    }
    assert_eq!(looks_like(&run), &Value::Text("slow_peer".into()));
}
