//! `conntracer doctor`: what this kernel offers, which rung each hook got and why no better one, and
//! what each detector can therefore see.

use serde::Serialize;

use super::plan::{rung_name, transport_name};
use crate::{
    kernel::{
        host::Host,
        plan::{Rung, Sight},
    },
    sink::{escape::Escaped, json::SCHEMA},
};

/// The whole report as text.
#[must_use]
pub fn text(host: &Host) -> String {
    let plan = &host.plan;
    let mut text = format!(
        "conntracer {} can trace here: {}, Linux {} {}, records through {}\n\nhooks\n",
        env!("CARGO_PKG_VERSION"),
        Escaped(&host.hostname),
        Escaped(&host.kernel),
        Escaped(&host.arch),
        transport_name(plan.transport),
    );
    for hook in &plan.hooks {
        let attached = if hook.attached.is_empty() {
            "-".to_owned()
        } else {
            hook.attached.join(", ")
        };
        line(
            &mut text,
            &format!(
                "  {:<15}{:<11}{}",
                hook.hook,
                rung_name(hook.rung),
                Escaped(&attached)
            ),
        );
        for refusal in &hook.refused {
            let reason = Escaped(&refusal.reason);
            line(
                &mut text,
                &format!("{:17}not {}: {reason}", "", rung_name(refusal.rung)),
            );
        }
        if let Some(blind_to) = &hook.blind_to {
            line(
                &mut text,
                &format!("{:17}does not see {}", "", Escaped(blind_to)),
            );
        }
    }
    text.push_str("\ndetectors\n");
    for detector in &plan.detectors {
        let sight = match detector.sight {
            Sight::Exact => "exact",
            Sight::Degraded => "degraded",
            Sight::Off => "off",
        };
        let because = detector.because.as_deref().unwrap_or_default();
        let row = format!("  {:<26}{sight:<10}{}", detector.detector, Escaped(because));
        line(&mut text, row.trim_end());
    }
    let off = plan
        .hooks
        .iter()
        .filter(|hook| hook.rung == Rung::Off)
        .count();
    line(
        &mut text,
        &format!(
            "\n{} of {} hooks attached; {} drop reasons and {} reset reasons named by this kernel",
            plan.hooks.len() - off,
            plan.hooks.len(),
            host.drop_reasons.len(),
            host.reset_reasons.len(),
        ),
    );
    if !host.sysctls.is_empty() {
        text.push_str("\nsettings that decide what is dropped\n");
        for (name, value) in &host.sysctls {
            line(
                &mut text,
                &format!("  {} = {}", Escaped(name), Escaped(value)),
            );
        }
    }
    text
}

fn line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// The same facts for programs.
#[derive(Debug, Serialize)]
pub struct Json<'a> {
    schema: u32,
    kind: &'static str,
    version: &'static str,
    host: &'a Host,
}

impl<'a> Json<'a> {
    #[must_use]
    pub const fn new(host: &'a Host) -> Self {
        Self {
            schema: SCHEMA,
            kind: "doctor",
            version: env!("CARGO_PKG_VERSION"),
            host,
        }
    }
}
