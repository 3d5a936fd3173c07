//! What each detector can see under a hook plan.

use std::collections::BTreeMap;

use crate::plan::{Coverage, DetectorPlan, HookPlan, HookType};

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
        if matches!(plan.hook_type, HookType::Fentry | HookType::Kprobe) {
            plan.blind_to = Some(format!(
                "the kernel's per-CPU counters ({reason}): causes are inferred from queue lengths"
            ));
        }
    }
}

/// The kernel's names of what SYNs are commonly dropped for before a listener; 6.1 has them all.
const REASONS: [&str; 6] = [
    "NO_SOCKET",
    "NETFILTER_DROP",
    "IP_RPFILTER",
    "TCP_CSUM",
    "TCP_MD5NOTFOUND",
    "SOCKET_FILTER",
];

/// Notes on the drop hook what this kernel's drop reasons leave unsaid.
pub(super) fn note_reasons(hooks: &mut [HookPlan], reasons: &BTreeMap<u32, String>) {
    let missing: Vec<&str> = REASONS
        .into_iter()
        .filter(|name| !reasons.values().any(|known| known == name))
        .collect();
    if missing.is_empty() {
        return;
    }
    for plan in hooks
        .iter_mut()
        .filter(|plan| plan.hook == "drop" && plan.hook_type != HookType::Off)
    {
        plan.blind_to = Some(if reasons.is_empty() {
            "why a SYN was dropped before a listener (this kernel gives no reasons): causes are \
             concluded from its counters and from the function that dropped it"
                .to_owned()
        } else {
            format!(
                "SYNs dropped for what this kernel has no name for ({})",
                missing.join(", ")
            )
        });
    }
}

/// Notes which resets pass the tracepoint unseen: before 6.12 it has no reason, and is silent where there
/// is no full socket (`tcp_v4_send_reset`).
pub(super) fn note_resets(hooks: &mut [HookPlan], params: u8) {
    for plan in hooks
        .iter_mut()
        .filter(|plan| plan.hook == "reset_sent" && plan.hook_type != HookType::Off && params < 3)
    {
        plan.blind_to = Some(
            "resets that answer a segment without a connection, which this kernel does not trace"
                .to_owned(),
        );
    }
}

/// Every detector's coverage, from the hooks it stands on: exact when none of them is blind to anything
/// that matters to it.
pub(super) fn plans(hooks: &[HookPlan]) -> Vec<DetectorPlan> {
    [
        ("syn_drop", &["syn", "ack", "seed"][..]),
        ("syn_drop.early_drop", &["drop"]),
        ("syn_cookies", &["syn"]),
        ("half_open.handshake", &["synack", "request", "seed"]),
        (
            "half_open.dead_peer",
            &["retransmit", "rto", "probe", "seed"],
        ),
        ("half_open.half_closed", &["state", "destroy", "seed"]),
        ("half_open.idle", &["state", "destroy", "seed"]),
        ("retransmit_storm", &["retransmit", "synack"]),
        (
            "retransmit_storm.reordering",
            &["retransmit", "synack", "undo"],
        ),
        ("send_stall", &["probe"]),
        ("connect_failure", &["state", "failure", "reset_received"]),
        ("connection_drop", &["state", "reset_received"]),
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
        .is_none_or(|plan| plan.hook_type == HookType::Off);
    let coverage = match (off, blind.is_empty()) {
        (true, _) => Coverage::Off,
        (false, false) => Coverage::Degraded,
        (false, true) => Coverage::Exact,
    };
    DetectorPlan {
        detector: detector.to_owned(),
        coverage,
        because: (!blind.is_empty()).then(|| format!("blind to {}", blind.join("; to "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(name: &str, hook_type: HookType, blind_to: Option<&str>) -> HookPlan {
        HookPlan {
            hook: name.to_owned(),
            hook_type,
            attached: Vec::new(),
            refused: Vec::new(),
            blind_to: blind_to.map(str::to_owned),
        }
    }

    fn coverage(hooks: &[HookPlan], detector: &str) -> Coverage {
        plans(hooks)
            .into_iter()
            .find(|plan| plan.detector == detector)
            .unwrap()
            .coverage
    }

    #[test]
    fn a_kernel_without_drop_reasons_is_said_to_leave_them_to_conclusion() {
        let named = |names: &[&str]| {
            (0..)
                .zip(names.iter().map(|name| (*name).to_owned()))
                .collect()
        };
        let noted = |names: &[&str]| {
            let mut hooks = [hook("drop", HookType::Tracepoint, None)];
            note_reasons(&mut hooks, &named(names));
            assert_eq!(
                coverage(&hooks, "syn_drop.early_drop") == Coverage::Exact,
                hooks[0].blind_to.is_none()
            );
            hooks[0].blind_to.clone()
        };
        assert_eq!(noted(&REASONS), None);
        assert!(noted(&[]).unwrap().contains("gives no reasons"));
        assert!(noted(&REASONS[..5]).unwrap().contains("(SOCKET_FILTER)"));
    }

    #[test]
    fn a_detector_is_as_good_as_its_hooks() {
        let mut hooks = vec![
            hook("syn", HookType::Fentry, None),
            hook("ack", HookType::Fentry, None),
            hook("retransmit", HookType::Tracepoint, None),
            hook("rto", HookType::Fentry, None),
            hook("probe", HookType::Off, Some("probes")),
        ];
        assert_eq!(coverage(&hooks, "syn_drop"), Coverage::Exact);
        assert_eq!(coverage(&hooks, "half_open.dead_peer"), Coverage::Degraded);
        note_counters(&mut hooks, Some(&"no".to_owned()));
        assert_eq!(coverage(&hooks, "syn_drop"), Coverage::Degraded);
        assert_eq!(coverage(&hooks[1..], "syn_drop"), Coverage::Off);
    }
}
