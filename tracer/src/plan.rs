//! Which hook type of its ladder every hook got on this kernel, why not a better one, and what each
//! detector can therefore see.
//!
//! Made by `kernel::attach` while it loads, printed by `doctor` and the `start` line, written into a
//! recording's head so that a replay knows what was exact. Plain data; touches no kernel.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A way of attaching a hook, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookType {
    /// BPF trampoline: fentry and fexit.
    Fentry,
    /// kprobe and kretprobe.
    Kprobe,
    /// BTF tracepoint (`tp_btf`).
    Tracepoint,
    /// Nothing could be attached.
    Off,
}

impl HookType {
    /// The word for a hook type, as `--hooks` and the JSON spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
            Self::Off => "off",
        }
    }
}

/// What was asked for with `--hooks`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum HookMode {
    /// The best hook type that loads, hook by hook.
    #[default]
    Auto,
    /// BPF trampolines, and tracepoints where a hook is one.
    Fentry,
    /// kprobes, and tracepoints where a hook is one.
    Kprobe,
    /// Tracepoints only.
    Tracepoint,
}

/// How records travel from the kernel.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// The BPF ring buffer (Linux 5.8).
    #[default]
    Ringbuf,
    /// Per-CPU perf ring buffers.
    Perf,
}

impl Transport {
    /// The word for a transport, as `--transport` spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ringbuf => "ringbuf",
            Self::Perf => "perf",
        }
    }
}

/// A hook type that was tried and did not work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    #[serde(alias = "rung")]
    pub hook_type: HookType,
    /// The kernel's or BTF's reason in one clause.
    pub reason: String,
}

/// What one hook got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookPlan {
    /// A name of `conntracer_common::stats::HOOKS`.
    pub hook: String,
    #[serde(alias = "rung")]
    pub hook_type: HookType,
    /// Kernel functions or tracepoints it is attached to.
    pub attached: Vec<String>,
    pub refused: Vec<Refused>,
    /// What is lost on this hook type, `None` when nothing is.
    pub blind_to: Option<String>,
}

/// How well a detector can see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    Exact,
    Degraded,
    Off,
}

/// One detector (or one cause of it) under this plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetectorPlan {
    /// `syn_drop`, `syn_drop.tried`, `syn_cookies`, `half_open.handshake`, `half_open.dead_peer`, `half_open.half_closed`,
    /// `retransmit_storm`, `retransmit_storm.reordering`, `connect_failure`, `connection_drop`.
    pub detector: String,
    #[serde(alias = "sight")]
    pub coverage: Coverage,
    /// What it cannot see and why; `None` when exact.
    pub because: Option<String>,
}

/// All hooks of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub mode: HookMode,
    pub transport: Transport,
    pub hooks: Vec<HookPlan>,
    pub detectors: Vec<DetectorPlan>,
}

impl Plan {
    /// The hook type a hook got; `Off` for a hook that is not in the plan.
    #[must_use]
    pub fn hook_type(&self, hook: &str) -> HookType {
        self.hooks
            .iter()
            .find(|plan| plan.hook == hook)
            .map_or(HookType::Off, |plan| plan.hook_type)
    }

    /// Whether the plan says that a hook is off; a plan that does not speak of it does not.
    #[must_use]
    pub fn is_off(&self, hook: &str) -> bool {
        self.hooks
            .iter()
            .any(|plan| plan.hook == hook && plan.hook_type == HookType::Off)
    }

    /// Whether `detector` is exact, and if not why.
    #[must_use]
    pub fn coverage(&self, detector: &str) -> Option<&DetectorPlan> {
        self.detectors.iter().find(|plan| plan.detector == detector)
    }

    /// "13 hooks (9 fentry, 4 tracepoint), records through ringbuf".
    #[must_use]
    pub fn in_one_line(&self) -> String {
        let mut hook_types = BTreeMap::<HookType, usize>::new();
        for hook in &self.hooks {
            *hook_types.entry(hook.hook_type).or_default() += 1;
        }
        let hook_types: Vec<String> = hook_types
            .iter()
            .map(|(hook_type, hooks)| format!("{hooks} {}", hook_type.name()))
            .collect();
        format!(
            "{} hooks ({}), records through {}",
            self.hooks.len(),
            hook_types.join(", "),
            self.transport.name(),
        )
    }

    /// One sentence for each detector that cannot see everything.
    pub fn limits(&self) -> impl Iterator<Item = String> {
        self.detectors.iter().filter_map(|detector| {
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
}
