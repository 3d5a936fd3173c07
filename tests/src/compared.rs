//! Which hooks count what a counter of the kernel's counts, and what the residues of a whole run may be.

use std::{collections::BTreeMap, fs};

use crate::line::{Figures, Start, Totals};

/// Counters that every hook type can compare, and the hooks that count the same.
pub const ALWAYS: [(&str, &[&str]); 9] = [
    ("ListenOverflows", &["syn", "ack"]),
    ("ListenDrops", &["syn", "ack"]),
    ("TCPReqQFullDrop", &["syn"]),
    ("TCPReqQFullDoCookies", &["syn"]),
    ("SyncookiesSent", &["syn"]),
    ("TCPSynRetrans", &["retransmit", "synack"]),
    ("TCPFastRetrans", &["retransmit"]),
    ("TCPSlowStartRetrans", &["retransmit"]),
    ("RetransSegs", &["retransmit", "synack"]),
];

/// Those of which some kernels tell too little.
const BY_KERNEL: [(&str, &[&str]); 4] = [
    ("TCPRetransFail", &["retransmit"]),
    ("OutRsts", &["reset_sent"]),
    ("TCPPartialUndo", &["undo"]),
    ("TCPDSACKUndo", &["undo"]),
];

/// Those that need a hook without a tracepoint.
pub const WITH_HOOKS: [(&str, &[&str]); 8] = [
    ("SyncookiesRecv", &["cookie"]),
    ("SyncookiesFailed", &["cookie"]),
    ("EmbryonicRsts", &["request", "ack"]),
    ("TCPTimeouts", &["timeout", "request"]),
    ("TCPLossProbes", &["loss_probe"]),
    ("AttemptFails", &["state", "request"]),
    ("TCPLossUndo", &["undo"]),
    ("TCPFullUndo", &["undo"]),
];

/// The hooks that count what a counter counts; `None` of one that nobody thought of here.
#[must_use]
pub fn hooks_of(counter: &str) -> Option<&'static [&'static str]> {
    ALWAYS
        .iter()
        .chain(&WITH_HOOKS)
        .chain(&BY_KERNEL)
        .find(|(name, _)| *name == counter)
        .map(|(_, hooks)| *hooks)
}

/// The hooks of which a second witness's count explains what is missing: those that count, and of SYNs what sends
/// segments again. Over loopback a SYN that a timer repeats is dropped within the same burst of timers, of which no
/// program sees anything.
pub fn witnessed<'a>(hooks: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    let repeated = hooks.contains(&"syn") && !hooks.contains(&"retransmit");
    hooks
        .iter()
        .copied()
        .chain(repeated.then_some("retransmit"))
}

/// The most that one event adds to a counter: a buffer that is sent again is counted by its segments, at most what
/// 64 KiB are of the smallest that a path of the tests carries.
#[must_use]
pub fn most_of_an_event(counter: &str) -> u64 {
    match counter {
        "RetransSegs" | "TCPFastRetrans" | "TCPSlowStartRetrans" => 65_536 / 536,
        _ => 1,
    }
}

/// Events of a hook that may be skipped, of so many seen.
///
/// A program that is running on a CPU is not entered again there: the kernel skips the event and counts it, and so
/// does conntracer. From 7.0 on a run can be preempted; emulated, or on a CPU that others have most of, it takes a hundred
/// times as long, and a tick finds it running as often. A ring or map that is too small loses far more.
#[must_use]
pub fn may_skip(seen: u64) -> u64 {
    4 + seen / 20
}

/// Whether this machine is there for the tests alone: a VM, whose first process is the tests' own.
#[must_use]
pub fn is_own_machine() -> bool {
    fs::read_link("/proc/1/exe").is_ok_and(|init| init.as_os_str() == "/init")
}

/// The hooks of a conntracer that has ended that do not account for every event, or lost more than a few. One sentence
/// each.
#[must_use]
pub fn unaccounted(start: &Start, totals: &Totals) -> Vec<String> {
    // By tracepoint, accept's program runs at every receive: next to none of those that are skipped was to be an event.
    let at_receives = start
        .plan
        .hooks
        .iter()
        .any(|plan| plan.hook == "accept" && plan.hook_type == "tracepoint");
    let mut sentences = Vec::new();
    if totals.hooks.is_empty() {
        sentences.push("there are no accounts".to_owned());
    }
    for (hook, account) in &totals.hooks {
        if !account.balances() {
            sentences.push(format!(
                "{hook}: not every event is accounted for: {account:?}"
            ));
        }
        if account.lost > may_skip(account.seen) && !(hook == "accept" && at_receives) {
            sentences.push(format!(
                "{hook}: more than a few events were lost: {account:?}"
            ));
        }
    }
    sentences
}

/// The residues of a conntracer that has ended that neither what was lost nor a blindness that is known explains. One
/// sentence each. `unseen` are the events of a hook that a second witness saw and no program did, which the kernel
/// counts as no loss.
#[must_use]
pub fn unexplained(totals: &Totals, unseen: &BTreeMap<&str, u64>) -> Vec<String> {
    let mut sentences = Vec::new();
    let namespaces = &totals.reconciliation.namespaces;
    for counter in ALWAYS.iter().chain(&BY_KERNEL).chain(&WITH_HOOKS) {
        let (counter, hooks) = *counter;
        let lost: u64 = hooks
            .iter()
            .filter_map(|hook| totals.hooks.get(*hook))
            .map(|account| account.lost)
            .sum();
        let unseen: u64 = witnessed(hooks).filter_map(|hook| unseen.get(hook)).sum();
        let mut missing = 0;
        for reconciled in namespaces {
            let Some(figures) = reconciled.counters.get(counter) else {
                continue;
            };
            match judge(figures) {
                Residue::None | Residue::Known => {}
                Residue::Lost(residue) => missing += residue,
                Residue::Unexplained(residue @ 1..) if unseen > 0 => {
                    missing += residue.unsigned_abs();
                }
                Residue::Unexplained(_) => sentences.push(format!(
                    "{counter} of namespace {}: {figures:?}",
                    reconciled.netns
                )),
            }
        }
        if missing > (lost + unseen) * most_of_an_event(counter) {
            sentences.push(format!(
                "{counter}: {missing} in all are missing, {lost} events were lost of {hooks:?}, and no program \
                 saw {unseen} more"
            ));
        }
    }
    sentences
}

enum Residue {
    None,
    /// By events that the kernel or a ring lost.
    Lost(u64),
    /// By what this kernel tells no hook.
    Known,
    Unexplained(i64),
}

fn judge(figures: &Figures) -> Residue {
    match (u64::try_from(figures.residue), &figures.because) {
        (Ok(0), None) => Residue::None,
        (Ok(residue @ 1..), Some(because)) if because.ends_with("were lost") => {
            Residue::Lost(residue)
        }
        (Ok(1..), Some(because)) if !because.contains("please report") => Residue::Known,
        _ => Residue::Unexplained(figures.residue),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn totals(residue: i64) -> Totals {
        let figures = json!({
            "kernel": 1000,
            "counted": 1000 - residue,
            "residue": residue,
            "because": "not known: please report it",
        });
        let namespace = json!({
            "netns": 1, "since_birth": true, "counters": { "TCPFastRetrans": figures },
        });
        from_value(json!({
            "reason": "signal", "hooks": {}, "findings": {}, "tallies": {},
            "reconciliation": { "compared": 1, "namespaces": [namespace], "namespaces_left_out": 0, "sums": {},
                "not_reconciled": {} },
        }))
        .unwrap()
    }

    #[test]
    fn what_only_a_second_witness_saw_explains_as_much_and_no_more() {
        let seen = |hook, count| BTreeMap::from([(hook, count)]);
        assert!(unexplained(&totals(2), &seen("retransmit", 1)).is_empty());
        assert_eq!(unexplained(&totals(2), &seen("retransmit", 0)).len(), 1);
        assert_eq!(unexplained(&totals(2), &seen("synack", 1)).len(), 1);
        assert_eq!(unexplained(&totals(-2), &seen("retransmit", 1)).len(), 1);
        let more = most_of_an_event("TCPFastRetrans") + 1;
        let more = totals(more.try_into().unwrap());
        assert_eq!(unexplained(&more, &seen("retransmit", 1)).len(), 1);
    }

    #[test]
    fn a_syn_that_is_sent_again_unseen_is_dropped_unseen() {
        let explaining = |hooks| witnessed(hooks).collect::<Vec<_>>();
        assert_eq!(explaining(&["syn", "ack"]), ["syn", "ack", "retransmit"]);
        assert_eq!(
            explaining(&["retransmit", "synack"]),
            ["retransmit", "synack"]
        );
        assert_eq!(explaining(&["reset_sent"]), ["reset_sent"]);
    }
}
