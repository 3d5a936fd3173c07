//! What `receive_stall` says, and of what it must not.

use std::time::Duration;

use conntracer_common::record::{acceptor_flag, owner_source};

use super::tests::{LOCAL, REMOTE, looks, unread};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, socket},
};

/// The only process that holds the connection sleeps elsewhere.
fn sleeps(run: &mut Run) {
    unread(run, 14, |_, _| ());
}

fn stopped(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |_, process| (process.state, process.stopped) = (b'T', 1),
    );
}

fn traced(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |_, process| (process.state, process.stopped) = (b't', 1),
    );
}

fn frozen(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |_, process| process.flags |= acceptor_flag::FROZEN,
    );
}

fn throttled(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |step, process| {
            (process.throttled, process.throttled_us) = (step, 300_000 * step);
        },
    );
}

fn busy(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |step, process| process.cpu_ms = 495 * step,
    );
}

/// It accepts nothing, and could read all the same.
fn without_descriptors(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |_, process| {
            (process.descriptors, process.descriptor_limit) = (32, 32);
        },
    );
}

/// Two hold the connection, and the second one may read.
fn one_of_two_stopped(run: &mut Run) {
    for _ in 0..14 {
        run.acceptor(socket(LOCAL, REMOTE), |process| {
            process.flags = acceptor_flag::HOLDS;
            (process.state, process.stopped) = (b'T', 1);
        });
        run.acceptor(socket(LOCAL, REMOTE), |process| {
            (process.index, process.pid) = (1, 1235);
        });
        run.receive(socket(LOCAL, REMOTE), |_| ());
        run.pass(Duration::from_millis(500));
    }
}

/// A child of the owner's is stopped, who may hold nothing of it.
fn child_stopped(run: &mut Run) {
    looks(
        run,
        14,
        |_, _| (),
        |_, process| {
            (process.pid, process.parent_pid) = (1235, 1234);
            process.flags = acceptor_flag::LAST;
            (process.state, process.stopped) = (b'T', 1);
        },
    );
}

/// Nobody knows whose it is.
fn unknown_owner(run: &mut Run) {
    for _ in 0..14 {
        run.receive(socket(LOCAL, REMOTE), |look| {
            look.owner.source = owner_source::UNKNOWN;
            look.owner.pid = 0;
        });
        run.pass(Duration::from_millis(500));
    }
}

/// The window opened and shut between two looks.
fn reads_slowly(run: &mut Run) {
    unread(run, 14, |step, look| {
        look.copied_seq = 7000 + u32::try_from(step).unwrap_or_default() * 10;
    });
}

/// It does not read, and the window has room: its peer sends nothing.
fn room_is_left(run: &mut Run) {
    unread(run, 14, |_, look| (look.window, look.flags) = (60_000, 0));
}

fn reads_again(run: &mut Run) {
    sleeps(run);
    unread(run, 1, |_, look| {
        (look.copied_seq, look.flags) = (67_000, 0);
    });
}

fn ends(run: &mut Run) {
    sleeps(run);
    run.pass(Duration::from_secs(5));
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "receive_stall",
    kind: "receive_stall",
    run: alone,
    claims: &[
        Claim {
            words: "has read nothing from",
            said: &[sleeps, stopped, unknown_owner],
            never: &[reads_slowly, room_is_left, reads_again],
        },
        Claim {
            words: "wait to be read, and the window is shut, so that the peer cannot send",
            said: &[sleeps, stopped],
            never: &[reads_slowly, room_is_left, reads_again],
        },
        Claim {
            words: "is stopped (state T)",
            said: &[stopped],
            never: &[
                sleeps,
                traced,
                one_of_two_stopped,
                child_stopped,
                without_descriptors,
            ],
        },
        Claim {
            words: "is stopped by a debugger (state t)",
            said: &[traced],
            never: &[sleeps, stopped],
        },
        Claim {
            words: "is frozen with its control group",
            said: &[frozen],
            never: &[sleeps, stopped],
        },
        Claim {
            words: "is kept from running by a CPU quota",
            said: &[throttled],
            never: &[sleeps, busy, frozen],
        },
        Claim {
            words: "is busy: it used",
            said: &[busy],
            never: &[sleeps, stopped, throttled],
        },
        Claim {
            words: "sleeps (state S)",
            said: &[sleeps],
            never: &[stopped, busy, unknown_owner],
        },
        Claim {
            words: "read nothing from 10.0.0.2:4000 for",
            said: &[reads_again, ends],
            never: &[reads_slowly, room_is_left],
        },
        Claim {
            words: "waited and the window was shut",
            said: &[reads_again, ends],
            never: &[sleeps, room_is_left],
        },
        Claim {
            words: "it reads again",
            said: &[reads_again],
            never: &[sleeps, ends],
        },
        Claim {
            words: "the connection has ended",
            said: &[ends],
            never: &[sleeps, reads_again],
        },
        Claim {
            words: "find out who stopped it (SIGSTOP, or job control), and let it run",
            said: &[stopped],
            never: &[sleeps, traced, frozen, one_of_two_stopped, child_stopped],
        },
        Claim {
            words: "let the debugger go on",
            said: &[traced],
            never: &[sleeps, stopped],
        },
        Claim {
            words: "thaw its control group",
            said: &[frozen],
            never: &[sleeps, stopped],
        },
        Claim {
            words: "'docker unpause', 'systemctl thaw'",
            said: &[frozen],
            never: &[sleeps, stopped],
        },
        Claim {
            words: "raise the quota of its control group",
            said: &[throttled],
            never: &[sleeps, busy],
        },
        Claim {
            words: "why it does not read is not known: find out what",
            said: &[
                sleeps,
                busy,
                one_of_two_stopped,
                child_stopped,
                unknown_owner,
            ],
            never: &[stopped, traced, frozen, throttled],
        },
        Claim {
            words: "candidates are a slow disk, database or other connection that it writes to",
            said: &[sleeps],
            never: &[stopped, throttled],
        },
        Claim {
            words: "a larger receive buffer only puts it off",
            said: &[sleeps],
            never: &[stopped, throttled],
        },
    ],
};
