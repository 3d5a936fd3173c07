//! What `explain` says of `syn_drop` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "syn_drop",
        text: "\
A client asked for a connection, and this host turned it away before there was one. Nobody on this side
is told: the application sees nothing, its log is empty and its own metrics stay green. Users see
connections that take one, three or seven seconds to open, that time out, or that open and then hang. Clients
with Linux from 6.5 on repeat their first SYNs every second: theirs take one to five, seven or eleven.

What the client sees tells the causes apart before you look at anything here:

  opens after 1, 3, 7 s     the SYN was dropped, and a repeated one got through
  (1, 2, 3, 4, 5, 7, 11)
  times out                 every SYN was dropped: accept_queue_full for long, filtered,
                            reverse_path, no_route
  opens, then hangs         the third ACK was dropped: ack_overflow, no_memory
  \"connection reset\"        abort_on_overflow
  \"connection refused\"      no_listener

Check first, in the network namespace that the finding names (for a process: ip netns identify PID, or
nsenter -t PID -n):

  ss -ltn                                     Recv-Q: waiting for accept(), Send-Q: the limit
  nstat -az TcpExtListenDrops TcpExtListenOverflows TcpExtTCPReqQFullDrop
  ip netns exec NAME ss -ltn                  the same elsewhere

ListenOverflows rises: the accept queue, so look at who should call accept(). ListenDrops alone: the SYN
queue, memory, the route or a security module. Neither: the packet never got as far as the listener.

The count of the finding is the kernel's, not a sample; a listener is its address, with all sockets
that share it. Do not begin by raising limits: a queue that nobody empties fills at any length.",
    },
    Word {
        word: "accept_queue_full",
        text: "\
A SYN came while the accept queue was full: that many connections were complete, and the application had
not called accept() on them. The kernel dropped the SYN without an answer. SYN cookies do not help
here, they save the other queue.

The client repeats its SYN after 1 s, then 2, 4, 8 … s more (Linux from 6.5 on every second five times, then
likewise, net.ipv4.tcp_syn_linear_timeouts): it sees a connection that opens after 1, 3 or 7 s (1 to 5, 7 or
11), or times out after about two minutes. No error reaches either application.

The evidence tells the two cases apart. since_last_accept_s of seconds: the acceptor is stuck. Look at
what it does now, not at the network:

  ss -ltnp                                    Recv-Q above Send-Q: full, and whose it is
  grep State /proc/PID/status                 T is stopped, D waits for a disk
  cat /proc/PID/stack; gdb -p PID             where it hangs: a lock, a log, its database

accepts_per_s of more than nothing: it works, and clients come faster. Give it more workers or threads,
accept in a loop until EAGAIN, and take slow work (TLS, name look-ups) out of the accepting thread.
members above 1: of sockets that share the port (SO_REUSEPORT) one can be full while the others idle,
because the kernel spreads clients by hash. drops_by_member tells; look at that one worker.

Change: the worker. Only for bursts that it works off by itself is a longer queue right. The length is
the smaller of what listen() asks for and net.core.somaxconn, at the time of listen(): raise both, and
restart the application. backlog_capped_by_somaxconn says that the sysctl is the smaller one.

Do not raise the backlog when the acceptor is stuck: clients then wait in the queue instead of before it,
and are answered when they have long gone away. And leave tcp_abort_on_overflow at 0.",
    },
    Word {
        word: "ack_overflow",
        text: "\
The SYN was taken and the SYN-ACK sent, and when the third ACK of the handshake came, the accept queue was
full. The kernel threw the ACK away and keeps the request.

The client is the one deceived: for it the handshake is over. connect() succeeded, and it sends its
request and waits. If the queue moves, a repeated SYN-ACK or its own data lets it in, a second or more
late. If it does not, the first write hangs and is repeated, until the client's own timeout: it looks like
a server that is slow to answer, never like a network error. A protocol in which the server speaks first
(SMTP, MySQL, SSH) shows a connection without a banner.

  ss -ltn                                     Recv-Q above Send-Q
  ss -tn state syn-recv                       requests whose ACK was thrown away
  nstat -az TcpExtListenOverflows             one for each ACK, clients repeat theirs

count is the number of such clients, third_acks_refused that of their ACKs.

The reason and the remedy are those of accept_queue_full: both are one full queue, at two moments. A
burst of clients that were in the handshake together gives this one first.

Do not set net.ipv4.tcp_abort_on_overflow to make it visible: it turns a delay into an error for every
client that a second more would have served.",
    },
    Word {
        word: "abort_on_overflow",
        text: "\
The same as ack_overflow, on a host where net.ipv4.tcp_abort_on_overflow is 1: instead of waiting, the
kernel answered the third ACK with a RST.

The client gets ECONNRESET, right after a connect() that succeeded or at its first read. Many clients and
load balancers count that as a failed server, and do not try again.

  sysctl net.ipv4.tcp_abort_on_overflow       in the namespace of the finding
  nstat -az TcpExtListenOverflows TcpOutRsts

Set it to 0, the default: a client that comes in a burst is then let in a second later. It is right only
where something in front tries another server at once, and nothing else makes it do so.

The queue is full all the same: go on with accept_queue_full. Do not stop when the resets are gone.",
    },
    Word {
        word: "syn_queue_full",
        text: "\
More handshakes were waiting for their third ACK than the listener may keep. The limit is that of the accept
queue, the backlog of listen(). With net.ipv4.tcp_syncookies at 0 the SYN is dropped (syn_drop) and the
client tries again after 1, 3, 7 s (from Linux 6.5 on 1, 2, 3 … s); at 1 it is answered with a cookie
(syn_cookies), and no client is lost.

Either clients come in bursts over long paths, or somebody sends SYNs and never answers:

  ss -tn state syn-recv | awk '{print $4}' | sed 's/:[0-9]*$//' | sort | uniq -c | sort -n
  nstat -az TcpExtTCPReqQFullDrop TcpExtTCPReqQFullDoCookies TcpExtSyncookiesRecv

Many addresses with one request each, and few cookies that come back (SyncookiesRecv): a flood. See also
a half_open finding of the same listener. Keep cookies on, leave the queue, filter upstream. Addresses that
you know, and cookies that come back: real clients. Raise the backlog of listen() and net.core.somaxconn,
and restart the application.

Do not turn cookies off to save the options they cost: without them the same moment costs the client. Do
not lower net.ipv4.tcp_synack_retries to make room: it cuts off clients on bad paths first.",
    },
    Word {
        word: "syn_queue_pressure",
        text: "\
SYN cookies are off, and less than a quarter of net.ipv4.tcp_max_syn_backlog was left. The kernel keeps the
rest for peers it has talked to before, and drops SYNs of all others: old clients get in, and new ones
see 1, 3, 7 s (from Linux 6.5 on 1, 2, 3 … s) or a timeout. That some are served and some are not, at random
it seems, is typical.

  sysctl net.ipv4.tcp_syncookies net.ipv4.tcp_max_syn_backlog
  ss -tn state syn-recv | wc -l

Set net.ipv4.tcp_syncookies to 1, the default of nearly every distribution: this check is then gone. Or
raise net.ipv4.tcp_max_syn_backlog together with the backlog of listen(). Do not raise the former
alone: the listener's own limit comes next.",
    },
    Word {
        word: "no_route",
        text: "\
The SYN reached the listener, and there is no way to answer it: this host has no route back to the
client. The kernel dropped it, and the client times out. Clients of other networks are served.

  ip route get CLIENT from LOCAL              in the namespace of the finding
  ip rule; ip route show table all | grep -E 'unreachable|prohibit|blackhole'
  nstat -az IpOutNoRoutes Ip6OutNoRoutes

Add the route, mostly the default route of a namespace or of a policy table that has none. Do not look at
the listener: nothing is wrong with it. Addresses that should not be here at all are forged, and
rp_filter would have stopped them sooner.",
    },
    Word {
        word: "no_memory",
        text: "\
The kernel had no memory for the packet, or for the socket that the third ACK was to make. Where it was the
packet, the client sees 1, 3, 7 s (from Linux 6.5 on 1, 2, 3 … s) or a timeout; where it was the socket, it
believes it is connected and gets in a second or more late. Established connections on this host suffer, too.

  cat /proc/net/sockstat                      mem of TCP, in pages, against net.ipv4.tcp_mem
  nstat -az TcpExtTCPMemoryPressures TcpExtTCPAbortOnMemory
  free -m; dmesg | grep -i 'allocation failure\\|out of memory'
  cat /sys/fs/cgroup/…/memory.events          of the owner's cgroup: max and oom

TCP's own limit: find who holds it (ss -tm: large Recv-Q are applications that do not read), then raise
net.ipv4.tcp_mem. The host's: give it memory, raise vm.min_free_kbytes for bursts of packets. The cgroup's:
raise its limit. Do not raise the buffer sizes (tcp_rmem, tcp_wmem): each connection then takes more.",
    },
    Word {
        word: "other",
        text: "\
The kernel turned the client away for none of the usual reasons. Of a SYN that reached a listener with room
in both queues this is left: a security module (SELinux, AppArmor, Smack, a BPF LSM) said no, or there was
no memory for the request. Of one dropped before: a reason that the kernel does not name, or that is
in the evidence.

A denial hits the same clients every time, and goes on; want of memory hits any client, and comes in bursts.

  ausearch -m avc -ts recent; dmesg | grep -i denied
  bpftool prog list | grep -w lsm             programs that may say no without a word
  dmesg | grep -i 'allocation failure'        requests are allocated where nobody can wait
  nstat -az TcpExtListenDrops TcpExtTCPMemoryPressures
  conntracer --emit drop                      each drop, with the kernel's reason

Start with what changed last: a policy, a kernel, a limit. Do not turn the security module off for good;
its permissive mode says the same in its log, and lets the client in.

As a connection that this host wanted: connect() failed for what no other cause speaks of, and `error` in the
evidence names it. ENOBUFS is want of memory, ECONNABORTED is `ss -K`; `errno -l` and connect(2) know the rest.",
    },
    Word {
        word: "syn_cookies",
        text: "\
A listener's SYN queue was full, and SYNs were answered with cookies: the state of the handshake went into
the sequence number instead of memory, and comes back with the third ACK. No client is lost, so this is
no drop, and clients notice nothing.

What it costs: clients without timestamps lose window scaling and selective acknowledgement, and are slow
over long paths for as long as the connection lasts. A third ACK that gets lost takes the connection with
it: the server does not know of it, and repeats nothing. And cookies do not help a full accept queue.

  nstat -az TcpExtSyncookiesSent TcpExtSyncookiesRecv TcpExtSyncookiesFailed
  ss -tn state syn-recv | wc -l               against Send-Q of ss -ltn

Sent far above Recv: nobody comes back, a flood of forged addresses. Leave everything as it is, this is
what cookies are for, and filter upstream. Sent and Recv alike: real clients, and queues too short for
them. Raise the backlog of listen() and net.core.somaxconn, and restart the application.

Do not turn cookies off: the same SYNs are then dropped. Now and then under load they are the intended
safety valve, and want nothing. At 2, which asks for them always, they are not reported.",
    },
];
