//! `retransmit`: every segment that is sent again is an event with what sent it again for a type, and the
//! types add up to the kernel's counters.

use std::collections::BTreeMap;

use anyhow::Result;
use conntracer_tests::{
    family::Family,
    output::Run,
    scenario::{patterns::Patterns, repeats::Repeats},
};
use rstest::rstest;
use socket2::Socket;

use crate::support::{
    assert_counted, assert_reconciled, assert_seen, assert_sound, binary, watch_events,
};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn segments_by_type_equal_the_kernels_counters(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let scenario = Repeats::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_events(&binary, &server, &["retransmit"]) else {
        return;
    };
    scenario.provoke().unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    let sent = segments(&run);
    let of = |kind: &str| sent.get(kind).copied().unwrap_or_default();
    let all = counted.retrans_segs - counted.retrans_fail;
    assert_counted(&run, "RetransSegs", sent.values().sum(), all);
    assert_counted(&run, "TCPSynRetrans", of("syn"), counted.syn_retrans);
    assert_counted(&run, "TCPFastRetrans", of("fast"), counted.fast_retrans);
    assert!(of("fast") > 0 && of("tail_loss_probe") > 0, "{sent:?}");
    assert!(
        of("timeout") > counted.slow_start_retrans,
        "{sent:?} {counted:?}"
    );
    // Probes that carry new data repeat nothing.
    assert!(
        of("tail_loss_probe") <= counted.loss_probes,
        "{sent:?} {counted:?}"
    );
    assert_eq!(of("unknown"), 0, "{sent:?}");
    assert_reconciled(&run, &server, &counted);
    assert_sound(&run, &server);
}

/// The same against a peer that is a script: whatever pattern of loss it shows.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn every_pattern_of_loss_adds_up(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let scenario = Patterns::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_events(&binary, &server, &["retransmit"]) else {
        return;
    };
    scenario.provoke().unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    let sent = segments(&run);
    let of = |kind: &str| sent.get(kind).copied().unwrap_or_default();
    let all = counted.retrans_segs;
    assert_counted(&run, "RetransSegs", sent.values().sum(), all);
    let syns = of("syn") + of("syn_ack");
    assert_counted(&run, "TCPSynRetrans", syns, counted.syn_retrans);
    assert!(of("syn") > 0 && of("syn_ack") > 0, "{sent:?}");
    assert_counted(&run, "TCPFastRetrans", of("fast"), counted.fast_retrans);
    let probes = of("tail_loss_probe");
    assert_seen(&run, &["retransmit"], probes, counted.loss_probes);
    assert!(
        of("timeout") > counted.slow_start_retrans,
        "{sent:?} {counted:?}"
    );
    assert_eq!(of("unknown"), 0, "{sent:?}");
    assert!(counted.loss_undo > counted.spurious_rtos, "{counted:?}");
    assert_reconciled(&run, &server, &counted);
    assert_sound(&run, &server);
}

/// No timer fired, and so nothing is a timeout: what a router's word has sent again, and the data of a SYN of which only
/// the SYN was acknowledged.
#[rstest]
#[case::a_router_says_that_the_path_is_narrower(Patterns::shrink)]
#[case::only_the_syn_is_acknowledged(Patterns::take_the_syn_alone)]
fn what_no_timer_sends_again_is_no_timeout(#[case] provoke: fn(&Patterns) -> Result<Socket>) {
    let Some(binary) = binary() else { return };
    let scenario = Patterns::new(Family::V4).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_events(&binary, &server, &["retransmit"]) else {
        return;
    };
    let socket = provoke(&scenario).unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();
    drop(socket);

    let sent = segments(&run);
    let of = |kind: &str| sent.get(kind).copied().unwrap_or_default();
    assert_counted(
        &run,
        "RetransSegs",
        sent.values().sum(),
        counted.retrans_segs,
    );
    // On a slow machine the timer may be faster than the script.
    if counted.timeouts == 0 {
        assert_eq!(of("timeout"), 0, "{sent:?} {counted:?}");
        // Before Linux 5.17 the data of a SYN is sent again beside a probe's timer, and looks like one.
        assert!(of("unknown") + of("tail_loss_probe") > 0, "{sent:?}");
    }
    assert_reconciled(&run, &server, &counted);
    assert_sound(&run, &server);
}

/// Segments that left, by type.
fn segments(run: &Run) -> BTreeMap<&str, u64> {
    let mut sent = BTreeMap::new();
    for (kind, event) in run.events() {
        assert_eq!(kind, "retransmit");
        if event.get("errno").is_none() {
            let of_type = event["tcp.retransmit.type"].as_str().expect("a type");
            *sent.entry(of_type).or_default() += event["segments"].as_u64().expect("segments");
        }
    }
    sent
}
