//! What is said of one death.

use conntracer_common::{record::close_flag, tcp::state};

use super::{
    Change,
    cases::{
        aborted, after_fin, after_pause, after_probe, another_error, by_closed, by_icmp,
        by_listener, by_no_socket, by_process, by_refusing, by_socket, exited, fin_timed_out,
        forbidden, gave_up, held_back, idle, keepalive, killed, late_data, linger, nothing_waits,
        of_mptcp, orphan, orphan_timed_out, own_reset, queued, refused_by_kernel, rejected, reset,
        terminated, timed_out, told, unreachable, unread, unsent, unused, window,
        without_neighbour, without_route, without_source,
    },
};
use crate::detect::{claims::Claim, errno};

pub(super) const CLAIMS: &[Claim<Change>] = &[
    Claim {
        words: "gave up while they waited for accept()",
        said: &[gave_up],
        never: &[reset, queued, linger],
    },
    Claim {
        words: "never had these connections",
        said: &[gave_up],
        never: &[reset, queued, killed],
    },
    Claim {
        words: "closed the listener before they were accepted",
        said: &[queued],
        never: &[gave_up, unread, killed],
    },
    Claim {
        words: "was ended by SIGKILL",
        said: &[killed],
        never: &[
            unread,
            |ending| {
                killed(ending);
                ending.exit_code = 0;
            },
            |ending| {
                killed(ending);
                ending.exit_code = 11;
            },
        ],
    },
    Claim {
        words: "ended with status",
        said: &[|ending| {
            killed(ending);
            ending.exit_code = 3 << 8;
        }],
        never: &[killed, unread],
    },
    Claim {
        words: ": the kernel for want of memory",
        said: &[killed],
        never: &[unread, |ending| {
            killed(ending);
            ending.exit_code = 15;
        }],
    },
    Claim {
        words: "): its log, or its core dump",
        said: &[|ending| {
            killed(ending);
            ending.exit_code = 11;
        }],
        never: &[killed, unread, reset],
    },
    Claim {
        words: "closed with data unread (",
        said: &[unread],
        // A FIN that waits is no byte; a process that ended closed nothing.
        never: &[killed, reset, |ending| {
            by_process(ending);
            ending.old_state = state::CLOSE_WAIT;
        }],
    },
    Claim {
        words: "read until the end before close()",
        said: &[unread],
        never: &[killed, linger, queued, reset],
    },
    Claim {
        words: "closed with SO_LINGER 0",
        said: &[linger],
        never: &[unread, queued, |ending| {
            linger(ending);
            ending.flags |= close_flag::SUBFLOW;
        }],
    },
    Claim {
        words: "without a FIN by",
        said: &[by_process],
        never: &[unread, linger, own_reset, of_mptcp],
    },
    Claim {
        words: "ended by MPTCP",
        said: &[of_mptcp],
        never: &[own_reset, aborted, reset],
    },
    Claim {
        words: "killed by an administrator's command (ss -K",
        said: &[aborted, own_reset, |ending| {
            own_reset(ending);
            ending.reason = 14;
        }],
        never: &[of_mptcp, reset, |ending| {
            own_reset(ending);
            ending.reason = 15;
        }],
    },
    Claim {
        words: "timed out, and ICMP said that the peer cannot be reached",
        said: &[by_icmp],
        never: &[
            without_route,
            unreachable,
            timed_out,
            without_source,
            rejected,
        ],
    },
    Claim {
        words: "timed out, and ICMP said that the peer's port cannot be reached",
        said: &[rejected],
        never: &[by_icmp, unreachable, timed_out],
    },
    Claim {
        words: "look for a firewall that rejects (",
        said: &[rejected],
        never: &[by_icmp, unreachable, reset],
    },
    Claim {
        words: "timed out: this host finds no route from",
        said: &[without_source],
        never: &[by_icmp, without_route, |ending| {
            // Of another source: nothing had timed out.
            ending.error = errno::EINVAL;
            ending.flags = 0;
        }],
    },
    Claim {
        words: "timed out: this host has no route to the peer any more",
        said: &[without_route, |ending| {
            unsent(ending);
            ending.routed = 2;
        }],
        // The kernel also gives up routes that it doubts.
        never: &[
            by_icmp,
            unreachable,
            timed_out,
            without_neighbour,
            forbidden,
            |ending| {
                unreachable(ending);
                ending.routed = 2;
            },
        ],
    },
    Claim {
        words: "timed out: a route or a rule of this host forbids to send to the peer",
        said: &[forbidden],
        never: &[without_route, by_icmp, rejected, |ending| {
            // By ICMP: all that was to be sent again was.
            by_icmp(ending);
            ending.error = errno::EACCES;
        }],
    },
    Claim {
        words: "timed out: the peer cannot be reached; candidates are its route",
        said: &[unreachable],
        never: &[by_icmp, without_route, without_neighbour],
    },
    Claim {
        words: "not all that was to be sent again left this host; candidates are its neighbour entry",
        said: &[without_neighbour],
        never: &[by_icmp, without_route, timed_out],
    },
    Claim {
        words: "timed out: data was not acknowledged",
        said: &[timed_out],
        never: &[
            fin_timed_out,
            keepalive,
            window,
            orphan_timed_out,
            |ending| {
                timed_out(ending);
                ending.tcp = conntracer_common::record::Tcp::default();
            },
        ],
    },
    Claim {
        words: "timed out: the FIN was not acknowledged",
        said: &[fin_timed_out],
        never: &[timed_out, keepalive],
    },
    Claim {
        words: "its last data or FIN was not acknowledged",
        said: &[orphan_timed_out],
        never: &[fin_timed_out, timed_out, orphan],
    },
    Claim {
        words: "timed out: keepalive probes were not answered",
        said: &[keepalive],
        never: &[window, timed_out],
    },
    Claim {
        words: "timed out: probes of a closed window were not answered",
        said: &[window],
        never: &[keepalive, timed_out, unsent],
    },
    Claim {
        words: "timed out: data waited that this host could not send",
        said: &[unsent],
        never: &[window, keepalive, timed_out],
    },
    Claim {
        words: "timed out: this host had no route to the peer for a time",
        said: &[|ending| {
            without_route(ending);
            ending.routed = 1;
        }],
        never: &[by_icmp, without_route],
    },
    Claim {
        words: "timed out: nothing was acknowledged within TCP_USER_TIMEOUT",
        said: &[|ending| {
            timed_out(ending);
            ending.tcp.user_timeout_ms = 500;
        }],
        never: &[timed_out, keepalive],
    },
    Claim {
        words: "TcpExtTCPRetransFail",
        said: &[|ending| {
            timed_out(ending);
            ending.tcp.total_retrans = 1;
        }],
        never: &[timed_out],
    },
    Claim {
        words: "given up after the application had closed: too many orphans",
        said: &[orphan],
        never: &[orphan_timed_out, late_data],
    },
    Claim {
        words: "or this host's own for data that came then",
        said: &[late_data],
        never: &[reset, orphan, |ending| {
            late_data(ending);
            by_socket(ending);
        }],
    },
    Claim {
        words: "no TCP of this host was seen to send the RST",
        said: &[told],
        never: &[reset, by_socket, by_no_socket, by_closed],
    },
    Claim {
        words: "which has no socket for what was sent",
        said: &[by_no_socket],
        never: &[told, by_socket, by_closed, reset],
    },
    Claim {
        words: "reset: the other end, on this host, had closed and answered what came then",
        said: &[by_closed],
        never: &[by_listener, by_socket, by_no_socket, told],
    },
    Claim {
        words: "listens on this host, and holds no established connection",
        said: &[by_listener],
        never: &[by_closed, by_no_socket, told],
    },
    Claim {
        words: "ended by a RST that the socket at",
        said: &[by_socket],
        never: &[by_closed, told, reset],
    },
    Claim {
        words: ", in answer to the first segment after a pause of",
        said: &[after_pause],
        never: &[reset, idle, |ending| {
            after_pause(ending);
            ending.idle_ns = 0;
        }],
    },
    Claim {
        words: ", after a pause of",
        said: &[idle],
        never: &[reset, after_pause],
    },
    Claim {
        words: "restarted in the pause: its log tells",
        said: &[idle, after_pause, after_probe],
        never: &[reset, after_fin, unused],
    },
    Claim {
        words: "before the first segment that was not answered",
        said: &[|ending| {
            timed_out(ending);
            ending.idle_ns = 12_000_000_000;
        }],
        never: &[timed_out, |ending| {
            keepalive(ending);
            ending.idle_ns = 12_000_000_000;
        }],
    },
    Claim {
        words: "whose FIN had come before",
        said: &[after_fin],
        never: &[reset, idle],
    },
    Claim {
        words: "stop writing when read() returns 0",
        said: &[after_fin],
        never: &[reset, by_socket],
    },
    Claim {
        words: "after a keepalive probe",
        said: &[after_probe],
        never: &[reset, idle, |ending| {
            // Data was in flight: that is what it answered.
            after_probe(ending);
            ending.tcp.write_seq = 4;
            ending.tcp.snd_nxt = 4;
        }],
    },
    Claim {
        words: "nothing had passed: candidates",
        said: &[unused],
        never: &[reset, |ending| {
            // What was sent and not acknowledged is something, too.
            unused(ending);
            ending.tcp.write_seq = 4;
            ending.tcp.snd_nxt = 4;
        }],
    },
    Claim {
        words: "candidates are a process there that ended",
        said: &[reset],
        never: &[idle, after_pause, unused, by_socket],
    },
    Claim {
        words: "reset by this host",
        said: &[unread, linger, queued],
        never: &[reset, by_socket, told, timed_out, of_mptcp],
    },
    Claim {
        words: "ended by a RST from",
        said: &[reset, told, idle],
        never: &[by_socket, by_no_socket, by_closed, by_listener, unread],
    },
    Claim {
        words: "candidates for who sent the RST are this host",
        said: &[reset, idle],
        never: &[told, by_socket, by_closed, by_no_socket, by_listener],
    },
    Claim {
        words: " or something between: compare the TTL",
        said: &[told],
        never: &[reset, by_socket, by_no_socket],
    },
    Claim {
        words: "leave SO_LINGER alone, unless a RST is what it means",
        said: &[linger],
        never: &[unread, queued, killed, reset],
    },
    Claim {
        words: "stop taking connections before the listener is closed",
        said: &[queued],
        never: &[gave_up, unread, killed],
    },
    Claim {
        words: "did not accept them in time",
        said: &[gave_up],
        never: &[queued, reset, killed],
    },
    Claim {
        words: "accept() that fails shows in its log",
        said: &[gave_up],
        never: &[queued, reset],
    },
    Claim {
        words: "drain when it is told to end",
        said: &[exited, terminated],
        never: &[killed, unread, |ending| {
            killed(ending);
            ending.exit_code = 11;
        }],
    },
    Claim {
        words: "find out in the log of",
        said: &[|ending| {
            killed(ending);
            ending.exit_code = 3 << 8;
        }],
        never: &[killed, exited, terminated],
    },
    Claim {
        words: "ended by a RST after",
        said: &[late_data],
        never: &[reset, orphan, orphan_timed_out],
    },
    Claim {
        words: "see whether TcpExtTCPAbortOnData grows",
        said: &[late_data],
        never: &[reset, orphan, by_closed],
    },
    Claim {
        words: "let it read until the end first. Otherwise the peer sent the RST",
        said: &[late_data],
        never: &[unread, reset],
    },
    Claim {
        words: "does with the connection at that moment",
        said: &[by_process],
        never: &[unread, linger, killed],
    },
    Claim {
        words: "the MPTCP connection may go on by another path",
        said: &[of_mptcp],
        never: &[own_reset, aborted],
    },
    Claim {
        words: "ask who ran 'ss -K'",
        said: &[aborted, own_reset],
        never: &[of_mptcp, reset, timed_out],
    },
    Claim {
        words: "TCPAbortOnMemory TcpExtTCPAbortOnLinger",
        said: &[orphan],
        never: &[late_data, orphan_timed_out],
    },
    Claim {
        words: "kernel_reason says for what",
        said: &[refused_by_kernel],
        never: &[own_reset, of_mptcp, reset],
    },
    Claim {
        words: "kernel_reason in the evidence names what to look at",
        said: &[refused_by_kernel],
        never: &[own_reset, reset],
    },
    Claim {
        words: "ended with an error",
        said: &[another_error],
        never: &[reset, timed_out, unreachable, aborted],
    },
    Claim {
        words: "the error in the evidence names what to look at",
        said: &[another_error],
        never: &[reset, timed_out, unreachable, aborted],
    },
    Claim {
        words: "timed out",
        said: &[timed_out, keepalive, window, unreachable, nothing_waits],
        never: &[reset, aborted, unread],
    },
    Claim {
        words: "timed out after",
        said: &[orphan_timed_out],
        never: &[fin_timed_out, timed_out, orphan],
    },
    Claim {
        words: "is up, and that no firewall on the way forgot the connection",
        said: &[timed_out, fin_timed_out, orphan_timed_out],
        never: &[
            keepalive,
            window,
            unsent,
            unreachable,
            by_icmp,
            without_route,
        ],
    },
    Claim {
        words: "see first why this host could not send all of it again",
        said: &[held_back],
        never: &[timed_out, by_icmp],
    },
    Claim {
        words: "is up; if it is, candidates are a firewall or NAT that forgot the idle connection",
        said: &[keepalive],
        never: &[window, timed_out, unsent],
    },
    Claim {
        words: "is up; if it is, candidates are a firewall on the way, this host's own among them, that forgot",
        said: &[window],
        never: &[keepalive, unsent, timed_out],
    },
    Claim {
        words: "see who said so",
        said: &[by_icmp],
        never: &[unreachable, without_route, rejected, timed_out],
    },
    Claim {
        words: "the routes on the way to it, and firewalls that reject",
        said: &[by_icmp],
        never: &[unreachable, without_route, timed_out],
    },
    Claim {
        words: "whether it still has the address",
        said: &[without_source],
        never: &[without_route, by_icmp, unreachable],
    },
    Claim {
        words: "look for the route or rule of the kind 'prohibit'",
        said: &[forbidden],
        never: &[without_route, without_source, by_icmp, rejected],
    },
    Claim {
        words: "see what became of the route, the address or the device",
        said: &[without_route],
        never: &[without_source, by_icmp, unreachable, without_neighbour],
    },
    Claim {
        words: " which it is: 'ip route get",
        said: &[unreachable, without_neighbour],
        never: &[by_icmp, without_route, timed_out],
    },
    Claim {
        words: "'ip neigh show' says FAILED or INCOMPLETE where that, or",
        said: &[unreachable, without_neighbour],
        never: &[by_icmp, without_route],
    },
    Claim {
        words: "otherwise a router said so by ICMP",
        said: &[unreachable],
        never: &[by_icmp, without_route],
    },
    Claim {
        words: "is up, and the routes on the way to it",
        said: &[unreachable],
        never: &[by_icmp, without_route, timed_out],
    },
    Claim {
        words: "see what kept this host from sending",
        said: &[unsent],
        never: &[window, timed_out, without_route],
    },
    Claim {
        words: "ended by a RST that the kernel at",
        said: &[by_refusing],
        never: &[by_closed, by_socket],
    },
    Claim {
        words: "reset_sent_reason in the evidence names what the kernel refused",
        said: &[by_refusing],
        never: &[by_closed, by_listener, by_socket],
    },
    Claim {
        words: "stop writing when the other end has closed",
        said: &[by_closed],
        never: &[by_listener, by_socket, told],
    },
    Claim {
        words: "candidates: the other end had ended before",
        said: &[by_no_socket],
        never: &[by_closed, by_socket, told, reset],
    },
    Claim {
        words: "does at that moment: it, or its kernel for it, sent the RST",
        said: &[by_socket],
        never: &[reset, told, by_closed, by_no_socket],
    },
    Claim {
        words: " died with ",
        said: &[killed, exited],
        never: &[unread, reset, queued],
    },
];
