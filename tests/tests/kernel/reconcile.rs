//! The kernel's own counters are conntracer's, and where they are not it says so.

use conntracer_tests::{
    counters::Counters,
    family::Family,
    netns::NetNs,
    output::Run,
    scenario::{
        accept_queue::AcceptQueueFull,
        cookies::{AlwaysCookies, FORGED, HONEST},
    },
    wait::SOON,
};
use rstest::rstest;

use crate::support::{
    assert_counted, assert_reconciled, assert_sound, assert_source, binary, is_syn_drop, overflows,
    trace_all, watch,
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
/// the finding names its owner. A tracer of its own for both families, for what was there before it.
#[test]
fn a_listener_older_than_the_tracer_leaves_no_residue() {
    let Some(binary) = binary() else { return };
    let mut scenarios = [Family::V4, Family::V6].map(|family| {
        let mut scenario = AcceptQueueFull::new(family).unwrap();
        scenario.open().unwrap();
        scenario
    });
    let namespaces = scenarios.each_ref().map(|scenario| &scenario.netns);
    let Some(mut tracer) = trace_all(&binary, &namespaces, &[]) else {
        return;
    };
    for scenario in &mut scenarios {
        scenario.provoke().unwrap();
    }
    let counted = scenarios.each_mut().map(|scenario| {
        tracer
            .wait_for("a syn_drop finding of each", SOON, |finding| {
                is_syn_drop(finding) && finding.subject.netns() == Some(scenario.netns.inode())
            })
            .unwrap();
        scenario.quiet().unwrap();
        scenario.netns.counters().unwrap()
    });
    let run = tracer.stop().unwrap();
    for (scenario, counted) in scenarios.iter().zip(counted) {
        assert_no_residue(&run.within(&scenario.netns), &scenario.netns, &counted);
    }
}

#[track_caller]
fn assert_no_residue(run: &Run, netns: &NetNs, counted: &Counters) {
    let findings = run.last_of(is_syn_drop);
    let told = overflows(&findings);
    assert_counted(run, "ListenOverflows", told, counted.listen_overflows);
    for finding in findings {
        let owner = finding.owner.as_ref().expect("this process holds it");
        assert_eq!(owner.pid, std::process::id(), "{finding:#?}");
        assert_source(Some(&owner.source), "seeded");
    }
    assert_reconciled(run, netns, counted);
    assert_sound(run, netns);
}
