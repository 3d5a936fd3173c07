//! `doctor`: what this kernel offers is said, and agrees with what a run then does.

use std::collections::BTreeMap;

use conntracer_tests::{
    line::{Plan, Sight, Start},
    netns::NetNs,
    schema,
};
use serde_json::Value;

use crate::support::{binary, is_own_machine, lacking, trace};

/// The kernel lines of the README's table ("Kernels"), as their releases begin.
const LINES: [&str; 5] = ["5.10.", "6.1.", "6.12.", "6.18.", "7."];

/// What each detector sees on them with hooks by fentry or kprobe, and what by tracepoint.
const SIGHTS: [(&str, Sight, Sight); 12] = [
    ("syn_drop", Sight::Exact, Sight::Degraded),
    ("syn_drop.refusal", Sight::Exact, Sight::Exact),
    ("syn_cookies", Sight::Exact, Sight::Degraded),
    ("half_open.handshake", Sight::Exact, Sight::Degraded),
    ("half_open.dead_peer", Sight::Exact, Sight::Degraded),
    ("half_open.half_closed", Sight::Exact, Sight::Exact),
    ("half_open.idle", Sight::Exact, Sight::Exact),
    ("retransmit_storm", Sight::Exact, Sight::Exact),
    ("retransmit_storm.reordering", Sight::Exact, Sight::Degraded),
    ("send_stall", Sight::Exact, Sight::Off),
    ("connect_failure", Sight::Exact, Sight::Degraded),
    ("connection_drop", Sight::Exact, Sight::Exact),
];

/// Those that see less in every mode: 5.10 gives no drop reasons.
const LESS: [(&str, &str, Sight); 1] = [("5.10.", "syn_drop.refusal", Sight::Degraded)];

#[test]
fn doctor_and_run_agree_on_the_plan() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    let run = tracer.stop().unwrap();
    let output = binary
        .command()
        .args(["doctor", "--format", "json", "--hooks", binary.hooks()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut said: Value = serde_json::from_slice(&output.stdout).unwrap();
    schema::hold(&said).unwrap();
    let plan: Plan = serde_json::from_value(said["plan"].take()).unwrap();
    assert_eq!(sights(&plan), sights(&run.start.plan));
}

/// A kernel whose hooks fall to a lower rung than the table says is a failure, not another plan.
#[test]
fn each_kernel_line_sees_what_the_readme_says() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    let run = tracer.stop().unwrap();
    let Start { host, plan, .. } = &run.start;
    let Some(line) = LINES.iter().find(|line| host.kernel.starts_with(**line)) else {
        lacking(&format!(
            "the README does not speak of Linux {}",
            host.kernel
        ));
        return;
    };
    // Not every host lets fentry and kprobes in. A VM does.
    let by_tracepoint = if is_own_machine() {
        binary.hooks() == "tracepoint"
    } else {
        plan.hooks
            .iter()
            .any(|hook| hook.hook == "syn" && hook.rung == "tracepoint")
    };
    let mut expected: BTreeMap<&str, Sight> = SIGHTS
        .into_iter()
        .map(|(detector, sight, at_tracepoints)| {
            (detector, if by_tracepoint { at_tracepoints } else { sight })
        })
        .collect();
    for (on, detector, sight) in LESS {
        if on == *line {
            expected.insert(detector, sight);
        }
    }
    assert_eq!(sights(plan), expected, "{plan:#?}");
}

#[test]
fn every_degradation_is_said() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    let run = tracer.stop().unwrap();
    for detector in &run.start.plan.detectors {
        assert_eq!(
            detector.sight == Sight::Exact,
            detector.because.is_none(),
            "{detector:?}"
        );
    }
    for hook in &run.start.plan.hooks {
        if hook.rung == "off" {
            assert!(
                hook.attached.is_empty() && hook.blind_to.is_some(),
                "{hook:?}"
            );
        }
        assert!(
            hook.refused
                .iter()
                .all(|refusal| !refusal.reason.is_empty()),
            "{hook:?}"
        );
    }
}

fn sights(plan: &Plan) -> BTreeMap<&str, Sight> {
    plan.detectors
        .iter()
        .map(|plan| (plan.detector.as_str(), plan.sight))
        .collect()
}
