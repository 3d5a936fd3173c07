//! What is said of silent connections, and of what it must not be.

use std::time::Duration;

use conntracer_common::{
    record::{Socket, drop_hook, drop_layer, drop_rule},
    tcp::state,
};

use super::tests::candidates::full_sized;
use super::tests::{LOCAL, REMOTE, gone, timeouts, untracked, untracked_timeouts, window_probes};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, socket},
};

fn silent(run: &mut Run) {
    timeouts(run, LOCAL, REMOTE, 4);
}

fn given_up(run: &mut Run) {
    silent(run);
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.retransmits = 4;
    });
}

/// Of another error than those with which the kernel gives up: an application, or an administrator, ended it.
fn closed(run: &mut Run) {
    silent(run);
    run.closed(socket(LOCAL, REMOTE), |_| {});
}

fn answers_again(run: &mut Run) {
    silent(run);
    run.snapshot(socket(LOCAL, REMOTE), |snapshot| {
        snapshot.tcp.snd_una = 3000;
        snapshot.tcp.snd_nxt = 3000;
    });
}

fn reset(run: &mut Run) {
    silent(run);
    run.reset_received(socket(LOCAL, REMOTE));
}

fn not_watched(run: &mut Run) {
    untracked_timeouts(run);
    run.pass(Duration::from_mins(5));
}

fn ended_untracked(run: &mut Run) {
    untracked_timeouts(run);
    run.close(untracked(), |ending| ending.error = 110);
}

/// Keepalive probes.
fn probed(run: &mut Run) {
    for unanswered in 0..=3 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.tcp.probes_out = unanswered;
        });
    }
}

fn probes_given_up(run: &mut Run) {
    probed(run);
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.probes_out = 4;
    });
}

fn window_probed(run: &mut Run) {
    window_probes(run, 0);
}

fn answered_window_probes(run: &mut Run) {
    for _ in 0..20 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.tcp.probes_out = 1;
        });
        run.snapshot(socket(LOCAL, REMOTE), |_| {});
    }
}

fn with_errors(run: &mut Run, errors: &[u32]) {
    for (number, error) in (1..).zip(errors) {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.write_seq = 3000;
            retransmit.error = *error;
            retransmit.failures_traced = 1;
        });
    }
    run.pass(Duration::from_secs(1));
}

fn none_left(run: &mut Run) {
    with_errors(run, &[1, 1, 1, 1]);
}

fn none_left_given_up(run: &mut Run) {
    none_left(run);
    run.closed(socket(LOCAL, REMOTE), |closed| closed.error = 110);
}

fn some_left(run: &mut Run) {
    with_errors(run, &[0, 1, 1, 1]);
}

fn probes_refused_here(run: &mut Run) {
    for unanswered in 0..=3 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            probe.result = -1;
            probe.tcp.probes_out = unanswered;
        });
    }
}

/// Full-sized segments fail, and the peer talks.
fn narrow(run: &mut Run) {
    full_sized(run, REMOTE, true);
}

fn narrow_given_up(run: &mut Run) {
    narrow(run);
    run.closed(socket(LOCAL, REMOTE), |closed| closed.error = 110);
}

/// Full-sized segments fail, and nothing is heard.
fn full_sized_alone(run: &mut Run) {
    full_sized(run, REMOTE, false);
    run.pass(Duration::from_secs(2));
}

fn beside(run: &mut Run, answered: u32, ago: Duration) {
    run.beside(socket(LOCAL, REMOTE), (3, answered), ago);
    run.pass(Duration::from_secs(2));
    run.checkpoint();
}

fn full_sized_others_answered(run: &mut Run) {
    full_sized(run, REMOTE, false);
    beside(run, 2, Duration::from_millis(10));
}

fn full_sized_another_is_narrow(run: &mut Run) {
    full_sized(run, "10.0.0.2:4001", true);
    full_sized(run, REMOTE, false);
    run.pass(Duration::from_secs(2));
}

fn others_answered(run: &mut Run) {
    silent(run);
    beside(run, 2, Duration::from_millis(10));
}

fn others_silent(run: &mut Run) {
    silent(run);
    beside(run, 0, Duration::from_mins(1));
}

/// It sends small segments, and acknowledges none.
fn talks(run: &mut Run) {
    for number in 1..=4 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.packets_out = 2;
            retransmit.tcp.lost_out = 1;
        });
    }
}

fn orphan(run: &mut Run) {
    let orphan = Socket {
        state: state::FIN_WAIT1,
        ..socket(LOCAL, REMOTE)
    };
    for timeouts in 1..=3 {
        run.retransmit(orphan, |retransmit| {
            retransmit.tcp.retransmits = timeouts;
            retransmit.tcp.orphan = 1;
        });
    }
}

fn amounts(run: &mut Run, shutdown: u8, bytes: u32) {
    for number in 1..=3 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.shutdown = shutdown;
            retransmit.tcp.snd_nxt = retransmit.tcp.snd_una + bytes;
            retransmit.tcp.write_seq = retransmit.tcp.snd_nxt;
        });
    }
}

fn fin_alone(run: &mut Run) {
    amounts(run, 2, 1);
}

fn fin_and_data(run: &mut Run) {
    amounts(run, 2, 101);
}

fn data_alone(run: &mut Run) {
    amounts(run, 0, 100);
}

fn older(run: &mut Run, heard_idle_ns: u64) {
    run.seed(socket(LOCAL, REMOTE), |seed| {
        seed.tcp.retransmits = 6;
        seed.tcp.snd_una = 1000;
        seed.tcp.snd_nxt = 3000;
        seed.heard_idle_ns = heard_idle_ns;
    });
}

fn since_not_known(run: &mut Run) {
    older(run, u64::MAX);
}

fn since_in_the_socket(run: &mut Run) {
    older(run, 13_400_000_000);
}

fn user_timeout_set(run: &mut Run) {
    gone(run, 9000);
}

fn keepalive_on(run: &mut Run) {
    for number in 1..=3 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(LOCAL, REMOTE), |retransmit| {
            retransmit.tcp.retransmits = number;
            retransmit.tcp.keepalive = 2;
        });
    }
}

/// A layer of this host drops what is sent to the silent socket.
fn dropped_at<const LAYER: u8>(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |dropped| {
        dropped.layer = LAYER;
        dropped.hook = drop_hook::UNKNOWN;
        dropped.rule = drop_rule::UNKNOWN;
        dropped.table = [0; 32];
        dropped.chain = [0; 32];
    });
    silent(run);
}

/// A rule that is known drops it.
fn dropped_by_rule(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |_| {});
    silent(run);
}

/// In another namespace, where segments of the same ends are another connection's.
fn dropped_of_others(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |dropped| {
        dropped.netns += 1;
        dropped.seq = 1 << 30;
    });
    silent(run);
}

/// One of many: most are lost elsewhere.
fn hardly_dropped(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |dropped| dropped.count = 1);
    silent(run);
}

/// What was dropped was between other ends.
fn dropped_elsewhere(run: &mut Run) {
    run.dropped(socket("10.0.0.1:80", "10.0.0.9:9"), |_| {});
    silent(run);
}

/// Long before the silence began.
fn dropped_before(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |_| {});
    run.pass(Duration::from_mins(1));
    silent(run);
}

const NOT_HERE: &[Records] = &[
    silent,
    dropped_of_others,
    hardly_dropped,
    dropped_elsewhere,
    dropped_before,
];

pub(crate) static REGISTER: Register<Records> = Register {
    room: "half_open, dead_peer",
    kind: "half_open",
    run: alone,
    claims: &[
        Claim {
            words: "dropped on this host",
            said: &[
                dropped_by_rule,
                dropped_at::<{ drop_layer::NETFILTER }>,
                dropped_at::<{ drop_layer::QDISC }>,
                dropped_at::<{ drop_layer::RECEIVE_BUFFER }>,
                dropped_at::<{ drop_layer::CHECKSUM }>,
            ],
            never: NOT_HERE,
        },
        Claim {
            words: "mend rule 5 of the chain",
            said: &[dropped_by_rule],
            never: &[silent, dropped_at::<{ drop_layer::NETFILTER }>],
        },
        Claim {
            words: "look for the rule or the policy that drops at hook",
            said: &[dropped_at::<{ drop_layer::NETFILTER }>],
            never: &[
                silent,
                dropped_by_rule,
                dropped_at::<{ drop_layer::TC_INGRESS }>,
            ],
        },
        Claim {
            words: "look for the filter (",
            said: &[
                dropped_at::<{ drop_layer::TC_INGRESS }>,
                dropped_at::<{ drop_layer::TC_EGRESS }>,
            ],
            never: &[silent, dropped_by_rule, dropped_at::<{ drop_layer::QDISC }>],
        },
        Claim {
            words: "look at the queue's limit and rate",
            said: &[dropped_at::<{ drop_layer::QDISC }>],
            never: &[silent, dropped_at::<{ drop_layer::TC_EGRESS }>],
        },
        Claim {
            words: "raise net.core.netdev_max_backlog",
            said: &[dropped_at::<{ drop_layer::CPU_BACKLOG }>],
            never: &[silent, dropped_at::<{ drop_layer::SOCKET_BACKLOG }>],
        },
        Claim {
            words: "look at the XDP program",
            said: &[dropped_at::<{ drop_layer::XDP }>],
            never: &[silent, dropped_at::<{ drop_layer::BPF }>],
        },
        Claim {
            words: "look at the programs of the control group",
            said: &[dropped_at::<{ drop_layer::BPF }>],
            never: &[silent, dropped_at::<{ drop_layer::XDP }>],
        },
        Claim {
            words: "look at the routes and at the reverse path filter",
            said: &[dropped_at::<{ drop_layer::ROUTE }>],
            never: &[silent, dropped_at::<{ drop_layer::NEIGHBOUR }>],
        },
        Claim {
            words: "look at the neighbour entries",
            said: &[dropped_at::<{ drop_layer::NEIGHBOUR }>],
            never: &[silent, dropped_at::<{ drop_layer::ROUTE }>],
        },
        Claim {
            words: "look for what changes packets or leaves their checksums undone",
            said: &[dropped_at::<{ drop_layer::CHECKSUM }>],
            never: &[silent, dropped_at::<{ drop_layer::AUTH }>],
        },
        Claim {
            words: "compare the keys of both ends",
            said: &[dropped_at::<{ drop_layer::AUTH }>],
            never: &[silent, dropped_at::<{ drop_layer::CHECKSUM }>],
        },
        Claim {
            words: "let the receiving process read faster",
            said: &[dropped_at::<{ drop_layer::RECEIVE_BUFFER }>],
            never: &[silent, dropped_at::<{ drop_layer::SOCKET_BACKLOG }>],
        },
        Claim {
            words: "let the receiving process hold the socket for shorter",
            said: &[dropped_at::<{ drop_layer::SOCKET_BACKLOG }>],
            never: &[silent, dropped_at::<{ drop_layer::RECEIVE_BUFFER }>],
        },
        Claim {
            words: "look at the device's drops",
            said: &[dropped_at::<{ drop_layer::DEVICE }>],
            never: &[silent, dropped_at::<{ drop_layer::QDISC }>],
        },
        Claim {
            words: "no acknowledgement from",
            said: &[silent, given_up, some_left, orphan],
            never: &[none_left, narrow, probed, talks, answers_again_alone],
        },
        Claim {
            words: "no answer from",
            said: &[probed, window_probed],
            never: &[silent, probes_refused_here, answered_window_probes],
        },
        Claim {
            words: "sends, and no acknowledgement of it comes through",
            said: &[talks],
            never: &[silent, narrow, probed],
        },
        Claim {
            words: "in a row in",
            said: &[silent, since_in_the_socket],
            never: &[since_not_known, probed],
        },
        Claim {
            words: "since when is not known: it began before conntracer",
            said: &[since_not_known],
            never: &[silent, since_in_the_socket],
        },
        Claim {
            words: "it began before conntracer",
            said: &[since_not_known],
            never: &[silent, since_in_the_socket],
        },
        Claim {
            words: "unanswered keepalive probes",
            said: &[probed, probes_given_up],
            never: &[window_probed, silent, answered_window_probes],
        },
        Claim {
            words: "unanswered keepalive probe ",
            said: &[one_probe_given_up],
            never: &[window_probed, silent],
        },
        Claim {
            words: "unanswered window probe",
            said: &[window_probed],
            never: &[probed, silent, answered_window_probes],
        },
        Claim {
            words: "retransmission timeout",
            said: &[silent, none_left],
            never: &[probed, window_probed],
        },
        Claim {
            words: "2000 bytes unacknowledged",
            said: &[silent],
            never: &[none_left, probed, fin_alone],
        },
        Claim {
            words: ", the FIN unacknowledged",
            said: &[fin_alone],
            never: &[fin_and_data, data_alone],
        },
        Claim {
            words: "bytes and the FIN unacknowledged",
            said: &[fin_and_data],
            never: &[fin_alone, data_alone],
        },
        Claim {
            words: " not delivered",
            said: &[none_left],
            never: &[silent, some_left],
        },
        Claim {
            words: "no retransmission to 10.0.0.2:4000 leaves this host",
            said: &[none_left],
            never: &[some_left, silent, probes_refused_here],
        },
        Claim {
            words: "leaves this host",
            said: &[none_left, probes_refused_here],
            never: &[some_left, silent, probed, narrow],
        },
        Claim {
            words: " left this host: the kernel gave up",
            said: &[none_left_given_up],
            never: &[given_up, some_left],
        },
        Claim {
            words: " never left this host",
            said: &[some_left],
            never: &[none_left, silent],
        },
        Claim {
            words: "look at this host's output firewall, its qdisc",
            said: &[none_left, some_left, probes_refused_here],
            never: &[silent, probed, narrow, full_sized_alone],
        },
        Claim {
            words: "the kernel gave up",
            said: &[
                given_up,
                probes_given_up,
                none_left_given_up,
                narrow_given_up,
            ],
            never: &[silent, closed, reset, answers_again, not_watched],
        },
        Claim {
            words: "with ETIMEDOUT after",
            said: &[given_up],
            never: &[closed, reset, outlasted],
        },
        Claim {
            words: "answers again after",
            said: &[answers_again],
            never: &[silent, closed, reset, given_up],
        },
        Claim {
            words: "a reset came from the address of",
            said: &[reset],
            never: &[given_up, closed, answers_again],
        },
        Claim {
            words: "let the application reconnect: who sent the reset does not know the connection, or ended it",
            said: &[reset],
            never: &[given_up, closed],
        },
        Claim {
            words: "was closed after",
            said: &[closed],
            never: &[given_up, reset, answers_again],
        },
        Claim {
            words: "no longer watched, it shows nothing more",
            said: &[not_watched],
            never: &[ended_untracked, closed],
        },
        Claim {
            words: "no longer watched, the table is full",
            said: &[table_full],
            never: &[not_watched, closed],
        },
        Claim {
            words: "had 3 retransmission timeouts",
            said: &[not_watched],
            never: &[silent],
        },
        Claim {
            words: "the application has closed the connection and is not told",
            said: &[orphan],
            never: &[silent, fin_alone],
        },
        Claim {
            words: "let the application see its last data arrive before it closes",
            said: &[orphan],
            never: &[silent, fin_alone],
        },
        Claim {
            words: "net.ipv4.tcp_orphan_retries",
            said: &[orphan],
            never: &[silent],
        },
        Claim {
            words: "bounds how long the kernel keeps what was closed",
            said: &[orphan],
            never: &[silent],
        },
        Claim {
            words: "full-sized segments do not reach 10.0.0.2:4000, which talks",
            said: &[narrow, narrow_given_up],
            never: &[
                full_sized_alone,
                talks,
                silent,
                full_sized_another_is_narrow,
            ],
        },
        Claim {
            words: "full-sized segments do not reach",
            said: &[narrow],
            never: &[full_sized_alone, silent],
        },
        Claim {
            words: "all that fails are full-sized segments",
            said: &[
                full_sized_alone,
                full_sized_others_answered,
                full_sized_another_is_narrow,
            ],
            never: &[narrow, silent, talks],
        },
        Claim {
            words: "the path may be too narrow for them, or the peer is gone",
            said: &[full_sized_alone],
            never: &[
                full_sized_others_answered,
                narrow,
                silent,
                full_sized_another_is_narrow,
            ],
        },
        Claim {
            words: "the path may be too narrow for them, or something forgot this connection",
            said: &[full_sized_others_answered],
            never: &[full_sized_alone, others_answered, narrow],
        },
        Claim {
            words: "the path is too narrow for them",
            said: &[full_sized_another_is_narrow],
            never: &[full_sized_alone, full_sized_others_answered, silent],
        },
        Claim {
            words: "where only the small one is answered, the path is too narrow",
            said: &[full_sized_alone, full_sized_others_answered],
            never: &[silent, talks, others_answered],
        },
        Claim {
            words: "send it one packet as large that nobody may fragment",
            said: &[full_sized_alone],
            never: &[silent, talks],
        },
        Claim {
            words: "of this host meanwhile",
            said: &[others_answered, full_sized_others_answered],
            never: &[others_silent, silent, full_sized_alone],
        },
        Claim {
            words: "look for its packets here",
            said: &[silent, probed, full_sized_alone],
            never: &[none_left, narrow, full_sized_another_is_narrow],
        },
        Claim {
            words: "the peer is down, the way to it or back is broken",
            said: &[silent, others_silent],
            never: &[others_answered, full_sized_others_answered, none_left],
        },
        Claim {
            words: "the way to it or back is broken, or a firewall or NAT on it forgot the connection",
            said: &[silent, others_answered],
            never: &[none_left, narrow],
        },
        Claim {
            words: "to notice sooner, set TCP_USER_TIMEOUT",
            said: &[silent],
            never: &[user_timeout_set, orphan, probed],
        },
        Claim {
            words: "which is for every connection",
            said: &[silent],
            never: &[user_timeout_set, orphan, probed],
        },
        Claim {
            words: "set SO_KEEPALIVE on the socket (now off)",
            said: &[silent],
            never: &[keepalive_on, orphan],
        },
        Claim {
            words: "\"fragmentation needed\" and \"packet too big\"",
            said: &[narrow, full_sized_another_is_narrow],
            never: &[full_sized_alone, silent, talks],
        },
        Claim {
            words: "or set net.ipv4.tcp_mtu_probing",
            said: &[narrow],
            never: &[full_sized_alone, silent],
        },
    ],
};

/// No silence at all.
fn answers_again_alone(run: &mut Run) {
    run.snapshot(socket(LOCAL, REMOTE), |_| {});
}

fn one_probe_given_up(run: &mut Run) {
    for unanswered in 0..=1 {
        run.pass(Duration::from_secs(1));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.tcp.probes_out = unanswered;
        });
    }
    run.pass(Duration::from_secs(3));
    run.closed(socket(LOCAL, REMOTE), |closed| {
        closed.error = 110;
        closed.probes_out = 1;
    });
}

/// The socket is gone without a word, after as long as the kernel bears.
fn outlasted(run: &mut Run) {
    gone(run, 1400);
    run.pass(Duration::from_secs(1));
}

fn table_full(run: &mut Run) {
    let thresholds = crate::detect::Thresholds {
        limits: crate::detect::Limits {
            connections: 2,
            ..crate::detect::Limits::default()
        },
        ..crate::detect::Thresholds::default()
    };
    *run = Run::with(thresholds);
    for port in 4000..4004 {
        timeouts(run, LOCAL, &format!("10.0.0.2:{port}"), 3);
    }
}
