//! `syn_drop` and `syn_cookies`: every SYN and third ACK that the kernel counts as refused is in a
//! finding, in every hook mode.

use conntracer_tests::{
    counters::Counters,
    family::Family,
    line::Finding,
    netns::NetNs,
    output::Run,
    scenario::{
        accept_queue::{AcceptQueueFull, AckOverflow},
        ghost_syns::{Cookies, GhostSyns},
    },
    wait::SOON,
    watch::Watch,
};
use rstest::rstest;

use crate::support::{
    assert_counted, assert_listener, assert_reconciled, assert_said, assert_sound, binary,
    is_syn_drop, overflows, watch,
};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn accept_queue_full_equals_listen_overflows(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AcceptQueueFull::new(family).unwrap();
    let Some(mut tracer) = watch(&binary, &scenario.netns) else {
        return;
    };
    let (opened, counted) = overflow(&mut scenario, &mut tracer);
    let run = tracer.checkpoint().unwrap();

    assert_accept_queue_full(&run, &scenario.netns, &counted);
    assert_listener(&opened, &scenario.netns, family.loopback_listener());
    assert!(!opened.advice.is_empty(), "{opened:?}");
}

/// The finding as it opened, and what the kernel counted in the end.
pub(crate) fn overflow(scenario: &mut AcceptQueueFull, tracer: &mut Watch) -> (Finding, Counters) {
    scenario.provoke().unwrap();
    // Handshakes that were under way when the queue filled may be refused at their third ACK first.
    let opened = tracer
        .wait_for("an accept_queue_full finding", SOON, |finding| {
            is_syn_drop(finding) && finding.cause == "accept_queue_full"
        })
        .unwrap();
    scenario.quiet().unwrap();
    (opened, scenario.netns.counters().unwrap())
}

#[track_caller]
pub(crate) fn assert_accept_queue_full(run: &Run, netns: &NetNs, counted: &Counters) {
    assert_overflows(run, counted);
    assert_reconciled(run, netns, counted);
    assert_said(run, "syn_drop");
    assert_sound(run, netns);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn ack_overflow_equals_listen_overflows(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AckOverflow::new(family).unwrap();
    let Some(mut tracer) = watch(&binary, &scenario.netns) else {
        return;
    };
    scenario.provoke().unwrap();
    let opened = tracer
        .wait_for("an ack_overflow finding", SOON, |finding| {
            is_syn_drop(finding) && finding.cause == "ack_overflow"
        })
        .unwrap();
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_overflows(&run, &counted);
    assert_reconciled(&run, &scenario.netns, &counted);
    assert_listener(&opened, &scenario.netns, family.loopback_listener());
    assert_sound(&run, &scenario.netns);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn syn_queue_full_equals_req_q_full_drop(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = GhostSyns::new(family, Cookies::Never).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.flood().unwrap();
    let opened = tracer
        .wait_for("a syn_drop finding", SOON, is_syn_drop)
        .unwrap();
    let counted = scenario.counted().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_counted(
        &run,
        "TCPReqQFullDrop",
        run.total("syn_drop", &["syn_queue_full"]),
        counted.req_q_full_drop,
    );
    assert_eq!(counted.req_q_full_drop, counted.listen_drops);
    assert_eq!(
        run.last_of(is_syn_drop).len(),
        1,
        "one listener, one cause: {run:#?}"
    );
    assert!(
        run.last_of(|finding| finding.finding == "syn_cookies")
            .is_empty(),
        "{run:#?}"
    );
    assert_listener(&opened, &server, family.veth_listener());
    assert_reconciled(&run, &server, &counted);
    assert_said(&run, "syn_drop");
    assert_sound(&run, &server);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn cookies_are_no_drops(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = GhostSyns::new(family, Cookies::WhenFull).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.flood().unwrap();
    let opened = tracer
        .wait_for("a syn_cookies finding", SOON, |finding| {
            finding.finding == "syn_cookies"
        })
        .unwrap();
    let counted = scenario.counted().unwrap();
    let run = tracer.checkpoint().unwrap();

    let cookies: u64 = run
        .last_of(|finding| finding.finding == "syn_cookies")
        .iter()
        .map(|finding| finding.count)
        .sum();
    assert_counted(
        &run,
        "TCPReqQFullDoCookies",
        cookies,
        counted.req_q_full_do_cookies,
    );
    assert!(
        run.last_of(is_syn_drop).is_empty(),
        "cookies are no drops: {run:#?}"
    );
    assert_reconciled(&run, &server, &counted);
    assert_listener(&opened, &server, family.veth_listener());
    assert_sound(&run, &server);
}

#[track_caller]
fn assert_overflows(run: &Run, counted: &Counters) {
    let findings = run.last_of(is_syn_drop);
    assert_counted(
        run,
        "ListenOverflows",
        overflows(&findings),
        counted.listen_overflows,
    );
    assert_counted(
        run,
        "TCPReqQFullDoCookies",
        run.total("syn_cookies", &["syn_queue_full"]),
        counted.req_q_full_do_cookies,
    );
}
