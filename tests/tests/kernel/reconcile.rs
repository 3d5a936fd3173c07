//! The kernel's own counters are conntracer's, and where they are not it says so.

use conntracer_tests::{
    family::Family,
    line::Figures,
    scenario::{
        accept_queue::AcceptQueueFull,
        cookies::{AlwaysCookies, FORGED, HONEST},
    },
    wait::SOON,
};
use rstest::rstest;

use crate::support::{assert_reconciled, assert_sound, binary, trace};

/// What the plan calls listeners that were there before conntracer.
const OLDER: &str = "older than conntracer";

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn cookies_that_come_back_equal_syncookies_recv_and_failed(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AlwaysCookies::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(tracer) = trace(&binary, &server, &[]) else {
        return;
    };
    scenario.provoke().unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.stop().unwrap();

    assert_eq!(counted.syncookies_sent, u64::from(HONEST));
    assert_eq!(counted.syncookies_recv, u64::from(HONEST));
    assert_eq!(counted.syncookies_failed, u64::from(FORGED));
    assert_reconciled(&run, &server, &counted);
    assert_sound(&run, &server);
}

/// Where listeners older than conntracer are not known, what they drop is a residue, with that for a
/// reason. The other rungs miss nothing.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn what_a_rung_cannot_see_is_a_residue(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AcceptQueueFull::new(family).unwrap();
    scenario.open().unwrap();
    let Some(mut tracer) = trace(&binary, &scenario.netns, &[]) else {
        return;
    };
    scenario.provoke().unwrap();
    let hooks = &tracer.plan().plan.hooks;
    let blind = hooks.iter().any(|plan| {
        let blind_to = plan.blind_to.as_deref().unwrap_or_default();
        plan.hook == "syn" && blind_to.contains(OLDER)
    });
    if !blind {
        tracer
            .wait_for("a syn_drop finding", SOON, |finding| {
                finding.finding == "syn_drop"
            })
            .unwrap();
    }
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    let run = tracer.stop().unwrap();

    if !blind {
        assert_reconciled(&run, &scenario.netns, &counted);
        return;
    }
    let reconciled = run
        .stop
        .reconciliation
        .namespaces
        .iter()
        .find(|reconciled| reconciled.netns == scenario.netns.inode())
        .unwrap();
    for (name, kernel) in [
        ("ListenOverflows", counted.listen_overflows),
        ("ListenDrops", counted.listen_drops),
    ] {
        let expected = Figures {
            kernel,
            counted: 0,
            residue: i64::try_from(kernel).unwrap(),
            because: reconciled.counters[name].because.clone(),
        };
        assert_eq!(reconciled.counters[name], expected);
        assert!(
            expected
                .because
                .is_some_and(|because| because.contains(OLDER)),
            "{reconciled:#?}"
        );
    }
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

    let reconciliation = &run.stop.reconciliation;
    assert_eq!(reconciliation.compared, 0);
    assert!(reconciliation.namespaces.is_empty(), "{reconciliation:#?}");
    let reason = &reconciliation.not_reconciled["ListenDrops"];
    assert!(reason.contains("filter"), "{reason}");
}
