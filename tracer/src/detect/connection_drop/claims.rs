//! Each claim of this room, with what it is said of, and what it must not be said of: the look-alikes.

use std::time::Duration;

use conntracer_common::{
    record::{Close, Socket, close_flag, close_hint, rst_sender},
    stats::hook,
    tcp::state,
};

use super::tests::service;
use crate::{
    detect::{Thresholds, errno},
    finding::Finding,
    host::Host,
    plan::{HookPlan, HookType},
    testing::{Run, host, socket},
};

/// A change of the end that [`Run::close`] makes: a RST that came while the connection was in use.
type Change = fn(&mut Close);

struct Claim {
    words: &'static str,
    said: &'static [Change],
    never: &'static [Change],
}

fn by_process(ending: &mut Close) {
    ending.error = 0;
    ending.flags = 0;
}

fn killed(ending: &mut Close) {
    by_process(ending);
    ending.unread = 5;
    ending.flags = close_flag::EXITING;
    ending.exit_code = 9;
}

fn unread(ending: &mut Close) {
    by_process(ending);
    ending.unread = 5;
}

fn linger(ending: &mut Close) {
    by_process(ending);
    ending.flags = close_flag::NO_LINGER;
}

fn queued(ending: &mut Close) {
    by_process(ending);
    ending.flags = close_flag::NOT_ACCEPTED;
}

fn gave_up(ending: &mut Close) {
    ending.flags |= close_flag::NOT_ACCEPTED;
}

fn reset(_: &mut Close) {}

fn own_reset(ending: &mut Close) {
    by_process(ending);
    ending.flags = close_flag::RST_SENT;
}

fn of_mptcp(ending: &mut Close) {
    own_reset(ending);
    ending.flags |= close_flag::SUBFLOW;
}

fn aborted(ending: &mut Close) {
    ending.error = errno::ECONNABORTED;
    ending.flags = close_flag::RST_SENT;
}

fn timed_out(ending: &mut Close) {
    ending.error = errno::ETIMEDOUT;
    ending.flags = 0;
    ending.tcp.retransmits = 3;
    ending.tcp.total_retrans = 3;
    ending.tcp.write_seq = 9;
    ending.tcp.snd_nxt = 9;
}

fn fin_timed_out(ending: &mut Close) {
    timed_out(ending);
    ending.old_state = state::FIN_WAIT1;
    ending.tcp.write_seq = 1;
    ending.tcp.snd_nxt = 1;
}

fn orphan_timed_out(ending: &mut Close) {
    fin_timed_out(ending);
    ending.flags = close_flag::ORPHAN;
}

fn keepalive(ending: &mut Close) {
    ending.error = errno::ETIMEDOUT;
    ending.flags = close_flag::RST_SENT;
    ending.tcp.probes_out = 3;
}

fn window(ending: &mut Close) {
    keepalive(ending);
    ending.tcp.write_seq = 9;
}

fn unreachable(ending: &mut Close) {
    timed_out(ending);
    ending.error = errno::EHOSTUNREACH;
}

fn by_icmp(ending: &mut Close) {
    unreachable(ending);
    ending.routed = 1;
}

fn without_route(ending: &mut Close) {
    unreachable(ending);
    ending.error = errno::ENETUNREACH;
    ending.routed = 2;
    // Some of what was to be sent again was not.
    ending.tcp.total_retrans = 1;
}

fn forbidden(ending: &mut Close) {
    without_route(ending);
    ending.error = errno::EACCES;
}

fn without_neighbour(ending: &mut Close) {
    unreachable(ending);
    ending.tcp.total_retrans = 1;
}

fn rejected(ending: &mut Close) {
    timed_out(ending);
    ending.error = errno::ECONNREFUSED;
}

fn without_source(ending: &mut Close) {
    timed_out(ending);
    ending.error = errno::EINVAL;
    ending.tcp.total_retrans = 1;
}

fn unsent(ending: &mut Close) {
    window(ending);
    ending.tcp.snd_wnd = 64_000;
}

fn after_pause(ending: &mut Close) {
    ending.idle_ns = 12_000_000_000;
    ending.unanswered_ns = 1_000_000;
    ending.tcp.snd_nxt = 4;
    ending.tcp.write_seq = 4;
}

fn idle(ending: &mut Close) {
    ending.idle_ns = 12_000_000_000;
}

fn after_fin(ending: &mut Close) {
    ending.error = errno::EPIPE;
    ending.old_state = state::CLOSE_WAIT;
    ending.flags |= close_flag::FIN_RECEIVED;
}

fn after_probe(ending: &mut Close) {
    ending.tcp.probes_out = 1;
}

fn unused(ending: &mut Close) {
    ending.bytes_received = 0;
}

fn told(ending: &mut Close) {
    ending.hints = close_hint::SENDERS_TOLD;
}

fn by(ending: &mut Close, sender: u8, state: u8) {
    ending.hints = close_hint::SENDERS_TOLD;
    ending.sender = sender;
    ending.sender_state = state;
    ending.sender_netns = 4027;
}

fn by_no_socket(ending: &mut Close) {
    by(ending, rst_sender::NO_SOCKET, state::CLOSE);
}

fn by_closed(ending: &mut Close) {
    by(ending, rst_sender::ANSWER, state::FIN_WAIT2);
}

fn by_listener(ending: &mut Close) {
    by(ending, rst_sender::ANSWER, state::LISTEN);
}

fn by_socket(ending: &mut Close) {
    by(ending, rst_sender::SOCKET, state::CLOSE);
}

fn orphan(ending: &mut Close) {
    by_process(ending);
    ending.old_state = state::FIN_WAIT1;
    ending.flags = close_flag::ORPHAN;
    ending.tcp.write_seq = 1;
    ending.tcp.snd_nxt = 1;
}

fn late_data(ending: &mut Close) {
    ending.old_state = state::FIN_WAIT1;
    ending.flags |= close_flag::ORPHAN;
    ending.tcp.shutdown = 3;
    ending.tcp.write_seq = 9;
    ending.tcp.snd_nxt = 9;
}

const CLAIMS: &[Claim] = &[
    Claim {
        words: "gave up while they waited for accept()",
        said: &[gave_up],
        never: &[reset, queued, linger],
    },
    Claim {
        words: "never had these connections",
        said: &[gave_up],
        never: &[reset, queued, killed],
    },
    Claim {
        words: "closed the listener before they were accepted",
        said: &[queued],
        never: &[gave_up, unread, killed],
    },
    Claim {
        words: "was ended by SIGKILL",
        said: &[killed],
        never: &[
            unread,
            |ending| {
                killed(ending);
                ending.exit_code = 0;
            },
            |ending| {
                killed(ending);
                ending.exit_code = 11;
            },
        ],
    },
    Claim {
        words: "ended with status 3",
        said: &[|ending| {
            killed(ending);
            ending.exit_code = 3 << 8;
        }],
        never: &[killed, unread],
    },
    Claim {
        words: "the kernel for want of memory",
        said: &[killed],
        never: &[unread, |ending| {
            killed(ending);
            ending.exit_code = 15;
        }],
    },
    Claim {
        words: "its core dump",
        said: &[|ending| {
            killed(ending);
            ending.exit_code = 11;
        }],
        never: &[killed, unread, reset],
    },
    Claim {
        words: "closed with data unread (5 bytes",
        said: &[unread],
        // A FIN that waits is no byte; a process that ended closed nothing.
        never: &[killed, reset, |ending| {
            by_process(ending);
            ending.old_state = state::CLOSE_WAIT;
        }],
    },
    Claim {
        words: "read until the end before close()",
        said: &[unread],
        never: &[killed, linger, queued, reset],
    },
    Claim {
        words: "closed with SO_LINGER 0",
        said: &[linger],
        never: &[unread, queued, |ending| {
            linger(ending);
            ending.flags |= close_flag::SUBFLOW;
        }],
    },
    Claim {
        words: "without a FIN by",
        said: &[by_process],
        never: &[unread, linger, own_reset, of_mptcp],
    },
    Claim {
        words: "ended by MPTCP",
        said: &[of_mptcp],
        never: &[own_reset, aborted, reset],
    },
    Claim {
        words: "an administrator's command",
        said: &[aborted, own_reset, |ending| {
            own_reset(ending);
            ending.reason = 14;
        }],
        never: &[of_mptcp, reset, |ending| {
            own_reset(ending);
            ending.reason = 15;
        }],
    },
    Claim {
        words: "ICMP said that the peer cannot be reached",
        said: &[by_icmp],
        never: &[
            without_route,
            unreachable,
            timed_out,
            without_source,
            rejected,
        ],
    },
    Claim {
        words: "ICMP said that the peer's port cannot be reached",
        said: &[rejected],
        never: &[by_icmp, unreachable, timed_out],
    },
    Claim {
        words: "a firewall that rejects (",
        said: &[rejected],
        never: &[by_icmp, unreachable, reset],
    },
    Claim {
        words: "finds no route from 10.0.0.1 to the peer any more",
        said: &[without_source],
        never: &[by_icmp, without_route, |ending| {
            // Of another source: nothing had timed out.
            ending.error = errno::EINVAL;
            ending.flags = 0;
        }],
    },
    Claim {
        words: "this host has no route to the peer any more",
        said: &[without_route, |ending| {
            unsent(ending);
            ending.routed = 2;
        }],
        // The kernel also gives up routes that it doubts.
        never: &[
            by_icmp,
            unreachable,
            timed_out,
            without_neighbour,
            forbidden,
            |ending| {
                unreachable(ending);
                ending.routed = 2;
            },
        ],
    },
    Claim {
        words: "forbids to send to the peer",
        said: &[forbidden],
        never: &[without_route, by_icmp, rejected, |ending| {
            // By ICMP: all that was to be sent again was.
            by_icmp(ending);
            ending.error = errno::EACCES;
        }],
    },
    Claim {
        words: "cannot be reached; candidates are",
        said: &[unreachable],
        never: &[by_icmp, without_route, without_neighbour],
    },
    Claim {
        words: "candidates are its neighbour entry",
        said: &[without_neighbour],
        never: &[by_icmp, without_route, timed_out],
    },
    Claim {
        words: "data was not acknowledged",
        said: &[timed_out],
        never: &[
            fin_timed_out,
            keepalive,
            window,
            orphan_timed_out,
            |ending| {
                timed_out(ending);
                ending.tcp = conntracer_common::record::Tcp::default();
            },
        ],
    },
    Claim {
        words: "the FIN was not acknowledged",
        said: &[fin_timed_out],
        never: &[timed_out, keepalive],
    },
    Claim {
        words: "its last data or FIN was not acknowledged",
        said: &[orphan_timed_out],
        never: &[fin_timed_out, timed_out, orphan],
    },
    Claim {
        words: "keepalive probes were not answered",
        said: &[keepalive],
        never: &[window, timed_out],
    },
    Claim {
        words: "probes of a closed window were not answered",
        said: &[window],
        never: &[keepalive, timed_out, unsent],
    },
    Claim {
        words: "data waited that this host could not send",
        said: &[unsent],
        never: &[window, keepalive, timed_out],
    },
    Claim {
        words: "this host had no route to the peer for a time",
        said: &[|ending| {
            without_route(ending);
            ending.routed = 1;
        }],
        never: &[by_icmp, without_route],
    },
    Claim {
        words: "within TCP_USER_TIMEOUT",
        said: &[|ending| {
            timed_out(ending);
            ending.tcp.user_timeout_ms = 500;
        }],
        never: &[timed_out, keepalive],
    },
    Claim {
        words: "TcpExtTCPRetransFail",
        said: &[|ending| {
            timed_out(ending);
            ending.tcp.total_retrans = 1;
        }],
        never: &[timed_out],
    },
    Claim {
        words: "too many orphans",
        said: &[orphan],
        never: &[orphan_timed_out, late_data],
    },
    Claim {
        words: "or this host's own for data that came then",
        said: &[late_data],
        never: &[reset, orphan, |ending| {
            late_data(ending);
            by_socket(ending);
        }],
    },
    Claim {
        words: "no TCP of this host was seen to send the RST",
        said: &[told],
        never: &[reset, by_socket, by_no_socket, by_closed],
    },
    Claim {
        words: "which has no socket for what was sent",
        said: &[by_no_socket],
        never: &[told, by_socket, by_closed, reset],
    },
    Claim {
        words: "had closed and answered what came then",
        said: &[by_closed],
        never: &[by_listener, by_socket, by_no_socket, told],
    },
    Claim {
        words: "listens on this host, and holds no established connection",
        said: &[by_listener],
        never: &[by_closed, by_no_socket, told],
    },
    Claim {
        words: "that the socket at 10.0.0.9:443, on this host, sent",
        said: &[by_socket],
        never: &[by_closed, told, reset],
    },
    Claim {
        words: "in answer to the first segment after a pause of 12.0 s",
        said: &[after_pause],
        never: &[reset, idle, |ending| {
            after_pause(ending);
            ending.idle_ns = 0;
        }],
    },
    Claim {
        words: "from 10.0.0.9:443, after a pause of 12.0 s",
        said: &[idle],
        never: &[reset, after_pause],
    },
    Claim {
        words: "restarted in the pause",
        said: &[idle, after_pause, after_probe],
        never: &[reset, after_fin, unused],
    },
    Claim {
        words: "for 12.0 s before the first segment that was not answered",
        said: &[|ending| {
            timed_out(ending);
            ending.idle_ns = 12_000_000_000;
        }],
        never: &[timed_out, |ending| {
            keepalive(ending);
            ending.idle_ns = 12_000_000_000;
        }],
    },
    Claim {
        words: "whose FIN had come before",
        said: &[after_fin],
        never: &[reset, idle],
    },
    Claim {
        words: "stop writing when read() returns 0",
        said: &[after_fin],
        never: &[reset, by_socket],
    },
    Claim {
        words: "after a keepalive probe",
        said: &[after_probe],
        never: &[reset, idle, |ending| {
            // Data was in flight: that is what it answered.
            after_probe(ending);
            ending.tcp.write_seq = 4;
            ending.tcp.snd_nxt = 4;
        }],
    },
    Claim {
        words: "nothing had passed: candidates",
        said: &[unused],
        never: &[reset, |ending| {
            // What was sent and not acknowledged is something, too.
            unused(ending);
            ending.tcp.write_seq = 4;
            ending.tcp.snd_nxt = 4;
        }],
    },
    Claim {
        words: "candidates are a process there that ended",
        said: &[reset],
        never: &[idle, after_pause, unused, by_socket],
    },
];

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

#[test]
fn each_claim_is_said_of_what_it_is_true_of_and_of_no_look_alike() {
    for claim in CLAIMS {
        assert!(
            !claim.said.is_empty() && !claim.never.is_empty(),
            "{}",
            claim.words
        );
        for (number, change) in claim.said.iter().enumerate() {
            let said = said(*change);
            assert!(
                said.contains(claim.words),
                "{:?} of {number}: {said}",
                claim.words
            );
        }
        for (number, change) in claim.never.iter().enumerate() {
            let said = said(*change);
            assert!(
                !said.contains(claim.words),
                "{:?} of {number}: {said}",
                claim.words
            );
        }
    }
}

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

/// Deaths every `gap`, each `change`d after a pause of `pauses`, and what is said of the last.
fn series(gap: Duration, pauses: [u64; 3], change: Change) -> String {
    let mut run = Run::on(Thresholds::default(), telling());
    for (port, pause) in (0..).zip(pauses) {
        let socket = Socket {
            local_port: 40_000 + port,
            ..service()
        };
        run.close(socket, |ending| {
            change(ending);
            ending.idle_ns = pause * 1_000_000_000;
        });
        run.pass(gap);
    }
    run.pass(Duration::from_secs(1));
    words(run.findings.last().expect("three deaths"))
}

#[test]
fn an_idle_timeout_needs_pauses_that_agree_and_no_other_cause() {
    const NAMED: &str = "idle timeout";
    const APART: Duration = Duration::from_secs(7);
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
