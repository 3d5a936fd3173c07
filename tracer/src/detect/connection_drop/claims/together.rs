//! What several deaths, or both ends of a connection, say together.

use std::time::Duration;

use conntracer_common::record::{Close, Socket, close_flag, role};

use super::{
    super::tests::service,
    Change,
    cases::{
        aborted, after_pause, by_socket, idle, keepalive, killed, linger, of_mptcp, queued, reset,
        timed_out, unread,
    },
};
use crate::{
    detect::claims::{Claim, Records},
    testing::{Run, listener, socket},
};

/// Deaths every `gap`, each `change`d after a pause of `pauses`.
pub(super) fn deaths(run: &mut Run, gap: Duration, pauses: [u64; 3], change: Change) {
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
}

pub(super) const APART: Duration = Duration::from_secs(7);
/// Deaths of connections of which a rule of this host drops what the peer sends, by the last digit of their ports.
fn with_rule(run: &mut Run, ports: &[u16], change: Change) {
    for port in 0..3 {
        let socket = Socket {
            local_port: 40_000 + port,
            ..service()
        };
        if ports.contains(&port) {
            run.dropped(socket, |_| {});
        }
    }
    deaths(run, AT_ONCE, [0, 0, 0], change);
}

fn died_of_a_rule(run: &mut Run) {
    with_rule(run, &[0, 1, 2], timed_out);
}

fn timed_out_alone(run: &mut Run) {
    with_rule(run, &[], timed_out);
}

/// The others died of something else.
fn one_died_of_a_rule(run: &mut Run) {
    with_rule(run, &[1], timed_out);
}

/// A RST came through.
fn reset_beside_a_rule(run: &mut Run) {
    with_rule(run, &[0, 1, 2], reset);
}

const AT_ONCE: Duration = Duration::from_millis(100);

fn alike_linger(run: &mut Run) {
    deaths(run, APART, [12, 12, 12], linger);
}

fn alike_idle(run: &mut Run) {
    deaths(run, APART, [12, 12, 12], idle);
}

fn alike_after_pause(run: &mut Run) {
    deaths(run, APART, [12, 12, 12], after_pause);
}

fn alike_timed_out(run: &mut Run) {
    deaths(run, APART, [12, 12, 12], timed_out);
}

fn alike_keepalive(run: &mut Run) {
    deaths(run, APART, [16, 16, 16], keepalive);
}

fn unlike_idle(run: &mut Run) {
    deaths(run, APART, [12, 30, 60], idle);
}

fn idle_at_once(run: &mut Run) {
    deaths(run, AT_ONCE, [12, 12, 12], idle);
}

fn linger_at_once(run: &mut Run) {
    deaths(run, AT_ONCE, [12, 12, 12], linger);
}

fn after_pause_at_once(run: &mut Run) {
    deaths(run, AT_ONCE, [12, 12, 12], after_pause);
}

fn timed_out_at_once(run: &mut Run) {
    deaths(run, AT_ONCE, [12, 12, 12], timed_out);
}

/// The server's end of [`service`], on this host.
fn server() -> Socket {
    socket("10.0.0.9:443", "10.0.0.1:40000")
}

/// Both ends die, the server's first, so long before.
fn both(run: &mut Run, change: Change, before: Duration) {
    run.close(server(), change);
    run.skip(before);
    run.close(service(), by_socket);
}

fn other_unread(run: &mut Run) {
    both(run, unread, Duration::ZERO);
}

fn other_unread_long_before(run: &mut Run) {
    both(run, unread, Duration::from_secs(2));
}

fn other_linger(run: &mut Run) {
    both(run, linger, Duration::ZERO);
}

fn other_queued(run: &mut Run) {
    both(run, queued, Duration::ZERO);
}

fn other_killed(run: &mut Run) {
    both(run, killed, Duration::ZERO);
}

fn other_aborted(run: &mut Run) {
    both(run, aborted, Duration::ZERO);
}

fn other_timed_out(run: &mut Run) {
    both(run, keepalive, Duration::ZERO);
}

/// Its kernel answers a segment: what it died of before sends no RST.
fn other_data_timed_out(run: &mut Run) {
    both(run, timed_out, Duration::ZERO);
}

fn other_idle_timeout(run: &mut Run) {
    for port in 0..3 {
        let local_port = 40_000 + port;
        let pause = |ending: &mut Close| ending.idle_ns = 12_000_000_000;
        let there = Socket {
            remote_port: local_port,
            ..server()
        };
        run.close(there, |ending| {
            linger(ending);
            pause(ending);
        });
        let here = Socket {
            local_port,
            ..service()
        };
        run.close(here, |ending| {
            by_socket(ending);
            pause(ending);
        });
        run.pass(APART);
    }
}

fn of_a_listener(run: &mut Run) {
    run.close(server(), reset);
}

fn with_one_remote(run: &mut Run) {
    for port in 0..3_u16 {
        let local = format!("10.0.0.1:{}", 40_000 + port);
        run.close(
            Socket {
                role: role::UNKNOWN,
                ..socket(&local, "10.0.0.9:443")
            },
            reset,
        );
    }
}

fn of_mptcp_several(run: &mut Run) {
    deaths(run, AT_ONCE, [0, 0, 0], of_mptcp);
}

fn process_ended(run: &mut Run, accepted: impl Fn(u16) -> bool) {
    for port in 0..4_u16 {
        let client = format!("10.0.1.1:{}", 5000 + port);
        run.close(socket("10.0.0.1:80", &client), |ending| {
            killed(ending);
            if !accepted(port) {
                ending.flags |= close_flag::NOT_ACCEPTED;
                ending.unread = 0;
            }
        });
    }
    run.pass(Duration::from_secs(2));
}

fn killed_all_accepted(run: &mut Run) {
    process_ended(run, |_| true);
}

fn killed_some_accepted(run: &mut Run) {
    process_ended(run, |port| port % 2 == 0);
}

fn killed_none_accepted(run: &mut Run) {
    process_ended(run, |_| false);
}

fn gave_up(run: &mut Run, waits_at: &str) {
    let waits = listener(waits_at, "10.0.1.1:5000");
    run.acceptor(waits, |_| ());
    run.accept_queue(waits, |_| ());
    run.close(socket("10.0.0.1:80", "10.0.1.1:5000"), |ending| {
        reset(ending);
        ending.flags |= close_flag::NOT_ACCEPTED;
    });
}

fn gave_up_as_told(run: &mut Run) {
    gave_up(run, "10.0.0.1:80");
}

fn gave_up_at_an_any_address(run: &mut Run) {
    gave_up(run, "0.0.0.0:80");
}

/// Others wait elsewhere.
fn gave_up_beside_others(run: &mut Run) {
    gave_up(run, "10.0.0.9:80");
}

fn gave_up_at_another_port(run: &mut Run) {
    gave_up(run, "10.0.0.1:81");
}

pub(super) const TOGETHER: &[Claim<Records>] = &[
    Claim {
        words: "slower than they come",
        said: &[gave_up_beside_others, gave_up_at_another_port],
        never: &[
            gave_up_as_told,
            gave_up_at_an_any_address,
            killed_none_accepted,
        ],
    },
    Claim {
        words: "dropped on this host",
        said: &[died_of_a_rule],
        never: &[timed_out_alone, one_died_of_a_rule, reset_beside_a_rule],
    },
    Claim {
        words: "mend rule 5 of the chain",
        said: &[died_of_a_rule],
        never: &[timed_out_alone, one_died_of_a_rule, reset_beside_a_rule],
    },
    Claim {
        words: "reset: ",
        said: &[other_unread, other_linger, other_queued, other_killed],
        never: &[of_a_listener, alike_idle, alike_linger, alike_timed_out],
    },
    Claim {
        words: ": an idle timeout of process",
        said: &[alike_linger],
        never: &[linger_at_once, alike_idle, alike_timed_out],
    },
    Claim {
        words: "let it end such connections by a FIN",
        said: &[alike_linger],
        never: &[linger_at_once, alike_idle, alike_after_pause],
    },
    Claim {
        words: "an idle timeout, of the peer or of something between",
        said: &[alike_idle],
        never: &[
            unlike_idle,
            idle_at_once,
            alike_linger,
            alike_after_pause,
            alike_keepalive,
        ],
    },
    Claim {
        words: "as by an idle timeout of at most that, of the peer or of something between",
        said: &[alike_after_pause],
        never: &[after_pause_at_once, alike_idle, alike_timed_out],
    },
    Claim {
        words: "as by an idle timeout of at most that, of something between",
        said: &[alike_timed_out],
        never: &[timed_out_at_once, alike_after_pause, alike_keepalive],
    },
    Claim {
        words: "the peers were gone by then, or were forgotten",
        said: &[alike_timed_out],
        never: &[alike_after_pause, alike_idle, timed_out_at_once],
    },
    Claim {
        words: "where the peers are up, look for that timeout on load balancers",
        said: &[alike_timed_out],
        never: &[
            alike_after_pause,
            alike_idle,
            alike_linger,
            timed_out_at_once,
        ],
    },
    Claim {
        words: "its idle timeout",
        said: &[other_idle_timeout],
        never: &[alike_idle, alike_linger, other_linger],
    },
    Claim {
        words: "in the configuration of the other end for an idle timeout",
        said: &[other_idle_timeout],
        never: &[alike_idle, other_linger],
    },
    Claim {
        words: "send keepalives more often than every",
        said: &[
            alike_idle,
            alike_after_pause,
            alike_timed_out,
            other_idle_timeout,
        ],
        never: &[alike_linger, idle_at_once, alike_keepalive],
    },
    Claim {
        words: "look for that timeout on the peer, and on load balancers",
        said: &[alike_idle, alike_after_pause],
        never: &[alike_linger, other_idle_timeout, idle_at_once],
    },
    Claim {
        words: "on this host, closed with data unread",
        said: &[other_unread],
        never: &[other_unread_long_before, other_linger, other_killed],
    },
    Claim {
        words: "on this host, closed with SO_LINGER 0",
        said: &[other_linger],
        never: &[other_unread, other_queued],
    },
    Claim {
        words: "on this host, closed its listener before they were accepted",
        said: &[other_queued],
        never: &[other_unread, other_killed],
    },
    Claim {
        words: "on this host, was ended by SIGKILL",
        said: &[other_killed],
        never: &[other_unread, other_queued, other_unread_long_before],
    },
    Claim {
        words: "reset: the other end, on this host, was killed by an administrator's command",
        said: &[other_aborted],
        never: &[other_killed, other_timed_out],
    },
    Claim {
        words: "reset: the other end, on this host, timed out first",
        said: &[other_timed_out],
        never: &[other_data_timed_out, other_aborted],
    },
    Claim {
        words: "accept what waits before it closes its listener",
        said: &[other_queued],
        never: &[other_unread, other_killed],
    },
    Claim {
        words: "of them were not accepted yet",
        said: &[killed_some_accepted],
        never: &[killed_all_accepted, killed_none_accepted],
    },
    Claim {
        words: "nobody had accepted them",
        said: &[killed_none_accepted],
        never: &[killed_some_accepted, killed_all_accepted],
    },
    Claim {
        words: "TCP connections of MPTCP",
        said: &[of_mptcp_several],
        never: &[alike_linger],
    },
    Claim {
        words: "ended by a RST from the client",
        said: &[of_a_listener],
        never: &[alike_idle, with_one_remote],
    },
];
