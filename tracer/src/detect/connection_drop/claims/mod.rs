//! Each claim of this room, with what it is said of, and what it must not be said of: the look-alikes.

mod cases;
mod one;
mod together;

use std::time::Duration;

use conntracer_common::{
    record::{Close, Socket, close_flag, close_hint},
    stats::hook,
};

use self::{
    cases::{
        aborted, after_pause, by_icmp, by_process, by_socket, gave_up, idle, keepalive, killed,
        linger, queued, reset, timed_out, told, unread, unused, window, without_route,
    },
    one::CLAIMS,
    together::{APART, TOGETHER, deaths},
};
use super::tests::service;
use crate::{
    detect::{
        Thresholds,
        claims::{Records, Register},
    },
    finding::Finding,
    host::Host,
    plan::{HookPlan, HookType},
    testing::{Run, host, socket},
};

/// A change of the end that [`Run::close`] makes: a RST that came while the connection was in use.
type Change = fn(&mut Close);

fn telling() -> Host {
    let mut host = host();
    host.reset_reasons
        .insert(15, "TCP_ABORT_ON_CLOSE".to_owned());
    host
}

fn run(host: Host, socket: Socket, change: impl FnOnce(&mut Close)) -> Run {
    let mut run = Run::on(Thresholds::default(), host);
    run.skip(Duration::from_secs(4));
    run.close(socket, change);
    run
}

fn words(finding: &Finding) -> String {
    let advice: Vec<&str> = finding.advice.iter().map(AsRef::as_ref).collect();
    format!("{}\n{}", finding.summary, advice.join("\n"))
}

fn said(change: Change) -> String {
    words(run(telling(), service(), change).only())
}

/// A connection of this host's client, dead 4 s after its birth.
pub(crate) static OF_ONE: Register<Change> = Register {
    room: "connection_drop",
    kind: "connection_drop",
    run: |change| run(telling(), service(), change),
    claims: CLAIMS,
};

/// What several deaths, or both ends of a connection, say together.
pub(crate) static OF_SEVERAL: Register<Records> = Register {
    room: "connection_drop, of several",
    kind: "connection_drop",
    run: |records| {
        let mut run = Run::on(Thresholds::default(), telling());
        records(&mut run);
        run
    },
    claims: TOGETHER,
};

/// Untrue in most of the cases that people met.
#[test]
fn nobody_is_said_to_have_crashed_or_to_have_a_timeout_for_one_reset() {
    for claim in CLAIMS {
        for change in claim.said.iter().chain(claim.never) {
            let said = said(*change);
            assert!(!said.contains("crashed, was restarted"), "{said}");
            assert!(!said.contains("somebody's idle"), "{said}");
        }
    }
}

/// A hook that was not attached, or lost something, has not seen that nobody sent the RST.
#[test]
fn silence_of_a_hook_that_was_not_there_says_nothing() {
    const WORDS: &str = "no TCP of this host was seen";
    let mut before = telling();
    before.attached_ns = u64::MAX;
    let run_before = run(before, service(), told);
    assert!(!words(run_before.only()).contains(WORDS));
    assert!(
        run_before
            .only()
            .because
            .as_deref()
            .unwrap()
            .contains("before every hook")
    );

    let mut off = telling();
    off.plan.hooks.push(HookPlan {
        hook: "reset_sent".to_owned(),
        hook_type: HookType::Off,
        attached: Vec::new(),
        refused: Vec::new(),
        blind_to: Some("resets sent".to_owned()),
    });
    assert!(!words(run(off, service(), told).only()).contains(WORDS));

    let mut lost = Run::on(Thresholds::default(), telling());
    lost.loss(hook::RESET_SENT, 1);
    lost.close(service(), told);
    assert!(!words(lost.only()).contains(WORDS));
}

/// The other end of a connection, which is on this host and died just before, says why.
#[test]
fn the_other_end_of_this_host_says_why() {
    let there = || socket("10.0.0.9:443", "10.0.0.1:40000");
    let cases: [(Change, &str); 5] = [
        (
            unread,
            "process 1234, at the other end on this host, closed with data unread",
        ),
        (linger, "closed with SO_LINGER 0"),
        (queued, "closed its listener before they were accepted"),
        (killed, "was ended by SIGKILL"),
        (aborted, "was killed by an administrator's command"),
    ];
    for (change, expected) in cases {
        let mut run = Run::new();
        run.close(there(), change);
        run.close(service(), by_socket);
        let last = run.findings.last().expect("two findings");
        assert!(words(last).contains(expected), "{last:#?}");
        // Long before, it was another connection between the same ends.
        let mut run = Run::new();
        run.close(there(), change);
        run.skip(Duration::from_secs(2));
        run.close(service(), by_socket);
        let last = run.findings.last().expect("two findings");
        assert!(!words(last).contains(expected), "{last:#?}");
    }
}

/// What is said of the last of them.
fn series(gap: Duration, pauses: [u64; 3], change: Change) -> String {
    let mut run = Run::on(Thresholds::default(), telling());
    deaths(&mut run, gap, pauses, change);
    words(run.findings.last().expect("three deaths"))
}

#[test]
fn an_idle_timeout_needs_pauses_that_agree_and_no_other_cause() {
    const NAMED: &str = "idle timeout";
    let own = |change: Change| {
        let said = series(APART, [12, 12, 12], change);
        assert!(
            said.contains("an idle timeout of process 1234 itself"),
            "{said}"
        );
        said
    };
    own(linger);
    // What is right without it is still said.
    assert!(own(unread).contains("read until the end"));
    let sender = series(APART, [12, 12, 12], idle);
    assert!(
        sender.contains("each after a pause of 12.0 s: an idle timeout, of the peer"),
        "{sender}"
    );
    let at_most = series(APART, [12, 12, 12], after_pause);
    assert!(
        at_most.contains("as by an idle timeout of at most that"),
        "{at_most}"
    );
    let silent = series(APART, [12, 12, 12], timed_out);
    assert!(
        silent.contains(
            "not answered: the peers were gone by then, or were forgotten, as by an idle"
        ),
        "{silent}"
    );
    assert!(
        silent.contains("where the peers are up, look for"),
        "{silent}"
    );
    assert!(!at_most.contains("gone by then"), "{at_most}");
    assert!(silent.contains("check that 10.0.0.9 is up"), "{silent}");

    // One event, whatever it is.
    for change in [linger as Change, unread, timed_out] {
        let at_once = series(Duration::from_millis(100), [12, 12, 12], change);
        assert!(!at_once.contains(NAMED), "{at_once}");
    }
    // Pauses that end together and began one by one.
    let one_by_one = series(Duration::from_millis(600), [40, 41, 42], linger);
    assert!(!one_by_one.contains(NAMED), "{one_by_one}");
    // They do not agree, or are short.
    for pauses in [[12, 30, 60], [0, 0, 0], [2, 2, 2]] {
        let said = series(APART, pauses, linger);
        assert!(!said.contains(NAMED), "{said}");
    }
    // Other causes, and timers of this kernel's own.
    for change in [
        keepalive as Change,
        window,
        aborted,
        queued,
        killed,
        without_route,
        by_icmp,
    ] {
        let said = series(APART, [16, 16, 16], change);
        assert!(!said.contains(NAMED), "{said}");
    }
    let probed = series(APART, [16, 16, 16], |ending| {
        keepalive(ending);
        ending.tcp.user_timeout_ms = 500;
    });
    assert!(!probed.contains(NAMED), "{probed}");
}

#[test]
fn a_check_is_quiet_and_nothing_else_is() {
    let at_once = |socket: Socket, change: &dyn Fn(&mut Close)| {
        let mut run = Run::new();
        run.skip(Duration::from_millis(2));
        run.close(socket, |ending| {
            ending.bytes_received = 0;
            change(ending);
        });
        run.last_words().len()
    };
    let accepted = || socket("10.0.0.1:80", "10.0.0.9:5000");
    assert_eq!(at_once(accepted(), &reset), 0);
    assert_eq!(at_once(accepted(), &gave_up), 0);
    assert_eq!(at_once(service(), &linger), 0, "the checker's own end");
    assert_eq!(at_once(accepted(), &linger), 1, "a server that cuts");
    assert_eq!(at_once(service(), &reset), 1, "a client that is cut");
    assert_eq!(at_once(accepted(), &|ending| ending.bytes_received = 1), 1);
    let taken = |ending: &mut Close| {
        by_process(ending);
        ending.bytes_received = 1;
        ending.hints = close_hint::REPAIR;
    };
    assert_eq!(at_once(service(), &taken), 0, "a checkpoint");
    let later = run(host(), accepted(), unused);
    assert_eq!(later.last_words().len(), 1);
}

/// One process's connections are one finding, whether they were accepted, and whether they had data.
#[test]
fn what_dies_with_a_process_is_one_finding() {
    let mut run = Run::new();
    for port in 0..50_u16 {
        let socket = socket("10.0.0.1:80", &format!("10.0.1.1:{}", 5000 + port));
        run.close(socket, |ending| {
            killed(ending);
            if port % 2 == 0 {
                ending.flags |= close_flag::NOT_ACCEPTED;
                ending.unread = 0;
                ending.bytes_received = 0;
            }
        });
    }
    run.pass(Duration::from_secs(2));
    let said = "50 connections of 10.0.0.1:80 died with process 1234, which was ended by SIGKILL; 25 of them \
                were not accepted yet";
    assert_eq!(run.only().summary, said);
    run.assert_replays(Thresholds::default());
}
