//! The control: traffic that wants for nothing gives no finding, and every event is accounted for.

use std::time::Duration;

use conntracer_tests::{
    family::Family,
    scenario::{
        healthy::{self, Healthy},
        load::Load,
    },
};
use rstest::rstest;

use crate::support::{assert_sound, binary, trace};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn healthy_traffic_gives_no_finding(
    #[case] family: Family,
    #[values("ringbuf", "perf")] transport: &str,
) {
    let Some(binary) = binary() else { return };
    let mut scenario = Healthy::new(family).unwrap();
    let Some(tracer) = trace(&binary, &scenario.pair.server, &["--transport", transport]) else {
        return;
    };
    scenario.run().unwrap();
    let run = tracer.stop().unwrap();

    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &scenario.pair.server);
    // Not for want of looking: each connection changes state several times.
    let seen = run.stop.hooks["state"].seen;
    assert!(seen > u64::from(healthy::CONNECTIONS), "{run:#?}");
}

/// A busy host, for as long as a run of all tests can spare.
#[test]
fn fifty_thousand_short_connections_and_a_bulk_transfer_give_no_finding() {
    const CONNECTIONS: u32 = 50_000;
    const LIMIT: Duration = Duration::from_secs(10);
    let Some(binary) = binary() else { return };
    let scenario = Load::new(Family::V4).unwrap();
    let Some(tracer) = trace(&binary, &scenario.pair.server, &[]) else {
        return;
    };
    let made = scenario.run(CONNECTIONS, LIMIT).unwrap();
    let run = tracer.stop().unwrap();

    assert_eq!(run.findings().count(), 0, "after {made}: {run:#?}");
    assert_sound(&run, &scenario.pair.server);
    let seen = run.stop.hooks["state"].seen;
    assert!(seen > u64::from(made), "{made}: {run:#?}");
}
