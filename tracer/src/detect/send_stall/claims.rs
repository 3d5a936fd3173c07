//! What `send_stall` says, and of what it must not.

use std::time::Duration;

use super::tests::{LOCAL, REMOTE, probes, stall, unanswered};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, socket},
};

/// The peer answers each probe, and has no room.
fn no_room(run: &mut Run) {
    probes(run, 5, 0, 0);
}

/// The same, until it is silent.
fn silent_at_last(run: &mut Run) {
    no_room(run);
    unanswered(run, 5, 1);
    unanswered(run, 6, 2);
}

/// The peer is silent from the first probe on.
fn silent(run: &mut Run) {
    for before in 1..=4 {
        unanswered(run, before, before);
    }
}

/// The window is open, and a rule or a queue of this host drops the probes.
fn dropped_here(run: &mut Run) {
    probes(run, 4, 64_000, -1);
}

/// The same, and which rule is known.
fn dropped_by_rule(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |dropped| {
        std::mem::swap(&mut dropped.local_addr, &mut dropped.remote_addr);
        std::mem::swap(&mut dropped.local_port, &mut dropped.remote_port);
    });
    dropped_here(run);
}

/// The peer answers each probe, and has no room; what is dropped is not why.
fn no_room_and_dropped(run: &mut Run) {
    run.dropped(socket(LOCAL, REMOTE), |_| {});
    no_room(run);
}

/// The window is open, and the probes leave: nothing is known of why.
fn open_window(run: &mut Run) {
    probes(run, 5, 64_000, 0);
}

/// The window is shut, and the probes do not leave either: whether the peer reads is not known.
fn shut_and_dropped_here(run: &mut Run) {
    probes(run, 5, 0, -1);
}

/// The window has room for less than a segment, and each probe carries as much (one side lost the window scale).
fn small_window(run: &mut Run) {
    for _ in 0..6 {
        run.pass(Duration::from_millis(400));
        run.probe(socket(LOCAL, REMOTE), |probe| {
            probe.keepalive = 0;
            stall(&mut probe.tcp, 500);
            probe.tcp.packets_out = 1;
        });
    }
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "send_stall",
    kind: "send_stall",
    run: alone,
    claims: &[
        Claim {
            words: "dropped on this host",
            said: &[dropped_by_rule],
            never: &[dropped_here, no_room_and_dropped, silent],
        },
        Claim {
            words: "mend rule 5 of the chain",
            said: &[dropped_by_rule],
            never: &[dropped_here, no_room_and_dropped],
        },
        Claim {
            words: "has had no room for",
            said: &[no_room],
            never: &[
                silent,
                dropped_here,
                open_window,
                small_window,
                shut_and_dropped_here,
            ],
        },
        Claim {
            words: "its application does not read, or its kernel has no memory for what comes",
            said: &[no_room],
            never: &[
                silent,
                dropped_here,
                open_window,
                small_window,
                shut_and_dropped_here,
            ],
        },
        Claim {
            words: "nothing was lost on the way",
            said: &[no_room],
            never: &[silent, dropped_here, small_window],
        },
        Claim {
            words: "look at what the peer's process does instead of reading",
            said: &[no_room],
            never: &[silent, dropped_here, small_window],
        },
        Claim {
            words: "where Recv-Q is small, memory is short there",
            said: &[no_room],
            never: &[silent, dropped_here, small_window],
        },
        Claim {
            words: "and answers no more",
            said: &[silent_at_last],
            never: &[no_room, silent, dropped_here],
        },
        Claim {
            words: "did not leave this host, and nothing else of the connection does",
            said: &[dropped_here],
            never: &[no_room, open_window, small_window, shut_and_dropped_here],
        },
        Claim {
            words: "sends, or has no way for it",
            said: &[dropped_here],
            never: &[no_room, open_window, silent],
        },
        Claim {
            words: "look at this host's output firewall",
            said: &[dropped_here],
            never: &[no_room, silent, open_window],
        },
    ],
};
