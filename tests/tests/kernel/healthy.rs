//! The control: traffic that wants for nothing gives no finding, and every event is accounted for.

use conntracer_tests::{
    family::Family,
    scenario::healthy::{self, Healthy},
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
