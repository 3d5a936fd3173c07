//! A hook plan in few words, for the start block of the text sink and for `doctor`.

use std::collections::BTreeMap;

use crate::kernel::plan::{Plan, Rung, Sight, Transport};

/// The word for a rung, as `--hooks` and the JSON spell it.
#[must_use]
pub const fn rung_name(rung: Rung) -> &'static str {
    match rung {
        Rung::Fentry => "fentry",
        Rung::Kprobe => "kprobe",
        Rung::Tracepoint => "tracepoint",
        Rung::Off => "off",
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
    let mut rungs = BTreeMap::<Rung, usize>::new();
    for hook in &plan.hooks {
        *rungs.entry(hook.rung).or_default() += 1;
    }
    let rungs: Vec<String> = rungs
        .iter()
        .map(|(rung, hooks)| format!("{hooks} {}", rung_name(*rung)))
        .collect();
    format!(
        "{} hooks ({}), records through {}",
        plan.hooks.len(),
        rungs.join(", "),
        transport_name(plan.transport),
    )
}

/// One sentence for each detector that cannot see everything.
pub fn limits(plan: &Plan) -> impl Iterator<Item = String> {
    plan.detectors.iter().filter_map(|detector| {
        let state = match detector.sight {
            Sight::Exact => return None,
            Sight::Degraded => "degraded",
            Sight::Off => "off",
        };
        let because = detector
            .because
            .as_deref()
            .unwrap_or("no reason was recorded");
        Some(format!("{} is {state}: {because}", detector.detector))
    })
}
