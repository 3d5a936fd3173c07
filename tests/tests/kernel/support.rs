//! What the live tests have in common: a conntracer to look at, and what holds of everything it says.
//!
//! Three conntracers run beside all tests (`conntracer_tests::shared`), over all namespaces, since starting one takes
//! longer than most scenarios, and since that is how people run it. A test makes its namespace, opens a [`Watch`] on it,
//! provokes, waits for what must be said, and judges a checkpoint:
//!
//! ```ignore
//! let Some(binary) = binary() else { return };
//! let mut scenario = AcceptQueueFull::new(family).unwrap();
//! let Some(mut tracer) = watch(&binary, &scenario.netns) else { return };
//! scenario.provoke().unwrap();
//! let opened = tracer.wait_for("an accept_queue_full finding", SOON, is_syn_drop).unwrap();
//! let counted = scenario.netns.counters().unwrap();
//! let run = tracer.checkpoint().unwrap();
//! ```
//!
//! - [`watch`] gives the findings of one namespace, [`watch_events`] also its events, of the kinds that the test names; a
//!   test that looks at both ends of a pair opens two. [`watch_quick`] is for what would be a finding, or over, only after
//!   a minute, and for storms. What is not in a namespace (a finding about the whole host) is given to nobody.
//! - Open the watch before the first packet: it begins with the next line. Nothing of an earlier test can come, since no
//!   two namespaces of the process have the same inode.
//! - A checkpoint holds everything that happened before it was asked for, the last of every open finding (`update`, with
//!   its figures of now; what has resolved is not said again), and the namespace's counters, so that equality with the
//!   kernel's is exact. A test may take several, and go on waiting afterwards.
//! - `run.totals` are the accounts of all tests at once: assert nothing on `seen`, `emitted`, tallies or the findings by
//!   kind. That every event is accounted for is judged when the shared ones end. [`Run::lost`] is what was lost
//!   while the watch was open, in any namespace. What one event more or less changes is compared by [`assert_counted`] or
//!   [`assert_seen`], which are equality where nothing was lost; a loss also makes findings of others `inferred`.
//! - This process is the owner of everything in every namespace, as before; findings about a process, a listener or a
//!   remote carry their namespace, and are of it alone. Only retransmit storms are also judged for the whole host: many at
//!   once can become one, in place of the narrower ones, but for the one that is quick.
//! - Updates of a finding come a second apart: wait for what it is to say, or take a checkpoint.
//!
//! [`trace`] starts a tracer of the test's own, limited to its namespace. It is for what needs other flags, another
//! configuration or transport, what was there before, a kill, an end, accounts, a flood (of more than some hundred
//! events), or the whole host or process; the test says which. [`trace_all`] is one for several cases side by side. The
//! one that streams is given time to read a flood ([`streaming`]), whosever it is.
//!
//! `CONNTRACER_UNSHARED` makes every watch a tracer of its own: a failure that goes away with it is one of sharing.

use std::{
    env, fs,
    io::{Write, stdout},
    net::SocketAddr,
    panic::Location,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use anyhow::Result;
use conntracer_tests::{
    compared,
    counters::Counters,
    line::{Certainty, Coverage, Finding, Owner, Subject},
    netns::{COMM, NetNs},
    output::Run,
    shared::{Kind, QUICK},
    tracer::{Binary, NotStarted, Tracer},
    wait::{self, EVENTUALLY},
    watch::Watch,
};
use serde_json::Value;
use tempfile::NamedTempFile;

pub(crate) use conntracer_tests::compared::{is_own_machine, may_skip};

/// Prints the line that says this test did not run. Fails where tracing is known to be possible.
#[track_caller]
pub(crate) fn skip(reason: &str) {
    assert!(
        env::var_os("CONNTRACER_MUST_TRACE").is_none(),
        "this test cannot run although CONNTRACER_MUST_TRACE is set: {reason}"
    );
    lacking(reason);
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
    trace_all(binary, &[netns], arguments)
}

/// A tracer of `netns` that runs by the configuration `text`, which it reads at its start and never again.
#[track_caller]
pub(crate) fn trace_by(
    binary: &Binary,
    netns: &NetNs,
    text: &str,
    arguments: &[&str],
) -> Option<Tracer> {
    trace_all_by(binary, &[netns], text, arguments)
}

/// The same of several namespaces, at most eight.
#[track_caller]
pub(crate) fn trace_all_by(
    binary: &Binary,
    namespaces: &[&NetNs],
    text: &str,
    arguments: &[&str],
) -> Option<Tracer> {
    let config = NamedTempFile::new().expect("a temporary file");
    fs::write(config.path(), text).expect("a file that can be written");
    let path = config
        .path()
        .to_str()
        .expect("the name of a temporary file is ASCII");
    trace_all(
        binary,
        namespaces,
        &[&["--config", path], arguments].concat(),
    )
}

/// The same of the one whose times are short, with retransmissions where they are wanted.
#[track_caller]
pub(crate) fn watch_quick(binary: &Binary, netns: &NetNs, kinds: &[&str]) -> Option<Watch> {
    share(Kind::Quick, binary, netns, kinds)
}

/// A second in place of a minute makes a half-closed socket a finding.
pub(crate) const HALF_CLOSED_1_S: &str = "[detect.half_open]\nhalf_closed_after_s = 1\n";

/// One tracer of several namespaces, at most eight.
#[track_caller]
pub(crate) fn trace_all(
    binary: &Binary,
    namespaces: &[&NetNs],
    arguments: &[&str],
) -> Option<Tracer> {
    begun(Tracer::of(binary.run_within(namespaces).args(arguments)))
}

/// One of every namespace there is.
#[track_caller]
pub(crate) fn trace_everywhere(binary: &Binary) -> Option<Tracer> {
    begun(Tracer::of(&mut binary.run_everywhere()))
}

#[track_caller]
pub(crate) fn begun(tracer: Result<Tracer, NotStarted>) -> Option<Tracer> {
    match tracer {
        Ok(tracer) => Some(tracer),
        Err(NotStarted::CannotTrace(reason)) => {
            skip(&reason);
            None
        }
        Err(NotStarted::Failed(error)) => panic!("{error:?}"),
    }
}

/// What the conntracer that all tests share says of `netns` from now on: findings, and what is compared. See the module.
#[track_caller]
pub(crate) fn watch(binary: &Binary, netns: &NetNs) -> Option<Watch> {
    share(Kind::Plain, binary, netns, &[])
}

/// The same with the events of `kinds`, of the one that streams.
#[track_caller]
pub(crate) fn watch_events(binary: &Binary, netns: &NetNs, kinds: &[&str]) -> Option<Watch> {
    share(Kind::Streaming, binary, netns, kinds)
}

#[track_caller]
fn share(kind: Kind, binary: &Binary, netns: &NetNs, kinds: &[&str]) -> Option<Watch> {
    if env::var_os(UNSHARED).is_some() {
        let kinds = kinds.join(",");
        let arguments: &[&str] = if kinds.is_empty() {
            &[]
        } else {
            &["--emit", &kinds]
        };
        let tracer = match kind {
            Kind::Quick => trace_by(binary, netns, QUICK, arguments),
            Kind::Plain | Kind::Streaming => trace(binary, netns, arguments),
        };
        return tracer.map(Tracer::into_watch);
    }
    match kind.of_this_process(binary) {
        Ok(shared) => Some(shared.watch(netns, kinds)),
        Err(NotStarted::CannotTrace(reason)) => {
            skip(reason);
            None
        }
        Err(NotStarted::Failed(error)) => panic!("{error:?}"),
    }
}

/// The conntracer that streams, for a test that makes a flood of events in `netns`.
#[track_caller]
pub(crate) fn streaming(binary: &Binary, netns: &NetNs) -> Streaming {
    let is_shared = env::var_os(UNSHARED).is_none();
    Streaming(
        is_shared
            .then(|| watch_events(binary, netns, &[]))
            .flatten(),
    )
}

/// See [`streaming`]; nothing where each test has its own.
pub(crate) struct Streaming(Option<Watch>);

impl Streaming {
    /// Lets it read all that there is: a flood is not to cost other tests their events.
    pub(crate) fn catch_up(&mut self) -> Result<()> {
        if let Some(watch) = &mut self.0 {
            watch.checkpoint()?;
        }
        Ok(())
    }
}

/// Set where each test is to have a conntracer of its own, limited to its namespace.
const UNSHARED: &str = "CONNTRACER_UNSHARED";

/// Ends a load that looks at it, also where the test has failed.
pub(crate) struct Over<'a>(pub(crate) &'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// What was told is what the kernel counted in `counter`: all of it, but for what was lost of the hooks that count the
/// same.
#[track_caller]
pub(crate) fn assert_counted(run: &Run, counter: &str, told: u64, by_kernel: u64) {
    let missing = missed_of(run, counter) * compared::most_of_an_event(counter);
    assert!(
        (by_kernel.saturating_sub(missing)..=by_kernel).contains(&told),
        "{counter}: told {told} of {by_kernel}, at most {missing} of them lost: {run:#?}"
    );
}

/// The same of what `hooks` see one by one.
#[track_caller]
pub(crate) fn assert_seen(run: &Run, hooks: &[&str], told: u64, happened: u64) {
    let missing = missed(run, hooks);
    assert!(
        (happened.saturating_sub(missing)..=happened).contains(&told),
        "told {told} of {happened}, at most {missing} of them lost by {hooks:?}: {run:#?}"
    );
}

/// Events that `hooks` have missed.
pub(crate) fn missed(run: &Run, hooks: &[&str]) -> u64 {
    hooks.iter().map(|hook| run.missed(hook)).sum()
}

/// A checkpoint by which what was told comes to what happened, but for what was lost of `hooks`: the wait for what the
/// kernel may have skipped, which [`Watch::wait_for`] would wait for in vain. Each look is a checkpoint, so let the
/// kernel have done it first.
///
/// What was lost may be another test's, and what a second witness counts between two looks looks lost: where that would
/// make up for what is missing, more may be to come, and all has to stay so for a while.
#[track_caller]
pub(crate) fn tell_all(
    tracer: &mut Watch,
    hooks: &[&str],
    happened: u64,
    told: impl Fn(&Run) -> u64,
) -> Run {
    const LOOKS: u32 = 25;
    let (mut last, mut before, mut looks) = (None, 0, 0);
    let whole = wait::until("all that happened to be told", EVENTUALLY, || {
        let run = tracer.checkpoint()?;
        let now = told(&run);
        let may_be_lost = now + missed(&run, hooks) >= happened;
        looks = if now == before && may_be_lost {
            looks + 1
        } else {
            0
        };
        before = now;
        if now >= happened || looks >= LOOKS {
            return Ok(Some(run));
        }
        last = Some(run);
        Ok(None)
    });
    whole.unwrap_or_else(|error| panic!("{error:#}: {happened} of {hooks:?}: {last:#?}"))
}

/// No finding is about anything outside of `netns`; and of a conntracer that has ended, every event of every hook is
/// accounted for, and next to none was lost. (Of the shared ones that is judged when they end, by `conntracer-live`.)
#[track_caller]
pub(crate) fn assert_sound(run: &Run, netns: &NetNs) {
    for finding in run.findings() {
        let inode = finding.subject.netns();
        assert!(
            inode.is_none_or(|inode| inode == netns.inode()),
            "{finding:#?}"
        );
    }
    if run.is_over() {
        let unaccounted = compared::unaccounted(&run.start, &run.totals);
        assert!(unaccounted.is_empty(), "{unaccounted:#?}");
    }
}

/// conntracer's counts are the kernel's own, in every counter that is compared under this plan; what is
/// not compared is said with a reason, and only where a hook is missing. `before` are the counters of the
/// namespace shortly before the run ended, all of which came after conntracer had started.
#[track_caller]
pub(crate) fn assert_reconciled(run: &Run, netns: &NetNs, before: &Counters) {
    let after = netns.counters().expect("the namespace is still there");
    let reconciliation = &run.totals.reconciliation;
    let Some(reconciled) = run.totals.reconciled(netns.inode()) else {
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
        let lost = missed_of(run, name);
        let missing = lost * compared::most_of_an_event(name);
        assert!(
            u64::try_from(figures.residue).is_ok_and(|residue| residue <= missing),
            "{name}, {lost} lost: {reconciled:#?}"
        );
        assert_eq!(figures.because.is_some(), figures.residue != 0, "{name}");
    }
    for (name, _) in compared::ALWAYS {
        assert!(reconciled.counters.contains_key(name), "{name}");
    }
    for (name, hooks) in compared::WITH_HOOKS {
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

/// Events that the hooks that count what a counter counts have missed.
#[track_caller]
pub(crate) fn missed_of(run: &Run, counter: &str) -> u64 {
    let hooks = compared::hooks_of(counter)
        .unwrap_or_else(|| panic!("{counter} is compared, and no hook is known that counts it"));
    let lost: u64 = hooks.iter().map(|hook| run.lost(hook)).sum();
    let unseen: u64 = compared::witnessed(hooks)
        .map(|hook| run.unseen(hook))
        .sum();
    lost + unseen
}

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
