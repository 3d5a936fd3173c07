//! What `syn_drop` and `syn_cookies` say of a listener, and of what they must not.

use std::time::Duration;

use conntracer_common::{
    record::{Acceptor, Syn, acceptor_flag, netns_fact, syn_outcome},
    tcp::state,
};

use super::tests::{drained, member, on};
use crate::{
    detect::claims::{Claim, Register},
    plan::HookType,
    testing::Run,
};

/// What a listener went through.
type Case = fn() -> Run;

fn seen() -> Run {
    on(&[("accept", HookType::Fentry), ("ack", HookType::Fentry)])
}

/// Turned away, for one cause.
fn dropped(outcome: usize, change: impl FnOnce(&mut Syn)) -> Run {
    let mut run = seen();
    run.skip(Duration::from_secs(3));
    run.syn(member(0), |syn| {
        syn.totals[outcome] = 5;
        syn.last_accept_ns = 1_000_000_000_000;
        change(syn);
    });
    run
}

fn queue_full() -> Run {
    dropped(syn_outcome::ACCEPT_QUEUE_FULL, |_| ())
}

fn acks_discarded() -> Run {
    dropped(syn_outcome::VICTIMS, |_| ())
}

fn aborted() -> Run {
    dropped(syn_outcome::ABORTED, |syn| syn.abort_on_overflow = 2)
}

fn syn_queue_full() -> Run {
    dropped(syn_outcome::SYN_QUEUE_FULL, |_| ())
}

fn pressure() -> Run {
    dropped(syn_outcome::SYN_QUEUE_PRESSURE, |_| ())
}

fn no_route() -> Run {
    dropped(syn_outcome::NO_ROUTE, |_| ())
}

fn unmade() -> Run {
    dropped(syn_outcome::ACK_OTHER, |_| ())
}

/// The tracepoints count a request that ICMP ended alike.
fn unmade_by_counters() -> Run {
    let mut run = on(&[("ack", HookType::Tracepoint)]);
    run.syn(member(0), |syn| syn.totals[syn_outcome::ACK_OTHER] = 5);
    run
}

/// No ICMP came.
fn unmade_without_icmp() -> Run {
    let mut run = on(&[("ack", HookType::Tracepoint)]);
    run.netns_facts(|facts| facts.figures[netns_fact::ICMP_IN_UNREACHABLE] = 0);
    run.syn(member(0), |syn| syn.totals[syn_outcome::ACK_OTHER] = 5);
    run
}

fn other() -> Run {
    dropped(syn_outcome::OTHER, |_| ())
}

fn cookies() -> Run {
    dropped(syn_outcome::COOKIE, |_| ())
}

fn capped() -> Run {
    let mut run = seen();
    drained(&mut run, 50, 50);
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 60;
        (syn.max_ack_backlog, syn.somaxconn) = (4096, 4096);
    });
    run
}

fn not_capped() -> Run {
    let mut run = seen();
    drained(&mut run, 50, 50);
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 60;
        (syn.max_ack_backlog, syn.somaxconn) = (128, 4096);
    });
    run
}

fn slow() -> Run {
    let mut run = seen();
    drained(&mut run, 50, 50);
    run
}

fn stalled() -> Run {
    let mut run = seen();
    drained(&mut run, 50, 20);
    run
}

/// One accept() a moment before: a burst, or a stop that has just begun.
fn recent() -> Run {
    let mut run = seen();
    run.skip(Duration::from_millis(12_400));
    let now = run.ktime_ns();
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.last_accept_ns = now - 300_000_000;
    });
    run
}

fn no_accept_yet() -> Run {
    let mut run = seen();
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
    });
    run
}

/// accept() is not seen, and the queue tells.
fn by_the_queue(until: u64) -> Run {
    let mut run = on(&[
        ("accept", HookType::Tracepoint),
        ("ack", HookType::Tracepoint),
    ]);
    for step in 0..50_u64 {
        run.syn(member(0), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = step + 1;
            syn.totals[syn_outcome::COMPLETED] = 2 + step.min(until);
        });
        run.pass(Duration::from_millis(100));
    }
    run
}

fn queue_shrank() -> Run {
    by_the_queue(30)
}

fn queue_never_shrank() -> Run {
    by_the_queue(0)
}

/// A group, whose members the tracepoints do not tell apart.
fn of_a_group_by_tracepoints() -> Run {
    let mut run = on(&[
        ("accept", HookType::Tracepoint),
        ("ack", HookType::Tracepoint),
    ]);
    for number in 0..2 {
        run.syn(member(number), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = number;
        });
    }
    run
}

fn worst_of_a_group() -> Run {
    let mut run = seen();
    for (number, drops) in [(0, 0), (1, 7), (2, 30), (3, 0)] {
        run.syn(member(number), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = drops;
        });
    }
    run
}

fn all_of_a_group() -> Run {
    let mut run = seen();
    for number in 0..4 {
        run.syn(member(number), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 9;
        });
    }
    run
}

/// A look at a master and at what `hinder` makes of its worker.
fn looked_at(hinder: fn(&mut Acceptor)) -> Run {
    let mut run = seen();
    let socket = member(0);
    for _ in 0..2 {
        run.acceptor(socket, |master| master.flags = acceptor_flag::HOLDS);
        run.acceptor(socket, |worker| {
            (worker.pid, worker.parent_pid, worker.index) = (1235, 1234, 1);
            hinder(worker);
        });
        run.skip(Duration::from_secs(3));
    }
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    run
}

fn worker_stopped() -> Run {
    looked_at(|worker| (worker.state, worker.stopped) = (b'T', 1))
}

/// One thread of two: the other may accept.
fn one_thread_stopped() -> Run {
    looked_at(|worker| (worker.state, worker.threads, worker.stopped) = (b'T', 2, 1))
}

fn worker_traced() -> Run {
    looked_at(|worker| (worker.state, worker.stopped) = (b't', 1))
}

fn worker_frozen() -> Run {
    looked_at(|worker| worker.flags |= acceptor_flag::FROZEN)
}

fn no_descriptors() -> Run {
    looked_at(|worker| (worker.descriptors, worker.descriptor_limit) = (32, 32))
}

fn a_descriptor_to_spare() -> Run {
    looked_at(|worker| (worker.descriptors, worker.descriptor_limit) = (31, 32))
}

fn nothing_hinders() -> Run {
    looked_at(|_| ())
}

/// Looks at one process alone, between which it changes.
fn alone(change: fn(u64, &mut Acceptor)) -> Run {
    let mut run = seen();
    let socket = member(0);
    for step in 0..3_u64 {
        run.acceptor(socket, |process| change(step, process));
        run.syn(socket, |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = step + 1;
            syn.last_accept_ns = 998_000_000_000;
        });
        run.skip(Duration::from_secs(1));
    }
    run.tick();
    run
}

fn throttled() -> Run {
    alone(|step, process| (process.throttled, process.throttled_us) = (step, 600_000 * step))
}

fn hardly_throttled() -> Run {
    alone(|step, process| (process.throttled, process.throttled_us) = (step, 60_000 * step))
}

fn busy() -> Run {
    alone(|step, process| process.cpu_ms = 990 * step)
}

fn sleeps() -> Run {
    alone(|_, _| ())
}

fn waits_for_a_disk() -> Run {
    alone(|_, process| process.state = b'D')
}

fn runs() -> Run {
    alone(|_, process| process.state = b'R')
}

fn has_ended() -> Run {
    alone(|_, process| process.state = b'Z')
}

fn idles() -> Run {
    alone(|_, process| process.state = b'I')
}

fn of_a_child() -> Run {
    alone(|_, process| {
        (process.pid, process.parent_pid, process.owner_pid) = (1235, 1234, 1234);
        process.flags = acceptor_flag::LAST;
        (process.state, process.stopped) = (b'T', 1);
    })
}

fn unknown_owner() -> Run {
    let mut run = seen();
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.owner = conntracer_common::record::Owner::default();
    });
    run
}

fn gone() -> Run {
    let mut run = queue_full();
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.socket.state = state::CLOSE;
    });
    run.pass(Duration::from_secs(12));
    run
}

fn three_stopped() -> Run {
    several_stopped(3)
}

fn six_stopped() -> Run {
    several_stopped(6)
}

fn several_stopped(count: u32) -> Run {
    let mut run = seen();
    let socket = member(0);
    for index in 0..=count {
        run.acceptor(socket, |process| {
            (process.pid, process.index) = (1234 + index, index);
            process.flags = acceptor_flag::HOLDS;
            if index > 0 {
                (process.state, process.stopped) = (b'T', 1);
            }
            if index == count {
                process.flags |= acceptor_flag::LAST;
            }
        });
    }
    run.skip(Duration::from_secs(3));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    run
}

fn two_of_three_run() -> Run {
    let mut run = seen();
    let socket = member(0);
    for index in 0..3 {
        run.acceptor(socket, |process| {
            (process.pid, process.index) = (1234 + index, index);
            process.flags = acceptor_flag::HOLDS;
            if index == 2 {
                (process.state, process.stopped) = (b'T', 1);
                process.flags |= acceptor_flag::LAST;
            }
        });
    }
    run.skip(Duration::from_secs(3));
    run.syn(socket, |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
        syn.last_accept_ns = 1_000_000_000_000;
    });
    run
}

/// Clients wait for accept() already when the first is turned away.
fn pointed() -> Run {
    let mut run = seen();
    run.acceptor(member(0), |_| ());
    run.accept_queue(member(0), |_| ());
    run.syn(member(0), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 5;
    });
    run
}

pub(crate) static REGISTER: Register<Case> = Register {
    room: "syn_drop",
    kind: "syn_drop",
    run: |case| case(),
    claims: &[
        Claim {
            words: "dropped 5 SYNs: its accept queue is full",
            said: &[queue_full, gone],
            never: &[
                acks_discarded,
                aborted,
                syn_queue_full,
                pressure,
                other,
                no_route,
            ],
        },
        Claim {
            words: "its accept queue is full",
            said: &[queue_full, acks_discarded, aborted],
            never: &[syn_queue_full, pressure, unmade, other, no_route],
        },
        Claim {
            words: " dropped ",
            said: &[queue_full, syn_queue_full, no_route],
            never: &[acks_discarded, aborted, unmade],
        },
        Claim {
            words: "discarded the third ACK of",
            said: &[acks_discarded],
            never: &[queue_full, aborted, unmade],
        },
        Claim {
            words: ", and the clients believe they are connected",
            said: &[acks_discarded, unmade],
            never: &[queue_full, aborted, unmade_by_counters],
        },
        Claim {
            words: "at the end of the handshake: its accept queue is full",
            said: &[aborted],
            never: &[queue_full, acks_discarded],
        },
        Claim {
            words: "set net.ipv4.tcp_abort_on_overflow to 0 (now 1)",
            said: &[aborted],
            never: &[queue_full, acks_discarded],
        },
        Claim {
            words: "its SYN queue is full (",
            said: &[syn_queue_full],
            never: &[queue_full, pressure, other],
        },
        Claim {
            words: "and SYN cookies are off",
            said: &[syn_queue_full],
            never: &[queue_full, pressure],
        },
        Claim {
            words: ": a full queue then costs no client",
            said: &[syn_queue_full],
            never: &[queue_full, pressure],
        },
        Claim {
            words: "less than a quarter of tcp_max_syn_backlog",
            said: &[pressure],
            never: &[syn_queue_full, queue_full, other],
        },
        Claim {
            words: "strangers are then as welcome as known clients",
            said: &[pressure],
            never: &[syn_queue_full, queue_full],
        },
        Claim {
            words: "or raise net.ipv4.tcp_max_syn_backlog",
            said: &[pressure],
            never: &[syn_queue_full, queue_full],
        },
        Claim {
            words: "this host has no route back to the client",
            said: &[no_route],
            never: &[other, queue_full, unmade],
        },
        Claim {
            words: "add a route to",
            said: &[no_route],
            never: &[other, unmade],
        },
        Claim {
            words: "though its accept queue had room: the kernel made no socket, as it does for want of memory or of a route",
            said: &[unmade, unmade_without_icmp],
            never: &[unmade_by_counters, acks_discarded, other],
        },
        Claim {
            words: "though its accept queue had room: the kernel made no socket of a third ACK, as it does for want of",
            said: &[unmade_by_counters],
            never: &[unmade, unmade_without_icmp, acks_discarded],
        },
        Claim {
            words: "look for who holds this host's memory",
            said: &[unmade, unmade_without_icmp],
            never: &[unmade_by_counters, other],
        },
        Claim {
            words: "tell them apart by 'nstat -az IcmpInDestUnreachs",
            said: &[unmade_by_counters],
            never: &[unmade, unmade_without_icmp],
        },
        Claim {
            words: "though both its queues had room: candidates are a security module that refuses, and want of memory",
            said: &[other],
            never: &[queue_full, no_route, unmade],
        },
        Claim {
            words: "look for a denial first",
            said: &[other],
            never: &[no_route, unmade],
        },
        Claim {
            words: "without one, look for failed allocations in dmesg",
            said: &[other],
            never: &[no_route, unmade],
        },
        Claim {
            words: "nothing was accepted for",
            said: &[stalled, queue_full, queue_shrank],
            never: &[slow, recent, no_accept_yet, queue_never_shrank],
        },
        Claim {
            words: ", by the length of its queue",
            said: &[queue_shrank],
            never: &[stalled, slow],
        },
        Claim {
            words: "accepts 10",
            said: &[slow],
            never: &[stalled, recent],
        },
        Claim {
            words: "; accepts ",
            said: &[slow],
            never: &[stalled, recent],
        },
        Claim {
            words: "the last accept() was",
            said: &[recent],
            never: &[stalled, slow, no_accept_yet],
        },
        Claim {
            words: "more came at once than it takes, or accepting has stopped just now",
            said: &[recent],
            never: &[stalled, slow, no_accept_yet],
        },
        Claim {
            words: "no accept() was seen yet",
            said: &[no_accept_yet],
            never: &[stalled, recent, queue_never_shrank],
        },
        Claim {
            words: "its queue was not seen to shrink yet",
            said: &[queue_never_shrank],
            never: &[no_accept_yet, queue_shrank],
        },
        Claim {
            words: "how fast it accepts is not known on this hook type",
            said: &[of_a_group_by_tracepoints],
            never: &[queue_shrank, no_accept_yet],
        },
        Claim {
            words: "accept faster: more workers, or accept() until EAGAIN",
            said: &[slow],
            never: &[stalled, recent, worker_stopped, no_accept_yet],
        },
        Claim {
            words: "that helps against bursts",
            said: &[recent],
            never: &[slow, stalled],
        },
        Claim {
            words: "where this line is said again, it says how fast",
            said: &[recent],
            never: &[slow, stalled],
        },
        Claim {
            words: "why nobody accepts is not known: find out what",
            said: &[stalled, no_accept_yet, nothing_hinders, unknown_owner],
            never: &[slow, recent, worker_stopped, no_descriptors],
        },
        Claim {
            words: "candidates are one long request, a lock, a slow disk or name look-up, no free worker, or accept() that fails",
            said: &[stalled],
            never: &[slow, worker_stopped, no_descriptors],
        },
        Claim {
            words: "raise the backlog passed to listen() (now",
            said: &[recent, syn_queue_full, not_capped],
            never: &[stalled, worker_stopped, capped],
        },
        Claim {
            words: "net.core.somaxconn allows",
            said: &[not_capped],
            never: &[capped, recent],
        },
        Claim {
            words: "raise net.core.somaxconn (now 4096), and the backlog",
            said: &[capped],
            never: &[not_capped, recent],
        },
        Claim {
            words: "raise net.core.somaxconn (now",
            said: &[capped],
            never: &[not_capped, stalled],
        },
        Claim {
            words: "waiting at the worst of 4 sockets",
            said: &[worst_of_a_group],
            never: &[queue_full],
        },
        Claim {
            words: "look at one socket of the group, not at all",
            said: &[worst_of_a_group],
            never: &[all_of_a_group, queue_full],
        },
        Claim {
            words: "server 1235 is stopped (state T); server 1234, which holds the listener too, is not",
            said: &[worker_stopped],
            never: &[one_thread_stopped, worker_traced, nothing_hinders],
        },
        Claim {
            words: "is stopped (state T)",
            said: &[worker_stopped, of_a_child],
            never: &[
                one_thread_stopped,
                worker_traced,
                nothing_hinders,
                three_stopped,
            ],
        },
        Claim {
            words: "are stopped (state T)",
            said: &[three_stopped, six_stopped],
            never: &[worker_stopped, nothing_hinders],
        },
        Claim {
            words: " and more are stopped",
            said: &[six_stopped],
            never: &[three_stopped, worker_stopped],
        },
        Claim {
            words: ", which holds the listener too, is not",
            said: &[worker_stopped, three_stopped],
            never: &[of_a_child, two_of_three_run],
        },
        Claim {
            words: "more processes that hold the listener are not",
            said: &[two_of_three_run],
            never: &[worker_stopped, of_a_child],
        },
        Claim {
            words: "(child of the listener's process 1234)",
            said: &[of_a_child],
            never: &[worker_stopped],
        },
        Claim {
            words: " stopped by a debugger (state t)",
            said: &[worker_traced],
            never: &[worker_stopped, nothing_hinders],
        },
        Claim {
            words: " frozen with its control group",
            said: &[worker_frozen],
            never: &[worker_stopped, nothing_hinders],
        },
        Claim {
            words: ": accept() fails, 32 of 32 descriptors are in use",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare, nothing_hinders, worker_stopped],
        },
        Claim {
            words: ": accept() fails, ",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare, nothing_hinders],
        },
        Claim {
            words: " kept from running by a CPU quota",
            said: &[throttled],
            never: &[hardly_throttled, busy, sleeps],
        },
        Claim {
            words: "is busy: it used",
            said: &[busy],
            never: &[sleeps, runs, throttled],
        },
        Claim {
            words: "sleeps (state S)",
            said: &[sleeps],
            never: &[busy, runs, worker_stopped],
        },
        Claim {
            words: "waits in the kernel for a device or a lock (state D)",
            said: &[waits_for_a_disk],
            never: &[sleeps, busy],
        },
        Claim {
            words: "runs (state R)",
            said: &[runs],
            never: &[busy, sleeps],
        },
        Claim {
            words: "has ended (state Z)",
            said: &[has_ended],
            never: &[sleeps, runs],
        },
        Claim {
            words: "is in state",
            said: &[idles],
            never: &[sleeps, runs, has_ended],
        },
        Claim {
            words: "find out who stopped it (SIGSTOP, or job control)",
            said: &[worker_stopped],
            never: &[one_thread_stopped, worker_traced],
        },
        Claim {
            words: "let the debugger go on",
            said: &[worker_traced],
            never: &[worker_stopped],
        },
        Claim {
            words: "thaw its control group (cgroup.freeze 0; 'docker unpause', 'systemctl thaw')",
            said: &[worker_frozen],
            never: &[worker_stopped, throttled],
        },
        Claim {
            words: "see what the descriptors are: 'ls -l /proc/",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare, worker_stopped],
        },
        Claim {
            words: "one kind that grows is a leak",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare],
        },
        Claim {
            words: "if all are needed, raise the limit",
            said: &[no_descriptors],
            never: &[a_descriptor_to_spare],
        },
        Claim {
            words: "raise the quota of its control group",
            said: &[throttled],
            never: &[hardly_throttled, busy],
        },
        Claim {
            words: "says why nobody takes them",
            said: &[pointed],
            never: &[queue_full, sleeps, syn_queue_full],
        },
        Claim {
            words: "says that it looks like a flood",
            said: &[flooded],
            never: &[syn_queue_full],
        },
    ],
};

/// A queue that overflows for SYNs of many addresses, next to none of which completes.
fn flooded() -> Run {
    let mut run = seen();
    for step in 1..3 {
        run.pass(Duration::from_secs(1));
        run.syn(member(0), |syn| {
            syn.totals[syn_outcome::ADDED] = 100;
            syn.totals[syn_outcome::SYN_QUEUE_FULL] = 900 * step;
            syn.totals[syn_outcome::COOKIE] = 900 * step;
        });
        let from = (0..5000_u32).map(|number| {
            let address = 0x0b00_0000 + ((number >> 2) << 8) + (number & 3);
            [0, 0, 0xffff_u32.to_be(), address.to_be()]
        });
        run.sources(member(0), from);
    }
    run
}

pub(crate) static OF_COOKIES: Register<Case> = Register {
    room: "syn_cookies",
    kind: "syn_cookies",
    run: |case| case(),
    claims: &[
        Claim {
            words: "with cookies: its SYN queue is full (",
            said: &[cookies],
            never: &[always_cookies, syn_queue_full],
        },
        Claim {
            words: "cookies: its SYN queue",
            said: &[cookies],
            never: &[always_cookies, syn_queue_full],
        },
        Claim {
            words: "raise the backlog passed to listen()",
            said: &[cookies],
            never: &[always_cookies, syn_queue_full],
        },
        Claim {
            words: "net.core.somaxconn",
            said: &[cookies],
            never: &[always_cookies],
        },
        Claim {
            words: "if the SYNs are a flood of forged addresses, leave it: cookies are the defence",
            said: &[cookies],
            never: &[always_cookies, syn_queue_full],
        },
        Claim {
            words: "says that it looks like a flood",
            said: &[flooded],
            never: &[cookies],
        },
    ],
};

/// `tcp_syncookies` 2: they are asked for, and no queue is full.
fn always_cookies() -> Run {
    dropped(syn_outcome::COOKIE, |syn| syn.syncookies = 2)
}
