//! What is said of half-closed sockets, and of what it must not be.

use std::time::Duration;

use conntracer_common::{
    record::{Snapshot, snapshot_flag, socket_flag},
    tcp::state,
};

use super::tests::{poll, told_of};
use crate::{
    detect::claims::{Claim, Register},
    testing::{Run, listener, socket},
};

/// Looks, and what they show.
type Case = fn() -> Run;

const SECOND: u64 = 1_000_000_000;

fn closing() -> Run {
    told_of(state::CLOSE_WAIT, |_, _| {})
}

fn as_seen(half: u8, look: fn(&mut Snapshot)) -> Run {
    told_of(half, |_, snapshot| look(snapshot))
}

fn queued() -> Run {
    as_seen(state::CLOSE_WAIT, |snapshot| {
        snapshot.flags = snapshot_flag::NOT_ACCEPTED | snapshot_flag::END_UNREAD;
    })
}

/// Another finding tells of them.
fn queued_as_told() -> Run {
    let mut run = Run::new();
    let waits = listener("10.0.0.1:80", "10.0.0.2:4000");
    run.acceptor(waits, |_| ());
    run.accept_queue(waits, |_| ());
    let mut socket = socket("10.0.0.1:80", "10.0.0.2:4000");
    socket.state = state::CLOSE_WAIT;
    let since_ns = run.ktime_ns() - 61 * SECOND;
    run.snapshot(socket, |snapshot| {
        snapshot.since_ns = since_ns;
        snapshot.flags = snapshot_flag::NOT_ACCEPTED;
    });
    run.tick();
    run
}

fn two_queued() -> Run {
    let mut run = Run::new();
    for port in [4000, 4001] {
        let mut socket = socket("10.0.0.1:80", &format!("10.0.0.2:{port}"));
        socket.state = state::CLOSE_WAIT;
        let since_ns = run.ktime_ns() - 61 * SECOND;
        run.snapshot(socket, |snapshot| {
            snapshot.since_ns = since_ns;
            snapshot.flags = snapshot_flag::NOT_ACCEPTED;
        });
    }
    run.tick();
    run
}

fn not_read() -> Run {
    as_seen(state::CLOSE_WAIT, |snapshot| {
        snapshot.flags = snapshot_flag::END_UNREAD;
        snapshot.unread = 7;
    })
}

fn slow() -> Run {
    as_seen(state::CLOSE_WAIT, |snapshot| snapshot.tcp.write_seq = 5000)
}

fn unanswered() -> Run {
    as_seen(state::CLOSE_WAIT, |snapshot| {
        snapshot.tcp.write_seq = 5000;
        snapshot.tcp.retransmits = 3;
    })
}

fn in_use() -> Run {
    told_of(state::CLOSE_WAIT, |poll, snapshot| {
        snapshot.sent_idle_ns = poll % 4 * SECOND / 4;
    })
}

fn shut() -> Run {
    told_of(state::FIN_WAIT2, |_, _| {})
}

fn shut_and_not_read() -> Run {
    as_seen(state::FIN_WAIT2, |snapshot| snapshot.unread = 65_000)
}

fn shut_and_in_use() -> Run {
    told_of(state::FIN_WAIT2, |poll, snapshot| {
        snapshot.received_idle_ns = poll % 100 * SECOND / 4;
    })
}

fn growing(half: u8) -> Run {
    let mut run = Run::new();
    for step in 0..7_u16 {
        poll(&mut run, half, 1 + 2 * step, Duration::from_secs(61));
        run.skip(Duration::from_secs(10));
    }
    run
}

fn leak() -> Run {
    growing(state::CLOSE_WAIT)
}

fn shut_leak() -> Run {
    growing(state::FIN_WAIT2)
}

fn burst() -> Run {
    let mut run = Run::new();
    for count in [1, 4, 4, 9, 9, 9, 9] {
        poll(&mut run, state::CLOSE_WAIT, count, Duration::from_secs(61));
        run.skip(Duration::from_secs(10));
    }
    run
}

fn inherited(holders: &[u8]) -> Run {
    let mut run = Run::new();
    for (port, holders) in (4000..).zip(holders) {
        let mut socket = socket("10.0.0.1:80", &format!("10.0.0.2:{port}"));
        socket.state = state::CLOSE_WAIT;
        let since_ns = run.ktime_ns() - 61 * SECOND;
        run.snapshot(socket, |snapshot| {
            snapshot.since_ns = since_ns;
            snapshot.owner.holders = *holders;
        });
    }
    run.tick();
    run
}

/// Somebody may have called close(), and a child has a copy.
fn shared() -> Run {
    inherited(&[2, 3])
}

fn some_shared() -> Run {
    inherited(&[1, 2])
}

fn older() -> Run {
    let mut run = Run::new();
    let mut socket = socket("10.0.0.1:80", "10.0.0.2:5000");
    socket.state = state::CLOSE_WAIT;
    socket.flags = socket_flag::OLDER;
    run.snapshot(socket, |snapshot| {
        snapshot.since_ns = socket.born_ns - 62 * SECOND;
    });
    run.tick();
    run
}

pub(crate) static REGISTER: Register<Case> = Register {
    room: "half_open, half_closed",
    kind: "half_open",
    run: |case| case(),
    claims: &[
        Claim {
            words: "connection in CLOSE_WAIT waits for accept() by process 1234",
            said: &[queued],
            never: &[two_queued, closing, not_read],
        },
        Claim {
            words: "wait for accept() by",
            said: &[two_queued],
            never: &[closing, not_read, slow],
        },
        Claim {
            words: "waits for accept() by",
            said: &[queued],
            never: &[closing, not_read],
        },
        Claim {
            words: "the peers have closed their side meanwhile",
            said: &[queued, two_queued],
            never: &[closing, not_read, shut],
        },
        Claim {
            words: "does instead of accept()",
            said: &[queued],
            never: &[queued_as_told, closing, not_read, shut],
        },
        Claim {
            words: "in CLOSE_WAIT",
            said: &[closing, queued, slow],
            never: &[shut, in_use],
        },
        Claim {
            words: "in FIN_WAIT2",
            said: &[shut, shut_and_not_read],
            never: &[closing, shut_and_in_use],
        },
        Claim {
            words: "for at least",
            said: &[older],
            never: &[closing, burst],
        },
        Claim {
            words: "the peer has closed its side, and acknowledges nothing of what it is still sent",
            said: &[unanswered],
            never: &[slow, closing, in_use, not_read],
        },
        Claim {
            words: "the peer has closed its side, and is slow to take what it is still sent",
            said: &[slow],
            never: &[unanswered, closing, in_use, not_read],
        },
        Claim {
            words: "nothing leaks: bound how long",
            said: &[slow, unanswered],
            never: &[closing, leak, not_read],
        },
        Claim {
            words: "what came before its end (7 bytes) is not read",
            said: &[not_read],
            never: &[closing, slow, queued],
        },
        Claim {
            words: "the peer has closed, and what came before its end",
            said: &[not_read],
            never: &[closing, slow, queued, shut_and_not_read],
        },
        Claim {
            words: "does instead of reading",
            said: &[not_read, shut_and_not_read],
            never: &[closing, slow, queued, shut],
        },
        Claim {
            words: "the peer has closed, close() was not called",
            said: &[closing, leak, some_shared],
            never: &[shared, not_read, queued, slow, in_use, shut],
        },
        Claim {
            words: "and not every process that holds them has called close()",
            said: &[shared],
            never: &[closing, some_shared],
        },
        Claim {
            words: "close every copy",
            said: &[shared],
            never: &[closing, some_shared],
        },
        Claim {
            words: "close what a child is not to have before exec()",
            said: &[shared],
            never: &[closing],
        },
        Claim {
            words: ": a leak",
            said: &[leak, shut_leak],
            never: &[burst, closing, slow, in_use],
        },
        Claim {
            words: " more within ",
            said: &[leak],
            never: &[burst, closing],
        },
        Claim {
            words: "that forgets close() after read() returned 0",
            said: &[leak],
            never: &[burst, closing, slow, shared, shut_leak],
        },
        Claim {
            words: "at RLIMIT_NOFILE accept() fails",
            said: &[leak, shut_leak],
            never: &[burst, closing],
        },
        Claim {
            words: "shuts connections and never closes them",
            said: &[shut_leak],
            never: &[leak, shut],
        },
        Claim {
            words: "waits for before it closes: a stuck task, or a peer it forgot",
            said: &[closing, burst],
            never: &[leak, not_read, queued, shut],
        },
        Claim {
            words: "it has shut its side, and does not read what the peer sends",
            said: &[shut_and_not_read],
            never: &[shut, shut_and_in_use],
        },
        // Its end may be dropped on this host.
        Claim {
            words: "it has shut its side, and no end of the peer's has come through",
            said: &[shut, shut_leak],
            never: &[shut_and_not_read, shut_and_in_use, closing],
        },
        Claim {
            words: "see whether the peer has closed ('ss -tn' there)",
            said: &[shut],
            never: &[closing, shut_and_not_read],
        },
        Claim {
            words: "close() instead of shutdown() when it wants no answer",
            said: &[shut],
            never: &[closing, shut_and_not_read],
        },
        Claim {
            words: "the kernel ends FIN_WAIT2 by itself only after close()",
            said: &[shut],
            never: &[closing],
        },
    ],
};
