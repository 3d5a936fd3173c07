//! What `connect_failure` says, and of what it must not.

use conntracer_common::{
    record::{Failure, Socket, failure_how, syn_outcome},
    tcp::state,
};

use super::tests::{attempt, icmp};
use crate::{
    detect::{
        claims::{Claim, Records, Register},
        errno,
    },
    testing::{Run, listener, socket},
};

/// A change of the attempt that [`Run::failure`] makes: one that an application gave up at once.
type Change = fn(&mut Failure);

fn refused(failure: &mut Failure) {
    failure.error = errno::ECONNREFUSED;
    failure.how = failure_how::RESET;
}

/// No RST was seen, and its hook sees all.
fn refused_by_icmp(failure: &mut Failure) {
    failure.error = errno::ECONNREFUSED;
}

fn port_unreachable(failure: &mut Failure) {
    refused_by_icmp(failure);
    icmp(failure, (3, 3), "10.0.0.9");
}

fn port_unreachable_by_another(failure: &mut Failure) {
    refused_by_icmp(failure);
    icmp(failure, (3, 3), "10.0.0.254");
}

fn told(failure: &mut Failure, message: (u8, u8), from: &str) {
    failure.error = errno::EHOSTUNREACH;
    icmp(failure, message, from);
}

fn host_prohibited(failure: &mut Failure) {
    told(failure, (3, 10), "10.0.0.254");
}

/// By a firewall, and by `ip route add prohibit` of a router.
fn prohibited(failure: &mut Failure) {
    told(failure, (3, 13), "10.0.0.254");
}

fn by_router(failure: &mut Failure) {
    told(failure, (3, 1), "10.0.0.254");
}

fn by_itself(failure: &mut Failure) {
    told(failure, (3, 1), "10.0.0.1");
    failure.longest_ns = 3_100_000_000;
}

/// As a rule does, whose answer comes at once.
fn by_itself_at_once(failure: &mut Failure) {
    told(failure, (3, 1), "10.0.0.1");
}

fn unreachable(failure: &mut Failure) {
    failure.error = errno::EHOSTUNREACH;
}

fn unreachable_after_a_while(failure: &mut Failure) {
    unreachable(failure);
    (failure.syns, failure.longest_ns) = (4, 3_100_000_000);
}

/// As many SYNs as fit into the wait.
fn unreachable_by_the_timer(failure: &mut Failure) {
    unreachable(failure);
    (failure.syns, failure.longest_ns) = (7, 127_000_000_000);
}

fn unreachable_by_a_short_timer(failure: &mut Failure) {
    unreachable(failure);
    (failure.syns, failure.longest_ns) = (2, 2_000_000_000);
}

fn noted(failure: &mut Failure) {
    unreachable(failure);
    failure.how = failure_how::SOFT;
}

fn noted_and_ended(failure: &mut Failure) {
    noted(failure);
    failure.how |= failure_how::EXITING;
}

fn access(failure: &mut Failure) {
    failure.error = errno::EACCES;
}

fn at_once(failure: &mut Failure, error: u32) {
    failure.error = error;
    failure.how = failure_how::AT_ONCE;
}

fn no_port(failure: &mut Failure) {
    at_once(failure, errno::EADDRNOTAVAIL);
}

fn no_v6_address(failure: &mut Failure) {
    no_port(failure);
    let there = socket("[fd00::1]:40000", "[fd00::9]:443");
    (failure.socket.family, failure.socket.remote_addr) = (there.family, there.remote_addr);
}

fn no_route(failure: &mut Failure) {
    at_once(failure, errno::ENETUNREACH);
}

fn denied(failure: &mut Failure) {
    at_once(failure, errno::EPERM);
}

fn another_error(failure: &mut Failure) {
    at_once(failure, errno::EINVAL);
}

fn killed_by_administrator(failure: &mut Failure) {
    failure.error = errno::ECONNABORTED;
}

fn reset(failure: &mut Failure) {
    failure.error = errno::ECONNRESET;
    failure.how = failure_how::RESET;
}

fn timed_out(failure: &mut Failure) {
    failure.error = errno::ETIMEDOUT;
    failure.syns = 7;
    failure.longest_ns = 127_000_000_000;
}

/// As many as `TCP_SYNCNT` asks for.
fn timed_out_early(failure: &mut Failure) {
    timed_out(failure);
    failure.syns = 3;
}

/// As many SYNs as the namespace asks for, and less time.
fn timed_out_before(failure: &mut Failure) {
    timed_out(failure);
    failure.longest_ns = 100_000_000_000;
}

fn challenged(failure: &mut Failure) {
    timed_out(failure);
    failure.how = failure_how::ANSWERED;
}

fn given_up(failure: &mut Failure) {
    failure.how = failure_how::PATIENT;
}

fn ended(failure: &mut Failure) {
    failure.how = failure_how::PATIENT | failure_how::EXITING;
}

fn killed(failure: &mut Failure) {
    ended(failure);
    failure.signal = 9;
}

/// After the first look, on a host whose connect() and RSTs are all seen.
pub(crate) static OF_ONE: Register<Change> = Register {
    room: "connect_failure",
    kind: "connect_failure",
    run: |change| {
        let mut run = Run::on(crate::detect::Thresholds::default(), telling());
        run.tick();
        run.failure(attempt(), 1, change);
        run
    },
    claims: &[
        Claim {
            words: "refused with a RST",
            said: &[refused],
            never: &[refused_by_icmp, port_unreachable, timed_out, reset],
        },
        Claim {
            words: "whether anything listens: 'ss -ltn sport",
            said: &[refused],
            never: &[port_unreachable, timed_out, reset],
        },
        Claim {
            words: "if it does, look for a firewall that rejects, and at the address",
            said: &[refused],
            never: &[port_unreachable, refused_by_icmp],
        },
        Claim {
            words: "refused by an ICMP message (port unreachable), as a firewall's rule sends it",
            said: &[refused_by_icmp],
            never: &[refused, port_unreachable, access],
        },
        Claim {
            words: "rejected by a firewall: ICMP",
            said: &[port_unreachable, host_prohibited],
            never: &[prohibited, by_router, by_itself, refused, refused_by_icmp],
        },
        Claim {
            words: "have the firewall of",
            said: &[port_unreachable],
            never: &[
                port_unreachable_by_another,
                host_prohibited,
                prohibited,
                refused,
            ],
        },
        Claim {
            words: "have the firewall at ",
            said: &[port_unreachable_by_another, host_prohibited],
            never: &[port_unreachable, prohibited, by_router],
        },
        Claim {
            words: "rejected by a firewall, or by a route that prohibits it: ICMP administratively prohibited",
            said: &[prohibited],
            never: &[host_prohibited, port_unreachable, by_router],
        },
        Claim {
            words: "names a route that prohibits; otherwise have its firewall allow port",
            said: &[prohibited],
            never: &[host_prohibited, by_router, by_itself],
        },
        Claim {
            words: "failed: ICMP",
            said: &[by_router, by_itself],
            never: &[host_prohibited, prohibited, unreachable, noted],
        },
        Claim {
            words: "why it said so",
            said: &[by_router],
            never: &[by_itself, host_prohibited, unreachable],
        },
        Claim {
            words: "this host itself: nobody answers for the next hop, or a rule of this host rejects",
            said: &[by_itself, by_itself_at_once],
            never: &[by_router, host_prohibited, unreachable],
        },
        Claim {
            words: "FAILED is the next hop of",
            said: &[by_itself, unreachable, unreachable_after_a_while],
            never: &[by_router, host_prohibited, access, refused_by_icmp],
        },
        Claim {
            words: "look for a rule that rejects in 'nft list ruleset'",
            said: &[by_itself, by_itself_at_once],
            never: &[by_router, host_prohibited, no_route],
        },
        Claim {
            words: "names the message and its sender",
            said: &[unreachable, refused_by_icmp, access],
            never: &[by_router, host_prohibited, no_route],
        },
        Claim {
            words: "failed with EHOSTUNREACH: an ICMP message told of it, or this host had no route for a SYN",
            said: &[noted, unreachable_by_a_short_timer],
            never: &[unreachable, by_router, no_route, unreachable_after_a_while],
        },
        Claim {
            words: "failed with EHOSTUNREACH by an ICMP message: a firewall rejects, a router knows no way, or nobody answers",
            said: &[unreachable],
            never: &[noted, by_router, unreachable_after_a_while, no_route],
        },
        Claim {
            words: "failed with EHOSTUNREACH by an ICMP message: nobody answers for the next hop of this host, or a router",
            said: &[unreachable_after_a_while],
            never: &[unreachable, noted, by_itself],
        },
        Claim {
            words: "failed with EHOSTUNREACH: nobody answers for the next hop of this host, a router or a firewall says so by",
            said: &[unreachable_by_the_timer],
            never: &[unreachable, unreachable_after_a_while, by_router, no_route],
        },
        Claim {
            words: "rejected by an ICMP message (administratively prohibited), as a firewall or a route",
            said: &[access],
            never: &[denied, host_prohibited, refused_by_icmp],
        },
        Claim {
            words: "the application gave up after",
            said: &[noted],
            never: &[noted_and_ended, unreachable, timed_out],
        },
        Claim {
            words: "its process ended after",
            said: &[noted_and_ended],
            never: &[noted, unreachable],
        },
        Claim {
            words: "failed at once: no local port was free for it, or the one that the socket is bound to is taken",
            said: &[no_port],
            never: &[no_v6_address, no_route, denied],
        },
        Claim {
            words: "failed at once: no local port was free for it, or no address of this namespace reaches it",
            said: &[no_v6_address],
            never: &[no_port, no_route, denied],
        },
        Claim {
            words: "has an address for it: 'ip -6 route get",
            said: &[no_v6_address],
            never: &[no_port, no_route],
        },
        Claim {
            words: "binds its socket before connect()",
            said: &[no_port],
            never: &[no_v6_address, no_route],
        },
        Claim {
            words: "then one port alone would do",
            said: &[no_port],
            never: &[no_v6_address, no_route],
        },
        Claim {
            words: "count what holds the ports",
            said: &[no_port, no_v6_address],
            never: &[no_route, denied, refused],
        },
        Claim {
            words: "keep connections open and use them again; net.ipv4.tcp_tw_reuse 1 helps where they are in TIME-WAIT",
            said: &[no_port],
            never: &[no_route, timed_out],
        },
        Claim {
            words: "failed at once: this host has no usable route",
            said: &[no_route],
            never: &[unreachable, by_router, noted, no_port],
        },
        Claim {
            words: ", and 'ip -br link'",
            said: &[no_route],
            never: &[unreachable, by_router],
        },
        Claim {
            words: "not permitted by this host",
            said: &[denied],
            never: &[access, host_prohibited, prohibited],
        },
        Claim {
            words: "look for a prohibit rule or route",
            said: &[denied],
            never: &[access, host_prohibited],
        },
        Claim {
            words: "look for a program that denies it",
            said: &[denied],
            never: &[access, host_prohibited],
        },
        Claim {
            words: "ended by an administrator of this host (ss -K, or a BPF program)",
            said: &[killed_by_administrator],
            never: &[given_up, ended, another_error],
        },
        Claim {
            words: "failed",
            said: &[another_error, no_port],
            never: &[refused, timed_out, given_up, killed_by_administrator, reset],
        },
        Claim {
            words: "the error in the evidence names what to look at",
            said: &[another_error],
            never: &[no_port, refused, timed_out],
        },
        Claim {
            words: "ended by a RST during the handshake",
            said: &[reset],
            never: &[refused, timed_out],
        },
        Claim {
            words: "(simultaneous open); a RST from between the two is a middlebox's",
            said: &[reset],
            never: &[refused],
        },
        Claim {
            words: "timed out: ",
            said: &[timed_out, challenged],
            never: &[given_up, ended, unreachable],
        },
        Claim {
            words: "no answer to a SYN came through",
            said: &[timed_out, given_up, ended],
            never: &[challenged, refused, noted, by_router],
        },
        Claim {
            words: "an answer came that does not fit (an ACK of another connection), and none that opens it",
            said: &[challenged],
            never: &[timed_out, given_up, refused],
        },
        Claim {
            words: "what is left of an earlier connection: 'ss -tan sport",
            said: &[challenged],
            never: &[timed_out, refused],
        },
        Claim {
            words: "a translation that uses a port again too soon does the same",
            said: &[challenged],
            never: &[timed_out, refused],
        },
        Claim {
            words: "see whether answers come",
            said: &[timed_out, given_up],
            never: &[challenged, refused, by_router],
        },
        Claim {
            words: "find out where SYNs end",
            said: &[timed_out, given_up],
            never: &[challenged, refused, by_router],
        },
        Claim {
            words: "a firewall that drops, a host that is down and a listener that drops look alike from here",
            said: &[timed_out],
            never: &[challenged, refused, by_router],
        },
        Claim {
            words: "if they arrive, see there whether the listener turns them away",
            said: &[timed_out],
            never: &[challenged, refused],
        },
        Claim {
            words: " bounds the wait; a connect timeout of",
            said: &[timed_out],
            never: &[timed_out_early, timed_out_before, given_up, killed],
        },
        Claim {
            words: "bounded the wait, or some could not be sent",
            said: &[timed_out_early, timed_out_before],
            never: &[timed_out, given_up],
        },
        Claim {
            words: "given up by the application, the longest after",
            said: &[given_up],
            never: &[ended, killed, timed_out],
        },
        Claim {
            words: "ended with their process, ",
            said: &[ended, killed],
            never: &[given_up, timed_out, killed_by_administrator],
        },
        Claim {
            words: "which signal 9",
            said: &[killed],
            never: &[ended, given_up],
        },
    ],
};

fn telling() -> crate::host::Host {
    let mut host = crate::testing::host();
    let retries = ("net.ipv4.tcp_syn_retries".to_owned(), "6".to_owned());
    host.sysctls.extend([retries]);
    "6.18.0".clone_into(&mut host.kernel);
    host
}

fn sent(run: &mut Run, errors: &[u32], traced: bool) {
    run.tick();
    let socket = Socket {
        state: state::SYN_SENT,
        ..attempt()
    };
    for error in errors {
        run.retransmit(socket, |retransmit| {
            retransmit.error = *error;
            retransmit.failures_traced = u8::from(traced);
        });
    }
    run.failure(attempt(), 1, timed_out_early);
}

fn failed_here(run: &mut Run) {
    run.skip(std::time::Duration::from_mins(3));
    sent(run, &[1, 1], true);
}

/// The kernel tells nothing of those that fail, as another attempt shows.
fn untold(run: &mut Run) {
    let another = socket("10.0.0.1:40001", "10.0.0.9:443");
    run.retransmit(another, |retransmit| retransmit.failures_traced = 0);
}

fn not_seen_to_leave(run: &mut Run) {
    run.skip(std::time::Duration::from_mins(3));
    untold(run);
    sent(run, &[], false);
}

/// The kernel would have told of them: they were missed.
fn missed(run: &mut Run) {
    run.skip(std::time::Duration::from_mins(3));
    sent(run, &[], true);
}

fn one_left(run: &mut Run) {
    run.skip(std::time::Duration::from_mins(3));
    sent(run, &[1, 0], true);
}

/// It began before the hooks were attached: nobody saw what it sent.
fn began_before(run: &mut Run) {
    untold(run);
    sent(run, &[], false);
}

fn with_a_listener(run: &mut Run, remote: &str) {
    run.syn(listener("10.0.0.9:443", remote), |syn| {
        syn.socket.netns = 4027;
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 3;
    });
    run.failure(attempt(), 1, timed_out);
}

fn dropped_here(run: &mut Run) {
    with_a_listener(run, "10.0.0.1:40000");
}

fn others_dropped_here(run: &mut Run) {
    with_a_listener(run, "10.0.0.7:40000");
}

/// Before the first look a hook may not have been attached.
fn refused_before(run: &mut Run) {
    run.failure(attempt(), 1, refused_by_icmp);
}

fn refused_after(run: &mut Run) {
    run.tick();
    run.failure(attempt(), 1, refused_by_icmp);
}

fn to_several(run: &mut Run) {
    let anywhere = socket("10.0.0.1:40000", "0.0.0.0:0");
    run.failure(anywhere, 1, timed_out);
}

/// What other records say together with it.
pub(crate) static OF_SEVERAL: Register<Records> = Register {
    room: "connect_failure, of several",
    kind: "connect_failure",
    run: |records| {
        let mut host = telling();
        // Two minutes after what the tests call the beginning.
        host.attached_ns = 1_000_000_000_000;
        let mut run = Run::on(crate::detect::Thresholds::default(), host);
        records(&mut run);
        run
    },
    claims: &[
        Claim {
            words: "no SYN is known to have left this host, all",
            said: &[failed_here, not_seen_to_leave],
            never: &[one_left, began_before, missed, dropped_here],
        },
        Claim {
            words: "look for what drops on the way out in namespace",
            said: &[failed_here],
            never: &[one_left, began_before, dropped_here],
        },
        Claim {
            words: "TcpExtTCPRetransFail' counts what this host could not send",
            said: &[failed_here],
            never: &[one_left, began_before],
        },
        Claim {
            words: "says what this host did with such SYNs in namespace",
            said: &[dropped_here],
            never: &[others_dropped_here, failed_here],
        },
        Claim {
            words: "it is the other end of these",
            said: &[dropped_here],
            never: &[others_dropped_here],
        },
        Claim {
            words: "refused: by a RST or by an ICMP message, which was not seen",
            said: &[refused_before],
            never: &[refused_after],
        },
        Claim {
            words: "if it does, a firewall rejects",
            said: &[refused_before],
            never: &[refused_after],
        },
        Claim {
            words: "whether anything listens ('ss -ltn sport",
            said: &[refused_before],
            never: &[refused_after],
        },
        Claim {
            words: "to several remote ends",
            said: &[to_several],
            never: &[dropped_here, refused_after],
        },
    ],
};

/// Another namespace's settings are not known.
fn elsewhere(run: &mut Run) {
    let socket = Socket {
        netns: 4027,
        ..attempt()
    };
    run.failure(socket, 1, timed_out);
}

fn here(run: &mut Run) {
    run.failure(attempt(), 1, timed_out);
}

/// With a SYN that was seen to be sent again, of a socket with this `TCP_USER_TIMEOUT`.
fn again(run: &mut Run, user_timeout_ms: u32) {
    let socket = Socket {
        state: state::SYN_SENT,
        ..attempt()
    };
    run.retransmit(socket, |retransmit| {
        retransmit.tcp.user_timeout_ms = user_timeout_ms;
    });
    run.failure(attempt(), 1, timed_out);
}

fn without_user_timeout(run: &mut Run) {
    again(run, 0);
}

fn with_user_timeout(run: &mut Run) {
    again(run, 100_000);
}

fn with_a_longer_user_timeout(run: &mut Run) {
    again(run, 900_000);
}

pub(crate) static OF_ANOTHER_NAMESPACE: Register<Records> = Register {
    room: "connect_failure, elsewhere",
    kind: "connect_failure",
    run: |records| {
        let mut host = crate::testing::host();
        "6.18.0".clone_into(&mut host.kernel);
        let mut run = Run::on(crate::detect::Thresholds::default(), host);
        records(&mut run);
        run
    },
    claims: &[
        Claim {
            words: "a connect timeout of its own bounds it better",
            said: &[elsewhere, here],
            never: &[refused_after, with_user_timeout],
        },
        Claim {
            words: " bounds the wait, or a TCP_SYNCNT or TCP_USER_TIMEOUT of",
            said: &[elsewhere, here],
            never: &[without_user_timeout, with_user_timeout, refused_after],
        },
        Claim {
            words: " bounds the wait, or a TCP_SYNCNT of",
            said: &[without_user_timeout, with_a_longer_user_timeout],
            never: &[elsewhere, with_user_timeout],
        },
        Claim {
            words: " bounds the wait; a connect timeout bounds it better",
            said: &[with_user_timeout],
            never: &[without_user_timeout, with_a_longer_user_timeout, elsewhere],
        },
    ],
};
