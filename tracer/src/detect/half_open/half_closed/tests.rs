use std::time::Duration;

use conntracer_common::{record::socket_flag, tcp::state};

use crate::{
    detect::Thresholds,
    finding::{Status, Subject, Value},
    testing::{Run, evidence, socket},
};

/// One poll: `count` sockets in `half`, entered a second apart, then the tick.
fn poll(run: &mut Run, half: u8, count: u16, age: Duration) {
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
