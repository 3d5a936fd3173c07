//! The kernel's own counters are conntracer's, and where they are not it says so.

use conntracer_tests::{
    family::Family,
    scenario::{
        accept_queue::AcceptQueueFull,
        cookies::{AlwaysCookies, FORGED, HONEST},
    },
    wait::SOON,
};
use rstest::rstest;

use crate::support::{
    assert_counted, assert_reconciled, assert_sound, assert_source, binary, is_syn_drop, overflows,
    trace, watch,
};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn cookies_that_come_back_equal_syncookies_recv_and_failed(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AlwaysCookies::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.provoke().unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(counted.syncookies_sent, u64::from(HONEST));
    assert_eq!(counted.syncookies_recv, u64::from(HONEST));
    assert_eq!(counted.syncookies_failed, u64::from(FORGED));
    assert_reconciled(&run, &server, &counted);
    assert_sound(&run, &server);
}

/// A listener that was there before conntracer is found at start: what it drops is counted from then on, and
/// the finding names its owner.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_listener_older_than_the_tracer_leaves_no_residue(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AcceptQueueFull::new(family).unwrap();
    scenario.open().unwrap();
    let Some(mut tracer) = trace(&binary, &scenario.netns, &[]) else {
        return;
    };
    scenario.provoke().unwrap();
    tracer
        .wait_for("a syn_drop finding", SOON, is_syn_drop)
        .unwrap();
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    let run = tracer.stop().unwrap();

    let findings = run.last_of(is_syn_drop);
    let told = overflows(&findings);
    assert_counted(&run, "ListenOverflows", told, counted.listen_overflows);
    for finding in findings {
        let owner = finding.owner.as_ref().expect("this process holds it");
        assert_eq!(owner.pid, std::process::id(), "{finding:#?}");
        assert_source(Some(&owner.source), "seeded");
    }
    assert_reconciled(&run, &scenario.netns, &counted);
    assert_sound(&run, &scenario.netns);
}

/// The kernel counts what a filter hides.
#[test]
fn nothing_is_compared_under_a_filter_by_port() {
    let Some(binary) = binary() else { return };
    let mut scenario = AcceptQueueFull::new(Family::V4).unwrap();
    let Some(tracer) = trace(&binary, &scenario.netns, &["--port", "1"]) else {
        return;
    };
    scenario.provoke().unwrap();
    let run = tracer.stop().unwrap();

    let reconciliation = &run.totals.reconciliation;
    assert_eq!(reconciliation.compared, 0);
    assert!(reconciliation.namespaces.is_empty(), "{reconciliation:#?}");
    let reason = &reconciliation.not_reconciled["ListenDrops"];
    assert!(reason.contains("filter"), "{reason}");
}
