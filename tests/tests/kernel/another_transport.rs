//! The transport that the shared tracers do not have carries the same: health, a counter's worth of drops, and storms. A
//! tracer of its own, for its transport; each in a namespace of its own, one after the other.

use conntracer_tests::{
    family::Family,
    netns::NetNs,
    scenario::{
        accept_queue::AcceptQueueFull,
        healthy::{self, Healthy},
        lossy_path::LossyPath,
    },
    shared::QUICK,
};

use crate::{
    healthy::seen,
    retransmit_storm::{assert_storm, tell_storm},
    support::{assert_reconciled, assert_said, assert_sound, binary, trace_all_by},
    syn_drop::{assert_accept_queue_full, overflow},
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];

#[test]
fn the_other_transport_carries_the_same() {
    let Some(binary) = binary() else { return };
    let binary = binary.by_the_other_transport();
    let mut healthy = BOTH.map(|family| Healthy::new(family).unwrap());
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    let mut lossy = BOTH.map(|family| LossyPath::new(family).unwrap());
    let namespaces = [
        &healthy[0].pair.server,
        &healthy[1].pair.server,
        &full.netns,
        &lossy[0].pair.server,
        &lossy[1].pair.server,
    ]
    .map(NetNs::clone);
    let Some(mut tracer) = trace_all_by(&binary, &namespaces.each_ref(), QUICK, &[]) else {
        return;
    };
    assert_eq!(tracer.plan().plan.transport, binary.transport());
    for scenario in &mut healthy {
        scenario.run().unwrap();
    }
    let run = tracer.checkpoint().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    let made = u64::from(healthy::CONNECTIONS) * healthy.len() as u64;
    assert!(seen(&run) > made, "{run:#?}");

    let (_, overflowed) = overflow(&mut full, &mut tracer);
    let told = lossy
        .each_mut()
        .map(|scenario| tell_storm(scenario, &mut tracer));
    let before = lossy
        .each_ref()
        .map(|scenario| scenario.pair.server.counters().unwrap());
    let run = tracer.stop().unwrap();

    assert_accept_queue_full(&run.within(&full.netns), &full.netns, &overflowed);
    for ((scenario, told), before) in lossy.iter().zip(told).zip(before) {
        let server = &scenario.pair.server;
        let run = run.within(server);
        assert_storm(&run, scenario, &told);
        assert_reconciled(&run, server, &before);
        assert_said(&run, "retransmit_storm");
        assert_sound(&run, server);
    }
}
