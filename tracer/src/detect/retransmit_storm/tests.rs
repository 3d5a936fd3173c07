use std::time::Duration;

use conntracer_common::{
    record::{self, Socket, socket_flag},
    tcp::{ca, flag, pending, state},
    undo::way,
};
use rstest::rstest;

use super::counted::Counted;
use crate::{
    detect::Thresholds,
    finding::{Status, Subject, Value},
    testing::{Run, evidence, listener, only_of, socket},
};

pub(super) const LOCAL: &str = "10.0.0.1:80";
pub(super) const REMOTE: &str = "10.0.0.2:4000";

/// A lossy path: fast retransmissions every 50 ms while the peer acknowledges, `ratio` of all sent.
pub(super) fn lossy(run: &mut Run, remote: &str, events: u32, segments: u32, sent_per_event: u32) {
    for event in 0..events {
        run.skip(Duration::from_millis(50));
        run.retransmit(socket(LOCAL, remote), |retransmit| {
            retransmit.segs = segments;
            retransmit.tcp.ca_state = ca::RECOVERY;
            retransmit.tcp.retransmits = 0;
            retransmit.tcp.snd_una = 1000 + event * 2000;
            retransmit.tcp.snd_nxt = retransmit.tcp.snd_una + 20_000;
            retransmit.tcp.data_segs_out = 100 + event * sent_per_event;
            retransmit.tcp.bytes_retrans = u64::from(event) * 2896;
            retransmit.tcp.srtt_us = 20_000 + event * 1000;
        });
    }
}

/// As [`lossy`], of which every fourth event is told.
fn lossy_counted(run: &mut Run, counted: &mut Counted, events: u32) {
    for event in 0..events {
        run.skip(Duration::from_millis(50));
        counted.event(run, REMOTE, |retransmit| {
            retransmit.segs = 2;
            retransmit.tcp.ca_state = ca::RECOVERY;
            retransmit.tcp.snd_una = 1000 + event * 2000;
            retransmit.tcp.snd_nxt = retransmit.tcp.snd_una + 20_000;
            retransmit.tcp.data_segs_out = 100 + event * 10;
            retransmit.tcp.bytes_retrans = u64::from(event) * 2896;
        });
        if event % 4 == 0 {
            counted.tell(run);
        }
    }
}

#[test]
fn what_is_told_of_a_few_events_counts_all_of_them() {
    let mut run = Run::new();
    let mut counted = Counted::default();
    lossy_counted(&mut run, &mut counted, 20);
    let older = counted;
    lossy_counted(&mut run, &mut counted, 19);
    counted.answer(&mut run);
    // Twice, and out of order.
    counted.answer(&mut run);
    older.tell(&mut run);
    run.pass(Duration::from_secs(15));
    let finding = run.only();
    assert_eq!(finding.cause, "path_loss");
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.count, 2 * 39);
    assert_eq!(evidence(finding, "fast_segments"), &Value::Count(2 * 39));
    assert_eq!(evidence(finding, "min_rtt_before_ms"), &Value::Number(19.0));
    assert_eq!(evidence(finding, "min_rtt_ms"), &Value::Number(18.5));
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_storm_that_comes_back_is_counted_anew() {
    let mut run = Run::new();
    let mut counted = Counted::default();
    lossy_counted(&mut run, &mut counted, 21);
    counted.answer(&mut run);
    run.pass(Duration::from_mins(1));
    assert_eq!(run.only().count, 2 * 21);
    lossy_counted(&mut run, &mut counted, 41);
    run.finish();
    let words = run.last_words();
    assert_eq!(words.len(), 2, "{words:#?}");
    assert_eq!(words[1].count, 2 * 41);
}

#[test]
fn the_rest_of_a_connection_that_ended_is_counted_and_no_dead_peer() {
    let mut run = Run::new();
    let mut counted = Counted::default();
    lossy_counted(&mut run, &mut counted, 36);
    run.closed(socket(LOCAL, REMOTE), |_| ());
    counted.event(&run, REMOTE, |retransmit| {
        retransmit.segs = 5;
        retransmit.tcp.retransmits = 9;
    });
    counted.answer(&mut run);
    run.pass(Duration::from_secs(15));
    assert_eq!(run.only().count, 2 * 36 + 5);
    assert!(run.pipeline.watched().connections.is_empty());
}

#[test]
fn a_lossy_connection_opens_within_a_second_and_counts_every_segment() {
    let mut run = Run::new();
    lossy(&mut run, REMOTE, 19, 2, 10);
    let finding = run.only();
    assert_eq!(finding.kind.name(), "retransmit_storm");
    assert_eq!(finding.cause, "path_loss");
    assert_eq!(finding.stage.as_deref(), Some("onset"));
    assert!(matches!(finding.subject, Subject::Connection { .. }));
    run.pass(Duration::from_secs(9));
    assert!(!run.statuses().contains(&Status::Resolved));
    run.pass(Duration::from_secs(5));
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.stage.as_deref(), Some("end"));
    assert_eq!(finding.count, 38);
    assert_eq!(evidence(finding, "fast_segments"), &Value::Count(38));
    // Every event acknowledges something, and the next comes 50 ms later.
    assert_eq!(
        evidence(finding, "longest_without_progress_s"),
        &Value::Number(0.05)
    );
    assert_eq!(
        evidence(finding, "bytes_retransmitted"),
        &Value::Count(18 * 2896)
    );
    assert_eq!(evidence(finding, "srtt_before_ms"), &Value::Number(20.0));
    assert_eq!(evidence(finding, "srtt_ms"), &Value::Number(38.0));
    run.assert_replays(Thresholds::default());
}

#[test]
fn what_a_connection_sent_before_conntracer_began_does_not_dilute_its_storm() {
    let mut run = Run::new();
    let older = Socket {
        flags: socket_flag::OLDER,
        ..socket(LOCAL, REMOTE)
    };
    for event in 0..19 {
        run.skip(Duration::from_millis(50));
        run.retransmit(older, |retransmit| {
            retransmit.segs = 2;
            retransmit.tcp.ca_state = ca::RECOVERY;
            retransmit.tcp.snd_una = 1000 + event * 2000;
            retransmit.tcp.snd_nxt = retransmit.tcp.snd_una + 20_000;
            retransmit.tcp.data_segs_out = 10_000_000 + event * 10;
        });
    }
    let finding = run.only();
    assert_eq!(finding.kind.name(), "retransmit_storm");
    assert_eq!(finding.stage.as_deref(), Some("onset"));
}

#[test]
fn the_end_of_input_tells_the_whole_count() {
    let mut run = Run::new();
    lossy(&mut run, REMOTE, 33, 3, 10);
    run.finish();
    assert_eq!(run.only().count, 99);
}

#[rstest]
#[case::a_small_share_of_a_fast_connection(100, 1, 1000)]
fn what_is_a_small_share_is_no_storm(
    #[case] events: u32,
    #[case] segments: u32,
    #[case] sent_per_event: u32,
) {
    let mut run = Run::new();
    lossy(&mut run, REMOTE, events, segments, sent_per_event);
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn one_burst_that_is_repaired_is_no_storm() {
    let mut run = Run::new();
    for _ in 0..10 {
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.segs = 10;
            retransmit.tcp.ca_state = ca::RECOVERY;
        });
        run.skip(Duration::from_millis(20));
    }
    run.pass(Duration::from_secs(20));
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn stray_tail_loss_probes_are_no_storm() {
    let mut run = Run::new();
    for port in 0..100 {
        run.retransmit(
            socket(LOCAL, &format!("10.0.0.2:{}", 4000 + port)),
            |retransmit| {
                retransmit.tcp.ca_state = ca::OPEN;
                retransmit.tcp.pending = pending::LOSS_PROBE;
                retransmit.tcp.retransmits = 0;
            },
        );
        run.pass(Duration::from_millis(300));
    }
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn one_dead_peer_in_backoff_is_no_storm() {
    let mut run = Run::new();
    for timeout in 0..8 {
        run.pass(Duration::from_millis(200 << timeout));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = timeout + 1;
        });
    }
    run.finish();
    assert_eq!(run.only().cause, "dead_peer");
}

#[test]
fn many_connections_to_one_remote_are_the_remotes_storm() {
    let mut run = Run::new();
    for round in 0..10_u32 {
        for port in 0..20 {
            run.retransmit(
                socket(LOCAL, &format!("10.0.0.2:{}", 4000 + port)),
                |retransmit| {
                    retransmit.tcp.retransmits = 1;
                    retransmit.tcp.snd_una = 1000 + round;
                },
            );
        }
        run.skip(Duration::from_millis(600));
    }
    run.finish();
    let finding = run.only();
    assert!(
        matches!(finding.subject, Subject::Remote { .. }),
        "{finding:#?}"
    );
    assert_eq!(finding.count, 200);
    assert_eq!(evidence(finding, "connections"), &Value::Count(20));
}

#[test]
fn unanswered_connects_are_the_remotes_storm() {
    let mut run = Run::new();
    for round in 0..4 {
        for port in 0..20 {
            let mut connecting = socket(LOCAL, &format!("10.0.0.2:{}", 4000 + port));
            connecting.state = state::SYN_SENT;
            run.retransmit(connecting, |retransmit| {
                retransmit.tcp_flags = flag::SYN;
                retransmit.tcp.retransmits = round + 1;
            });
        }
        run.skip(Duration::from_secs(1));
    }
    run.finish();
    let finding = run.only();
    assert_eq!(finding.cause, "syns_unanswered");
    assert_eq!(finding.count, 80);
    assert_eq!(evidence(finding, "syn_segments"), &Value::Count(80));
    assert!(
        finding
            .summary
            .starts_with("80 SYNs retransmitted to 10.0.0.2, at most 20 a second"),
        "{}",
        finding.summary
    );
}

/// A socket in SYN_SENT has no window yet: 0 is no word of the peer's. Of data, 0 is one.
#[rstest]
#[case::syns(state::SYN_SENT, flag::SYN, "syns_unanswered")]
#[case::data(state::ESTABLISHED, flag::ACK, "receiver_stalled")]
fn a_syn_fills_no_window(#[case] state: u8, #[case] flags: u8, #[case] cause: &str) {
    let mut run = Run::new();
    for round in 0..4 {
        for port in 0..20 {
            let mut connecting = socket(LOCAL, &format!("10.0.0.2:{}", 4000 + port));
            connecting.state = state;
            run.retransmit(connecting, |retransmit| {
                retransmit.tcp_flags = flags;
                retransmit.tcp.snd_wnd = 0;
                retransmit.tcp.retransmits = round + 1;
            });
        }
        run.skip(Duration::from_secs(1));
    }
    run.finish();
    let storm = only_of(&run, "retransmit_storm");
    assert_eq!(storm.cause, cause);
    assert_eq!(
        storm.summary.contains("window"),
        cause == "receiver_stalled",
        "{storm:#?}"
    );
}

/// Retransmissions of 100 connections, each of which is made by `socket` of its number.
pub(super) fn of_many(socket: impl Fn(u64) -> Socket, owned: impl Fn(u64) -> u32) -> Run {
    let mut run = Run::new();
    for round in 0..4_u32 {
        for number in 1..=100 {
            let mut socket = socket(number);
            socket.sk += number;
            run.retransmit(socket, |retransmit| {
                retransmit.tcp.retransmits = 1;
                retransmit.tcp.snd_una = 1000 + round;
                retransmit.owner.pid = owned(number);
            });
        }
        run.skip(Duration::from_millis(700));
    }
    run.finish();
    run
}

#[test]
fn what_many_remotes_have_in_common_is_the_scope() {
    let far = |number: u64| format!("198.{number}.100.7:4000");
    let near = |number: u64| format!("192.0.2.{number}:4000");
    let at = |number: u64| format!("10.0.0.1:{}", 8000 + number);
    let same = |_| 1234;
    let own = |number: u64| u32::try_from(number).unwrap();
    let netns = 4026;
    let scopes = vec![
        (
            of_many(|number| socket(&at(number), &near(number)), own),
            Subject::Prefix {
                netns,
                prefix: "192.0.2.0".parse().unwrap(),
                length: 24,
            },
        ),
        (
            of_many(|number| socket(LOCAL, &far(number)), same),
            Subject::Listener {
                netns,
                local: LOCAL.parse().unwrap(),
            },
        ),
        (
            of_many(|number| socket(&at(number), &far(number)), same),
            Subject::Process {
                netns,
                pid: 1234,
                comm: "server".to_owned(),
            },
        ),
        (
            of_many(|number| socket(&at(number), &far(number)), own),
            Subject::Netns { netns },
        ),
        (
            of_many(
                |number| Socket {
                    netns: own(number),
                    ..socket(&at(number), &far(number))
                },
                own,
            ),
            Subject::Host,
        ),
    ];
    for (run, subject) in scopes {
        let finding = run.only();
        assert_eq!(finding.subject, subject);
        assert_eq!(finding.count, 400, "{subject:?}");
        assert_eq!(
            finding.owner.is_some(),
            matches!(subject, Subject::Listener { .. } | Subject::Process { .. })
        );
        run.assert_replays(Thresholds::default());
    }
}

#[test]
fn what_is_usual_is_learned_and_is_no_storm() {
    let mut thresholds = Thresholds::default();
    thresholds.retransmit_storm.host_per_s = 5.0;
    let mut run = Run::with(thresholds);
    let mut number = 0_u64;
    let mut lose = |run: &mut Run, per_s: u32, seconds: u32| {
        for _ in 0..per_s * seconds {
            number += 1;
            let mut socket = Socket {
                netns: 1 + u32::try_from(number % 64).unwrap(),
                ..socket(
                    &format!("10.0.0.1:{}", 8000 + number % 97),
                    &format!("198.{}.100.7:4000", number % 251),
                )
            };
            socket.sk += number;
            run.retransmit(socket, |retransmit| {
                retransmit.owner.pid = u32::try_from(number % 89).unwrap();
            });
            run.skip(Duration::from_secs(1) / per_s);
        }
    };
    lose(&mut run, 4, 900);
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
    // Above the floor, and not thrice what is usual.
    lose(&mut run, 8, 10);
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
    lose(&mut run, 20, 5);
    let finding = run.only();
    assert_eq!(finding.subject, Subject::Host);
    let Value::Number(usual) = evidence(finding, "usual_per_s") else {
        panic!("a rate: {finding:#?}");
    };
    assert!((3.0..4.5).contains(usual), "{usual}");
}

#[test]
fn repeated_syn_acks_open_no_storm() {
    let mut run = Run::new();
    for round in 0..10_u8 {
        for host in 1..=200 {
            run.syn_ack(
                listener(LOCAL, &format!("192.0.2.{host}:4000")),
                round.min(1),
                false,
            );
        }
        run.skip(Duration::from_millis(500));
    }
    run.finish();
    assert_eq!(run.only().cause, "handshake");
}

pub(super) fn stuck(run: &mut Run, change: impl Fn(u32, &mut record::Retransmit)) {
    for event in 0..40 {
        run.skip(Duration::from_millis(50));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = 1;
            change(event, retransmit);
        });
    }
    run.finish();
}

#[test]
fn full_sized_segments_that_fail_while_the_peer_talks_are_too_large() {
    let mut run = Run::new();
    stuck(&mut run, |event, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448;
        retransmit.tcp.rcv_nxt = event;
    });
    let finding = run.only();
    assert_eq!(finding.cause, "path_mtu");
    assert!(finding.because.is_some());
}

/// What the peer had before the first repeat no event tells; a timeout does.
#[rstest]
#[case::it_has_what_follows(1, 2000, "path_mtu")]
#[case::that_is_full_sized(1, 2896, "peer_unreachable")]
#[case::it_has_nothing(2, 2000, "peer_unreachable")]
fn full_sized_segments_that_fail_before_what_arrived_are_too_large(
    #[case] lost_out: u32,
    #[case] unacked: u32,
    #[case] cause: &str,
) {
    let mut run = Run::new();
    stuck(&mut run, |_, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448;
        retransmit.tcp.retransmits = 2;
        retransmit.tcp.packets_out = 2;
        retransmit.tcp.lost_out = lost_out;
        retransmit.tcp.snd_nxt = retransmit.tcp.snd_una + unacked;
    });
    assert_eq!(run.only().cause, cause);
}

/// What ICMP said of a path whose segments are too large, and what the kernel makes of it.
#[rstest]
#[case::nothing_is_known(0, 0, None, "for the path", "let ICMP")]
#[case::a_black_hole(1, 0, None, "no ICMP message says so", "let ICMP")]
#[case::a_second_hole(1, 1490, Some(1490), "even after what ICMP said", "let ICMP")]
#[case::ignored(1, 1300, Some(1300), "even after what ICMP said", "does not follow")]
fn icmp_is_named_where_it_came(
    #[case] tells_icmp: u8,
    #[case] icmp_mtu: u16,
    #[case] told: Option<u64>,
    #[case] reading: &str,
    #[case] advice: &str,
) {
    let mut run = Run::new();
    let mut counted = Counted::default();
    for event in 0..40 {
        run.skip(Duration::from_millis(50));
        counted.event(&run, REMOTE, |retransmit| {
            retransmit.end_seq = retransmit.seq + 1448;
            retransmit.tcp.rcv_nxt = event;
        });
        counted.0.totals.pmtu = 1500;
        counted.0.totals.tells_icmp = tells_icmp;
        counted.0.totals.icmp_mtu = icmp_mtu;
        counted.tell(&mut run);
    }
    run.finish();
    let finding = run.only();
    assert_eq!(finding.cause, "path_mtu");
    assert!(finding.summary.contains(reading), "{finding:#?}");
    assert!(finding.advice[0].contains(advice), "{finding:#?}");
    let said = |name: &str| finding.evidence.iter().any(|fact| fact.name == name);
    assert_eq!(said("icmp"), tells_icmp != 0 && told.is_none());
    assert_eq!(said("icmp_mtu_bytes"), told.is_some());
    if let Some(bytes) = told {
        assert_eq!(evidence(finding, "icmp_mtu_bytes"), &Value::Count(bytes));
    }
}

#[test]
fn what_mends_a_hole_does_not_change_its_cause() {
    let mut run = Run::new();
    let fail = |run: &mut Run, mended: u32| {
        for event in 0..40 {
            run.skip(Duration::from_millis(50));
            run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
                retransmit.tcp.rcv_nxt = event;
                retransmit.tcp.snd_una += event * mended;
                retransmit.seq = retransmit.tcp.snd_una;
                retransmit.end_seq = retransmit.seq + 1448;
            });
        }
    };
    fail(&mut run, 0);
    fail(&mut run, 1448);
    run.pass(Duration::from_secs(15));
    let finding = run.only();
    assert_eq!(finding.status, Status::Resolved);
    assert_eq!(finding.cause, "path_mtu");
}

#[test]
fn full_sized_segments_that_fail_while_what_follows_arrives_are_too_large() {
    let mut run = Run::new();
    stuck(&mut run, |event, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448;
        // A tail loss probe and what its SACK calls for.
        if event % 10 == 1 {
            retransmit.seq = 2900;
            retransmit.end_seq = 3000;
            retransmit.tcp.ca_state = ca::OPEN;
            retransmit.tcp.pending = pending::LOSS_PROBE;
        } else if event % 10 == 2 {
            retransmit.tcp.ca_state = ca::RECOVERY;
        }
    });
    let finding = run.only();
    assert_eq!(finding.cause, "path_mtu");
    assert_eq!(evidence(finding, "lost_segment_bytes"), &Value::Count(1448));
}

#[test]
fn what_came_twice_was_not_lost() {
    let mut run = Run::new();
    stuck(&mut run, |event, retransmit| {
        retransmit.tcp.ca_state = ca::RECOVERY;
        retransmit.tcp.snd_una = 1000 + event;
        retransmit.dsack_dups = 7 + event;
    });
    let finding = run.only();
    assert_eq!(finding.cause, "reordering");
    assert_eq!(evidence(finding, "spurious_segments"), &Value::Count(39));
    assert_eq!(finding.count, 40, "they are part of it");
}

/// Whether a storm of many remotes is one interface's.
#[rstest]
#[case::one(&["eth0"], &[("interface", "eth0")])]
#[case::several(
    &["eth0", "wg0", "eth0"],
    &[("interfaces", "2"), ("top_interface", "eth0"), ("top_interface_segments", "480")],
)]
#[case::not_known(&[""], &[])]
fn the_interfaces_of_a_storm_are_told(#[case] devices: &[&str], #[case] told: &[(&str, &str)]) {
    let mut run = Run::new();
    let mut counted = vec![Counted::default(); 60];
    for event in 0..12 {
        run.skip(Duration::from_millis(500));
        for (connection, counted) in (0_u8..).zip(&mut counted) {
            let remote = format!("{}.0.2.1:40{connection:02}", 10 + connection);
            counted.event(&run, &remote, |retransmit| {
                retransmit.tcp.ca_state = ca::RECOVERY;
                retransmit.tcp.snd_una = 1000 + event * 2000;
            });
            let at = usize::from(connection) % devices.len();
            let egress = &mut counted.0.egress;
            egress.device[..devices[at].len()].copy_from_slice(devices[at].as_bytes());
            egress.ifindex = u32::try_from(devices[at].len()).unwrap();
            counted.tell(&mut run);
        }
    }
    run.finish();
    let finding = run
        .findings
        .iter()
        .rfind(|finding| finding.kind.name() == "retransmit_storm")
        .unwrap();
    assert!(
        !matches!(finding.subject, Subject::Connection { .. }),
        "{finding:#?}"
    );
    assert_eq!(finding.cause, "path_loss");
    let facts = finding.evidence.iter();
    let facts = facts.filter(|fact| fact.name.contains("interface"));
    let facts: Vec<_> = facts
        .map(|fact| {
            let value = match &fact.value {
                Value::Count(count) => count.to_string(),
                Value::Text(text) => text.to_string(),
                Value::Number(number) => panic!("{number}"),
            };
            (fact.name.to_string(), value)
        })
        .collect();
    let told: Vec<_> = told
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    assert_eq!(facts, told, "{finding:#?}");
    run.assert_replays(Thresholds::default());
}

/// Timeouts, each of a segment that had arrived, as the kernel finds out; cumulative as it tells it.
pub(super) fn undone(run: &mut Run, count: u64, duplicates: impl Fn(u64) -> u64) {
    for event in 1..=count {
        run.skip(Duration::from_millis(50));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = 1;
            retransmit.dsack_dups = u32::try_from(duplicates(event - 1)).unwrap();
        });
        run.undo(socket(LOCAL, REMOTE), |undo| {
            undo.first_ns = 1;
            undo.totals.undos[usize::from(way::LOSS)] = event;
            undo.totals.segments = event;
            undo.dsack_dups = u32::try_from(duplicates(event - 1)).unwrap();
        });
    }
}

/// Whether the peer says nothing of it, or says each time, after the kernel found out, that it came twice.
#[rstest]
#[case::told_by_the_kernel_alone(false)]
#[case::told_by_the_peer_too(true)]
fn what_the_kernel_took_back_was_late(#[case] peer_tells: bool) {
    let mut run = Run::new();
    undone(&mut run, 40, |before| if peer_tells { before } else { 0 });
    run.finish();
    let finding = run.only();
    assert_eq!(finding.cause, "reordering");
    assert_eq!(finding.because, None);
    assert_eq!(evidence(finding, "spurious_segments"), &Value::Count(40));
    assert_eq!(evidence(finding, "losses_undone"), &Value::Count(40));
    assert!(finding.summary.contains("late, not lost"), "{finding:#?}");
    assert_eq!(finding.count, 40, "they are part of it");
}

#[test]
fn an_undo_of_a_connection_that_is_in_no_storm_says_nothing() {
    let mut run = Run::new();
    undone(&mut run, 3, |_| 0);
    run.pass(Duration::from_mins(2));
    run.undo(socket(LOCAL, REMOTE), |undo| {
        undo.first_ns = 1;
        undo.totals.undos[usize::from(way::LOSS)] = 1000;
        undo.totals.segments = 1000;
    });
    lossy(&mut run, REMOTE, 40, 1, 10);
    run.finish();
    let finding = run.only();
    assert_eq!(finding.cause, "path_loss");
    assert_eq!(evidence(finding, "spurious_segments"), &Value::Count(0));
}

/// Of a connection that finds no room in the eBPF side, each undo is told alone.
#[test]
fn undos_told_one_by_one_add_up() {
    let mut run = Run::new();
    for _ in 0..40 {
        run.skip(Duration::from_millis(50));
        run.retransmit(socket(LOCAL, REMOTE), |_| {});
        run.undo(socket(LOCAL, REMOTE), |_| {});
    }
    run.finish();
    let finding = run.only();
    assert_eq!(evidence(finding, "losses_undone"), &Value::Count(40));
}

#[test]
fn repeats_into_a_shut_window_are_the_receivers() {
    let mut run = Run::new();
    stuck(&mut run, |_, retransmit| retransmit.tcp.snd_wnd = 0);
    assert_eq!(run.only().cause, "receiver_stalled");
}

/// Up to 6.12 the kernel is silent about attempts that fail; later, what is missing was lost on its way.
#[rstest]
#[case::failed(0, 118, 78)]
#[case::lost(1, 118, 0)]
fn what_no_record_told_is_in_the_sockets_own_count(
    #[case] failures_traced: u8,
    #[case] counted: u64,
    #[case] failed: u64,
) {
    let mut run = Run::new();
    stuck(&mut run, |event, retransmit| {
        retransmit.failures_traced = failures_traced;
        retransmit.tcp.total_retrans = 1 + 3 * event;
    });
    let finding = run.only();
    assert_eq!(finding.count, counted);
    assert_eq!(
        evidence(finding, "segments_not_sent"),
        &Value::Count(failed)
    );
    assert_eq!(finding.cause == "local_drop", failed > 0);
}

#[test]
fn silence_alone_means_that_the_peer_cannot_be_reached() {
    let mut run = Run::new();
    stuck(&mut run, |_, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448;
    });
    assert_eq!(run.only().cause, "peer_unreachable");
}

#[test]
fn what_this_host_drops_is_counted_apart() {
    let mut run = Run::new();
    stuck(&mut run, |_, retransmit| retransmit.error = 1);
    let finding = run.only();
    assert_eq!(finding.cause, "local_drop");
    assert_eq!(finding.count, 40);
    assert_eq!(evidence(finding, "segments_not_sent"), &Value::Count(40));
    assert!(
        finding.summary.starts_with(
            "40 segments that were to be retransmitted to 10.0.0.2:4000 did not leave this host, "
        ),
        "{finding:#?}"
    );
}

#[test]
fn yesterdays_strays_are_not_part_of_todays_storm() {
    let mut run = Run::new();
    for _ in 0..30 {
        run.pass(Duration::from_secs(5));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = 1;
        });
    }
    lossy(&mut run, REMOTE, 40, 1, 10);
    run.finish();
    let finding = run.only();
    assert!((40..=40 + 12).contains(&finding.count), "{finding:#?}");
}
