//! `half_open` / `dead_peer`.

pub(super) mod candidates;

use std::time::Duration;

use conntracer_common::{
    record::{Owner, Socket},
    tcp::{ca, state},
};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Certainty, Evidence, Status, Subject, Value},
    testing::{Run, evidence, host, only_of, socket},
};

pub(super) const LOCAL: &str = "10.0.0.1:80";
pub(super) const REMOTE: &str = "10.0.0.2:4000";

/// A peer that vanished: timeouts after 0.2, 0.4, 0.8, … s, as the kernel tells them.
pub(super) fn timeouts(run: &mut Run, local: &str, remote: &str, count: u8) {
    for number in 1..=count {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.snapshot(socket(local, remote), |snapshot| {
            snapshot.tcp.snd_una = 1000;
            snapshot.tcp.snd_nxt = 3000;
            snapshot.tcp.ca_state = ca::LOSS;
            snapshot.tcp.retransmits = number - 1;
        });
        run.retransmit(socket(local, remote), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.backoff = number;
        });
    }
}

#[rstest]
#[case::v4(LOCAL, REMOTE)]
#[case::v6("[fd00::1]:80", "[fd00::2]:4000")]
fn a_silent_peer_is_suspected_at_the_third_timeout_and_confirmed_when_the_kernel_gives_up(
    #[case] local: &str,
    #[case] remote: &str,
) {
    let mut run = Run::new();
    timeouts(&mut run, local, remote, 2);
    assert!(run.findings.is_empty());
    let mut run = Run::new();
    timeouts(&mut run, local, remote, 3);
    let finding = run.only();
    assert_eq!(finding.kind.name(), "half_open");
    assert_eq!(finding.cause, "dead_peer");
    assert_eq!(finding.stage.as_deref(), Some("suspected"));
    assert_eq!(finding.certainty, Certainty::Inferred);
    assert_eq!(finding.count, 3);
    assert_eq!(evidence(finding, "unacked_bytes"), &Value::Count(2000));
    assert_eq!(
        evidence(finding, "kernel_gives_up_after_s"),
        &Value::Number(924.6)
    );
    assert!(matches!(finding.subject, Subject::Connection { .. }));

    run.closed(socket(local, remote), |closed| {
        closed.error = 110;
        closed.retransmits = 3;
    });
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("confirmed"));
    assert_eq!(finding.certainty, Certainty::Exact);
    // Three retransmissions and the timeout at which it gave up: TcpExt TCPTimeouts.
    assert_eq!(finding.count, 4);
    assert!(run.pipeline.watched().connections.is_empty());
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_peer_that_answers_again_is_recovered() {
    let mut run = Run::new();
    timeouts(&mut run, LOCAL, REMOTE, 4);
    assert_eq!(run.pipeline.watched().connections.len(), 1);
    run.pass(Duration::from_millis(500));
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        snapshot.tcp.snd_una = 3000;
        snapshot.tcp.snd_nxt = 3000;
    });
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("recovered"));
    assert_eq!(finding.count, 4);
    assert!(run.pipeline.watched().connections.is_empty());
}

/// Full-sized segments that are not acknowledged, while the peer is heard of in one of two ways.
#[rstest]
#[case::it_sends(true, false, 1448, true)]
#[case::it_has_what_follows(false, true, 1448, true)]
#[case::it_is_silent(false, false, 1448, false)]
#[case::small_ones_fail_too(true, true, 1447, false)]
fn a_peer_that_talks_behind_a_narrow_path_is_not_dead(
    #[case] sends: bool,
    #[case] has_more: bool,
    #[case] bytes: u32,
    #[case] is_narrow: bool,
) {
    let mut run = Run::new();
    for number in 1..=4 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.end_seq = retransmit.seq + bytes;
            retransmit.tcp.retransmits = number;
            retransmit.tcp.rcv_nxt = u32::from(sends) * u32::from(number);
            retransmit.tcp.packets_out = 2;
            retransmit.tcp.lost_out = 2 - u32::from(has_more);
        });
    }
    let looks_like = |run: &Run| {
        let mut facts = run.only().evidence.iter();
        facts
            .find(|fact| fact.name == "looks_like")
            .map(|fact| fact.value.clone())
    };
    let expected = if is_narrow {
        Some(Value::Text("path_mtu".into()))
    } else if bytes == 1448 {
        Some(Value::Text("path_mtu_or_dead_peer".into()))
    } else {
        None
    };
    assert_eq!(looks_like(&run), expected, "{:#?}", run.only());
    assert_eq!(run.only().stage.as_deref(), Some("suspected"));
    assert_eq!(run.only().summary.contains("talks"), is_narrow);
    if is_narrow {
        let bytes = evidence(run.only(), "lost_segment_bytes");
        assert_eq!(bytes, &Value::Count(1448));
    }
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 4;
    });
    assert_eq!(looks_like(&run), expected, "{:#?}", run.only());
    assert_eq!(run.only().stage.as_deref(), Some("confirmed"));
    assert_eq!(
        run.only().certainty == Certainty::Inferred,
        is_narrow,
        "{:#?}",
        run.only()
    );
    run.assert_replays(Thresholds::default());
}

/// A window in flight of which the peer has all but a tenth: the same segment was lost again and again by chance.
/// Of one whose last segment alone is small and arrived, as of one of unknown sizes, nothing speaks against it.
#[rstest]
#[case::full_sized(168, 17, 242_688, false)]
#[case::a_small_one(10, 9, 9 * 1448 + 200, true)]
#[case::of_a_larger_mss(10, 9, 10 * 1460, true)]
fn a_path_that_carries_full_sized_segments_is_not_too_narrow(
    #[case] packets_out: u32,
    #[case] lost_out: u32,
    #[case] unacked: u32,
    #[case] is_narrow: bool,
) {
    let mut run = Run::new();
    for number in 1..=4 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.end_seq = retransmit.seq + 1448;
            retransmit.tcp.retransmits = number;
            retransmit.tcp.packets_out = packets_out;
            retransmit.tcp.lost_out = lost_out;
            retransmit.tcp.snd_nxt = retransmit.tcp.snd_una + unacked;
        });
    }
    let finding = run.only();
    assert_eq!(finding.cause, "dead_peer");
    let looks_like = finding
        .evidence
        .iter()
        .any(|fact| fact.name == "looks_like");
    assert_eq!(looks_like, is_narrow, "{finding:#?}");
}

#[test]
fn a_poll_that_overtakes_the_ring_is_no_recovery() {
    let mut run = Run::new();
    timeouts(&mut run, LOCAL, REMOTE, 3);
    let before = run.fed.last().unwrap().clone();
    run.skip(Duration::from_secs(1));
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        snapshot.tcp.snd_una = 1000;
        snapshot.tcp.snd_nxt = 3000;
        snapshot.tcp.retransmits = 4;
    });
    run.feed(&before);
    run.finish();
    assert_eq!(run.only().stage.as_deref(), Some("suspected"));
    assert_eq!(run.only().count, 4);
}

#[test]
fn a_reset_from_the_peer_ends_the_doubt() {
    let mut run = Run::new();
    timeouts(&mut run, LOCAL, REMOTE, 3);
    run.reset_received(socket(LOCAL, REMOTE));
    run.closed(socket(LOCAL, REMOTE), |closed| closed.error = 104);
    assert_eq!(run.statuses(), [Status::Open, Status::Resolved]);
    assert_eq!(run.only().stage.as_deref(), Some("reset"));
}

#[test]
fn unanswered_keepalives_count_as_probes() {
    let mut run = Run::new();
    for unanswered in 0..=2 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.tcp.probes_out = unanswered;
        });
    }
    assert_eq!(run.only().count, 2);
    run.pass(Duration::from_secs(1));
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.probes_out = 3;
    });
    let finding = run.only();
    assert_eq!(finding.stage.as_deref(), Some("confirmed"));
    assert_eq!(finding.count, 3);
    assert!(finding.summary.contains("keepalive"), "{}", finding.summary);
}

/// Probes of a peer's window until a second one is unanswered.
pub(super) fn window_probes(run: &mut Run, window: u32) {
    for unanswered in 0..=2 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.tcp.snd_wnd = window;
            probe.tcp.probes_out = unanswered;
        });
    }
}

/// The probe that sends the data is counted out after its record was made.
#[rstest]
#[case::seen_by_a_poll(false)]
#[case::seen_by_the_probe(true)]
fn probes_that_end_because_the_data_left_are_no_answer(#[case] by_probe: bool) {
    let mut run = Run::new();
    window_probes(&mut run, 65_535);
    assert_eq!(run.only().status, Status::Open);
    run.pass(Duration::from_secs(1));
    if by_probe {
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.tcp.snd_wnd = 65_535;
            probe.tcp.packets_out = 1;
            probe.tcp.probes_out = 2;
        });
    }
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        snapshot.tcp.snd_wnd = 65_535;
        snapshot.tcp.packets_out = 1;
    });
    for number in 1..=3 {
        run.pass(Duration::from_secs(1));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.snd_una = 0;
            retransmit.tcp.snd_wnd = 65_535;
            retransmit.tcp.packets_out = 1;
            retransmit.tcp.retransmits = number;
        });
    }
    assert!(
        run.statuses()
            .iter()
            .all(|status| *status != Status::Resolved),
        "{:#?}",
        run.findings
    );
    run.pass(Duration::from_secs(1));
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 3;
    });
    let finding = run.only();
    assert_eq!(finding.stage.as_deref(), Some("confirmed"));
    assert!(finding.summary.contains("timeouts"), "{}", finding.summary);
}

/// An answer that opens the window lets the data leave, too.
#[test]
fn probes_that_end_because_the_window_opened_are_answered() {
    let mut run = Run::new();
    window_probes(&mut run, 0);
    run.pass(Duration::from_secs(1));
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        snapshot.tcp.snd_wnd = 65_535;
        snapshot.tcp.packets_out = 1;
    });
    assert_eq!(run.only().stage.as_deref(), Some("recovered"));
}

#[test]
fn a_peer_with_a_closed_window_answers_and_opens_nothing() {
    let mut run = Run::new();
    for _ in 0..50 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.tcp.probes_out = 1;
        });
        run.snapshot(socket(LOCAL, REMOTE), |_| {});
    }
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_connection_that_gives_up_early_opens_and_resolves_at_once() {
    let mut run = Run::new();
    timeouts(&mut run, LOCAL, REMOTE, 1);
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 1;
    });
    assert_eq!(run.statuses(), [Status::Open, Status::Resolved]);
    assert_eq!(run.only().count, 2);
}

#[rstest]
#[case::never_connected(state::SYN_SENT, 110, 6)]
#[case::ordinary_close(state::LAST_ACK, 0, 0)]
#[case::one_timeout_then_close(state::LAST_ACK, 0, 1)]
fn other_ends_are_no_dead_peer(#[case] old: u8, #[case] error: u32, #[case] retransmits: u8) {
    let mut run = Run::new();
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.old_state = old;
        closed.error = error;
        closed.retransmits = retransmits;
    });
    run.pass(Duration::from_secs(5));
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

/// A connection that the eBPF side has no room for.
pub(super) fn untracked() -> Socket {
    Socket {
        born_ns: 0,
        ..socket(LOCAL, REMOTE)
    }
}

pub(super) fn untracked_timeouts(run: &mut Run) {
    for number in 1..=3 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(untracked(), |retransmit| {
            retransmit.tcp.retransmits = number;
        });
    }
}

#[rstest]
#[case::given_up(110, "confirmed", 4)]
#[case::reset(104, "reset", 3)]
#[case::closed(0, "closed", 3)]
fn the_ending_of_a_connection_without_an_entry_is_its_last_word(
    #[case] error: u32,
    #[case] stage: &str,
    #[case] count: u64,
) {
    let mut run = Run::new();
    untracked_timeouts(&mut run);
    assert_eq!(only_of(&run, "half_open").status, Status::Open);
    run.close(untracked(), |ending| {
        ending.error = error;
        ending.tcp.retransmits = 3;
    });
    let finding = only_of(&run, "half_open");
    assert_eq!(finding.stage.as_deref(), Some(stage));
    assert_eq!((finding.status, finding.count), (Status::Resolved, count));
    // With `--emit state` there is one word more.
    run.closed(untracked(), |closed| {
        closed.error = error;
        closed.retransmits = 3;
    });
    only_of(&run, "half_open");
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_connection_without_an_entry_that_shows_nothing_more_is_forgotten() {
    let mut run = Run::new();
    untracked_timeouts(&mut run);
    run.pass(Duration::from_mins(4));
    assert_eq!(only_of(&run, "half_open").status, Status::Open);
    run.pass(Duration::from_secs(1));
    assert_eq!(only_of(&run, "half_open").status, Status::Resolved);
    assert_eq!(
        only_of(&run, "half_open").stage.as_deref(),
        Some("forgotten")
    );
}

#[test]
fn the_ending_of_a_connection_with_an_entry_waits_for_the_change_of_its_state() {
    let mut run = Run::new();
    timeouts(&mut run, LOCAL, REMOTE, 3);
    run.close(socket(LOCAL, REMOTE), |ending| ending.error = 110);
    assert_eq!(
        only_of(&run, "half_open").stage.as_deref(),
        Some("suspected")
    );
}

/// A poll finds no socket after three timeouts, 1.4 s after the data was sent for the first time.
pub(super) fn gone(run: &mut Run, user_timeout_ms: u32) {
    timeouts(run, LOCAL, REMOTE, 2);
    run.pass(Duration::from_millis(800));
    run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
        retransmit.tcp.retransmits = 3;
        retransmit.tcp.user_timeout_ms = user_timeout_ms;
    });
    let mut socket = socket(LOCAL, REMOTE);
    socket.state = state::CLOSE;
    socket.local_addr = [0; 4];
    socket.remote_addr = [0; 4];
    run.snapshot(socket, |snapshot| snapshot.owner = Owner::default());
    run.tick();
}

#[test]
fn a_socket_that_is_gone_waits_for_the_word_of_its_end() {
    let mut run = Run::new();
    gone(&mut run, 0);
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 3;
    });
    assert_eq!(run.only().stage.as_deref(), Some("confirmed"));
    assert_eq!(run.only().certainty, Certainty::Exact);
}

/// An application that is woken first takes the error.
#[rstest]
#[case::in_time(1000, "confirmed")]
#[case::early(9000, "closed")]
fn an_end_without_its_error_was_given_up_if_its_time_was_over(
    #[case] user_timeout_ms: u32,
    #[case] stage: &str,
) {
    let mut run = Run::new();
    gone(&mut run, user_timeout_ms);
    run.closed(socket(LOCAL, REMOTE), |closed| closed.retransmits = 3);
    assert_eq!(run.only().stage.as_deref(), Some(stage));
}

#[rstest]
#[case::unset(0, "closed", 3)]
#[case::longer(1500, "closed", 3)]
#[case::over(1400, "confirmed", 4)]
fn a_socket_that_is_gone_without_a_word_was_given_up_if_its_time_was_over(
    #[case] user_timeout_ms: u32,
    #[case] stage: &str,
    #[case] count: u64,
) {
    let mut run = Run::new();
    gone(&mut run, user_timeout_ms);
    run.pass(Duration::from_secs(1));
    let finding = run.only();
    assert_eq!(finding.stage.as_deref(), Some(stage));
    assert_eq!((finding.status, finding.count), (Status::Resolved, count));
    assert_eq!(finding.certainty == Certainty::Exact, stage == "closed");
    assert_eq!(finding.owner.as_ref().unwrap().pid, 1234);
}

/// `tcp_retries2` at 2 bears 1.4 s, in the namespace that was asked.
#[rstest]
#[case::own(Some(4026), "confirmed", true)]
#[case::another(Some(1), "closed", false)]
#[case::not_told(None, "closed", false)]
fn the_settings_of_one_namespace_tell_nothing_of_another(
    #[case] netns: Option<u32>,
    #[case] stage: &str,
    #[case] is_known: bool,
) {
    let mut host = host();
    host.netns = netns;
    host.sysctls
        .insert("net.ipv4.tcp_retries2".to_owned(), "2".to_owned());
    let mut run = Run::on(Thresholds::default(), host);
    gone(&mut run, 0);
    let suspected = run.only();
    let advised = suspected.advice.join("\n");
    let setting = if is_known {
        "net.ipv4.tcp_retries2 (now 2), which is for every connection and gives up only after 1.4 s"
    } else {
        "net.ipv4.tcp_retries2 of namespace 4026"
    };
    assert!(advised.contains(setting), "{advised}");
    let evidence = &suspected.evidence;
    let limit = |evidence: &Evidence| evidence.name == "kernel_gives_up_after_s";
    assert_eq!(evidence.iter().any(limit), is_known);
    run.pass(Duration::from_secs(1));
    assert_eq!(run.only().stage.as_deref(), Some(stage));
}

#[rstest]
#[case::refused(-1)]
#[case::queue_full(1)]
fn what_does_not_leave_the_host_is_not_blamed_on_the_peer(#[case] result: i32) {
    let mut run = Run::new();
    for unanswered in 0..=3 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.result = result;
            probe.tcp.probes_out = unanswered;
        });
    }
    run.finish();
    assert!(
        run.only().summary.contains("leaves this host"),
        "{}",
        run.only().summary
    );
}

#[test]
fn timeouts_that_retransmit_nothing_are_not_blamed_on_the_peer() {
    let mut run = Run::new();
    for before in 0..=3 {
        run.pass(Duration::from_millis(200 << before));
        run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
            snapshot.tcp.ca_state = ca::LOSS;
            snapshot.tcp.retransmits = before;
        });
    }
    assert!(
        run.only().summary.contains("leaves this host"),
        "{}",
        run.only().summary
    );
}

#[test]
fn a_peer_that_was_silent_before_is_suspected_at_once_with_what_the_kernel_still_knows() {
    let mut run = Run::new();
    run.seed(socket(LOCAL, REMOTE), |seed| {
        seed.tcp.retransmits = 5;
        seed.tcp.snd_una = 1000;
        seed.tcp.snd_nxt = 3000;
        seed.tcp.total_retrans = 9;
        seed.tcp.bytes_acked = 1234;
    });
    let finding = run.only();
    assert_eq!(finding.stage.as_deref(), Some("suspected"));
    assert_eq!(finding.count, 5);
    assert_eq!(
        evidence(finding, "segments_retransmitted"),
        &Value::Count(9)
    );
    assert_eq!(evidence(finding, "bytes_acked"), &Value::Count(1234));
    assert_eq!(run.pipeline.watched().connections.len(), 1);
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_healthy_connection_that_was_there_before_is_nothing_but_counted() {
    let mut run = Run::new();
    run.seed(socket(LOCAL, REMOTE), |_| ());
    run.tick();
    assert!(run.findings.is_empty());
    let seeds = run.pipeline.tallies().seeds;
    assert_eq!((seeds.seeds, seeds.seed_unowned), (1, 0));
}

#[test]
fn a_closed_connection_whose_data_waits_is_an_orphan() {
    let mut run = Run::new();
    let mut orphan = socket(LOCAL, REMOTE);
    orphan.state = state::FIN_WAIT1;
    for timeouts in 1..=3 {
        run.retransmit(orphan, |retransmit| {
            retransmit.tcp.retransmits = timeouts;
            retransmit.tcp.orphan = 1;
        });
    }
    let finding = run.only();
    assert_eq!(evidence(finding, "orphan"), &Value::Text("yes".into()));
    // Eight retries, and not fifteen.
    assert_eq!(
        evidence(finding, "kernel_gives_up_after_s"),
        &Value::Number(102.2)
    );
    assert!(
        finding
            .summary
            .ends_with("the application has closed the connection and is not told"),
        "{finding:#?}"
    );
    assert!(
        finding
            .advice
            .iter()
            .any(|advice| advice.contains("tcp_orphan_retries")),
        "{finding:#?}"
    );
}

/// A FIN has a number, and is no byte.
#[rstest]
#[case::the_fin_alone(2, 1000, 1001, ", the FIN unacknowledged")]
#[case::data_and_the_fin(2, 1000, 1101, ", 100 bytes and the FIN unacknowledged")]
#[case::a_byte(0, 1000, 1001, ", 1 byte unacknowledged")]
#[case::nothing(0, 1000, 1000, "")]
fn a_sentence_about_data_needs_data(
    #[case] shutdown: u8,
    #[case] snd_una: u32,
    #[case] snd_nxt: u32,
    #[case] said: &str,
) {
    let mut run = Run::new();
    for number in 1..=3 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.shutdown = shutdown;
            retransmit.tcp.snd_una = snd_una;
            retransmit.tcp.snd_nxt = snd_nxt;
            retransmit.tcp.write_seq = snd_nxt;
        });
    }
    let summary = &run.only().summary;
    assert_eq!(
        summary,
        &format!(
            "no acknowledgement from {REMOTE} comes through: 3 retransmission timeouts in a row in 1.2 s{said}"
        )
    );
}

/// Probes at 1, 2, 3 s. The third is in flight at its record, and while its answer may come.
#[test]
fn a_probe_in_flight_is_not_unanswered() {
    let mut run = Run::new();
    let probe = |run: &mut Run, before| {
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.tcp.probes_out = before;
            probe.tcp.srtt_us = 100_000 << 3;
        });
    };
    let look = |run: &mut Run, probes_out| {
        run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
            snapshot.tcp.probes_out = probes_out;
            snapshot.tcp.srtt_us = 100_000 << 3;
        });
    };
    probe(&mut run, 1);
    look(&mut run, 2);
    assert!(run.findings.is_empty(), "the second is in flight");
    run.pass(Duration::from_secs(1));
    look(&mut run, 2);
    assert!(run.findings.is_empty(), "its answer may come");
    run.pass(Duration::from_secs(1));
    probe(&mut run, 2);
    assert_eq!(run.only().count, 2, "two before it are late");
    look(&mut run, 3);
    run.pass(Duration::from_secs(1));
    assert_eq!(run.only().count, 2, "the third is in flight");
    run.pass(Duration::from_secs(3));
    look(&mut run, 3);
    run.pass(Duration::from_secs(1));
    assert_eq!(run.only().count, 3, "it is late");
    assert!(
        run.only().summary.starts_with("no answer from"),
        "{:#?}",
        run.only()
    );
}

/// What never left this host is no silence of the peer's, all of it or some.
#[rstest]
#[case::all_left(&[0, 0, 0, 0, 0], "no acknowledgement from 10.0.0.2:4000 comes through: 5 retransmission timeouts in a row in 6.0 s, 2000 bytes unacknowledged")]
#[case::one_left(&[0, 1, 1, 1, 1], "no acknowledgement from 10.0.0.2:4000 comes through: 5 retransmission timeouts in a row in 6.0 s, 2000 bytes unacknowledged; 4 of its 5 retransmissions never left this host")]
#[case::none_left(&[1, 1, 1, 1, 1], "no retransmission to 10.0.0.2:4000 leaves this host: 5 retransmission timeouts in a row in 6.0 s, 2000 bytes not delivered")]
fn what_never_left_is_not_the_peers_silence(#[case] errors: &[u32], #[case] said: &str) {
    let mut run = Run::new();
    for (number, error) in (1..).zip(errors) {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.write_seq = 3000;
            retransmit.error = *error;
            retransmit.failures_traced = 1;
        });
    }
    run.pass(Duration::from_secs(1));
    let told = run.only().summary.replace("7.0 s", "6.0 s");
    assert_eq!(told, said);
    let local = "look at this host's output firewall";
    assert_eq!(run.only().advice[0].starts_with(local), errors.contains(&1));
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 5;
    });
    let confirmed = run.only();
    assert_eq!(confirmed.stage.as_deref(), Some("confirmed"));
    assert!(!confirmed.summary.contains("is gone"), "{confirmed:#?}");
    let blames = confirmed.summary.starts_with("no acknowledgement from");
    assert_eq!(blames, errors.contains(&0), "{confirmed:#?}");
}

/// On a kernel that tells of each retransmission that failed, one that no record tells of was missed, and left.
#[rstest]
#[case::tells_of_failures("6.17.3-amd64", false)]
#[case::does_not("6.16.9", true)]
#[case::does_not_either("5.10.0-30", true)]
fn the_silence_of_a_hook_is_no_word_where_it_would_have_spoken(
    #[case] kernel: &str,
    #[case] is_local: bool,
) {
    let mut host = host();
    kernel.clone_into(&mut host.kernel);
    let mut run = Run::on(Thresholds::default(), host);
    for before in 0..=3 {
        run.pass(Duration::from_millis(200 << before));
        run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
            snapshot.tcp.ca_state = ca::LOSS;
            snapshot.tcp.retransmits = before;
        });
    }
    let told = run.only().summary.contains("leaves this host");
    assert_eq!(told, is_local, "{:#?}", run.only());
}

/// Trouble that began before conntracer: since when is in the socket, or not known.
#[rstest]
#[case::sent_again_since(
    12_600_000_000,
    Some(12_600),
    ", 6 retransmission timeouts in a row in 12.6 s, "
)]
#[case::heard(
    13_400_000_000,
    None,
    ", 6 retransmission timeouts in a row in 13.4 s, "
)]
#[case::nothing_is_known(
    u64::MAX,
    None,
    ", 6 retransmission timeouts in a row, since when is not known: it began before conntracer, "
)]
fn trouble_from_before_says_since_when(
    #[case] heard_idle_ns: u64,
    #[case] sent_again_ms: Option<u64>,
    #[case] said: &str,
) {
    let mut run = Run::new();
    let now_ms = run.ktime_ns() / 1_000_000;
    run.seed(socket(LOCAL, REMOTE), |seed| {
        seed.tcp.retransmits = 6;
        seed.tcp.snd_una = 1000;
        seed.tcp.snd_nxt = 3000;
        seed.heard_idle_ns = heard_idle_ns;
        seed.retrans_stamp = sent_again_ms.map_or(0, |ago| u32::try_from(now_ms - ago).unwrap());
    });
    let finding = run.only();
    let expected = format!(
        "no acknowledgement from {REMOTE} comes through: {}2000 bytes unacknowledged",
        &said[2..]
    );
    assert_eq!(finding.summary, expected);
    let known = finding.evidence.iter().any(|fact| fact.name == "silent_s");
    assert_eq!(known, heard_idle_ns != u64::MAX || sent_again_ms.is_some());
    // Nothing is concluded from retransmissions that nobody could see.
    run.pass(Duration::from_secs(1));
    assert!(!run.only().summary.contains("leaves this host"));
    run.assert_replays(Thresholds::default());
}
