//! What `accept_delay` says, and of what it must not.

use std::time::Duration;

use conntracer_common::record::{AcceptQueue, Acceptor, Owner, acceptor_flag, descriptor_kind};

use super::tests::{inherited, member, on, seen, served, waiting};
use crate::{
    detect::claims::{Claim, Register},
    plan::HookType,
    testing::Run,
};

/// What a listener went through.
type Case = fn() -> Run;

/// Four looks at one process, of a listener that has served clients before.
fn process(change: fn(u64, &mut Acceptor)) -> Run {
    let mut run = seen();
    served(&mut run, 4, |_, _| (), change);
    run
}

fn look(change: fn(u64, &mut AcceptQueue)) -> Run {
    let mut run = seen();
    served(&mut run, 4, change, |_, _| ());
    run
}

fn sleeps() -> Run {
    process(|_, _| ())
}

fn stopped() -> Run {
    process(|_, process| (process.state, process.stopped) = (b'T', 1))
}

/// One thread of two: the other may accept.
fn one_thread_stopped() -> Run {
    process(|_, process| (process.state, process.threads, process.stopped) = (b'T', 2, 1))
}

fn traced() -> Run {
    process(|_, process| (process.state, process.stopped) = (b't', 1))
}

fn frozen() -> Run {
    process(|_, process| process.flags |= acceptor_flag::FROZEN)
}

fn no_descriptors() -> Run {
    process(|_, process| (process.descriptors, process.descriptor_limit) = (32, 32))
}

fn no_descriptors_for_sockets() -> Run {
    process(|_, process| {
        (process.descriptors, process.descriptor_limit) = (32, 32);
        (process.descriptor_kind, process.descriptors_of_kind) = (descriptor_kind::SOCKET, 30);
    })
}

fn a_descriptor_to_spare() -> Run {
    process(|_, process| (process.descriptors, process.descriptor_limit) = (31, 32))
}

fn throttled() -> Run {
    process(|step, process| (process.throttled, process.throttled_us) = (step, 300_000 * step))
}

fn hardly_throttled() -> Run {
    process(|step, process| (process.throttled, process.throttled_us) = (step, 30_000 * step))
}

fn busy() -> Run {
    process(|step, process| process.cpu_ms = 495 * step)
}

fn waits_for_a_disk() -> Run {
    process(|_, process| process.state = b'D')
}

fn runs() -> Run {
    process(|_, process| process.state = b'R')
}

fn has_ended() -> Run {
    process(|_, process| process.state = b'Z')
}

fn idles() -> Run {
    process(|_, process| process.state = b'I')
}

/// Stopped is a child of the listener's process, who may hold nothing of it.
fn of_a_child() -> Run {
    process(|_, process| {
        (process.pid, process.parent_pid, process.owner_pid) = (1235, 1234, 1234);
        process.flags = acceptor_flag::LAST;
        (process.state, process.stopped) = (b'T', 1);
    })
}

/// Of `count` and their master, all but the master are stopped.
fn several(count: u32, free: u32) -> Run {
    let mut run = seen();
    let last_ns = run.ktime_ns();
    for step in 0..3 {
        for index in 0..count + free {
            run.acceptor(member(0), |process| {
                (process.pid, process.index) = (1234 + index, index);
                process.flags = acceptor_flag::HOLDS;
                if index >= free {
                    (process.state, process.stopped) = (b'T', 1);
                }
                if index + 1 == count + free {
                    process.flags |= acceptor_flag::LAST;
                }
            });
        }
        run.accept_queue(member(0), |record| {
            record.oldest_ns += 500_000_000 * step;
            (record.accepted, record.last_accept_ns) = (100, last_ns);
        });
        run.pass(Duration::from_millis(500));
    }
    run
}

fn master_and_worker() -> Run {
    several(1, 1)
}

fn two_of_three_run() -> Run {
    several(1, 2)
}

fn three_stopped() -> Run {
    several(3, 1)
}

fn six_stopped() -> Run {
    several(6, 1)
}

/// A worker is stopped, and the others take what comes, too slowly.
fn others_take() -> Run {
    let mut run = seen();
    for step in 0..6 {
        for index in 0..2 {
            run.acceptor(member(0), |process| {
                (process.pid, process.index) = (1234 + index, index);
                process.flags = acceptor_flag::HOLDS;
                if index == 1 {
                    (process.state, process.stopped) = (b'T', 1);
                    process.flags |= acceptor_flag::LAST;
                }
            });
        }
        let now_ns = run.ktime_ns();
        run.accept_queue(member(0), |record| {
            (record.accepted, record.last_accept_ns) = (100 + step, now_ns);
        });
        run.pass(Duration::from_millis(500));
    }
    run
}

/// One is accepted now and then.
fn slow() -> Run {
    let mut run = seen();
    for step in 0..6 {
        let now_ns = run.ktime_ns();
        run.acceptor(member(0), |_| ());
        run.accept_queue(member(0), |record| {
            (record.accepted, record.last_accept_ns) = (100 + step, now_ns);
        });
        run.pass(Duration::from_millis(500));
    }
    run
}

/// The same where calls of accept() are not seen.
fn slow_by_its_queue() -> Run {
    let mut run = on(HookType::Tracepoint);
    for step in 0..6 {
        run.acceptor(member(0), |_| ());
        run.accept_queue(member(0), |record| record.completed = 100 + step);
        run.pass(Duration::from_millis(500));
    }
    run
}

/// Two sockets of one address that tracepoints do not tell apart: what was completed may be the other's.
fn of_a_group() -> Run {
    let mut run = on(HookType::Tracepoint);
    for step in 0..3 {
        for number in [0, 1] {
            run.syn(member(number), |_| ());
        }
        run.accept_queue(member(0), |record| {
            record.completed = 100 + 10 * step;
            record.oldest_ns += 500_000_000 * step;
        });
        run.pass(Duration::from_millis(500));
    }
    run
}

/// Nothing is known but the queue.
fn first_look() -> Run {
    let mut run = on(HookType::Tracepoint);
    run.accept_queue(member(0), |record| record.completed = 100);
    run
}

fn unknown_owner() -> Run {
    let mut run = seen();
    let last_ns = run.ktime_ns();
    run.skip(Duration::from_secs(2));
    run.accept_queue(member(0), |record| {
        record.owner = Owner::default();
        (record.accepted, record.last_accept_ns) = (100, last_ns);
    });
    run
}

/// A queue that is never empty, and moves.
fn busy_server() -> Run {
    let mut run = seen();
    for step in 0..10 {
        run.accept_queue(member(0), |record| {
            (record.oldest_ns, record.ack_backlog) = (900_000_000, 100);
            record.accepted = 1000 * step;
        });
        run.pass(Duration::from_millis(500));
    }
    run
}

fn inherited_by_a_child() -> Run {
    let mut run = seen();
    inherited(&mut run, 6, 0, false);
    run
}

/// The process that called listen() may have accepted, or the one that holds it now.
fn inherited_by_one_that_served() -> Run {
    let mut run = seen();
    inherited(&mut run, 6, 9, false);
    run
}

/// What was accepted before is not known.
fn inherited_before_the_start() -> Run {
    let mut run = seen();
    inherited(&mut run, 6, 0, true);
    run
}

fn forgotten() -> Run {
    let mut run = seen();
    waiting(&mut run, 70, |_, _| (), |_, _| ());
    run
}

fn just_begun() -> Run {
    let mut run = seen();
    waiting(&mut run, 6, |_, _| (), |_, _| ());
    run
}

fn closed_meanwhile() -> Run {
    look(|step, record| (record.fins, record.fins_now) = (step, 1))
}

fn reset_meanwhile() -> Run {
    look(|step, record| (record.resets, record.resets_now) = (step, 1))
}

/// By clients of an earlier time.
fn ended_before() -> Run {
    look(|_, record| (record.fins, record.resets) = (9, 9))
}

fn full() -> Run {
    look(|_, record| (record.ack_backlog, record.max_ack_backlog) = (9, 8))
}

/// One more finds room.
fn nearly_full() -> Run {
    look(|_, record| (record.ack_backlog, record.max_ack_backlog) = (8, 8))
}

/// It was let go, and what waits is taken.
fn resolved() -> Run {
    let mut run = stopped();
    for _ in 0..8 {
        run.acceptor(member(0), |_| ());
        run.accept_queue(member(0), |record| {
            (record.oldest_ns, record.ack_backlog, record.waiting) = (0, 0, 0);
        });
        run.pass(Duration::from_millis(500));
    }
    run
}

/// It was let go long ago, and nobody is accepted all the same.
fn resumed() -> Run {
    let mut run = seen();
    served(
        &mut run,
        16,
        |_, _| (),
        |step, process| {
            if step < 2 {
                (process.state, process.stopped) = (b'T', 1);
            }
        },
    );
    run
}

fn both_meanwhile() -> Run {
    look(|step, record| {
        (record.fins, record.fins_now) = (step, 1);
        (record.resets, record.resets_now) = (step, 1);
    })
}

pub(crate) static REGISTER: Register<Case> = Register {
    room: "accept_delay",
    kind: "accept_delay",
    run: |case| case(),
    claims: &[
        Claim {
            words: "descriptors are in use, 30 of them sockets",
            said: &[no_descriptors_for_sockets],
            never: &[no_descriptors, a_descriptor_to_spare],
        },
        Claim {
            words: "for accept() at 10.0.0.1:80",
            said: &[sleeps, stopped, slow],
            never: &[busy_server],
        },
        Claim {
            words: ", the oldest for",
            said: &[sleeps, stopped, slow],
            never: &[busy_server],
        },
        Claim {
            words: ", for up to",
            said: &[resolved],
            never: &[sleeps, busy_server],
        },
        Claim {
            words: " at the worst of 2 sockets",
            said: &[of_a_group],
            never: &[sleeps, slow],
        },
        Claim {
            words: "is stopped (state T); server 1234, which holds the listener too, is not",
            said: &[master_and_worker],
            never: &[stopped, two_of_three_run, sleeps],
        },
        Claim {
            words: " stopped (state T)",
            said: &[stopped, three_stopped],
            never: &[
                one_thread_stopped,
                frozen,
                traced,
                sleeps,
                resumed,
                of_a_child,
            ],
        },
        Claim {
            words: " are stopped (state T)",
            said: &[three_stopped],
            never: &[stopped, sleeps],
        },
        Claim {
            words: " and more are stopped",
            said: &[six_stopped],
            never: &[three_stopped, stopped],
        },
        Claim {
            words: ", which holds the listener too, is not",
            said: &[master_and_worker],
            never: &[stopped, two_of_three_run],
        },
        Claim {
            words: "more processes that hold the listener are not",
            said: &[two_of_three_run],
            never: &[master_and_worker, stopped],
        },
        Claim {
            words: " stopped by a debugger (state t)",
            said: &[traced],
            never: &[stopped, sleeps],
        },
        Claim {
            words: " frozen with its control group",
            said: &[frozen],
            never: &[stopped, sleeps],
        },
        Claim {
            words: ": accept() fails, 32 of 32 descriptors are in use",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare, sleeps, stopped],
        },
        Claim {
            words: " kept from running by a CPU quota",
            said: &[throttled],
            never: &[hardly_throttled, busy, sleeps],
        },
        Claim {
            words: "is busy: it used",
            said: &[busy],
            never: &[throttled, sleeps, waits_for_a_disk],
        },
        Claim {
            words: "sleeps (state S)",
            said: &[sleeps],
            never: &[stopped, busy, runs],
        },
        Claim {
            words: "waits in the kernel for a device or a lock (state D)",
            said: &[waits_for_a_disk],
            never: &[sleeps, runs],
        },
        Claim {
            words: "runs (state R)",
            said: &[runs],
            never: &[sleeps, busy],
        },
        Claim {
            words: "has ended (state Z)",
            said: &[has_ended],
            never: &[runs, sleeps],
        },
        Claim {
            words: "is in state",
            said: &[idles],
            never: &[runs, sleeps, stopped],
        },
        Claim {
            words: "nobody has accepted from it since it listens",
            said: &[inherited_by_a_child, forgotten],
            never: &[
                just_begun,
                inherited_by_one_that_served,
                inherited_before_the_start,
                sleeps,
            ],
        },
        Claim {
            words: "inherited the listener, and process",
            said: &[inherited_by_a_child],
            never: &[forgotten, sleeps, just_begun],
        },
        Claim {
            words: ", which called listen(), holds it no longer",
            said: &[inherited_by_a_child],
            never: &[forgotten, sleeps, just_begun],
        },
        Claim {
            words: "accept() took",
            said: &[slow, slow_by_its_queue, others_take],
            never: &[sleeps, of_a_group],
        },
        Claim {
            words: "nothing was accepted for",
            said: &[sleeps],
            never: &[slow, slow_by_its_queue, first_look, just_begun],
        },
        Claim {
            words: "since listen()",
            said: &[just_begun],
            never: &[sleeps, slow, first_look, inherited_before_the_start],
        },
        Claim {
            words: "how fast it accepts is not known yet",
            said: &[first_look],
            never: &[sleeps, slow],
        },
        Claim {
            words: "closed their side while they waited",
            said: &[closed_meanwhile],
            never: &[reset_meanwhile, ended_before, sleeps],
        },
        Claim {
            words: "gave up with a RST while they waited",
            said: &[reset_meanwhile],
            never: &[closed_meanwhile, ended_before, sleeps],
        },
        Claim {
            words: "closed their side and",
            said: &[both_meanwhile],
            never: &[closed_meanwhile, reset_meanwhile],
        },
        Claim {
            words: "the queue is full (9 of 9), and further clients are turned away",
            said: &[full],
            never: &[nearly_full, sleeps],
        },
        Claim {
            words: "find out who stopped it (SIGSTOP, or job control)",
            said: &[stopped],
            never: &[traced, frozen, one_thread_stopped, others_take],
        },
        Claim {
            words: "let the debugger go on",
            said: &[traced],
            never: &[stopped],
        },
        Claim {
            words: "thaw its control group (cgroup.freeze 0; 'docker unpause', 'systemctl thaw')",
            said: &[frozen],
            never: &[stopped],
        },
        Claim {
            words: "see what the descriptors are: 'ls -l /proc/",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare],
        },
        Claim {
            words: "one kind that grows is a leak",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare],
        },
        Claim {
            words: "if all are needed, raise the limit",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare, stopped],
        },
        Claim {
            words: "raise the quota of its control group",
            said: &[throttled],
            never: &[hardly_throttled, busy],
        },
        Claim {
            words: "is not to serve port 80, end it or let it close what it inherited",
            said: &[inherited_by_a_child],
            never: &[forgotten, inherited_by_one_that_served],
        },
        Claim {
            words: "if it is, find out what keeps it from its first accept()",
            said: &[inherited_by_a_child],
            never: &[forgotten, inherited_by_one_that_served],
        },
        Claim {
            words: "candidates are a listener that its process has forgotten, and a process that is still starting",
            said: &[forgotten],
            never: &[inherited_by_a_child, sleeps, just_begun],
        },
        Claim {
            words: "accept faster: more workers, or accept() until EAGAIN",
            said: &[slow, slow_by_its_queue, others_take],
            never: &[sleeps, stopped, no_descriptors],
        },
        Claim {
            words: "why nobody accepts is not known: find out what",
            said: &[sleeps, just_begun, unknown_owner],
            never: &[slow, stopped, no_descriptors, forgotten],
        },
        Claim {
            words: "candidates are one long request, a lock, a slow disk or name look-up, no free worker, a limit of its own",
            said: &[sleeps, unknown_owner],
            never: &[slow, stopped, no_descriptors, forgotten],
        },
    ],
};
