//! The kernel's own counters and conntracer's, namespace by namespace: how far they are apart, why that
//! may be, and what cannot be compared at all.
//!
//! Fed with `netns` records by the pipeline; reads no counter itself. A residue above 0 is what the kernel
//! counted and conntracer did not.

use std::{borrow::Cow, collections::BTreeMap};

use conntracer_common::{
    netns::{KERNEL, NetnsId, kernel, residue},
    stats::HOOKS,
};
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    event::Netns,
    plan::{HookType, Plan},
    table::Bounded,
    time::Ktime,
};

/// Namespaces kept, those that are gone included: as many as are compared at once.
const MAX_NAMESPACES: usize = 1024;
/// Namespaces that a line tells of which nobody asked for, at 1.2 kB: a line stays below what log systems take for one.
const MAX_TOLD: usize = 40;

/// The hooks that count what a counter counts, in the order of [`kernel`].
const HOOKS_OF: [&[&str]; kernel::COUNT] = [
    &["syn", "ack"],
    &["syn", "ack"],
    &["syn"],
    &["syn"],
    &["syn"],
    &["cookie"],
    &["cookie"],
    &["retransmit", "synack"],
    &["request", "ack"],
    &["timeout", "request"],
    &["retransmit"],
    &["retransmit"],
    &["loss_probe"],
    &["retransmit"],
    &["retransmit", "synack"],
    &["reset_sent"],
    &["state", "request"],
    &["undo"],
    &["undo"],
    &["undo"],
    &["undo"],
];

/// The residues as a finding's evidence names them, in the order of [`kernel`].
pub(crate) const EVIDENCE: [&str; kernel::COUNT] = [
    "residue_listen_overflows",
    "residue_listen_drops",
    "residue_req_q_full_drop",
    "residue_req_q_full_do_cookies",
    "residue_syncookies_sent",
    "residue_syncookies_recv",
    "residue_syncookies_failed",
    "residue_syn_retrans",
    "residue_embryonic_rsts",
    "residue_timeouts",
    "residue_fast_retrans",
    "residue_slow_start_retrans",
    "residue_loss_probes",
    "residue_retrans_fail",
    "residue_retrans_segs",
    "residue_out_rsts",
    "residue_attempt_fails",
    "residue_loss_undo",
    "residue_full_undo",
    "residue_partial_undo",
    "residue_dsack_undo",
];

/// Counters of the same things that are never compared, and why.
const NEVER: [(&str, &str); 8] = [
    (
        "TCPLostRetransmit",
        "it counts repeats that are marked lost, some of which are acknowledged after all and never sent \
         again, and the function that marks them is compiled into its callers",
    ),
    (
        "TCPSpuriousRtxHostQueues",
        "a tail loss probe that finds its segment still in this host's queue counts, and passes no hook",
    ),
    (
        "TCPSpuriousRTOs",
        "it counts those of TCPLossUndo that F-RTO told, and what told one is known to its caller alone",
    ),
    // A SYN that meets what is left of an earlier connection.
    (
        "TCPSYNChallenge",
        "a SYN that meets an open connection is answered there with an ACK, and passes no hook as such",
    ),
    (
        "TCPChallengeACK",
        "it counts the answers to those and to RSTs that do not fit, as far as tcp_challenge_ack_limit lets them go",
    ),
    (
        "PAWSEstab",
        "a segment with an older timestamp than its connection's, in TIME_WAIT too, is dropped and passes no hook as such",
    ),
    (
        "PAWSTimewait",
        "the same of TIME_WAIT alone, on kernels that count it on its own",
    ),
    (
        "TCPTimeWaitOverflow",
        "a connection that finds no room for its TIME_WAIT (tcp_max_tw_buckets) ends as one that needs none",
    ),
];

/// The last word on every namespace.
#[derive(Debug)]
pub(crate) struct Reconciler {
    namespaces: Bounded<NetnsId, Netns>,
    of_all: Option<Netns>,
    /// When anything was last compared: what did not change on either side is not told again.
    compared: Ktime,
    /// Counters that every record so far had: those that an older recording has not come last.
    counters: usize,
}

impl Reconciler {
    pub(crate) fn new() -> Self {
        Self {
            namespaces: Bounded::new(MAX_NAMESPACES),
            of_all: None,
            compared: Ktime(0),
            counters: kernel::COUNT,
        }
    }

    /// True of a namespace whose inode was another's.
    pub(crate) fn netns(&mut self, netns: &Netns, now: Ktime) -> bool {
        self.compared = self.compared.max(now);
        self.counters = self.counters.min(netns.counters);
        if netns.id.inode == 0 {
            self.of_all = Some(*netns);
        } else if let Some(known) = self.namespaces.touch(&netns.id) {
            *known = *netns;
        } else if !netns.gone {
            let inherits = self
                .namespaces
                .iter()
                .any(|(id, _)| id.inode == netns.id.inode);
            self.namespaces.insert(netns.id, *netns);
            return inherits;
        }
        false
    }

    /// Namespaces forgotten for want of room.
    pub(crate) const fn evicted(&self) -> u64 {
        self.namespaces.evicted()
    }

    /// Namespaces not compared, and counts that found no room.
    pub(crate) fn unseen(&self) -> (u64, u64) {
        self.of_all.map_or((0, 0), |of_all| {
            (of_all.uncompared.into(), of_all.untracked.into())
        })
    }

    /// How far the kernel's count of `counter` in a namespace is ahead of ours; `None` where it was not
    /// compared, or cannot be under `plan`.
    pub(crate) fn residue(&self, plan: &Plan, inode: u32, counter: usize) -> Option<i64> {
        if self.why_not(plan, counter).is_some() {
            return None;
        }
        // Of two that had the same inode the later one is meant: it is the one that was touched last.
        self.namespaces
            .iter()
            .filter(|(id, _)| id.inode == inode)
            .last()
            .map(|(_, netns)| netns.residue(counter))
    }

    /// Whether what no program of a hook saw until `lost` cannot have been of a namespace: every counter of the kernel's
    /// that the hook counts was compared since, and is as it should be. Of hooks alone of which a counter tells all that
    /// a finding goes by.
    pub(crate) fn excludes(&self, plan: &Plan, inode: u32, hook: &str, lost: Ktime) -> bool {
        const COUNTED: [&str; 6] = ["syn", "ack", "cookie", "retransmit", "synack", "undo"];
        let all_told = self
            .of_all
            .is_some_and(|all| all.uncompared == 0 && all.untracked == 0);
        if !COUNTED.contains(&hook) || self.compared <= lost || !all_told {
            return false;
        }
        let is_known = self.namespaces.iter().any(|(id, _)| id.inode == inode);
        let mut counters = (0..)
            .zip(HOOKS_OF)
            .filter(|(_, hooks)| hooks.contains(&hook));
        counters.all(|(counter, _)| {
            let is_told = counter != kernel::RETRANS_FAIL
                || self.of_all.is_some_and(|all| !all.failures_untraced);
            !is_told
                || if is_known {
                    self.residue(plan, inode, counter) == Some(0)
                } else {
                    self.why_not(plan, counter).is_none()
                }
        })
    }

    /// Why nothing can be compared.
    fn incomparable(&self) -> Option<&'static str> {
        let of_all = self.of_all?;
        if of_all.filtered {
            Some(
                "a filter by port, address or listener is in force, and the kernel counts everything",
            )
        } else if of_all.unreadable {
            Some("the kernel's counters cannot be read here")
        } else {
            None
        }
    }

    /// Why a counter cannot be compared.
    fn why_not(&self, plan: &Plan, counter: usize) -> Option<Cow<'static, str>> {
        if let Some(reason) = self.incomparable() {
            return Some(reason.into());
        }
        if counter == kernel::RETRANS_FAIL && self.of_all.is_some_and(|all| all.failures_untraced) {
            return Some("before Linux 6.17 only what was sent again is traced".into());
        }
        if counter >= self.counters {
            return Some("the conntracer that made this recording did not compare it".into());
        }
        why_not(plan, counter)
    }

    /// The state of every namespace where anything was counted.
    pub(crate) fn report(&self, plan: &Plan, lost: &[u64; HOOKS.len()]) -> Reconciliation {
        let mut not_reconciled: BTreeMap<&'static str, Cow<'static, str>> = NEVER
            .into_iter()
            .map(|(counter, reason)| (counter, reason.into()))
            .collect();
        let mut compared = Vec::new();
        for (counter, (_, name)) in KERNEL.iter().enumerate() {
            match self.why_not(plan, counter) {
                Some(reason) => {
                    not_reconciled.insert(name, reason);
                }
                None => compared.push(counter),
            }
        }
        let mut namespaces: Vec<Namespace> = self
            .namespaces
            .iter()
            .map(|(_, netns)| Namespace {
                netns: netns.id.inode,
                since_birth: netns.born,
                counters: compared
                    .iter()
                    .map(|counter| (*counter, Figures::of(netns, *counter, plan, lost)))
                    .collect(),
            })
            .filter(Namespace::counted_anything)
            .collect();
        let sums = sums(&namespaces);
        namespaces.sort_by_key(|namespace| std::cmp::Reverse(namespace.weight()));
        Reconciliation {
            compared: if compared.is_empty() {
                0
            } else {
                self.namespaces.len()
            },
            namespaces,
            namespaces_left_out: 0,
            sums,
            not_reconciled,
        }
    }
}

/// All namespaces together, by counter.
fn sums(namespaces: &[Namespace]) -> Vec<(usize, Figures)> {
    let mut sums = BTreeMap::<usize, Figures>::new();
    for (counter, figures) in namespaces.iter().flat_map(|namespace| &namespace.counters) {
        let sum = sums.entry(*counter).or_default();
        sum.kernel = sum.kernel.saturating_add(figures.kernel);
        sum.counted = sum.counted.saturating_add(figures.counted);
        sum.residue = sum.residue.saturating_add(figures.residue);
    }
    sums.into_iter()
        .filter(|(_, figures)| figures.is_something())
        .collect()
}

/// Why a counter cannot be compared under a plan: a hook that counts for it is off, or sees so little
/// that the residue would be no news.
fn why_not(plan: &Plan, counter: usize) -> Option<Cow<'static, str>> {
    for name in HOOKS_OF[counter] {
        let hook = plan.hooks.iter().find(|hook| hook.hook == *name);
        match hook {
            None => return Some(format!("there is no {name} hook").into()),
            Some(hook) if hook.hook_type == HookType::Off => {
                return Some(match &hook.blind_to {
                    Some(blind_to) => format!("the {name} hook is off: {blind_to}").into(),
                    None => format!("the {name} hook is off").into(),
                });
            }
            Some(hook) if needs_all_of_its_hook(counter) => {
                if let Some(blind_to) = &hook.blind_to {
                    return Some(format!("the {name} hook does not see {blind_to}").into());
                }
            }
            Some(_) => {}
        }
    }
    None
}

/// Whether a hook that is blind to anything makes a counter say nothing.
const fn needs_all_of_its_hook(counter: usize) -> bool {
    matches!(
        counter,
        kernel::OUT_RSTS | kernel::PARTIAL_UNDO | kernel::DSACK_UNDO
    )
}

/// What was compared, for the `stats` and `stop` lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reconciliation {
    /// How many namespaces were compared.
    pub compared: usize,
    /// Of those in which either side counted anything, the ones with a residue first, and then the busiest; and how many
    /// more there are.
    pub namespaces: Vec<Namespace>,
    pub namespaces_left_out: usize,
    /// All of them together, by index into [`KERNEL`], without the counters that are 0.
    #[serde(serialize_with = "by_name")]
    pub sums: Vec<(usize, Figures)>,
    /// Counters that say nothing here, and why.
    pub not_reconciled: BTreeMap<&'static str, Cow<'static, str>>,
}

impl Reconciliation {
    /// As much as a line has that nobody asked for.
    pub fn bound(&mut self) {
        self.namespaces_left_out = self.namespaces.len().saturating_sub(MAX_TOLD);
        self.namespaces.truncate(MAX_TOLD);
    }
}

/// One namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Namespace {
    pub netns: u32,
    /// Counted from its birth on; otherwise since conntracer first saw it.
    pub since_birth: bool,
    /// By index into [`KERNEL`].
    #[serde(serialize_with = "by_name")]
    pub counters: Vec<(usize, Figures)>,
}

impl Namespace {
    fn counted_anything(&self) -> bool {
        let mut figures = self.counters.iter().map(|(_, figures)| figures);
        figures.any(Figures::is_something)
    }

    /// What comes first where not all are told: a residue, and then what was counted.
    fn weight(&self) -> (bool, u64) {
        let mut figures = self.counters.iter().map(|(_, figures)| figures);
        let counted = figures
            .clone()
            .fold(0, |sum: u64, figures| sum.saturating_add(figures.kernel));
        (figures.any(|figures| figures.residue != 0), counted)
    }
}

fn by_name<S: Serializer>(counters: &[(usize, Figures)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(counters.len()))?;
    for (counter, figures) in counters {
        map.serialize_entry(KERNEL[*counter].1, figures)?;
    }
    map.end()
}

/// One counter in one namespace: `kernel` = `counted` + `residue`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    pub kernel: u64,
    pub counted: u64,
    pub residue: i64,
    /// The likely reason of a residue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<Cow<'static, str>>,
}

impl Figures {
    const fn is_something(&self) -> bool {
        self.kernel != 0 || self.residue != 0
    }

    fn of(netns: &Netns, counter: usize, plan: &Plan, lost: &[u64; HOOKS.len()]) -> Self {
        let residue = netns.residue(counter);
        let kernel = netns.kernel[counter];
        Self {
            kernel,
            counted: kernel.saturating_sub_signed(residue),
            residue,
            because: (residue != 0).then(|| likely(counter, residue, netns, plan, lost)),
        }
    }
}

impl Netns {
    fn residue(&self, counter: usize) -> i64 {
        residue(
            self.kernel[counter],
            self.before[counter],
            self.after[counter],
        )
    }
}

/// Why a counter may be off, the likeliest first.
fn likely(
    counter: usize,
    residue: i64,
    netns: &Netns,
    plan: &Plan,
    lost: &[u64; HOOKS.len()],
) -> Cow<'static, str> {
    if residue < 0 {
        return "conntracer counted what the kernel did not: this is a defect, please report it"
            .into();
    }
    for name in HOOKS_OF[counter] {
        let lost = HOOKS
            .iter()
            .position(|hook| hook == name)
            .map_or(0, |hook| lost[hook]);
        if lost > 0 {
            return format!("{lost} events of the {name} hook were lost").into();
        }
    }
    for name in HOOKS_OF[counter] {
        let hook = plan.hooks.iter().find(|hook| hook.hook == *name);
        if let Some(blind_to) = hook.and_then(|hook| hook.blind_to.as_deref()) {
            let blind = format!("the {name} hook is blind to {blind_to}");
            // Of two that no counter tells apart, neither is blamed.
            return match beside_hooks(counter, netns) {
                Some(other) => format!("either {blind}; or {other}").into(),
                None => blind.into(),
            };
        }
        if hook.is_some_and(|hook| hook.hook_type == HookType::Kprobe) {
            return format!(
                "the {name} hook is a kprobe, and the kernel skips one that fires while another is handled on its CPU"
            )
            .into();
        }
    }
    match (beside_hooks(counter, netns), counter) {
        (Some(reason), _) => reason.into(),
        (
            None,
            kernel::SYN_RETRANS
            | kernel::TIMEOUTS
            | kernel::FAST_RETRANS
            | kernel::SLOW_START_RETRANS
            | kernel::RETRANS_FAIL
            | kernel::RETRANS_SEGS,
        ) => "they passed no program: some kernels under load run none for whole bursts of timers on a CPU ('perf stat \
              -e tcp:tcp_retransmit_skb' counts with them)"
            .into(),
        (None, _) => "not known: please report it".into(),
    }
}

/// What the kernel counts in `counter` and no hook sees, as far as no other counter excludes it.
fn beside_hooks(counter: usize, netns: &Netns) -> Option<&'static str> {
    Some(match counter {
        kernel::LISTEN_DROPS => {
            "an ICMP error about a request, and a SYN to a broadcast address, pass no hook"
        }
        // A SYN-ACK is counted only once it is sent (`tcp_rtx_synack`).
        kernel::SYN_RETRANS if netns.kernel[kernel::RETRANS_FAIL] > 0 => {
            "SYNs that this host could not send again, which the kernel counts all the same"
        }
        kernel::OUT_RSTS => "resets that could not be allocated are counted all the same",
        kernel::ATTEMPT_FAILS => {
            "the kernel counts a RST to a Fast Open connection before its third ACK as one to its request, too"
        }
        kernel::SYNCOOKIES_SENT | kernel::REQ_Q_FULL_DO_COOKIES => {
            "BPF programs that make cookies are counted, and pass no hook"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plan::{HookMode, HookPlan, Transport},
        testing,
    };

    fn plan(hooks: &[(&str, HookType, Option<&str>)]) -> Plan {
        Plan {
            mode: HookMode::Auto,
            transport: Transport::Ringbuf,
            hooks: hooks
                .iter()
                .map(|(hook, hook_type, blind_to)| HookPlan {
                    hook: (*hook).to_owned(),
                    hook_type: *hook_type,
                    attached: Vec::new(),
                    refused: Vec::new(),
                    blind_to: blind_to.map(str::to_owned),
                })
                .collect(),
            detectors: testing::host().plan.detectors,
        }
    }

    fn listeners() -> Plan {
        plan(&[
            ("syn", HookType::Tracepoint, Some("the first SYN")),
            ("ack", HookType::Fentry, None),
            ("cookie", HookType::Off, Some("cookies")),
        ])
    }

    fn netns(inode: u32, kernel: u64, before: u64, after: u64) -> Netns {
        let at = |count| {
            let mut figures = [0; kernel::COUNT];
            figures[kernel::LISTEN_DROPS] = count;
            figures
        };
        Netns {
            id: NetnsId { inode, mix: 1 },
            kernel: at(kernel),
            before: at(before),
            after: at(after),
            born: true,
            filtered: false,
            unreadable: false,
            failures_untraced: false,
            gone: false,
            uncompared: 0,
            untracked: 0,
            counters: kernel::COUNT,
        }
    }

    fn report(records: &[Netns], lost: &[u64; HOOKS.len()]) -> Reconciliation {
        let mut reconciler = Reconciler::new();
        for record in records {
            reconciler.netns(record, Ktime(1));
        }
        reconciler.report(&listeners(), lost)
    }

    #[test]
    fn a_line_tells_of_a_residue_of_the_busiest_and_of_all_in_sums() {
        let records: Vec<Netns> = (1..=2_000)
            .map(|inode| match inode {
                7 => netns(inode, 3, 1, 1),
                _ => netns(inode, inode.into(), inode.into(), inode.into()),
            })
            .collect();
        let mut told = report(&records[..1000], &[0; HOOKS.len()]);
        assert_eq!(told.namespaces.len(), 1000, "who asks is told of all");
        told.bound();
        assert_eq!((told.compared, told.namespaces.len()), (1000, MAX_TOLD));
        assert_eq!(told.namespaces_left_out, 1000 - MAX_TOLD);
        let shown: Vec<u32> = told.namespaces.iter().map(|of| of.netns).collect();
        assert_eq!(shown[..3], [7, 1000, 999]);
        let (_, sum) = &told.sums[0];
        assert_eq!((sum.kernel, sum.residue), (1000 * 1001 / 2 - 7 + 3, 2));
        let mut told = report(&records, &[0; HOOKS.len()]);
        told.bound();
        let line = serde_json::to_vec(&told).unwrap();
        assert!(line.len() < 60_000, "{} bytes", line.len());
    }

    fn drops(reconciliation: &Reconciliation) -> &Figures {
        let counters = &reconciliation.namespaces[0].counters;
        let drops = counters
            .iter()
            .find(|(counter, _)| *counter == kernel::LISTEN_DROPS);
        &drops.unwrap().1
    }

    #[test]
    fn what_no_hook_counts_is_not_compared_and_says_why() {
        let report = report(&[netns(1, 3, 3, 3), netns(2, 0, 0, 0)], &[0; HOOKS.len()]);
        assert_eq!(report.compared, 2);
        assert_eq!(report.namespaces.len(), 1, "nothing happened in the other");
        assert_eq!(
            report.not_reconciled["SyncookiesRecv"],
            "the cookie hook is off: cookies"
        );
        assert_eq!(
            report.not_reconciled["OutRsts"],
            "there is no reset_sent hook"
        );
        assert!(!report.not_reconciled.contains_key("ListenDrops"));
        assert_eq!(
            (drops(&report).residue, &drops(&report).because),
            (0, &None)
        );
    }

    #[test]
    fn a_residue_has_a_likely_reason() {
        let reason = |lost: &[u64; HOOKS.len()], kernel| {
            let report = report(&[netns(1, kernel, 3, 4)], lost);
            let drops = drops(&report);
            let sum = i128::from(drops.counted) + i128::from(drops.residue);
            assert_eq!(sum, i128::from(drops.kernel));
            (drops.residue, drops.because.clone().unwrap())
        };
        let nothing = [0; HOOKS.len()];
        let mut lost = nothing;
        lost[conntracer_common::stats::hook::ACK as usize] = 2;
        assert_eq!(
            reason(&lost, 6),
            (2, "2 events of the ack hook were lost".into())
        );
        assert_eq!(
            reason(&nothing, 6),
            (
                2,
                "either the syn hook is blind to the first SYN; or an ICMP error about a request, and a SYN to a \
                 broadcast address, pass no hook"
                    .into()
            )
        );
        let (residue, because) = reason(&nothing, 1);
        assert_eq!(residue, -2);
        assert!(because.contains("defect"), "{because}");
        let kprobes = plan(&[
            ("syn", HookType::Kprobe, None),
            ("ack", HookType::Kprobe, None),
        ]);
        let because = likely(
            kernel::LISTEN_DROPS,
            2,
            &netns(1, 6, 3, 4),
            &kprobes,
            &nothing,
        );
        assert!(because.contains("the syn hook is a kprobe"), "{because}");
    }

    /// "Could not be sent" is no reason where nothing failed, nor ever of what is compared without those.
    #[test]
    fn a_residue_names_no_reason_that_a_counter_excludes() {
        let all = plan(&[
            ("retransmit", HookType::Tracepoint, None),
            ("synack", HookType::Fentry, None),
        ]);
        let because = |counter: usize, failed: u64| {
            let mut netns = netns(1, 0, 0, 0);
            netns.kernel[kernel::RETRANS_FAIL] = failed;
            likely(counter, 1, &netns, &all, &[0; HOOKS.len()])
        };
        assert!(because(kernel::SYN_RETRANS, 1).contains("could not send again"));
        for (counter, failed) in [
            (kernel::SYN_RETRANS, 0),
            (kernel::RETRANS_SEGS, 0),
            (kernel::RETRANS_SEGS, 1),
            (kernel::FAST_RETRANS, 1),
        ] {
            let because = because(counter, failed);
            assert!(
                because.contains("passed no program"),
                "{counter}: {because}"
            );
        }
    }

    #[test]
    fn what_an_older_recording_does_not_tell_is_not_compared() {
        let older = Netns {
            counters: kernel::ATTEMPT_FAILS,
            ..netns(1, 3, 3, 3)
        };
        let mut reconciler = Reconciler::new();
        reconciler.netns(&older, Ktime(1));
        let plan = plan(&[
            ("state", HookType::Tracepoint, None),
            ("request", HookType::Fentry, None),
            ("reset_sent", HookType::Tracepoint, None),
        ]);
        let report = reconciler.report(&plan, &[0; HOOKS.len()]);
        assert!(report.not_reconciled["AttemptFails"].contains("recording"));
        assert!(!report.not_reconciled.contains_key("OutRsts"));
        assert_eq!(reconciler.residue(&plan, 1, kernel::ATTEMPT_FAILS), None);
    }

    #[test]
    fn under_a_filter_nothing_is_compared() {
        let of_all = Netns {
            filtered: true,
            ..netns(0, 0, 0, 0)
        };
        let report = report(&[netns(1, 3, 0, 0), of_all], &[0; HOOKS.len()]);
        assert_eq!(report.compared, 0);
        assert!(report.namespaces.is_empty(), "{report:?}");
        assert!(report.not_reconciled["ListenDrops"].contains("filter"));
    }
}
