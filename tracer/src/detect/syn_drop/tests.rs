use std::time::Duration;

use conntracer_common::{
    record::{self, Socket, listener_flag, syn_evidence, syn_outcome},
    tcp::state,
};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Certainty, Status, Subject, Value},
    plan::{HookPlan, HookType},
    testing::{Run, evidence, host, listener},
};

#[rstest]
#[case::v4("10.0.0.1:80", "10.0.0.2:4000")]
#[case::v6("[fd00::1]:80", "[fd00::2]:4000")]
fn accept_queue_full_opens_at_the_first_drop_and_counts_the_kernels_total(
    #[case] local: &str,
    #[case] remote: &str,
) {
    let mut run = Run::new();
    for drops in 1..=18 {
        run.syn(listener(local, remote), |syn| {
            syn.totals[syn_outcome::ADDED] = 2;
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = drops;
            syn.outcome = 2;
            syn.last_accept_ns = 999_000_000_000;
        });
        run.skip(Duration::from_millis(10));
    }
    run.finish();
    let finding = run.only();
    assert_eq!(finding.kind.name(), "syn_drop");
    assert_eq!(finding.cause, "accept_queue_full");
    assert_eq!(finding.count, 18);
    assert_eq!(finding.certainty, Certainty::Exact);
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: 4026,
            local: local.parse().unwrap()
        }
    );
    assert_eq!(finding.owner.as_ref().unwrap().pid, 1234);
    assert_eq!(evidence(finding, "syn_arrivals"), &Value::Count(20));
    assert_eq!(run.statuses(), [Status::Open, Status::Update]);
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_poll_tells_the_drops_that_rate_limited_records_left_out() {
    let mut run = Run::new();
    let socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    run.syn(socket, |syn| syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1);
    run.pass(Duration::from_secs(2));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 40;
    });
    run.pass(Duration::from_secs(11));
    assert_eq!(
        run.statuses(),
        [Status::Open, Status::Update, Status::Resolved]
    );
    assert_eq!(run.only().count, 40);
}

#[test]
fn drops_after_the_end_are_a_new_finding_with_its_own_count() {
    let mut run = Run::new();
    let socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    run.syn(socket, |syn| syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5);
    run.pass(Duration::from_secs(11));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 12;
    });
    run.finish();
    let counts: Vec<u64> = run
        .last_words()
        .iter()
        .map(|finding| finding.count)
        .collect();
    assert_eq!(counts, [5, 7]);
}

#[test]
fn each_cause_is_its_own_finding() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        for outcome in 0..syn_outcome::COUNT {
            syn.totals[outcome] = 1 + outcome as u64;
        }
    });
    let found: Vec<_> = run
        .findings
        .iter()
        // The repeats among the totals are another detector's.
        .filter(|finding| finding.kind.name() != "half_open")
        .map(|finding| (finding.kind.name(), finding.cause.as_ref(), finding.count))
        .collect();
    assert_eq!(
        found,
        [
            ("syn_drop", "accept_queue_full", 3),
            ("syn_drop", "ack_overflow", 11),
            ("syn_drop", "abort_on_overflow", 18),
            ("syn_drop", "syn_queue_full", 4),
            ("syn_drop", "syn_queue_pressure", 5),
            ("syn_drop", "no_route", 6),
            ("syn_drop", "no_memory", 10),
            ("syn_drop", "other", 7),
            ("syn_cookies", "syn_queue_full", 2),
        ]
    );
}

#[test]
fn cookies_that_are_always_asked_for_are_no_finding() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::COOKIE] = 100;
        syn.syncookies = 2;
    });
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn accepted_connections_are_no_finding() {
    let mut run = Run::new();
    for added in 1..1000 {
        run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.totals[syn_outcome::ADDED] = added;
        });
    }
    run.pass(Duration::from_secs(20));
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_cause_concluded_from_fields_says_so() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::SYN_QUEUE_FULL] = 1;
        syn.evidence = syn_evidence::FIELDS;
    });
    let finding = run.only();
    assert_eq!(finding.certainty, Certainty::Inferred);
    assert!(finding.because.as_ref().unwrap().contains("queue lengths"));
}

#[test]
fn a_third_ack_of_which_no_socket_was_made_is_concluded_to_want_memory() {
    let mut run = Run::new();
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::ADDED] = 3;
        syn.totals[syn_outcome::ACK_OTHER] = 2;
        syn.outcome = 9;
    });
    let finding = run.only();
    assert_eq!((finding.cause.as_ref(), finding.count), ("no_memory", 2));
    assert_eq!(finding.certainty, Certainty::Inferred);
    assert!(finding.because.as_ref().unwrap().contains("not why"));
    assert!(
        finding.summary.contains("believe they are connected"),
        "{}",
        finding.summary
    );
    assert_eq!(evidence(finding, "syn_arrivals"), &Value::Count(3));
    run.assert_replays(Thresholds::default());
}

/// The tracepoints go by the kernel's counters, which count a request that an ICMP message ended alike.
#[rstest]
#[case::seen(HookType::Fentry, None, false)]
#[case::counted(HookType::Tracepoint, None, true)]
#[case::counted_and_some_came(HookType::Tracepoint, Some(3), true)]
#[case::counted_and_none_came(HookType::Tracepoint, Some(0), false)]
fn a_request_that_icmp_may_have_ended_is_not_blamed_on_memory(
    #[case] hook_type: HookType,
    #[case] received: Option<u64>,
    #[case] may_be: bool,
) {
    let mut run = on(&[("ack", hook_type)]);
    if let Some(received) = received {
        run.netns_facts(|facts| {
            facts.figures[record::netns_fact::ICMP_IN_UNREACHABLE] = received;
        });
    }
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::ACK_OTHER] = 2;
    });
    let finding = run.only();
    let said = finding
        .summary
        .contains("an ICMP message ended the request");
    assert_eq!(said, may_be, "{}", finding.summary);
    assert_eq!(
        finding.summary.contains("believe"),
        !may_be,
        "{}",
        finding.summary
    );
    assert_eq!(
        finding.advice[0].contains("nstat"),
        may_be,
        "{:?}",
        finding.advice
    );
}

#[test]
fn sockets_that_share_an_address_add_up() {
    let mut run = Run::new();
    for worker in 0..4 {
        let mut socket = listener("10.0.0.1:80", "10.0.0.2:4000");
        socket.sk += worker;
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 10;
        });
    }
    run.finish();
    assert_eq!(run.only().count, 40);
}

#[test]
fn a_record_that_arrives_late_takes_nothing_back() {
    let mut run = Run::new();
    let socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    for total in [1, 9, 8, 10] {
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = total;
        });
    }
    run.finish();
    assert_eq!(run.only().count, 10);
}

#[test]
fn the_words_name_queue_limit_and_remedy() {
    let mut run = Run::new();
    run.skip(Duration::from_millis(12_400));
    run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 18;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    insta::assert_json_snapshot!(run.only());
}

/// One socket of a group that shares an address.
pub(super) fn member(number: u64) -> Socket {
    let mut socket = listener("10.0.0.1:80", "10.0.0.2:4000");
    socket.sk += number;
    socket
}

/// A run on a host whose hooks got these hook types.
pub(super) fn on(hook_types: &[(&str, HookType)]) -> Run {
    let mut host = host();
    host.plan.hooks = hook_types
        .iter()
        .map(|(hook, hook_type)| HookPlan {
            hook: (*hook).to_owned(),
            hook_type: *hook_type,
            attached: Vec::new(),
            refused: Vec::new(),
            blind_to: None,
        })
        .collect();
    Run::on(Thresholds::default(), host)
}

#[test]
fn the_worst_member_lends_its_queue_and_the_drops_are_split() {
    let mut run = Run::new();
    for (number, drops, limit) in [(0, 0, 1024), (1, 7, 1), (2, 30, 2), (3, 0, 1024)] {
        run.syn(member(number), |syn| {
            syn.totals[syn_outcome::ADDED] = 10;
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = drops;
            syn.max_ack_backlog = limit;
            syn.peak_ack_backlog = limit.min(2) + 1;
            syn.ack_backlog = 0;
            syn.flags = listener_flag::REUSEPORT;
        });
    }
    run.pass(Duration::from_secs(11));
    run.finish();
    let finding = run.only();
    assert_eq!(finding.count, 37);
    for (name, value) in [
        ("members", 4),
        ("members_dropping", 2),
        ("worst_member_drops", 30),
        ("max_ack_backlog", 2),
        ("peak_ack_backlog", 3),
        ("syn_arrivals", 77),
    ] {
        assert_eq!(evidence(finding, name), &Value::Count(value), "{name}");
    }
    assert_eq!(
        evidence(finding, "drops_by_member"),
        &Value::Text("30, 7".into())
    );
    assert!(
        finding
            .summary
            .contains("3 waiting at the worst of 4 sockets"),
        "{}",
        finding.summary
    );
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_member_that_closed_still_counts_and_is_no_member() {
    let mut run = Run::new();
    for number in 0..2 {
        run.syn(member(number), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 10;
        });
    }
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 15;
        syn.socket.state = state::CLOSE;
    });
    run.pass(Duration::from_secs(11));
    let finding = run.only();
    assert_eq!(finding.count, 25);
    assert_eq!(evidence(finding, "members"), &Value::Count(1));
    assert_eq!(evidence(finding, "members_dropping"), &Value::Count(2));
    assert_eq!(
        evidence(finding, "drops_by_member"),
        &Value::Text("15, 10".into())
    );
}

#[test]
fn a_socket_at_an_address_in_the_kernel_that_was_anothers_takes_its_place() {
    let mut run = Run::new();
    for born in 1..4 {
        run.syn(member(0), |syn| {
            syn.socket.born_ns += born;
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        });
    }
    run.pass(Duration::from_secs(11));
    assert_eq!(run.only().count, 15);
    assert_eq!(evidence(run.only(), "members"), &Value::Count(1));
}

#[rstest]
#[case::capped(4096, 4096, true)]
#[case::asked_for(128, 4096, false)]
#[case::not_known(128, 0, false)]
fn a_backlog_that_somaxconn_cut_is_said(
    #[case] limit: u32,
    #[case] somaxconn: u32,
    #[case] said: bool,
) {
    let mut run = Run::new();
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
        syn.max_ack_backlog = limit;
        syn.somaxconn = somaxconn;
    });
    let capped = run
        .only()
        .evidence
        .iter()
        .any(|evidence| evidence.name == "backlog_capped_by_somaxconn");
    assert_eq!(capped, said);
}

/// A full queue from which somebody takes one connection every 100 ms, for as long as `accepting`, and
/// which drops a SYN each time.
pub(super) fn drained(run: &mut Run, steps: u64, accepting: u64) {
    for step in 0..steps {
        let accepted = step.min(accepting);
        let last_accept_ns = run.ktime_ns();
        run.syn(member(0), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = step + 1;
            syn.totals[syn_outcome::COMPLETED] = accepted + 2;
            if accepting > 0 {
                syn.totals[syn_outcome::ACCEPTED] = accepted;
                syn.last_accept_ns = last_accept_ns - 100_000_000 * (step - accepted);
            }
        });
        run.pass(Duration::from_millis(100));
    }
}

#[rstest]
#[case::accepting(50, "accepts 10.5/s", "accept faster")]
#[case::stalled(
    20,
    "nothing was accepted for 2.9 s",
    "why nobody accepts is not known"
)]
fn the_acceptor_is_told_by_its_rate_or_by_its_stall(
    #[case] accepting: u64,
    #[case] said: &str,
    #[case] advice: &str,
) {
    let mut run = on(&[("accept", HookType::Fentry), ("ack", HookType::Fentry)]);
    drained(&mut run, 50, accepting);
    run.finish();
    let finding = run.only();
    assert!(finding.summary.ends_with(said), "{}", finding.summary);
    assert!(finding.advice[0].contains(advice), "{:?}", finding.advice);
}

/// A look at two processes, and what is said of a full queue that nobody empties. `state` and `stopped` of `threads` are
/// the second's, a child of the first's.
#[rstest]
#[case::worker_stopped(
    |worker: &mut record::Acceptor| (worker.state, worker.stopped) = (b'T', 1),
    Some("server 1235 is stopped (state T); server 1234, which holds the listener too, is not"), "kill -CONT 1235"
)]
#[case::one_thread_stopped(
    |worker: &mut record::Acceptor| (worker.state, worker.threads, worker.stopped) = (b'T', 2, 1), None, "not known"
)]
#[case::traced(
    |worker: &mut record::Acceptor| (worker.state, worker.stopped) = (b't', 1),
    Some("server 1235 is stopped by a debugger"), "TracerPid"
)]
#[case::frozen(
    |worker: &mut record::Acceptor| worker.flags |= record::acceptor_flag::FROZEN,
    Some("server 1235 is frozen with its control group"), "thaw"
)]
#[case::no_descriptors(
    |worker: &mut record::Acceptor| (worker.descriptors, worker.descriptor_limit) = (32, 32),
    Some("server 1235: accept() fails, 32 of 32 descriptors are in use"), "ls -l /proc/1235/fd"
)]
#[case::a_descriptor_to_spare(
    |worker: &mut record::Acceptor| (worker.descriptors, worker.descriptor_limit) = (31, 32), None, "not known"
)]
#[case::limit_not_known(
    |worker: &mut record::Acceptor| {
        (worker.descriptors, worker.descriptor_limit) = (record::UNKNOWN_COUNT, record::UNKNOWN_COUNT);
    },
    None, "not known"
)]
#[case::gone(|worker: &mut record::Acceptor| worker.flags |= record::acceptor_flag::GONE, None, "not known")]
#[case::running(|_: &mut record::Acceptor| (), None, "not known")]
fn what_keeps_who_may_accept_from_it_is_told_and_no_longer_queue_is_advised(
    #[case] hinder: fn(&mut record::Acceptor),
    #[case] said: Option<&str>,
    #[case] advice: &str,
) {
    let mut run = on(&[("accept", HookType::Fentry), ("ack", HookType::Fentry)]);
    let socket = member(0);
    let look = |run: &mut Run| {
        run.acceptor(socket, |master| master.flags = record::acceptor_flag::HOLDS);
        run.acceptor(socket, |worker| {
            (worker.pid, worker.parent_pid, worker.index) = (1235, 1234, 1);
            hinder(worker);
        });
    };
    look(&mut run);
    run.skip(Duration::from_secs(3));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    let opened = run.only().clone();
    match said {
        Some(said) => assert!(opened.summary.contains(said), "{}", opened.summary),
        None => assert!(!opened.summary.contains("1235"), "{}", opened.summary),
    }
    let all = opened.advice.join("; ");
    assert!(opened.advice[0].contains(advice), "{all}");
    assert!(
        !all.contains("backlog") && !all.contains("accept faster"),
        "{all}"
    );
    // It is let go, and the queue is empty: the end keeps the cause that held.
    run.skip(Duration::from_secs(2));
    run.acceptor(socket, |_| ());
    run.syn(socket, |syn| {
        syn.outcome = u8::MAX;
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.totals[syn_outcome::ACCEPTED] = 9;
        syn.last_accept_ns = syn.header.ktime_ns;
    });
    run.pass(Duration::from_secs(12));
    let resolved = run.only();
    assert_eq!(resolved.status, Status::Resolved);
    assert_eq!(
        (&resolved.summary, &resolved.advice),
        (&opened.summary, &opened.advice)
    );
    run.assert_replays(Thresholds::default());
}

/// A worker was stopped when SYNs were dropped, and ran when a search found who holds the listener.
#[rstest]
#[case::it_holds_it(
    1235,
    "server 1235 is stopped (state T); server 1234, which holds the listener too, is not"
)]
#[case::another_child_does(1236, "nothing was accepted for 3.0 s")]
fn what_hindered_a_holder_before_it_was_known_to_be_one_stays(
    #[case] holder: u32,
    #[case] said: &str,
) {
    let mut run = on(&[("accept", HookType::Fentry), ("ack", HookType::Fentry)]);
    let socket = member(0);
    run.acceptor(socket, |master| master.flags = 0);
    run.acceptor(socket, |worker| {
        (worker.pid, worker.parent_pid, worker.index) = (1235, 1234, 1);
        worker.flags = record::acceptor_flag::LAST;
        (worker.state, worker.stopped) = (b'T', 1);
    });
    run.skip(Duration::from_secs(3));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    let opened = "server 1235 (child of the listener's process 1234) is stopped";
    assert!(run.only().summary.contains(opened), "{:?}", run.only());
    run.skip(Duration::from_secs(1));
    run.acceptor(socket, |master| master.flags = record::acceptor_flag::HOLDS);
    run.acceptor(socket, |worker| {
        (worker.pid, worker.parent_pid, worker.index) = (holder, 1234, 1);
    });
    run.pass(Duration::from_secs(12));
    let resolved = run.only();
    assert_eq!(resolved.status, Status::Resolved);
    assert!(resolved.summary.contains(said), "{}", resolved.summary);
    assert_eq!(
        resolved.summary.contains("1235"),
        holder == 1235,
        "{}",
        resolved.summary
    );
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_quota_that_stands_in_the_way_is_told_with_its_share() {
    let mut run = on(&[("accept", HookType::Fentry), ("ack", HookType::Fentry)]);
    let socket = member(0);
    for step in 0..3_u64 {
        run.acceptor(socket, |process| {
            (process.throttled, process.throttled_us) = (step, 600_000 * step);
        });
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = step + 1;
            syn.last_accept_ns = 999_000_000_000;
        });
        run.skip(Duration::from_secs(1));
    }
    run.tick();
    let finding = run.only();
    let said = "server 1234 is kept from running by a CPU quota for 60 % of the time";
    assert!(finding.summary.contains(said), "{}", finding.summary);
    assert!(
        finding.advice[0].contains("cpu.max"),
        "{:?}",
        finding.advice
    );
}

#[test]
fn a_busy_process_is_told_to_be_busy() {
    let mut run = on(&[("accept", HookType::Fentry), ("ack", HookType::Fentry)]);
    let socket = member(0);
    for step in 0..3_u64 {
        run.acceptor(socket, |process| process.cpu_ms = 990 * step);
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = step + 1;
            syn.last_accept_ns = 998_000_000_000;
        });
        run.skip(Duration::from_secs(1));
    }
    run.tick();
    let summary = &run.only().summary;
    assert!(
        summary.contains("server 1234 is busy: it used 99 % of a CPU"),
        "{summary}"
    );
}

#[test]
fn what_left_the_queue_is_concluded_where_accept_is_not_seen() {
    let mut run = on(&[
        ("accept", HookType::Tracepoint),
        ("ack", HookType::Tracepoint),
    ]);
    for step in 0..50_u64 {
        run.syn(member(0), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = step + 1;
            // One more each time joins the queue of two, so one each time leaves it; none from 30 on.
            syn.totals[syn_outcome::COMPLETED] = 2 + step.min(30);
        });
        run.pass(Duration::from_millis(100));
    }
    run.finish();
    let finding = run.only();
    assert_eq!(evidence(finding, "accepted"), &Value::Count(30));
    assert!(
        finding
            .summary
            .ends_with("nothing was accepted for 1.9 s, by the length of its queue"),
        "{}",
        finding.summary
    );
}

#[test]
fn what_was_in_the_queue_before_the_tracer_was_not_accepted() {
    let mut run = on(&[
        ("accept", HookType::Tracepoint),
        ("ack", HookType::Tracepoint),
    ]);
    for drops in 1..3 {
        run.syn(member(0), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = drops;
        });
        run.pass(Duration::from_secs(2));
    }
    let finding = run.only();
    assert_eq!(evidence(finding, "accepted"), &Value::Count(0));
    assert!(
        finding
            .summary
            .ends_with("its queue was not seen to shrink yet"),
        "{}",
        finding.summary
    );
}

#[test]
fn the_acceptors_of_a_group_are_not_known_on_the_tracepoint_rung() {
    let mut run = on(&[
        ("accept", HookType::Tracepoint),
        ("ack", HookType::Tracepoint),
    ]);
    for number in 0..2 {
        run.syn(member(number), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = number;
        });
    }
    let finding = run.only();
    assert!(
        finding
            .summary
            .ends_with("how fast it accepts is not known on this hook type"),
        "{}",
        finding.summary
    );
}
