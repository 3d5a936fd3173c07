//! `retransmit_storm`: every segment the kernel counts as retransmitted is in the storm's count.

use conntracer_tests::{
    family::Family,
    line::{Finding, Status, Subject},
    scenario::lossy_path::LossyPath,
    wait::{EVENTUALLY, SOON},
};
use rstest::rstest;

use crate::support::{assert_reconciled, assert_said, assert_sound, binary, trace};

/// Segments after which a storm is a storm by any threshold.
const SEGMENTS: u64 = 200;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn storm_equals_retrans_segs(#[case] family: Family, #[values("ringbuf", "perf")] transport: &str) {
    let Some(binary) = binary() else { return };
    let mut scenario = LossyPath::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = trace(&binary, &server, &["--transport", transport]) else {
        return;
    };
    scenario.provoke(SEGMENTS).unwrap();
    let opened = tracer
        .wait_for("a storm", SOON, is_connection_storm)
        .unwrap();
    let (local, remote) = scenario.endpoints().unwrap();
    scenario.mend().unwrap();
    let counted = scenario.counted().unwrap();
    let ended = tracer
        .wait_for("its end", EVENTUALLY, |finding| {
            finding.id == opened.id && finding.status == Status::Resolved
        })
        .unwrap();
    let before = server.counters().unwrap();
    let run = tracer.stop().unwrap();

    assert_eq!(
        counted.retrans_fail, 0,
        "all retransmissions left the host: {counted:?}"
    );
    assert_eq!(ended.count, counted.retrans_segs, "{run:#?}");
    assert!(
        matches!(&ended.subject, Subject::Connection { netns, local: from, remote: to, .. }
            if *netns == server.inode() && *from == local && *to == remote),
        "{ended:#?}"
    );
    assert_eq!(
        run.last_of(is_storm).len(),
        1,
        "one connection explains it all: {run:#?}"
    );
    assert_reconciled(&run, &server, &before);
    assert_said(&run, "retransmit_storm");
    assert_sound(&run, &server);
}

fn is_storm(finding: &Finding) -> bool {
    finding.finding == "retransmit_storm"
}

fn is_connection_storm(finding: &Finding) -> bool {
    is_storm(finding) && matches!(finding.subject, Subject::Connection { .. })
}
