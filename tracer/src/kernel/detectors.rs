//! What each detector can see under a hook plan.

use super::plan::{DetectorPlan, HookPlan, Rung, Sight};

/// Notes on the listener hooks whether causes come from the kernel's own counters (exact) or from the
/// listener's fields (inferred).
pub(super) fn note_counters(hooks: &mut [HookPlan], refused: Option<&String>) {
    let Some(reason) = refused else {
        return;
    };
    for plan in hooks
        .iter_mut()
        .filter(|plan| plan.hook == "syn" || plan.hook == "ack")
    {
        if matches!(plan.rung, Rung::Fentry | Rung::Kprobe) {
            plan.blind_to = Some(format!(
                "the kernel's per-CPU counters ({reason}): causes are inferred from queue lengths"
            ));
        }
    }
}

/// Every detector's sight, from the hooks it stands on: exact when none of them is blind to anything
/// that matters to it.
pub(super) fn plans(hooks: &[HookPlan]) -> Vec<DetectorPlan> {
    [
        ("syn_drop", &["syn", "ack"][..]),
        ("syn_cookies", &["syn"]),
        ("half_open.handshake", &["synack", "request"]),
        ("half_open.dead_peer", &["retransmit", "rto", "probe"]),
        ("half_open.half_closed", &["state", "destroy"]),
        ("retransmit_storm", &["retransmit", "synack"]),
    ]
    .into_iter()
    .map(|(detector, needs)| plan(detector, needs, hooks))
    .collect()
}

fn plan(detector: &str, needs: &[&str], hooks: &[HookPlan]) -> DetectorPlan {
    let needed = || {
        hooks
            .iter()
            .filter(|plan| needs.contains(&plan.hook.as_str()))
    };
    let blind: Vec<&str> = needed()
        .filter_map(|plan| plan.blind_to.as_deref())
        .collect();
    // The first hook of a detector is the one it cannot do without.
    let off = needs
        .first()
        .and_then(|first| hooks.iter().find(|plan| plan.hook == **first))
        .is_none_or(|plan| plan.rung == Rung::Off);
    let sight = match (off, blind.is_empty()) {
        (true, _) => Sight::Off,
        (false, false) => Sight::Degraded,
        (false, true) => Sight::Exact,
    };
    DetectorPlan {
        detector: detector.to_owned(),
        sight,
        because: (!blind.is_empty()).then(|| format!("blind to {}", blind.join("; to "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str, rung: Rung, blind_to: Option<&str>) -> HookPlan {
        HookPlan {
            hook: name.to_owned(),
            rung,
            attached: Vec::new(),
            refused: Vec::new(),
            blind_to: blind_to.map(str::to_owned),
        }
    }

    fn sight(hooks: &[HookPlan], detector: &str) -> Sight {
        plans(hooks)
            .into_iter()
            .find(|plan| plan.detector == detector)
            .unwrap()
            .sight
    }

    #[test]
    fn a_detector_is_as_good_as_its_hooks() {
        let mut hooks = vec![
            hook("syn", Rung::Fentry, None),
            hook("ack", Rung::Fentry, None),
            hook("retransmit", Rung::Tracepoint, None),
            hook("rto", Rung::Fentry, None),
            hook("probe", Rung::Off, Some("probes")),
        ];
        assert_eq!(sight(&hooks, "syn_drop"), Sight::Exact);
        assert_eq!(sight(&hooks, "half_open.dead_peer"), Sight::Degraded);
        note_counters(&mut hooks, Some(&"no".to_owned()));
        assert_eq!(sight(&hooks, "syn_drop"), Sight::Degraded);
        assert_eq!(sight(&hooks[1..], "syn_drop"), Sight::Off);
    }
}
