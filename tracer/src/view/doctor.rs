//! `conntracer doctor`: what this kernel offers, which hook type each hook got and why no better one, and
//! what each detector can therefore see.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    host::Host,
    plan::{Coverage, HookType, Plan},
    sink::{
        escape::Escaped,
        json::{HostName, SCHEMA},
        text::fill::fill,
    },
};

/// Columns of a line, of the hooks' names, and of what goes before a detector's reason.
const COLUMNS: usize = 98;
const HOOK_COLUMNS: usize = 17;
const DETECTOR_COLUMNS: usize = 36;

/// The whole report as text.
#[must_use]
pub fn text(host: &Host) -> String {
    let plan = &host.plan;
    let mut lines = vec![
        format!(
            "conntracer {} can trace here: {}, Linux {} {}, records through {}",
            env!("CARGO_PKG_VERSION"),
            Escaped(&host.hostname),
            Escaped(&host.kernel),
            Escaped(&host.arch),
            plan.transport.name(),
        ),
        String::new(),
        "hooks".to_owned(),
    ];
    for hook in &plan.hooks {
        let attached = if hook.attached.is_empty() {
            "-".to_owned()
        } else {
            hook.attached.join(", ")
        };
        let name = format!("  {:<15}{:<11}", hook.hook, hook.hook_type.name());
        lines.push(row(&name, HOOK_COLUMNS + 11, &attached));
        let blank = " ".repeat(HOOK_COLUMNS);
        for tried in &hook.refused {
            let reason = format!("not {}: {}", tried.hook_type.name(), tried.reason);
            lines.push(row(&blank, HOOK_COLUMNS + 2, &reason));
        }
        if let Some(blind_to) = &hook.blind_to {
            let reason = format!("does not see {blind_to}");
            lines.push(row(&blank, HOOK_COLUMNS + 2, &reason));
        }
    }
    lines.extend([String::new(), "detectors".to_owned()]);
    for detector in &plan.detectors {
        let coverage = match detector.coverage {
            Coverage::Exact => "exact",
            Coverage::Degraded => "degraded",
            Coverage::Off => "off",
        };
        let because = detector.because.as_deref().unwrap_or_default();
        let name = format!("  {:<24}{coverage:<10}", detector.detector);
        lines.push(row(&name, DETECTOR_COLUMNS, because));
    }
    let off = plan
        .hooks
        .iter()
        .filter(|hook| hook.hook_type == HookType::Off)
        .count();
    lines.extend([
        String::new(),
        format!(
            "{} of {} hooks attached; {} drop reasons and {} reset reasons named by this kernel",
            plan.hooks.len() - off,
            plan.hooks.len(),
            host.drop_reasons.len(),
            host.reset_reasons.len(),
        ),
        String::new(),
        "settings of this network namespace, which findings in it speak of".to_owned(),
    ]);
    lines.extend(
        host.sysctls
            .iter()
            .map(|(name, value)| format!("  {} = {}", Escaped(name), Escaped(value))),
    );
    lines.push(String::new());
    lines.join("\n")
}

/// `lead`, then `body` filled and hanging at `indent`.
fn row(lead: &str, indent: usize, body: &str) -> String {
    let body = Escaped(body).to_string();
    let filled = fill(&body, COLUMNS, lead.chars().count(), indent);
    format!("{lead}{filled}").trim_end().to_owned()
}

/// The same facts for programs: host and plan as the `start` line has them, and what this kernel names.
#[derive(Debug, Serialize)]
pub struct Json<'a> {
    schema: u32,
    kind: &'static str,
    version: &'static str,
    host: HostName<'a>,
    plan: &'a Plan,
    sysctls: &'a BTreeMap<String, String>,
    drop_reasons: &'a BTreeMap<u32, String>,
    reset_reasons: &'a BTreeMap<u32, String>,
}

impl<'a> Json<'a> {
    #[must_use]
    pub fn new(host: &'a Host) -> Self {
        Self {
            schema: SCHEMA,
            kind: "doctor",
            version: env!("CARGO_PKG_VERSION"),
            host: HostName::of(host),
            plan: &host.plan,
            sysctls: &host.sysctls,
            drop_reasons: &host.drop_reasons,
            reset_reasons: &host.reset_reasons,
        }
    }
}
