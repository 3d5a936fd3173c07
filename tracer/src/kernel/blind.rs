//! What the hooks of this kernel are blind to beyond what their types are.

use std::collections::BTreeMap;

use crate::plan::{HookPlan, HookType};

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
            hooks[0].blind_to.clone()
        };
        assert_eq!(noted(&REASONS), None);
        assert!(noted(&[]).unwrap().contains("gives no reasons"));
        assert!(noted(&REASONS[..5]).unwrap().contains("(SOCKET_FILTER)"));
    }

    #[test]
    fn a_kernel_whose_counters_cannot_be_read_leaves_the_causes_to_the_queues() {
        let mut hooks = vec![
            hook("syn", HookType::Fentry, None),
            hook("ack", HookType::Tracepoint, None),
            hook("retransmit", HookType::Fentry, None),
        ];
        note_counters(&mut hooks, None);
        assert!(hooks.iter().all(|hook| hook.blind_to.is_none()));
        note_counters(&mut hooks, Some(&"no".to_owned()));
        assert!(hooks[0].blind_to.as_deref().unwrap().contains("(no)"));
        assert_eq!(hooks[1].blind_to, None);
        assert_eq!(hooks[2].blind_to, None);
    }
}
