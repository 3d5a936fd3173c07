//! `connect_failure`.

use std::time::Duration;

use conntracer_common::{
    record::{self, FAILURE_BEFORE, Socket, failure_how, syn_outcome},
    stats::hook,
    tcp::state,
};
use rstest::rstest;

use crate::{
    detect::{Thresholds, errno, restart::PATIENCE},
    finding::{Certainty, Status, Subject, Value},
    plan::Coverage,
    testing::{Run, evidence, host, listener, socket},
};

pub(super) fn attempt() -> Socket {
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
    run.tick();
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

pub(super) fn icmp(failure: &mut record::Failure, (kind, code): (u8, u8), from: &str) {
    failure.how |= failure_how::ICMP;
    (failure.icmp_type, failure.icmp_code) = (kind, code);
    let from = socket(&format!("{from}:0"), "10.0.0.9:443").local_addr;
    failure.icmp_from = from;
}

/// Each claim with what excludes its look-alikes: an attempt, what is said of it, and what must not be.
#[rstest]
#[case::host_prohibited(
    |failure: &mut record::Failure| {
        failure.error = errno::EHOSTUNREACH;
        icmp(failure, (3, 10), "10.0.0.254");
    },
    "denied", "icmp", "rejected by a firewall: ICMP host prohibited (type 3, code 10) from 10.0.0.254", "no way"
)]
#[case::a_router_knows_no_way(
    |failure: &mut record::Failure| {
        failure.error = errno::EHOSTUNREACH;
        icmp(failure, (3, 1), "10.0.0.254");
    },
    "unreachable", "icmp", "failed: ICMP host unreachable (type 3, code 1) from 10.0.0.254", "firewall"
)]
#[case::nobody_answers_arp(
    |failure: &mut record::Failure| {
        failure.error = errno::EHOSTUNREACH;
        icmp(failure, (3, 1), "10.0.0.1");
    },
    "unreachable", "icmp", "nobody answers for the next hop, or a rule of this host rejects", "firewall"
)]
#[case::port_unreachable(
    |failure: &mut record::Failure| {
        failure.error = errno::ECONNREFUSED;
        icmp(failure, (3, 3), "10.0.0.9");
    },
    "refused", "icmp", "rejected by a firewall: ICMP port unreachable (type 3, code 3) from 10.0.0.9", "RST"
)]
#[case::met_a_locked_socket(
    |failure: &mut record::Failure| {
        failure.error = errno::EHOSTUNREACH;
        failure.how = failure_how::SOFT;
        icmp(failure, (3, 10), "10.0.0.9");
    },
    "denied", "icmp", "from 10.0.0.9; the application gave up after 0.0 s", "no answer to a SYN"
)]
// getsockopt(SO_ERROR) takes what was noted.
#[case::taken_by_the_application(
    |failure: &mut record::Failure| icmp(failure, (3, 3), "10.0.0.9"),
    "refused", "icmp", "rejected by a firewall: ICMP port unreachable", "no answer to a SYN"
)]
// Not seen: the kernel's own route look-up sets the same.
#[case::soft_and_not_seen(
    |failure: &mut record::Failure| (failure.error, failure.how) = (errno::EHOSTUNREACH, failure_how::SOFT),
    "unreachable", "icmp_or_route", "an ICMP message told of it, or this host had no route", "firewall"
)]
#[case::by_the_timer(
    |failure: &mut record::Failure| {
        (failure.error, failure.syns, failure.longest_ns) = (errno::EHOSTUNREACH, 7, 127_000_000_000);
    },
    "unreachable", "icmp_or_route", "or this host had no route for a SYN", "rejected"
)]
#[case::after_three_seconds(
    |failure: &mut record::Failure| {
        (failure.error, failure.syns, failure.longest_ns) = (errno::EHOSTUNREACH, 3, 3_100_000_000);
    },
    "unreachable", "icmp_or_route", "nobody answers for the next hop of this host, a router or a firewall", "no way"
)]
#[case::killed(
    |failure: &mut record::Failure| (failure.how, failure.signal) = (failure_how::PATIENT | failure_how::EXITING, 9),
    "cancelled", "signal", "which signal 9 (SIGKILL) ended", "given up"
)]
#[case::exited(
    |failure: &mut record::Failure| failure.how = failure_how::PATIENT | failure_how::EXITING,
    "cancelled", "exit", "ended with their process, the longest", "given up"
)]
#[case::given_up(
    |failure: &mut record::Failure| failure.how = failure_how::PATIENT,
    "cancelled", "application", "given up by the application", "signal"
)]
#[case::challenged(
    |failure: &mut record::Failure| (failure.error, failure.how) = (errno::ETIMEDOUT, failure_how::ANSWERED),
    "timed_out", "timer", "an answer came that does not fit", "no answer to a SYN"
)]
#[case::silent(
    |failure: &mut record::Failure| failure.error = errno::ETIMEDOUT,
    "timed_out", "timer", "no answer to a SYN came through", "an answer came"
)]
fn what_came_back_is_told_and_what_did_not_is_not(
    #[case] change: fn(&mut record::Failure),
    #[case] cause: &str,
    #[case] told_by: &str,
    #[case] said: &str,
    #[case] never: &str,
) {
    let mut run = Run::new();
    run.tick();
    run.failure(attempt(), 1, change);
    let finding = run.only();
    assert_eq!(finding.cause, cause, "{finding:#?}");
    let told = Value::Text(told_by.to_owned().into());
    assert_eq!(*evidence(finding, "told_by"), told);
    assert!(finding.summary.contains(said), "{}", finding.summary);
    assert!(!finding.summary.contains(never), "{}", finding.summary);
    assert!(
        !finding.advice.join("; ").contains("may be full"),
        "{finding:#?}"
    );
    run.assert_replays(Thresholds::default());
}

/// An application that gave up had a timeout of its own: no other bounded its wait.
#[test]
fn what_an_application_gives_up_no_sysctl_bounds() {
    let mut run = Run::new();
    run.tick();
    run.failure(attempt(), 1, |failure| failure.how = failure_how::PATIENT);
    let finding = run.only();
    assert_eq!(finding.cause, "cancelled", "{finding:#?}");
    let advice = finding.advice.join("; ");
    assert!(!advice.contains("bounds"), "{advice}");
}

/// A hook that is missing makes doubtful what it could have told, and nothing else.
#[rstest]
#[case::by_a_rst(errno::ECONNREFUSED, failure_how::RESET, None, Certainty::Exact)]
#[case::by_a_rst_and_some_lost(
    errno::ECONNREFUSED,
    failure_how::RESET,
    Some(hook::STATE),
    Certainty::Inferred
)]
#[case::by_a_rst_and_others_lost(
    errno::ECONNREFUSED,
    failure_how::RESET,
    Some(hook::SYN),
    Certainty::Exact
)]
#[case::by_the_timer(errno::ETIMEDOUT, 0, None, Certainty::Exact)]
#[case::by_icmp(errno::EHOSTUNREACH, 0, None, Certainty::Inferred)]
fn a_missing_hook_makes_doubtful_what_it_could_have_told(
    #[case] error: u32,
    #[case] how: u8,
    #[case] lost: Option<u32>,
    #[case] certainty: Certainty,
) {
    let mut host = host();
    for plan in &mut host.plan.detectors {
        plan.coverage = Coverage::Degraded;
        plan.because = Some("connect() is not seen".to_owned());
    }
    let mut run = Run::on(Thresholds::default(), host);
    run.tick();
    if let Some(hook) = lost {
        run.loss(hook, 1);
    }
    run.failure(attempt(), 1, |failure| {
        (failure.error, failure.how) = (error, how);
    });
    assert_eq!(run.only().certainty, certainty);
}

/// Before the first poll a hook may not have been attached: its silence says nothing.
#[test]
fn a_refusal_before_every_hook_was_there_names_both_candidates() {
    let mut run = Run::new();
    run.failure(attempt(), 1, |failure| failure.error = errno::ECONNREFUSED);
    let finding = run.only();
    let told = Value::Text("rst_or_icmp".into());
    assert_eq!(*evidence(finding, "told_by"), told);
    assert!(
        finding.summary.contains("by a RST or by an ICMP message"),
        "{finding:#?}"
    );
    assert_eq!(finding.certainty, Certainty::Inferred, "{finding:#?}");
}

#[test]
fn a_refusal_after_resets_were_lost_names_both_candidates() {
    let mut run = Run::new();
    run.tick();
    run.loss(hook::RESET_RECEIVED, 1);
    run.failure(attempt(), 1, |failure| failure.error = errno::ECONNREFUSED);
    let told = Value::Text("rst_or_icmp".into());
    assert_eq!(*evidence(run.only(), "told_by"), told);
}

/// What became of each retransmitted SYN, whether the kernel tells of those that it could not send, and what is said.
#[rstest]
#[case::all_failed(&[1, 1], true, 0, true)]
#[case::one_was_sent(&[1, 0], true, 0, false)]
#[case::one_is_unknown(&[1], true, 0, false)]
#[case::none_seen(&[], false, 0, true)]
#[case::none_seen_and_some_lost(&[], false, 1, false)]
#[case::sent(&[0, 0], false, 0, false)]
fn what_never_left_this_host_is_told_from_silence(
    #[case] errors: &[u32],
    #[case] traced: bool,
    #[case] lost: u64,
    #[case] never_left: bool,
) {
    let mut run = Run::new();
    run.tick();
    if lost > 0 {
        run.loss(hook::RETRANSMIT, lost);
    }
    let socket = Socket {
        state: state::SYN_SENT,
        ..attempt()
    };
    for error in errors {
        run.retransmit(socket, |retransmit| {
            retransmit.error = *error;
            retransmit.failures_traced = u8::from(traced);
        });
    }
    run.failure(attempt(), 1, |failure| {
        (failure.error, failure.syns) = (errno::ETIMEDOUT, 3);
    });
    let found = run.last_words();
    let finding = found
        .iter()
        .find(|finding| finding.kind.name() == "connect_failure")
        .expect("a failed attempt");
    let said = "no SYN is known to have left this host, all 2 retransmissions failed here";
    assert_eq!(
        finding.summary.contains(said),
        never_left,
        "{}",
        finding.summary
    );
    let advice = finding.advice.join("; ");
    assert_eq!(advice.contains("TCPRetransFail"), never_left, "{advice}");
    assert_eq!(advice.contains("mtr"), !never_left, "{advice}");
}

/// `TCP_USER_TIMEOUT` is in the socket of each SYN that is sent again; the time tells whether it was what ended the wait.
#[rstest]
#[case::it_was(
    2000,
    3_100,
    "TCP_USER_TIMEOUT of process 1234 (2.0 s) bounds the wait",
    "tcp_syn_retries"
)]
#[case::it_is_longer(
    20_000,
    3_100,
    "bounds the wait, or a TCP_SYNCNT of",
    "TCP_USER_TIMEOUT"
)]
#[case::none_is_set(0, 3_100, "bounds the wait, or a TCP_SYNCNT of", "TCP_USER_TIMEOUT")]
fn a_time_bounds_the_wait_where_the_socket_has_one(
    #[case] limit_ms: u32,
    #[case] lasted_ms: u64,
    #[case] said: &str,
    #[case] never: &str,
) {
    let mut run = Run::new();
    run.tick();
    let socket = Socket {
        state: state::SYN_SENT,
        ..attempt()
    };
    run.retransmit(socket, |retransmit| {
        retransmit.tcp.user_timeout_ms = limit_ms;
    });
    run.failure(attempt(), 1, |failure| {
        (failure.error, failure.syns) = (errno::ETIMEDOUT, 3);
        failure.longest_ns = lasted_ms * 1_000_000;
    });
    let found = run.last_words();
    let failed = found
        .iter()
        .find(|finding| finding.kind.name() == "connect_failure")
        .expect("a failed attempt");
    let advice = failed.advice.join("; ");
    assert!(advice.contains(said), "{advice}");
    assert!(!advice.contains(never), "{advice}");
}

/// The other end is a listener of this host that turned the client away: its finding comes first.
#[test]
fn a_listener_of_this_host_that_dropped_them_is_pointed_to() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.9:443", "10.0.0.1:40000"), |syn| {
        syn.socket.netns = 4027;
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 3;
    });
    run.failure(attempt(), 1, |failure| failure.error = errno::ETIMEDOUT);
    let found = run.last_words();
    let (cause, failure) = (&found[0], &found[1]);
    assert_eq!(failure.kind.name(), "connect_failure");
    assert_eq!(
        *evidence(failure, "dropped_here_finding"),
        Value::Count(cause.id)
    );
    let said = format!(
        "finding {} says what this host did with such SYNs in namespace 4027",
        cause.id
    );
    assert!(failure.summary.contains(&said), "{}", failure.summary);
    assert!(!failure.advice.join("; ").contains("mtr"), "{failure:#?}");
}

/// Another client of that listener, or another port, explains nothing; nor does the same address of another namespace.
#[rstest]
#[case::another_client("10.0.0.9:443", "10.0.0.7:40000", 4026)]
#[case::another_port("10.0.0.9:444", "10.0.0.1:40000", 4026)]
#[case::another_namespace("10.0.0.9:443", "10.0.0.1:40001", 4027)]
fn a_listener_that_dropped_others_is_not_pointed_to(
    #[case] local: &str,
    #[case] remote: &str,
    #[case] netns: u32,
) {
    let mut run = Run::new();
    run.syn(listener(local, remote), |syn| {
        syn.socket.netns = netns;
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 3;
    });
    run.failure(attempt(), 1, |failure| failure.error = errno::ETIMEDOUT);
    let found = run.last_words();
    assert!(
        found[1]
            .evidence
            .iter()
            .all(|fact| fact.name != "dropped_here_finding"),
        "{found:#?}"
    );
}

#[test]
fn an_older_recording_tells_less_of_a_failure() {
    let mut run = Run::new();
    run.failure(attempt(), 1, |failure| {
        failure.error = errno::ETIMEDOUT;
        failure.header.size = u16::try_from(FAILURE_BEFORE).expect("a small record");
    });
    assert_eq!(run.only().cause, "timed_out");
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

/// A server of this host has ended, and refuses; it is told where no other begins to listen in its place.
#[test]
fn what_a_restart_refuses_is_no_trouble() {
    const SERVER: &str = "10.0.0.9:443";
    for comes_back in [true, false] {
        let mut run = Run::new();
        run.syn(listener(SERVER, "10.0.0.1:39999"), |syn| {
            syn.socket.netns += 1;
        });
        run.tick();
        for count in 1..=8 {
            run.failure(attempt(), count, |failure| {
                failure.error = errno::ECONNREFUSED;
                failure.how = failure_how::RESET;
            });
            run.pass(Duration::from_secs(1));
        }
        assert_eq!(run.findings.len(), 0, "{:#?}", run.findings);
        if comes_back {
            let socket = Socket {
                sk: 0xffff_8880_2222_0000,
                born_ns: run.ktime_ns(),
                netns: 4027,
                ..listener("0.0.0.0:443", "10.0.0.1:39999")
            };
            run.syn(socket, |_| {});
        }
        run.pass(PATIENCE);
        run.finish();
        assert_eq!(run.last_words().len(), usize::from(!comes_back));
        run.assert_replays(Thresholds::default());
    }
}

/// Nobody of this host was known to listen there: it is told at once.
#[test]
fn what_somebody_else_refuses_is_told_at_once() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.9:444", "10.0.0.1:39999"), |_| {});
    run.tick();
    run.failure(attempt(), 1, |failure| {
        failure.error = errno::ECONNREFUSED;
        failure.how = failure_how::RESET;
    });
    assert_eq!(run.only().count, 1);
}
