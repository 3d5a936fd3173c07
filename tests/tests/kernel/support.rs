//! What the live tests have in common: starting a tracer, or saying why not.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{Write, stdout},
    net::SocketAddr,
    panic::Location,
    thread,
};

use conntracer_tests::{
    counters::Counters,
    line::{Certainty, Coverage, Finding, Owner, Subject},
    netns::{COMM, NetNs},
    tracer::{Binary, NotStarted, Run, Tracer},
};
use serde_json::Value;

/// Prints the line that says this test did not run. Fails where tracing is known to be possible.
#[track_caller]
pub(crate) fn skip(reason: &str) {
    assert!(
        env::var_os("CONNTRACER_MUST_TRACE").is_none(),
        "this test cannot run although CONNTRACER_MUST_TRACE is set: {reason}"
    );
    lacking(reason);
}

/// Whether this machine is there for the tests alone: a VM, whose first process is the tests' own.
pub(crate) fn is_own_machine() -> bool {
    fs::read_link("/proc/1/exe").is_ok_and(|init| init.as_os_str() == "/init")
}

/// The same for what has nothing to do with tracing, and may be missing anywhere.
#[track_caller]
pub(crate) fn lacking(reason: &str) {
    let location = Location::caller().to_string();
    let current = thread::current();
    // With one test thread, libtest runs tests on the main one.
    let name = current
        .name()
        .filter(|name| *name != "main")
        .unwrap_or(&location);
    let reason = reason.lines().collect::<Vec<_>>().join("; ");
    // Not `println!`, which libtest keeps to itself when a test passes. The first newline ends the
    // `test NAME ... ` that libtest may have begun.
    writeln!(stdout(), "\ntest-skipped {name}: {reason}").expect("standard output is open");
}

/// Whether namespaces can be made and BPF used at all.
#[track_caller]
pub(crate) fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip("not root: making network namespaces needs CAP_SYS_ADMIN");
    }
    is_root
}

/// The binary under test.
#[track_caller]
pub(crate) fn binary() -> Option<Binary> {
    if !is_root() {
        return None;
    }
    let binary = Binary::from_env();
    if binary.is_none() {
        skip("CONNTRACER_BIN does not name a conntracer");
    }
    binary
}

/// A tracer of `netns`.
#[track_caller]
pub(crate) fn trace(binary: &Binary, netns: &NetNs, arguments: &[&str]) -> Option<Tracer> {
    let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    match Tracer::start(binary, netns, &arguments) {
        Ok(tracer) => Some(tracer),
        Err(NotStarted::CannotTrace(reason)) => {
            skip(&reason);
            None
        }
        Err(NotStarted::Failed(error)) => panic!("{error:?}"),
    }
}

/// Events of a hook that may be skipped, of so many seen.
///
/// A program that is running on a CPU is not entered again there: the kernel skips the event and counts it, and so
/// does conntracer. From 7.0 on a run can be preempted. Emulated, it takes a hundred times as long, and a tick finds it
/// running as often. A ring or map that is too small loses far more.
pub(crate) fn may_skip(seen: u64) -> u64 {
    let (few, of) = if is_own_machine() { (4, 20) } else { (2, 100) };
    few + seen / of
}

/// Every event of every hook is accounted for, next to none was lost, and no finding is about anything
/// outside of `netns`.
#[track_caller]
pub(crate) fn assert_sound(run: &Run, netns: &NetNs) {
    for finding in run.findings() {
        let inode = finding.subject.netns();
        assert!(
            inode.is_none_or(|inode| inode == netns.inode()),
            "{finding:#?}"
        );
    }
    assert!(
        !run.stop.hooks.is_empty(),
        "the stop line gives no accounts: {:?}",
        run.stop
    );
    // By tracepoint, accept's program runs at every receive: next to none of those that are skipped was to be an event.
    let at_receives = run
        .start
        .plan
        .hooks
        .iter()
        .any(|plan| plan.hook == "accept" && plan.hook_type == "tracepoint");
    for (hook, account) in &run.stop.hooks {
        assert!(account.balances(), "{hook}: {account:?}");
        assert!(
            account.lost <= may_skip(account.seen) || (hook == "accept" && at_receives),
            "{hook}: {account:?}"
        );
    }
}

/// conntracer's counts are the kernel's own, in every counter that is compared under this plan; what is
/// not compared is said with a reason, and only where a hook is missing. `before` are the counters of the
/// namespace shortly before the run ended, all of which came after conntracer had started.
#[track_caller]
pub(crate) fn assert_reconciled(run: &Run, netns: &NetNs, before: &Counters) {
    let after = netns.counters().expect("the namespace is still there");
    let reconciliation = &run.stop.reconciliation;
    let reconciled = reconciliation
        .namespaces
        .iter()
        .find(|reconciled| reconciled.netns == netns.inode());
    let Some(reconciled) = reconciled else {
        let refused = &reconciliation.not_reconciled;
        panic!("namespace {} was not compared: {refused:?}", netns.inode());
    };
    for (name, figures) in &reconciled.counters {
        let [before, after] = [before, &after].map(|counters| {
            counters
                .compared(name)
                .expect("a counter that conntracer compares")
        });
        assert!(
            (before..=after).contains(&figures.kernel),
            "{name} was {before}, then {after}: {reconciled:#?}"
        );
        assert_eq!(
            i128::from(figures.kernel),
            i128::from(figures.counted) + i128::from(figures.residue),
            "{name}"
        );
        // What the kernel skipped while a program was running (see `assert_sound`) is the residue then: of the
        // hooks that count the same, and of no other.
        let lost = lost_of(run, name);
        let missing = lost * most_of_an_event(name);
        assert!(
            u64::try_from(figures.residue).is_ok_and(|residue| residue <= missing),
            "{name}, {lost} lost: {reconciled:#?}"
        );
        assert_eq!(figures.because.is_some(), figures.residue != 0, "{name}");
    }
    for (name, _) in ALWAYS_COMPARED {
        assert!(reconciled.counters.contains_key(name), "{name}");
    }
    for (name, hooks) in COMPARED_WITH {
        let plans = &run.start.plan.hooks;
        let works = hooks.iter().all(|hook| {
            plans
                .iter()
                .any(|plan| plan.hook == *hook && plan.hook_type != "off")
        });
        assert_eq!(reconciled.counters.contains_key(name), works, "{name}");
        assert_eq!(
            reconciliation.not_reconciled.contains_key(name),
            !works,
            "{name}"
        );
    }
}

/// Events that were lost of the hooks that count what a counter counts.
#[track_caller]
pub(crate) fn lost_of(run: &Run, counter: &str) -> u64 {
    hooks_of(counter)
        .iter()
        .filter_map(|hook| run.stop.hooks.get(*hook))
        .map(|account| account.lost)
        .sum()
}

/// The most that one event adds to a counter: a buffer that is sent again is counted by its segments, at most what
/// 64 KiB are of the smallest that a path of the tests carries.
fn most_of_an_event(counter: &str) -> u64 {
    match counter {
        "RetransSegs" | "TCPFastRetrans" | "TCPSlowStartRetrans" => 65_536 / 536,
        _ => 1,
    }
}

/// The hooks that count what a counter counts.
#[track_caller]
fn hooks_of(counter: &str) -> &'static [&'static str] {
    ALWAYS_COMPARED
        .iter()
        .chain(&COMPARED_WITH)
        .chain(&COMPARED_BY_KERNEL)
        .find(|(name, _)| *name == counter)
        .unwrap_or_else(|| panic!("{counter} is compared, and no hook is known that counts it"))
        .1
}

/// Counters that every hook type can compare, and the hooks that count the same.
const ALWAYS_COMPARED: [(&str, &[&str]); 9] = [
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
const COMPARED_BY_KERNEL: [(&str, &[&str]); 4] = [
    ("TCPRetransFail", &["retransmit"]),
    ("OutRsts", &["reset_sent"]),
    ("TCPPartialUndo", &["undo"]),
    ("TCPDSACKUndo", &["undo"]),
];

/// Those that need a hook without a tracepoint.
const COMPARED_WITH: [(&str, &[&str]); 8] = [
    ("SyncookiesRecv", &["cookie"]),
    ("SyncookiesFailed", &["cookie"]),
    ("EmbryonicRsts", &["request", "ack"]),
    ("TCPTimeouts", &["timeout", "request"]),
    ("TCPLossProbes", &["loss_probe"]),
    ("AttemptFails", &["state", "request"]),
    ("TCPLossUndo", &["undo"]),
    ("TCPFullUndo", &["undo"]),
];

/// What a detector cannot see under this plan is said in the plan and in its findings, and what it
/// can see is not doubted.
#[track_caller]
pub(crate) fn assert_said(run: &Run, detector: &str) {
    let plan = run
        .start
        .plan
        .detectors
        .iter()
        .find(|plan| plan.detector == detector)
        .unwrap_or_else(|| panic!("the plan does not speak of {detector}: {:?}", run.start));
    assert_eq!(
        plan.because.is_none(),
        plan.coverage == Coverage::Exact,
        "{plan:?}"
    );
    let (kind, cause) = detector.split_once('.').unwrap_or((detector, ""));
    for finding in run.findings() {
        if finding.finding != kind || !finding.cause.starts_with(cause) {
            continue;
        }
        assert_eq!(
            finding.because.is_none(),
            finding.certainty == Certainty::Exact
        );
        match plan.coverage {
            Coverage::Exact => {}
            Coverage::Degraded => assert_eq!(finding.certainty, Certainty::Inferred, "{finding:?}"),
            Coverage::Off => panic!("a finding of a detector that is off: {finding:?}"),
        }
    }
}

pub(crate) fn is_syn_drop(finding: &Finding) -> bool {
    finding.finding == "syn_drop"
}

/// What these findings make of ListenOverflows: the SYNs and every refused ACK.
#[track_caller]
pub(crate) fn overflows(findings: &[&Finding]) -> u64 {
    findings
        .iter()
        .map(|finding| match finding.cause.as_str() {
            "accept_queue_full" => finding.count,
            "ack_overflow" => finding.number("third_acks_refused"),
            _ => panic!("nothing else was dropped: {finding:#?}"),
        })
        .sum()
}

/// A finding about a listener that this process made in `netns`.
#[track_caller]
pub(crate) fn assert_listener(finding: &Finding, netns: &NetNs, local: SocketAddr) {
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: netns.inode(),
            local
        }
    );
    let owner = finding
        .owner
        .as_ref()
        .expect("this process owns the listener");
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    assert_named(owner);
    assert_eq!(
        finding.certainty == Certainty::Inferred,
        finding.because.is_some()
    );
}

/// Whether this process owns the socket of an event; or one that it forked for another test, which holds all that this
/// one does for a moment, and may be the last to close it.
pub(crate) fn is_ours(event: &Value) -> bool {
    event["process.pid"] == std::process::id() || event["owner_source"] == "passed"
}

/// How the owner was learned, where that is this process: it forks for other tests meanwhile, and is then said to
/// have.
#[track_caller]
pub(crate) fn assert_source(source: Option<&str>, expected: &str) {
    assert!(
        source == Some(expected) || source == Some("forked"),
        "{source:?} and not {expected}"
    );
}

/// The owner is this process by its executable, too, as far as the output shows a path.
#[track_caller]
pub(crate) fn assert_named(owner: &Owner) {
    let shown = owner.executable.as_deref().expect("this process runs");
    let executable = env::current_exe().expect("this process has an executable");
    let executable = executable.display().to_string();
    let shown = shown.display().to_string();
    match shown.strip_prefix('…') {
        Some(end) => assert!(executable.ends_with(end), "{executable}: {owner:#?}"),
        None => assert_eq!(shown, executable, "{owner:#?}"),
    }
    assert!(owner.started.is_some(), "{owner:#?}");
}
