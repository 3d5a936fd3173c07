//! A hook plan in few words, for the start block of the text sink and for `doctor`.

use std::collections::BTreeMap;

use crate::plan::{Coverage, HookType, Plan, Transport};

/// The word for a hook type, as `--hooks` and the JSON spell it.
#[must_use]
pub const fn hook_type_name(hook_type: HookType) -> &'static str {
    match hook_type {
        HookType::Fentry => "fentry",
        HookType::Kprobe => "kprobe",
        HookType::Tracepoint => "tracepoint",
        HookType::Off => "off",
    }
}

/// The word for a transport, as `--transport` spells it.
#[must_use]
pub const fn transport_name(transport: Transport) -> &'static str {
    match transport {
        Transport::Ringbuf => "ringbuf",
        Transport::Perf => "perf",
    }
}

/// "13 hooks (9 fentry, 4 tracepoint), records through ringbuf".
#[must_use]
pub fn in_one_line(plan: &Plan) -> String {
    let mut hook_types = BTreeMap::<HookType, usize>::new();
    for hook in &plan.hooks {
        *hook_types.entry(hook.hook_type).or_default() += 1;
    }
    let hook_types: Vec<String> = hook_types
        .iter()
        .map(|(hook_type, hooks)| format!("{hooks} {}", hook_type_name(*hook_type)))
        .collect();
    format!(
        "{} hooks ({}), records through {}",
        plan.hooks.len(),
        hook_types.join(", "),
        transport_name(plan.transport),
    )
}

/// One sentence for each detector that cannot see everything.
pub fn limits(plan: &Plan) -> impl Iterator<Item = String> {
    plan.detectors.iter().filter_map(|detector| {
        let state = match detector.coverage {
            Coverage::Exact => return None,
            Coverage::Degraded => "degraded",
            Coverage::Off => "off",
        };
        let because = detector
            .because
            .as_deref()
            .unwrap_or("no reason was recorded");
        Some(format!("{} is {state}: {because}", detector.detector))
    })
}
