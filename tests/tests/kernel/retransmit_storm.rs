//! `retransmit_storm`: every segment the kernel counts as retransmitted is in the storm's count.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    net::{Shutdown, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use conntracer_tests::{
    counters::Counters,
    family::Family,
    line::{Finding, Status, Subject},
    link::{self, Pair},
    netfilter::{Hook, Match, drop_some_at, let_pass},
    netns::NetNs,
    output::Run,
    queue,
    scenario::{
        bulk::{Bulk, Loss},
        lossy_path::LossyPath,
        patterns::{Patterns, TOLD_BYTES},
    },
    socket::{Connection, deafen},
    wait::{self, EVENTUALLY, SOON},
    watch::Watch,
};
use jiff::{SignedDuration, Timestamp};
use rstest::rstest;

use crate::support::{
    assert_counted, assert_reconciled, assert_said, assert_sound, binary, is_own_machine, lacking,
    may_skip, trace_all_by, trace_by, watch_quick,
};

/// Connections one after the other that are a storm of their remote: of two repeats each, for longer than a burst.
const OVERTAKEN: u16 = 60;

/// Segments after which a storm is a storm by any threshold.
const SEGMENTS: u64 = 200;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn storm_equals_retrans_segs(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = LossyPath::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let told = tell_storm(&mut scenario, &mut tracer);
    let before = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_storm(&run, &scenario, &told);
    assert_reconciled(&run, &server, &before);
    assert_said(&run, "retransmit_storm");
    assert_sound(&run, &server);
}

/// A storm to its end: its last words, what the kernel counted, and the connection's ends.
pub(crate) fn tell_storm(
    scenario: &mut LossyPath,
    tracer: &mut Watch,
) -> (Finding, Counters, (SocketAddr, SocketAddr)) {
    let server = scenario.pair.server.inode();
    scenario.provoke(SEGMENTS).unwrap();
    let opened = tracer
        .wait_for("a storm", SOON, |finding| {
            is_connection_storm(finding) && finding.subject.netns() == Some(server)
        })
        .unwrap();
    let ends = scenario.endpoints().unwrap();
    scenario.mend().unwrap();
    let counted = scenario.counted().unwrap();
    let ended = tracer
        .wait_for("its end", EVENTUALLY, |finding| {
            finding.id == opened.id && finding.status == Status::Resolved
        })
        .unwrap();
    (ended, counted, ends)
}

/// All that the kernel counted is the one connection's.
#[track_caller]
pub(crate) fn assert_storm(
    run: &Run,
    scenario: &LossyPath,
    (ended, counted, (local, remote)): &(Finding, Counters, (SocketAddr, SocketAddr)),
) {
    assert_eq!(
        counted.retrans_fail, 0,
        "all retransmissions left the host: {counted:?}"
    );
    assert_counted(run, "RetransSegs", ended.count, counted.retrans_segs);
    let server = scenario.pair.server.inode();
    assert!(
        matches!(&ended.subject, Subject::Connection { netns, local: from, remote: to, .. }
            if *netns == server && from == local && to == remote),
        "{ended:#?}"
    );
    assert_eq!(
        run.last_of(is_storm).len(),
        1,
        "one connection explains it all: {run:#?}"
    );
}

/// Many transfers, all to one remote: what is repeated is exactly the namespace's, whatever is lost.
#[rstest]
#[case::random(Loss::Random(30), "path_loss")]
#[case::large(Loss::LargerThan(1400), "path_mtu")]
fn the_loss_of_many_transfers_is_their_remotes(#[case] loss: Loss, #[case] cause: &str) {
    let Some(binary) = binary() else { return };
    let mut scenario = Bulk::new(Family::V4, loss).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &["retransmit"]) else {
        return;
    };
    scenario.provoke(FEWER_SEGMENTS).unwrap();
    let opened = tracer.wait_for("a storm", SOON, is_remote_storm).unwrap();
    tracer
        .wait_for(cause, EVENTUALLY, |finding| {
            finding.id == opened.id && finding.symptom() == cause
        })
        .unwrap();
    scenario.mend().unwrap();
    let counted = scenario.counted().unwrap();
    let ended = tracer
        .wait_for("its end", EVENTUALLY, |finding| {
            finding.id == opened.id && finding.status == Status::Resolved
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(
        opened.subject,
        Subject::Remote {
            netns: server.inode(),
            remote: Family::V4.client()
        }
    );
    assert_eq!(ended.symptom(), cause, "{ended:#?}");
    assert_eq!(ended.evidence["interface"], link::SERVER, "{ended:#?}");
    let late = time(&opened.last).duration_since(crossing(&run));
    assert!(late <= SignedDuration::from_secs(1), "{late:?} {run:#?}");
    // What the kernel skipped while a program was running is missing, and said to be (see `assert_sound`).
    let sent = counted.retrans_segs - counted.retrans_fail;
    assert_counted(&run, "RetransSegs", ended.count, sent);
    assert_said(&run, "retransmit_storm");
    assert_sound(&run, &server);
}

/// What is repeated because it is late is no loss, as the kernel finds out by timestamps although the peer says
/// nothing. Each connection waits for timers, and on a slow machine they are too few a second for a storm by the default: a
/// tracer of its own for both families, for its configuration.
#[test]
fn what_is_overtaken_is_not_lost() {
    let Some(binary) = binary() else { return };
    let scenarios = [Family::V4, Family::V6].map(|family| Patterns::new(family).unwrap());
    let servers = scenarios.each_ref().map(|scenario| &scenario.pair.server);
    let Some(tracer) = trace_all_by(&binary, &servers, LOW, &[]) else {
        return;
    };
    let undo_works = tracer.has_hook("undo");
    thread::scope(|scope| {
        for scenario in &scenarios {
            scope.spawn(|| scenario.overtake(OVERTAKEN).unwrap());
        }
    });
    let counted = servers.map(|server| server.counters().unwrap());
    let run = tracer.stop().unwrap();
    for (server, counted) in servers.into_iter().zip(counted) {
        assert_overtaken(&run.within(server), server, &counted, undo_works);
    }
}

#[track_caller]
fn assert_overtaken(run: &Run, server: &NetNs, counted: &Counters, undo_works: bool) {
    let storms = run.last_of(is_remote_storm);
    let [storm] = storms.as_slice() else {
        panic!("one remote's storm: {run:#?}");
    };
    // Of two segments there is no later one by which the socket's own count would tell of a first one that no
    // program saw: what is missing is the residue.
    let reconciled = &run.totals.reconciliation.namespaces;
    let reconciled = reconciled.iter().find(|of| of.netns == server.inode());
    let missing = |name: &str| {
        let figures = reconciled.and_then(|of| of.counters.get(name));
        figures.map_or(0, |figures| u64::try_from(figures.residue).unwrap())
    };
    assert_eq!(
        storm.count + missing("RetransSegs"),
        counted.retrans_segs,
        "{run:#?}"
    );
    assert!(
        missing("RetransSegs") <= may_skip(counted.retrans_segs),
        "{run:#?}"
    );
    if undo_works {
        // On a slow machine a timeout may come before the peer's word: in place of the repair, or besides.
        let undos = counted.full_undo + counted.loss_undo;
        let least = u64::from(OVERTAKEN);
        assert!(
            (least..=least + counted.timeouts).contains(&undos),
            "{counted:?}"
        );
        assert_eq!(storm.symptom(), "reordering", "{run:#?}");
        let told = storm.number("losses_undone");
        let missed = missing("TCPFullUndo") + missing("TCPLossUndo");
        assert_eq!(told + missed, undos, "{counted:?} {run:#?}");
        let spurious = storm.number("spurious_segments");
        assert!(
            (told..=counted.retrans_segs).contains(&spurious),
            "{storm:#?}"
        );
    }
    assert_said(run, "retransmit_storm.reordering");
    assert_sound(run, server);
}

/// A peer that has what follows is not dead, and one connection is no storm: it is the path, of which nobody tells.
#[test]
fn a_path_too_narrow_is_told_of_one_connection() {
    let Some(binary) = binary() else { return };
    let scenario = Patterns::new(Family::V4).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let _connection = scenario.narrow(false).unwrap();
    let dead = tracer.wait_for("a suspicion", SOON, is_dead_peer).unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();
    assert_narrow(&run, &server, &dead, &counted, false);
}

/// The same of which ICMP tells, and what a storm says of it. A tracer of its own for both families, for its configuration.
#[test]
fn a_path_too_narrow_is_told_as_icmp_tells_it() {
    let Some(binary) = binary() else { return };
    let scenarios = [Family::V4, Family::V6].map(|family| Patterns::new(family).unwrap());
    let servers = scenarios.each_ref().map(|scenario| &scenario.pair.server);
    let config = "[detect.retransmit_storm]\nconnection_per_s = 1.0\n";
    let Some(mut tracer) = trace_all_by(&binary, &servers, config, &[]) else {
        return;
    };
    let _connections = thread::scope(|scope| {
        let narrowed = scenarios
            .each_ref()
            .map(|scenario| scope.spawn(|| scenario.narrow(true).unwrap()));
        narrowed.map(|narrowed| narrowed.join().unwrap())
    });
    let told = servers.map(|server| {
        let of = |finding: &Finding| finding.subject.netns() == Some(server.inode());
        let dead = tracer
            .wait_for("a suspicion", SOON, |finding| {
                of(finding) && is_dead_peer(finding)
            })
            .unwrap();
        let counted = server.counters().unwrap();
        // It may have opened before there was enough to tell by.
        tracer
            .wait_for("the storm's cause", SOON, |finding| {
                of(finding) && is_storm(finding) && finding.symptom() == "path_mtu"
            })
            .unwrap();
        (dead, counted)
    });
    let run = tracer.stop().unwrap();
    for (server, (dead, counted)) in servers.into_iter().zip(told) {
        assert_narrow(&run.within(server), server, &dead, &counted, true);
    }
}

fn is_dead_peer(finding: &Finding) -> bool {
    finding.symptom() == "dead_peer"
}

#[track_caller]
fn assert_narrow(run: &Run, server: &NetNs, dead: &Finding, counted: &Counters, told: bool) {
    let storms = run.last_of(is_storm);
    assert_eq!(storms.len(), usize::from(told), "{run:#?}");
    for finding in storms.into_iter().chain([dead]) {
        assert_eq!(finding.number("lost_segment_bytes"), 1000, "{finding:#?}");
        if told {
            assert_eq!(finding.number("icmp_mtu_bytes"), u64::from(TOLD_BYTES));
        } else {
            assert_eq!(finding.evidence["icmp"], "none");
        }
    }
    assert_eq!(dead.evidence["looks_like"], "path_mtu", "{dead:#?}");
    assert!(
        run.last_of(is_storm)
            .iter()
            .all(|storm| storm.symptom() == "path_mtu"),
        "{run:#?}"
    );
    assert_eq!(dead.number("consecutive_timeouts"), 3, "{dead:#?}");
    assert!(counted.timeouts >= 3, "{counted:?}");
    assert_said(run, "retransmit_storm");
    assert_reconciled(run, server, counted);
    assert_sound(run, server);
}

/// A ring of one page holds ten records: the storm's count comes by polls, and nothing is lost of it.
#[test]
fn a_full_ring_takes_nothing_from_the_count() {
    let Some(binary) = binary() else { return };
    let mut scenario = Bulk::new(Family::V4, Loss::Random(30)).unwrap();
    let server = scenario.pair.server.clone();
    let config = format!("[trace]\nring_bytes = 4096\n{QUIET}");
    let Some(mut tracer) = trace_by(&binary, &server, &config, &[]) else {
        return;
    };
    scenario.provoke(SEGMENTS).unwrap();
    let opened = tracer.wait_for("a storm", SOON, is_remote_storm).unwrap();
    scenario.mend().unwrap();
    let counted = scenario.counted().unwrap();
    let ended = tracer
        .wait_for("its end", EVENTUALLY, |finding| {
            finding.id == opened.id && finding.status == Status::Resolved
        })
        .unwrap();
    let before = server.counters().unwrap();
    let run = tracer.stop().unwrap();

    let account = &run.totals.hooks["retransmit"];
    assert!(account.balances(), "{account:?}");
    assert!(account.aggregated > account.emitted, "{account:?}");
    assert!(account.lost <= may_skip(account.seen), "{account:?}");
    assert_counted(&run, "RetransSegs", ended.count, counted.retrans_segs);
    assert_reconciled(&run, &server, &before);
}

/// Loss of two packets of a hundred, on a path of 20 ms, or of more where a machine is too slow for that: it holds a connection down to a fraction of what the peer would
/// take, whatever its ratio. A twentieth of that loss does not.
#[rstest]
#[case::two_percent(20, true)]
#[case::one_per_thousand(1, false)]
fn loss_that_costs_most_of_the_rate_is_told(#[case] per_mille: u8, #[case] is_costly: bool) {
    /// Longer than it takes to be told.
    const LASTS: Duration = Duration::from_secs(8);
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let round_trip = Duration::from_millis(if is_own_machine() { 60 } else { 20 });
    let delay = || queue::delay(link::CLIENT, round_trip);
    if let Err(error) = pair.client.run(delay) {
        lacking(&format!("this kernel has no netem: {error:#}"));
        return;
    }
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    pair.client
        .run(|| drop_some_at(Hook::Input, Match::PerMille(per_mille)))
        .unwrap();
    // Where the drops of the rule that makes the path are the cause, what they cost is in the evidence.
    let is_told = |finding: &Finding| {
        is_storm(finding)
            && (finding.summary.contains("which holds it down to about")
                || finding.drops_here() && finding.evidence.contains_key("peer_takes_segments"))
    };
    let over = AtomicBool::new(false);
    let (accepted, connected) = (&connection.accepted, &connection.connected);
    let told = thread::scope(|scope| {
        scope.spawn(|| {
            let some = [0; 16_384];
            while !over.load(Ordering::Relaxed) {
                if (&*accepted).write_all(&some).is_err() {
                    break;
                }
            }
            accepted.shutdown(Shutdown::Write)
        });
        scope.spawn(|| io::copy(&mut { connected }, &mut io::sink()));
        let told = if is_costly {
            Some(tracer.wait_for("what the loss costs", EVENTUALLY, is_told))
        } else {
            // The transfer is what is tested.
            thread::sleep(LASTS);
            None
        };
        over.store(true, Ordering::Relaxed);
        told
    });
    pair.client.run(let_pass).unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();
    connection.abort().unwrap();

    let Some(told) = told else {
        assert!(run.last_of(is_told).is_empty(), "{counted:?} {run:#?}");
        return;
    };
    let told = told.unwrap();
    assert!(counted.retrans_segs >= 20, "{counted:?}");
    assert_eq!(told.symptom(), "path_loss", "{told:#?}");
    assert!(told.number("segments_in_flight") <= 24, "{told:#?}");
    let takes = told.number("peer_takes_segments");
    assert!(takes > told.number("segments_in_flight"), "{told:#?}");
    assert_sound(&run, &server);
}

/// Segments that this host's own firewall does not let out: their number is told, and no path is blamed.
#[test]
fn what_this_host_does_not_send_is_counted_as_that() {
    const CONNECTIONS: usize = 16;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let connections: Vec<Connection> = (0..CONNECTIONS)
        .map(|_| pair.connect(Family::V4).unwrap())
        .collect();
    // What was never sent is not sent again.
    for connection in &connections {
        deafen(&connection.connected).unwrap();
        (&connection.accepted).write_all(b"lost").unwrap();
    }
    server
        .run(|| drop_some_at(Hook::Output, Match::Everything))
        .unwrap();
    wait::until("retransmissions to fail", SOON, || {
        Ok((server.counters()?.retrans_fail >= 3 * CONNECTIONS as u64).then_some(()))
    })
    .unwrap();
    let counted = server.counters().unwrap();
    // Before 6.17 the tracepoint tells of none that failed, and there is no storm for it; the timers that the rto hook
    // sees are silences all the same.
    if tracer.has_hook("rto") {
        tracer
            .wait_for("what does not leave", SOON, |finding| {
                finding.symptom() == "local_drop" || is_told_local(finding)
            })
            .unwrap();
    }
    let run = tracer.checkpoint().unwrap();
    server.run(let_pass).unwrap();
    for connection in connections {
        connection.abort().unwrap();
    }

    assert!(
        counted.retrans_fail * 2 > counted.retrans_segs,
        "{counted:?}"
    );
    for storm in run.last_of(is_storm) {
        assert_eq!(storm.symptom(), "local_drop", "{storm:#?}");
        assert!(!storm.summary.starts_with("0 segments"), "{storm:#?}");
        assert!(storm.number("segments_not_sent") > 0, "{storm:#?}");
        assert!(!storm.advice.join("; ").contains("mtr"), "{storm:#?}");
    }
    let silences = run.last_of(|finding| finding.symptom() == "dead_peer");
    for silence in silences {
        assert!(is_told_local(silence), "{silence:#?}");
    }
    assert_sound(&run, &server);
}

/// A silence of which it is said that this host did not send.
fn is_told_local(finding: &Finding) -> bool {
    finding.symptom() == "dead_peer"
        && (finding.drops_here()
            || finding.summary.contains("leaves this host")
            || finding.summary.contains("never left this host"))
}

/// When the segments of the last three seconds reached the rate at which one remote storms, and were more than
/// one burst.
fn crossing(run: &Run) -> Timestamp {
    /// The default.
    const REMOTE_PER_S: u64 = 10;
    let span = SignedDuration::from_secs(3);
    let mut recent: VecDeque<(Timestamp, u64)> = VecDeque::new();
    for (_, event) in run.events() {
        let at = time(event["time"].as_str().expect("a time"));
        recent.push_back((at, event["segments"].as_u64().expect("segments")));
        while recent
            .front()
            .is_some_and(|(first, _)| at.duration_since(*first) >= span)
        {
            recent.pop_front();
        }
        let first = recent.front().expect("the one just put in").0;
        if at.duration_since(first) >= SignedDuration::from_millis(500)
            && recent.iter().map(|(_, segments)| segments).sum::<u64>() >= 3 * REMOTE_PER_S
        {
            return at;
        }
    }
    panic!("it never crossed: {run:#?}");
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// The same for segments that no repeat gets through: timeouts come less and less often.
const FEWER_SEGMENTS: u64 = 60;

/// A storm need not be over for long.
const QUIET: &str = "[detect.retransmit_storm]\nquiet_s = 5\n";

/// Few a second are a storm of their remote, and of no connection.
const LOW: &str = "[detect.retransmit_storm]\nremote_per_s = 3.0\nconnection_per_s = 50.0\n";

fn is_storm(finding: &Finding) -> bool {
    finding.finding == "retransmit_storm"
}

fn is_remote_storm(finding: &Finding) -> bool {
    is_storm(finding) && matches!(finding.subject, Subject::Remote { .. })
}

fn is_connection_storm(finding: &Finding) -> bool {
    is_storm(finding) && matches!(finding.subject, Subject::Connection { .. })
}
