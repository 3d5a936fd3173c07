//! `send_stall`: data that waits is told from data that is lost, and the peer's doing from this host's.

use conntracer_tests::{
    family::Family,
    line::{Finding, Status, Subject},
    output::Run,
    scenario::send_stall::{Barrier, SendStall},
    wait::{EVENTUALLY, SOON},
    watch::Watch,
};
use rstest::rstest;

use crate::support::{assert_said, assert_seen, assert_sound, binary, watch};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_receiver_that_stops_reading_is_no_storm(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let scenario = SendStall::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.stop_reading().unwrap();
    let opened = found(&mut tracer, "receiver_stalled");
    scenario.read_again().unwrap();
    let counted = scenario.counted().unwrap();
    let run = ended(tracer, opened.as_ref());

    if let Some(opened) = opened {
        let last = run.last_of(is_stall);
        assert_eq!(last.len(), 1, "{run:#?}");
        assert_seen(&run, &["probe"], last[0].count, counted.win_probes);
        assert_about(&opened, &scenario);
    }
    assert_no_storm(&run);
    assert_said(&run, "send_stall");
    assert_sound(&run, &server);
    scenario.quiet().unwrap();
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn what_this_host_drops_itself_is_local(
    #[case] family: Family,
    #[values(Barrier::Firewall, Barrier::Queue)] barrier: Barrier,
) {
    let Some(binary) = binary() else { return };
    let scenario = SendStall::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.shut_in(barrier).unwrap();
    let opened = found(&mut tracer, "local_drop");
    // Before it passes: a machine that stands still has its first ACKs late.
    let counted = scenario.counted().unwrap();
    scenario.let_out(barrier).unwrap();
    let run = ended(tracer, opened.as_ref());

    if let Some(opened) = opened {
        assert_eq!(run.last_of(is_stall).len(), 1, "{run:#?}");
        assert_about(&opened, &scenario);
    }
    assert_eq!(counted.retrans_segs, 0, "what never left is not repeated");
    assert_no_storm(&run);
    assert_said(&run, "send_stall");
    assert_sound(&run, &server);
    scenario.quiet().unwrap();
}

/// The finding; `None` where the plan says that it cannot be seen.
fn found(tracer: &mut Watch, cause: &str) -> Option<Finding> {
    let hooks = &tracer.plan().plan.hooks;
    if hooks
        .iter()
        .any(|plan| plan.hook == "probe" && plan.hook_type == "off")
    {
        return None;
    }
    let found = tracer.wait_for(cause, SOON, |finding| {
        is_stall(finding) && finding.symptom() == cause
    });
    Some(found.unwrap())
}

/// The run, once what was found is resolved.
fn ended(mut tracer: Watch, opened: Option<&Finding>) -> Run {
    if let Some(opened) = opened {
        let ended = tracer
            .wait_for("its end", EVENTUALLY, |finding| {
                finding.id == opened.id && finding.status == Status::Resolved
            })
            .unwrap();
        assert_eq!(ended.stage.as_deref(), Some("resumed"), "{ended:#?}");
    }
    tracer.checkpoint().unwrap()
}

#[track_caller]
fn assert_about(finding: &Finding, scenario: &SendStall) {
    let (local, remote) = scenario.endpoints().unwrap();
    let inode = scenario.pair.server.inode();
    assert!(
        matches!(&finding.subject, Subject::Connection { netns, local: from, remote: to, .. }
            if *netns == inode && *from == local && *to == remote),
        "{finding:#?}"
    );
}

#[track_caller]
fn assert_no_storm(run: &Run) {
    let storms = run.last_of(|finding| finding.finding == "retransmit_storm");
    assert!(storms.is_empty(), "{storms:#?}");
}

fn is_stall(finding: &Finding) -> bool {
    finding.finding == "send_stall"
}
