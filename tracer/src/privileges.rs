//! Capabilities: whether there are enough to trace, and giving up the rest once hooks are attached.
//!
//! Enough to try, that is: a kernel may still refuse (lockdown, seccomp, a user namespace), and
//! [`crate::kernel`] says so.

use caps::{CapSet, Capability, CapsHashSet};

use crate::kernel::CannotTrace;

/// Loading tracing programs, and attaching them to kernel functions and tracepoints.
const TO_START: [(Capability, &str); 2] = [
    (Capability::CAP_BPF, "CAP_BPF"),
    (Capability::CAP_PERFMON, "CAP_PERFMON"),
];

/// What the polls of a running tracer still need: map look-ups where unprivileged BPF is off, and runs
/// of the snapshot program.
const TO_RUN: [Capability; 2] = [Capability::CAP_BPF, Capability::CAP_PERFMON];

/// What it keeps where it has it: the executable of another user's process is shown to nobody without.
const TO_NAME: Capability = Capability::CAP_SYS_PTRACE;

/// Names what is missing to start. `CAP_SYS_ADMIN` stands for both, as in the kernel (`bpf_capable`,
/// `perfmon_capable`).
pub fn check() -> Result<(), CannotTrace> {
    let held = caps::read(None, CapSet::Effective).unwrap_or_default();
    let missing = missing(&held);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(CannotTrace::NotPermitted { missing })
    }
}

fn missing(held: &CapsHashSet) -> Vec<&'static str> {
    if held.contains(&Capability::CAP_SYS_ADMIN) {
        return Vec::new();
    }
    TO_START
        .iter()
        .filter(|(capability, _)| !held.contains(capability))
        .map(|(_, name)| *name)
        .collect()
}

/// Gives up, for this thread and those it starts, what a running tracer does not need. Called before
/// any other thread exists.
pub fn reduce() {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    let kept = kept(&held);
    let sets = [
        (CapSet::Inheritable, CapsHashSet::new()),
        (CapSet::Effective, kept.clone()),
        (CapSet::Permitted, kept),
    ];
    for (set, capabilities) in sets {
        if let Err(error) = caps::set(None, set, &capabilities) {
            log::warn!("capabilities that are no longer needed could not be given up: {error}");
            return;
        }
    }
}

/// Without the fine capabilities, the coarse one stands for them.
fn kept(held: &CapsHashSet) -> CapsHashSet {
    let fine: CapsHashSet = TO_RUN.into_iter().collect();
    let mut kept = if fine.is_subset(held) {
        fine
    } else {
        [Capability::CAP_SYS_ADMIN].into_iter().collect()
    };
    kept.extend(held.get(&TO_NAME));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(capabilities: &[Capability]) -> CapsHashSet {
        capabilities.iter().copied().collect()
    }

    #[test]
    fn names_what_is_missing() {
        assert_eq!(missing(&set(&[])), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(&set(&[Capability::CAP_BPF])), ["CAP_PERFMON"]);
        assert!(missing(&set(&[Capability::CAP_SYS_ADMIN])).is_empty());
        assert!(missing(&set(&TO_RUN)).is_empty());
    }

    #[test]
    fn keeps_the_least_that_runs() {
        let everything = caps::all();
        let [bpf, perfmon] = TO_RUN;
        assert_eq!(kept(&everything), set(&[bpf, perfmon, TO_NAME]));
        assert_eq!(kept(&set(&TO_RUN)), set(&TO_RUN));
        assert_eq!(
            kept(&set(&[Capability::CAP_SYS_ADMIN, Capability::CAP_CHOWN])),
            set(&[Capability::CAP_SYS_ADMIN])
        );
    }
}
