//! `doctor`: what this kernel offers is said, and agrees with what a run then does.

use std::collections::BTreeMap;

use conntracer_tests::{
    line::{Plan, Sight},
    netns::NetNs,
    schema,
};
use serde_json::Value;

use crate::support::{binary, trace};

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
