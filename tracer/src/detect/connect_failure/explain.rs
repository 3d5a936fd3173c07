//! What `explain` says of `connect_failure` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "connect_failure",
        text: "\
A process of this host wanted a connection and got an error. The finding is about one process, one remote
end and one cause; its count is of attempts, not of errors in a log, which may have been swallowed or
retried.

told_by in the evidence says how it is known: rst and icmp are packets that came back, timer is the kernel
that waited in vain, connect is connect() itself, which sent nothing, application is the process that
closed the socket before there was an answer. An error of EINPROGRESS or EAGAIN is none.

Compare with `nstat -az TcpAttemptFails` in the namespace that the finding names: it counts what rst, icmp
and timer told, here and on the accepting side.",
    },
    Word {
        word: "refused",
        text: "\
The answer to the SYN was no. With a RST it came from the host itself: nothing listens on that address and
port, or its firewall rejects with a RST. With an ICMP message a firewall on the way said it.

On the other host: `ss -ltn`. A service that is being restarted refuses for a moment; one that listens on
127.0.0.1 only refuses everybody else for ever.",
    },
    Word {
        word: "timed_out",
        text: "\
Every SYN went unanswered until the kernel gave up: after net.ipv4.tcp_syn_retries repeats, about two
minutes with the default of 6. The host is down, a firewall drops, or the other side's accept queue is
full for that long.

`mtr --tcp --port PORT PEER` shows how far SYNs come. If other ports of the same host answer, it is the port: a
firewall, or a listener in trouble.

As the end of a connection: what was sent went unacknowledged until the kernel gave up. `how` in the evidence
says what: data (net.ipv4.tcp_retries2, a quarter of an hour by default), keepalive or window probes,
user_timeout (the application set TCP_USER_TIMEOUT), orphan_timeout (after close(), by
net.ipv4.tcp_orphan_retries). half_open told of it while it was still in doubt.",
    },
    Word {
        word: "unreachable",
        text: "\
There is no way to the address. told_by connect: this host's own routing table has none, nothing was sent.
told_by icmp: a router said so, or this host's own neighbour discovery did (EHOSTUNREACH after three
seconds: nobody answers ARP).

`ip route get PEER`, `ip neigh show`. ENETUNREACH for IPv6 addresses only: the name has an AAAA record, and this
host no IPv6.

As the end of a connection: it timed out, and an ICMP message had said why. ICMP alone never ends an
established connection on Linux.",
    },
    Word {
        word: "reset",
        text: "\
A RST came in the middle of the handshake: after a SYN of the peer's own that met this one on the way
(simultaneous open, as NAT traversal tries it), and before its end. The answer to the SYN alone would be
refused, and what comes later ends an established connection: connection_drop, reset_received. So does the
RST of a middlebox that filters by content, which it sees no sooner.",
    },
    Word {
        word: "cancelled",
        text: "\
The application closed the socket while its SYNs were unanswered: its own connect timeout was shorter than
the kernel's. The network's part is that of timed_out. Attempts given up within a second are not counted:
clients that race two addresses drop the slower one.",
    },
    Word {
        word: "no_port",
        text: "\
connect() found no free local port for this remote address and port (EADDRNOTAVAIL). Each connection holds one
for its life, and TIME-WAIT holds it for a minute more on the side that closed first: about 28,000 ports
allow 470 new connections a second to one remote end.

`ss -tan dst PEER | awk '{print $1}' | sort | uniq -c`: many ESTAB is a leak or a missing pool, many TIME-WAIT are
short connections. Reuse connections; widen net.ipv4.ip_local_port_range; set net.ipv4.tcp_tw_reuse to 1.
An address that the application bound and this host does not have gives the same error.",
    },
    Word {
        word: "denied",
        text: "\
Something forbade it. told_by connect: a prohibit rule or route of this host, or a BPF program of the
process's cgroup (`bpftool cgroup tree`: cgroup_inet4_connect, cgroup_inet6_connect). told_by icmp: a firewall
on the way answered \"administratively prohibited\" (IPv6 tells it apart from unreachable, IPv4 does not).

What a security module denies is refused before TCP is asked, and is not seen: look in its log.",
    },
];
