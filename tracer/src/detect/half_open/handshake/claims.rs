//! What is said of handshakes that do not complete, and of what it must not be.

use std::time::Duration;

use conntracer_common::{
    record::{acceptor_flag, syn_outcome},
    stats::hook,
    tcp::state,
};

use super::tests::{LOCAL, overflow, unanswered, worker};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, listener},
};

const CLIENT: &str = "10.0.0.2:4000";

fn one_client(run: &mut Run) {
    unanswered(run, CLIENT, 3, false);
}

fn from(run: &mut Run, remotes: [&str; 2]) {
    for remote in remotes {
        run.syn_ack(listener(LOCAL, remote), 0, false);
        run.syn_ack(listener(LOCAL, remote), 1, false);
    }
}

fn one_network(run: &mut Run) {
    from(run, [CLIENT, "10.0.0.3:4000"]);
}

fn several(run: &mut Run) {
    from(run, [CLIENT, "10.0.9.3:4000"]);
}

/// Third ACKs were discarded, and what the listener counted meanwhile.
fn discarded(run: &mut Run, totals: &[(usize, u64)]) {
    run.syn(listener(LOCAL, CLIENT), |syn| {
        syn.ack_backlog = 0;
        syn.totals[syn_outcome::ADDED] = 1;
        for (total, count) in totals {
            syn.totals[*total] = *count;
        }
    });
    unanswered(run, CLIENT, 2, true);
}

fn queue_was_full(run: &mut Run) {
    discarded(run, &[(syn_outcome::ACK_OVERFLOW, 1)]);
}

fn no_socket(run: &mut Run) {
    discarded(run, &[(syn_outcome::ACK_OTHER, 1)]);
}

fn queue_or_no_socket(run: &mut Run) {
    discarded(
        run,
        &[(syn_outcome::ACK_OVERFLOW, 1), (syn_outcome::ACK_OTHER, 1)],
    );
}

fn deferred(run: &mut Run) {
    discarded(run, &[]);
}

/// What the hook lost may have been refusals.
fn deferred_or_not(run: &mut Run) {
    run.loss(hook::ACK, 1);
    discarded(run, &[]);
}

/// The hooks were attached a moment before.
fn deferred_before(run: &mut Run) {
    let mut host = crate::testing::host();
    host.attached_ns = run.ktime_ns();
    *run = Run::on(crate::detect::Thresholds::default(), host);
    discarded(run, &[]);
}

fn queue_full(run: &mut Run) {
    unanswered(run, CLIENT, 2, true);
    run.pass(Duration::from_secs(1));
    let sk = listener(LOCAL, CLIENT).sk;
    worker(run, sk, state::LISTEN, 512, 1);
    run.pass(Duration::from_secs(1));
}

/// The same, and a look at who may accept; so does `is` after it.
fn looked_at(run: &mut Run, stopped: bool, goes_on: bool) {
    unanswered(run, CLIENT, 2, true);
    let socket = listener(LOCAL, CLIENT);
    worker(run, socket.sk, state::LISTEN, 512, 1);
    for stopped in [stopped, stopped && !goes_on] {
        run.acceptor(socket, |acceptor| {
            acceptor.flags = acceptor_flag::HOLDS | acceptor_flag::LAST;
            if stopped {
                (acceptor.state, acceptor.stopped) = (b'T', 1);
            }
        });
        run.pass(Duration::from_secs(1));
    }
}

fn stopped(run: &mut Run) {
    looked_at(run, true, false);
    run.checkpoint();
}

/// It stays for the end that it was.
fn was_stopped(run: &mut Run) {
    looked_at(run, true, true);
    run.checkpoint();
}

fn running(run: &mut Run) {
    looked_at(run, false, false);
    run.checkpoint();
}

fn flood(run: &mut Run) {
    overflow(run, 5000, 3);
}

/// As where an output filter of this host drops all SYN-ACKs.
fn flood_or_not(run: &mut Run) {
    overflow(run, 5000, 0);
}

fn burst(run: &mut Run) {
    overflow(run, 5000, 900);
}

fn few(run: &mut Run) {
    overflow(run, 20, 0);
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "half_open, handshake",
    kind: "half_open",
    run: alone,
    claims: &[
        Claim {
            words: "and no third ACK came through",
            said: &[one_client, one_network, several],
            never: &[queue_full, deferred, flood, burst],
        },
        Claim {
            words: "candidates are a client that does not answer, the way to it and back, and a filter of this host",
            said: &[one_client],
            never: &[one_network, several, queue_full, deferred],
        },
        Claim {
            words: "candidates are the way to that network and back, a filter of this host, and forged addresses",
            said: &[one_network],
            never: &[one_client, several, flood],
        },
        Claim {
            words: "candidates are the way to them and back, a filter of this host, and forged addresses",
            said: &[several],
            never: &[one_client, one_network, flood],
        },
        Claim {
            words: "see what leaves and what comes",
            said: &[one_client, several],
            never: &[queue_full, deferred, flood],
        },
        Claim {
            words: "otherwise the client or the way is at fault",
            said: &[one_client, several],
            never: &[queue_full, deferred, flood],
        },
        Claim {
            words: "on a return path over another interface, check net.ipv4.conf.*.rp_filter",
            said: &[one_client],
            never: &[queue_full, deferred],
        },
        Claim {
            words: "how often a SYN-ACK is repeated is net.ipv4.tcp_synack_retries",
            said: &[one_client],
            never: &[queue_full, deferred, flood],
        },
        Claim {
            words: "whose third ACK did arrive and was discarded",
            said: &[queue_full, queue_was_full, no_socket, deferred],
            never: &[one_client, several, flood],
        },
        Claim {
            words: "the accept queue is full",
            said: &[queue_full, stopped],
            never: &[queue_was_full, no_socket, deferred, one_client],
        },
        Claim {
            words: "the accept queue was full",
            said: &[queue_was_full],
            never: &[queue_full, no_socket, deferred, one_client],
        },
        Claim {
            words: "no socket was made of it, as for want of memory",
            said: &[no_socket],
            never: &[queue_full, queue_was_full, deferred, queue_or_no_socket],
        },
        Claim {
            words: "the accept queue was full, or no socket was made of it",
            said: &[queue_or_no_socket],
            never: &[queue_was_full, no_socket, queue_full],
        },
        Claim {
            words: "the accept queue has room, and the listener defers accept until data comes",
            said: &[deferred],
            never: &[
                deferred_or_not,
                deferred_before,
                queue_was_full,
                no_socket,
                one_client,
            ],
        },
        Claim {
            words: "candidates are a listener that defers accept until data comes, and a queue that was full before",
            said: &[deferred_or_not, deferred_before],
            never: &[deferred, queue_was_full],
        },
        Claim {
            words: "the accept queue has room now",
            said: &[deferred_or_not],
            never: &[deferred, queue_full],
        },
        Claim {
            words: "leave it if clients may connect and say nothing",
            said: &[deferred],
            never: &[queue_full, one_client],
        },
        Claim {
            words: "where clients wait for the server to speak first, take TCP_DEFER_ACCEPT",
            said: &[deferred],
            never: &[queue_full, one_client],
        },
        Claim {
            words: "is stopped (state T)",
            said: &[stopped, was_stopped],
            never: &[running, queue_full],
        },
        Claim {
            words: "find out who stopped it (SIGSTOP, or job control)",
            said: &[stopped, was_stopped],
            never: &[running, queue_full],
        },
        Claim {
            words: "does not take them in time: candidates are a stuck or busy process, too few workers, and accept() that",
            said: &[queue_full, running],
            never: &[stopped, deferred, one_client],
        },
        Claim {
            words: "a longer queue helps against bursts alone",
            said: &[queue_full, running],
            never: &[stopped, deferred, one_client],
        },
        Claim {
            words: "it looks like a SYN flood from forged addresses",
            said: &[flood, flood_or_not],
            never: &[burst, few, several],
        },
        Claim {
            words: "a SYN flood from forged addresses, or as if no SYN-ACK of this host came through",
            said: &[flood_or_not],
            never: &[flood, burst],
        },
        Claim {
            words: "where none do, an output filter or the route back is the cause, and no flood",
            said: &[flood_or_not],
            never: &[flood, burst],
        },
        Claim {
            words: "gets SYNs from about",
            said: &[flood],
            never: &[burst, one_client],
        },
        Claim {
            words: "were answered with cookies",
            said: &[flood],
            never: &[burst, one_client],
        },
        Claim {
            words: "have net.ipv4.tcp_syncookies at 1",
            said: &[flood],
            never: &[burst, several],
        },
        Claim {
            words: "filter upstream, or on this host before TCP",
            said: &[flood],
            never: &[burst, several],
        },
    ],
};
