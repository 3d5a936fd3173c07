//! What a detector is, written once in its room: the plan of a run, `doctor`, the doubt of a finding, `explain`, the
//! config file and the schema are derived from it.

use std::borrow::Cow;

use conntracer_common::stats::{HOOKS, hook};

use crate::{
    finding::{FindingKind, Severity},
    plan::{Coverage, DetectorPlan, HookType, Plan},
    section::Section,
};

/// The walk at start, which is in a plan only where it could not be made.
const SEED: &str = HOOKS[hook::SEED as usize];

/// One detector. A room may have several, where a cause needs other hooks than the rest.
#[derive(Debug)]
pub struct Spec {
    /// As the plan calls it: its kind, and where one kind has several, what tells it from the others.
    pub detector: &'static str,
    pub kind: FindingKind,
    /// The words of its causes, and how bad each is.
    pub causes: &'static [(&'static str, Severity)],
    /// What it needs, as indices of [`HOOKS`]. The first is the one that it cannot do without; a loss of any, or less
    /// than a full view, makes its findings inferred.
    pub hooks: &'static [u32],
    /// Further hooks of which only a loss does: what they do not see is none of its concern.
    pub losses: &'static [u32],
    /// The table of the config file that it judges by.
    pub section: Section,
    /// What `explain` says of its kind and causes: each word once, in the room that comes first. See [`words`].
    pub explain: &'static str,
}

/// The words of a text, and what is said of each: a heading (`## word`), and paragraphs.
pub fn words(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.strip_prefix("## ")
        .into_iter()
        .flat_map(|text| text.split("\n## "))
        .filter_map(|entry| entry.split_once("\n\n"))
        .map(|(word, text)| (word, text.trim_end()))
}

impl Spec {
    /// How bad one of its causes is; `None` of a word that is none.
    #[must_use]
    pub fn severity(&self, cause: &str) -> Option<Severity> {
        let mut causes = self.causes.iter();
        causes
            .find(|(name, _)| *name == cause)
            .map(|(_, severity)| *severity)
    }

    /// How much it can see under a plan: all when none of its hooks is blind to anything that matters to it.
    ///
    /// A recording may be from before a hook was one. A detector that it names did without; to one that it does not
    /// name the hook is missing.
    #[must_use]
    pub fn plan(&self, plan: &Plan) -> DetectorPlan {
        let is_named = plan.coverage(self.detector).is_some();
        let names = || {
            self.hooks
                .iter()
                .filter_map(|hook| HOOKS.get(*hook as usize))
        };
        let find = |name: &str| plan.hooks.iter().find(|hook| hook.hook == name);
        let mut blind: Vec<Cow<'_, str>> = plan
            .hooks
            .iter()
            .filter(|hook| names().any(|name| *name == hook.hook))
            .filter_map(|hook| hook.blind_to.as_deref().map(Cow::Borrowed))
            .collect();
        let lacks = |name: &str| name != SEED && find(name).is_none();
        for name in names().filter(|name| !is_named && lacks(name)) {
            blind.push(
                format!("what the {name} hook tells (the recording is older than that hook)")
                    .into(),
            );
        }
        let is_off = names()
            .next()
            .and_then(|first| find(first))
            .is_none_or(|hook| hook.hook_type == HookType::Off);
        let coverage = match (is_off, blind.is_empty()) {
            (true, _) => Coverage::Off,
            (false, false) => Coverage::Degraded,
            (false, true) => Coverage::Exact,
        };
        DetectorPlan {
            detector: self.detector.to_owned(),
            coverage,
            because: (!blind.is_empty()).then(|| format!("blind to {}", blind.join("; to "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{detect::send_stall, plan::HookPlan, testing};

    fn plan(hooks: &[(&str, HookType, Option<&str>)]) -> Plan {
        let hooks = hooks.iter().map(|(name, hook_type, blind_to)| HookPlan {
            hook: (*name).to_owned(),
            hook_type: *hook_type,
            attached: Vec::new(),
            refused: Vec::new(),
            blind_to: blind_to.map(str::to_owned),
        });
        Plan {
            hooks: hooks.collect(),
            detectors: Vec::new(),
            ..testing::host().plan
        }
    }

    #[test]
    fn a_detector_is_as_good_as_its_hooks() {
        let spec = Spec {
            detector: "two_hooks",
            hooks: &[hook::SYN, hook::ACK, hook::SEED],
            ..send_stall::SPEC
        };
        let syn = ("syn", HookType::Fentry, None);
        let ack = ("ack", HookType::Fentry, None);
        let probe = ("probe", HookType::Off, Some("probes"));
        let said = |hooks: &[_]| {
            let plan = spec.plan(&plan(hooks));
            (plan.coverage, plan.because)
        };
        assert_eq!(said(&[syn, ack, probe]), (Coverage::Exact, None));
        let some = ("ack", HookType::Tracepoint, Some("some"));
        let degraded = (Coverage::Degraded, Some("blind to some".to_owned()));
        assert_eq!(said(&[syn, some]), degraded);
        let off = ("syn", HookType::Off, Some("SYNs"));
        assert_eq!(said(&[off, ack]).0, Coverage::Off);
    }

    #[test]
    fn a_recording_from_before_a_hook_tells_what_it_could_of_the_detectors_it_names() {
        let mut old = plan(&[("probe", HookType::Fentry, None)]);
        let spec = Spec {
            hooks: &[hook::PROBE, hook::UNDO],
            ..send_stall::SPEC
        };
        let missing = spec.plan(&old);
        assert_eq!(missing.coverage, Coverage::Degraded);
        assert!(
            missing
                .because
                .as_deref()
                .unwrap()
                .contains("the undo hook")
        );
        old.detectors = vec![missing];
        assert_eq!(spec.plan(&old).coverage, Coverage::Exact);
    }
}
