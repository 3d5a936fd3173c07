//! What `bind_failure` says, and of what it must not.

use conntracer_common::{
    record::{Bind, BindHolders, bind_call, bind_flag},
    tcp::state,
};

use super::tests::{ASKED, SECOND, fails};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::Run,
};

/// Another process listens there.
fn listener(run: &mut Run) {
    fails(run, |_| (), |_| ());
}

/// The process itself does.
fn own(run: &mut Run) {
    fails(run, |_| (), |held| held.holders[0].owner.pid = 1234);
}

/// Who has had the pid before.
fn same_pid(run: &mut Run) {
    fails(
        run,
        |bind| bind.owner.started_ms = 5000,
        |held| (held.holders[0].owner.pid, held.holders[0].owner.started_ms) = (1234, 4000),
    );
}

fn repeated(run: &mut Run) {
    for _ in 0..3 {
        listener(run);
    }
}

fn restarted(run: &mut Run) {
    for pid in 5..8 {
        fails(run, |bind| bind.owner.pid = pid, |_| ());
    }
}

fn listener_v4(run: &mut Run) {
    run.bind("[::]:8080", |_| ());
    run.bind_holders("[::]:8080", ASKED, |_| ());
    run.pass(3 * SECOND);
}

/// Both for IPv6 alone.
fn listener_v6(run: &mut Run) {
    run.bind("[::1]:8080", |bind| bind.flags = bind_flag::V6_ONLY);
    run.bind_holders("[::1]:8080", "[::1]:8080", |_| ());
    run.pass(3 * SECOND);
}

fn dual_listener(run: &mut Run) {
    run.bind(ASKED, |_| ());
    run.bind_holders(ASKED, "[::]:8080", |_| ());
    run.pass(3 * SECOND);
}

fn other_user(run: &mut Run) {
    fails(
        run,
        |bind| bind.flags = bind_flag::REUSEPORT,
        |held| {
            held.holders[0].flags = bind_flag::REUSEPORT;
            held.holders[0].owner.uid = 0;
        },
    );
}

fn without_reuse_port(run: &mut Run) {
    fails(
        run,
        |_| (),
        |held| held.holders[0].flags = bind_flag::REUSEPORT,
    );
}

fn bound(run: &mut Run) {
    fails(
        run,
        |_| (),
        |held| {
            (held.listeners, held.bound) = (0, 1);
            held.holders[0].state = state::CLOSE;
        },
    );
}

fn connections(held: &mut BindHolders, count: u32) {
    (held.listeners, held.connected) = (0, count);
    held.holders[0].state = state::ESTABLISHED;
    held.holders[0].remote_port = 443;
}

fn connection(run: &mut Run) {
    fails(
        run,
        |bind| bind.flags = bind_flag::REUSEADDR,
        |held| connections(held, 1),
    );
}

fn two_connections(run: &mut Run) {
    fails(run, |_| (), |held| connections(held, 2));
}

/// The other end of it is its own.
fn itself(run: &mut Run) {
    run.bind("0.0.0.0:40000", |bind| bind.flags = bind_flag::REUSEADDR);
    run.bind_holders("0.0.0.0:40000", "127.0.0.1:40000", |held| {
        connections(held, 1);
        held.holders[0].remote_addr = held.holders[0].local_addr;
        held.holders[0].remote_port = 40_000;
    });
    run.pass(3 * SECOND);
}

/// A connection of two sockets that have one port, each of its address.
fn same_port(run: &mut Run) {
    run.bind("0.0.0.0:40000", |bind| bind.flags = bind_flag::REUSEADDR);
    run.bind_holders("0.0.0.0:40000", "127.0.0.1:40000", |held| {
        connections(held, 1);
        held.holders[0].remote_port = 40_000;
    });
    run.pass(3 * SECOND);
}

/// The port is one of those that connections get.
fn ephemeral(run: &mut Run) {
    run.bind("0.0.0.0:40000", |bind| bind.flags = bind_flag::REUSEADDR);
    run.bind_holders("0.0.0.0:40000", "10.0.0.1:40000", |held| {
        connections(held, 1);
    });
    run.pass(3 * SECOND);
}

fn not_accepted(run: &mut Run) {
    fails(
        run,
        |_| (),
        |held| {
            connections(held, 1);
            held.holders[0].owner.source = 0;
        },
    );
}

fn left(held: &mut BindHolders, of: u8) {
    held.listeners = 0;
    if of == state::TIME_WAIT {
        held.time_wait = 3;
    } else {
        held.closing = 3;
    }
    held.holders[0].state = of;
    held.holders[0].owner.source = 0;
}

fn time_wait(run: &mut Run) {
    fails(run, |_| (), |held| left(held, state::TIME_WAIT));
}

fn time_wait_of_a_client(run: &mut Run) {
    fails(
        run,
        |bind| bind.flags = bind_flag::REUSEADDR,
        |held| left(held, state::TIME_WAIT),
    );
}

fn closing(run: &mut Run) {
    fails(run, |_| (), |held| left(held, state::FIN_WAIT1));
}

/// Gone before the look.
fn unknown(run: &mut Run) {
    fails(run, |_| (), |held| (held.listeners, held.named) = (0, 0));
}

fn listens_in_vain(run: &mut Run) {
    fails(
        run,
        |bind| bind.call = bind_call::LISTEN,
        |held| (held.listeners, held.named) = (0, 0),
    );
}

fn search(run: &mut Run) {
    for port in [8888, 8889, 8890] {
        let local = format!("127.0.0.1:{port}");
        run.bind(&local, |_| ());
        run.bind_holders(&local, &local, |_| ());
    }
    run.pass(3 * SECOND);
}

fn search_that_ends(run: &mut Run) {
    run.bind(ASKED, |_| ());
    run.bind("0.0.0.0:8081", |bind| bind.error = 0);
    run.pass(3 * SECOND);
}

/// After its finding opened.
fn search_that_ends_late(run: &mut Run) {
    listener(run);
    run.bind("0.0.0.0:8081", |bind| bind.error = 0);
}

fn got_at_last(run: &mut Run) {
    listener(run);
    run.bind(ASKED, |bind| bind.error = 0);
}

fn given_up(run: &mut Run) {
    listener(run);
    run.pass(331 * SECOND);
}

fn range(run: &mut Run) {
    run.bind("10.0.0.1:0", |_| ());
    run.bind_holders("10.0.0.1:0", "10.0.0.1:40000", |held| {
        (held.ports, held.bound, held.listeners) = (28_000, 28_000, 0);
        held.holders[0].ports = 20_000;
    });
    run.pass(3 * SECOND);
}

fn range_unknown(run: &mut Run) {
    run.bind("10.0.0.1:0", |bind| bind.range = [0, 0]);
    run.pass(3 * SECOND);
}

fn call(run: &mut Run, local: &str, error: u32, change: impl FnOnce(&mut Bind)) {
    run.bind(local, |bind| {
        bind.error = error;
        change(bind);
    });
    run.pass(3 * SECOND);
}

const EACCES: u32 = 13;
const EPERM: u32 = 1;

fn not_local(run: &mut Run) {
    call(run, "192.0.2.1:80", 99, |_| ());
}

fn not_local_v6(run: &mut Run) {
    call(run, "[2001:db8::1]:80", 99, |_| ());
}

fn link_local(run: &mut Run) {
    call(run, "[fe80::1]:80", 99, |_| ());
}

fn privileged(run: &mut Run) {
    call(run, "0.0.0.0:80", EACCES, |_| ());
}

fn privileged_elsewhere(run: &mut Run) {
    call(run, "0.0.0.0:80", EACCES, |bind| {
        bind.flags = bind_flag::CAPABLE;
    });
}

fn program(run: &mut Run) {
    call(run, "0.0.0.0:80", EPERM, |_| ());
}

/// The namespace lets anybody have the port.
fn program_above(run: &mut Run) {
    call(run, "0.0.0.0:80", EACCES, |bind| {
        bind.unprivileged_start = 80;
    });
}

fn denied_unknown(run: &mut Run) {
    call(run, "0.0.0.0:80", EACCES, |bind| {
        bind.unprivileged_start = u16::MAX;
    });
}

fn security(run: &mut Run) {
    call(run, "0.0.0.0:80", EACCES, |bind| {
        bind.call = bind_call::SECURITY;
    });
}

fn invalid(run: &mut Run) {
    call(run, "[fe80::1]:80", 22, |_| ());
}

fn strange(run: &mut Run) {
    call(run, "0.0.0.0:80", 4095, |_| ());
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "bind_failure",
    kind: "bind_failure",
    run: alone,
    claims: &[
        Claim {
            words: "bind() of process ",
            said: &[listener, repeated],
            never: &[search_that_ends, listens_in_vain],
        },
        Claim {
            words: "listen() of process ",
            said: &[listens_in_vain],
            never: &[listener],
        },
        Claim {
            words: " times: ",
            said: &[repeated, search],
            never: &[listener],
        },
        Claim {
            words: " processes one after the other",
            said: &[restarted],
            never: &[listener, repeated],
        },
        Claim {
            words: " other ports failed",
            said: &[search],
            never: &[listener, repeated],
        },
        Claim {
            words: "the last of them, ",
            said: &[search],
            never: &[listener],
        },
        Claim {
            words: "the port is held by process 77 (holder), which listens on",
            said: &[listener, dual_listener],
            never: &[own, bound, connection, time_wait, unknown],
        },
        Claim {
            words: "the port is held by process 1234 itself",
            said: &[own],
            never: &[listener, same_pid],
        },
        Claim {
            words: "and the socket is for IPv4, too (no IPV6_V6ONLY)",
            said: &[listener_v4],
            never: &[listener, listener_v6, dual_listener],
        },
        Claim {
            words: "listens on [::]:8080 for IPv4, too (no IPV6_V6ONLY)",
            said: &[dual_listener],
            never: &[listener, listener_v4, listener_v6],
        },
        Claim {
            words: "both have SO_REUSEPORT, and their users differ (0 and 33)",
            said: &[other_user],
            never: &[listener, without_reuse_port],
        },
        Claim {
            words: "with SO_REUSEPORT, which the socket does not have",
            said: &[without_reuse_port],
            never: &[listener, other_user],
        },
        Claim {
            words: "and does not listen there",
            said: &[bound],
            never: &[listener, connection],
        },
        Claim {
            words: "the port is held by a connection of process 77 (holder), from 0.0.0.0:8080 to",
            said: &[connection],
            never: &[listener, bound, two_connections, not_accepted, time_wait],
        },
        Claim {
            words: "process 77 (holder), whose socket is connected to itself",
            said: &[itself],
            never: &[connection, ephemeral, same_port, listener],
        },
        Claim {
            words: "it connected to 127.0.0.1:40000 from the same port, while nobody listened there",
            said: &[itself],
            never: &[connection, ephemeral, same_port, listener],
        },
        Claim {
            words: "end that connection ('ss -K",
            said: &[itself],
            never: &[connection, ephemeral, same_port, listener],
        },
        Claim {
            words: "2 connections, one of process 77 (holder)",
            said: &[two_connections],
            never: &[connection],
        },
        Claim {
            words: "a connection of nobody yet (it waits for accept())",
            said: &[not_accepted],
            never: &[connection, time_wait, closing],
        },
        Claim {
            words: "3 connections that the process has closed and the peer has not",
            said: &[closing],
            never: &[time_wait, connection],
        },
        Claim {
            words: "3 connections in TIME_WAIT",
            said: &[time_wait],
            never: &[closing, connection],
        },
        Claim {
            words: "the socket has no SO_REUSEADDR",
            said: &[time_wait, closing, two_connections],
            never: &[time_wait_of_a_client, connection, listener],
        },
        Claim {
            words: "the socket has SO_REUSEADDR, and what holds the port has not",
            said: &[time_wait_of_a_client, connection],
            never: &[time_wait, two_connections],
        },
        Claim {
            words: "the port is taken, and who holds it is not known",
            said: &[unknown],
            never: &[listener, time_wait, listens_in_vain],
        },
        Claim {
            words: "another socket listens at the port, and who has it is not known",
            said: &[listens_in_vain],
            never: &[unknown, listener],
        },
        Claim {
            words: "the program has it now",
            said: &[got_at_last],
            never: &[listener, given_up, search_that_ends_late],
        },
        Claim {
            words: "the process has got port 8081 instead",
            said: &[search_that_ends_late],
            never: &[listener, got_at_last],
        },
        Claim {
            words: "it was not tried again",
            said: &[given_up],
            never: &[listener, got_at_last],
        },
        Claim {
            words: "no port of the range 32768 to 60999 is free",
            said: &[range],
            never: &[range_unknown, listener],
        },
        Claim {
            words: "process 77 (holder) holds 20000 of the 28000 that are taken",
            said: &[range],
            never: &[range_unknown],
        },
        Claim {
            words: "no port of the range is free, and who holds them is not known",
            said: &[range_unknown],
            never: &[range],
        },
        Claim {
            words: "192.0.2.1 is no address of this namespace that is usable",
            said: &[not_local],
            never: &[listener, privileged, link_local],
        },
        Claim {
            words: "2001:db8::1 is no address of this namespace that is usable",
            said: &[not_local_v6],
            never: &[not_local],
        },
        Claim {
            words: "no interface of this namespace has the address fe80::1 as one that is usable",
            said: &[link_local],
            never: &[not_local_v6, invalid],
        },
        Claim {
            words: "a port below 1024 takes CAP_NET_BIND_SERVICE, which the process does not have",
            said: &[privileged],
            never: &[
                privileged_elsewhere,
                program,
                program_above,
                security,
                denied_unknown,
            ],
        },
        Claim {
            words: "it has CAP_NET_BIND_SERVICE, and the kernel denies a port below the limit all the same",
            said: &[privileged_elsewhere],
            never: &[privileged, program],
        },
        Claim {
            words: "the kernel denies it, and not for want of a privilege for the port",
            said: &[program, program_above],
            never: &[privileged, security, denied_unknown],
        },
        Claim {
            words: "failed: the kernel denies it",
            said: &[denied_unknown, program],
            never: &[privileged, security],
        },
        Claim {
            words: "a security module of this host denies it",
            said: &[security],
            never: &[privileged, program],
        },
        Claim {
            words: "the kernel refuses it with EINVAL",
            said: &[invalid],
            never: &[strange, not_local],
        },
        Claim {
            words: "the kernel refuses it with error 4095",
            said: &[strange],
            never: &[invalid],
        },
        Claim {
            words: "stop process 77, or give one of both another port or address",
            said: &[listener, bound],
            never: &[own, connection, time_wait, unknown],
        },
        Claim {
            words: "asks twice for one port: look for a second entry for port 8080 in its configuration",
            said: &[own],
            never: &[listener, same_pid],
        },
        Claim {
            words: "set IPV6_V6ONLY at the socket for IPv6",
            said: &[listener_v4, dual_listener],
            never: &[listener, listener_v6],
        },
        Claim {
            words: "to share the port, all its sockets need SO_REUSEPORT, and one user",
            said: &[other_user, without_reuse_port],
            never: &[listener],
        },
        Claim {
            words: "set SO_REUSEADDR before bind(): connections that are closed, or those of its predecessor, hold no port then",
            said: &[time_wait, closing, two_connections],
            never: &[time_wait_of_a_client, connection, listener],
        },
        Claim {
            words: "they are connections from the port, of a process that set no SO_REUSEADDR",
            said: &[time_wait_of_a_client],
            never: &[time_wait, connection],
        },
        Claim {
            words: "or a server that set it after bind()",
            said: &[time_wait_of_a_client],
            never: &[time_wait, connection],
        },
        Claim {
            words: "TIME_WAIT lasts for 60 s",
            said: &[time_wait_of_a_client],
            never: &[time_wait, connection],
        },
        Claim {
            words: "keep the port from connections: net.ipv4.ip_local_reserved_ports 40000",
            said: &[ephemeral],
            never: &[connection, listener],
        },
        Claim {
            words: "shows who has it",
            said: &[unknown, connection],
            never: &[listener, time_wait],
        },
        Claim {
            words: "candidates: a listener, a connection from the port, a socket that is bound and no more",
            said: &[unknown],
            never: &[listener, time_wait],
        },
        Claim {
            words: "widen the range",
            said: &[range, range_unknown],
            never: &[listener],
        },
        Claim {
            words: "see what process 77 does with them",
            said: &[range],
            never: &[range_unknown],
        },
        Claim {
            words: "a process that binds before connect() needs one port a connection",
            said: &[range],
            never: &[range_unknown],
        },
        Claim {
            words: "see whether 192.0.2.1 is there",
            said: &[not_local],
            never: &[listener],
        },
        Claim {
            words: "see whether 2001:db8::1 is there",
            said: &[not_local_v6],
            never: &[not_local],
        },
        Claim {
            words: "see whether fe80::1 is there",
            said: &[link_local],
            never: &[invalid],
        },
        Claim {
            words: "it may come later (DHCP, a virtual address of keepalived)",
            said: &[not_local, not_local_v6],
            never: &[listener, privileged],
        },
        Claim {
            words: "an address that is 'tentative' or 'dadfailed' there is not usable",
            said: &[not_local_v6, link_local],
            never: &[not_local],
        },
        Claim {
            words: "to bind to it before it is there, set net.ipv",
            said: &[not_local, not_local_v6],
            never: &[listener, privileged],
        },
        Claim {
            words: "give process 1234 the capability",
            said: &[privileged],
            never: &[privileged_elsewhere, program, security],
        },
        Claim {
            words: "'setcap cap_net_bind_service+ep' of its program",
            said: &[privileged],
            never: &[privileged_elsewhere, program, security],
        },
        Claim {
            words: "or lower net.ipv4.ip_unprivileged_port_start of namespace 4026 to 80",
            said: &[privileged],
            never: &[privileged_elsewhere, program, security],
        },
        Claim {
            words: "the capability counts in the user namespace that owns the network namespace",
            said: &[privileged_elsewhere],
            never: &[privileged, program],
        },
        Claim {
            words: "a BPF program of its control group",
            said: &[program, program_above, privileged_elsewhere, denied_unknown],
            never: &[privileged, security],
        },
        Claim {
            words: "see its log: 'ausearch -m avc -ts recent'",
            said: &[security],
            never: &[privileged, program],
        },
        Claim {
            words: "the error in the evidence names what to look at",
            said: &[invalid, strange],
            never: &[listener, privileged],
        },
    ],
};
