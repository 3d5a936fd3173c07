//! The kernel's own counters are conntracer's, and where they are not it says so.

use conntracer_tests::{
    family::Family,
    scenario::cookies::{AlwaysCookies, FORGED, HONEST},
};
use rstest::rstest;

use crate::support::{assert_reconciled, assert_sound, binary, watch};

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
