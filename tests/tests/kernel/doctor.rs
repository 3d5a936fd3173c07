//! `doctor`: what this kernel offers is said, and agrees with what a run then does.

use std::collections::BTreeMap;

use conntracer_tests::{
    line::{Coverage, Plan, Start},
    netns::NetNs,
    schema,
};
use serde_json::Value;

use crate::support::{binary, is_own_machine, lacking, watch};

/// The kernel lines of the table in `tracer/docs/kernels.md`, as their releases begin.
const LINES: [&str; 5] = ["5.10.", "6.1.", "6.12.", "6.18.", "7."];

/// What each detector sees on them with hooks by fentry or kprobe, and what by tracepoint.
const COVERAGES: [(&str, Coverage, Coverage); 15] = [
    ("syn_drop", Coverage::Exact, Coverage::Degraded),
    ("syn_drop.early_drop", Coverage::Exact, Coverage::Exact),
    ("syn_cookies", Coverage::Exact, Coverage::Degraded),
    ("half_open.handshake", Coverage::Exact, Coverage::Degraded),
    ("half_open.dead_peer", Coverage::Exact, Coverage::Degraded),
    ("half_open.half_closed", Coverage::Exact, Coverage::Exact),
    ("half_open.idle", Coverage::Exact, Coverage::Exact),
    ("retransmit_storm", Coverage::Exact, Coverage::Exact),
    (
        "retransmit_storm.reordering",
        Coverage::Exact,
        Coverage::Degraded,
    ),
    ("send_stall", Coverage::Exact, Coverage::Off),
    ("receive_stall", Coverage::Exact, Coverage::Exact),
    ("connect_failure", Coverage::Exact, Coverage::Degraded),
    ("bind_failure", Coverage::Exact, Coverage::Off),
    ("connection_drop", Coverage::Exact, Coverage::Exact),
    ("accept_delay", Coverage::Exact, Coverage::Exact),
];

/// Those that see less in every mode: 5.10 gives no drop reasons.
const LESS: [(&str, &str, Coverage); 1] = [("5.10.", "syn_drop.early_drop", Coverage::Degraded)];

#[test]
fn doctor_and_run_agree_on_the_plan() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = watch(&binary, &netns) else {
        return;
    };
    let output = binary
        .command()
        .args(["doctor", "--format", "json", "--hooks", binary.hooks()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut said: Value = serde_json::from_slice(&output.stdout).unwrap();
    schema::hold(&said).unwrap();
    let plan: Plan = serde_json::from_value(said["plan"].take()).unwrap();
    assert_eq!(coverages(&plan), coverages(&tracer.plan().plan));
}

/// A kernel whose hooks fall to a lower hook type than the table says is a failure, not another plan.
#[test]
fn each_kernel_line_sees_what_the_readme_says() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = watch(&binary, &netns) else {
        return;
    };
    let Start { host, plan, .. } = tracer.plan();
    let Some(line) = LINES.iter().find(|line| host.kernel.starts_with(**line)) else {
        lacking(&format!(
            "tracer/docs/kernels.md does not speak of Linux {}",
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
            .any(|hook| hook.hook == "syn" && hook.hook_type == "tracepoint")
    };
    let mut expected: BTreeMap<&str, Coverage> = COVERAGES
        .into_iter()
        .map(|(detector, coverage, at_tracepoints)| {
            (
                detector,
                if by_tracepoint {
                    at_tracepoints
                } else {
                    coverage
                },
            )
        })
        .collect();
    for (on, detector, coverage) in LESS {
        if on == *line {
            expected.insert(detector, coverage);
        }
    }
    assert_eq!(coverages(plan), expected, "{plan:#?}");
}

#[test]
fn every_degradation_is_said() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = watch(&binary, &netns) else {
        return;
    };
    let plan = &tracer.plan().plan;
    for detector in &plan.detectors {
        assert_eq!(
            detector.coverage == Coverage::Exact,
            detector.because.is_none(),
            "{detector:?}"
        );
    }
    for hook in &plan.hooks {
        if hook.hook_type == "off" {
            assert!(
                hook.attached.is_empty() && hook.blind_to.is_some(),
                "{hook:?}"
            );
        }
        assert!(
            hook.refused
                .iter()
                .all(|early_drop| !early_drop.reason.is_empty()),
            "{hook:?}"
        );
    }
}

fn coverages(plan: &Plan) -> BTreeMap<&str, Coverage> {
    plan.detectors
        .iter()
        .map(|plan| (plan.detector.as_str(), plan.coverage))
        .collect()
}
