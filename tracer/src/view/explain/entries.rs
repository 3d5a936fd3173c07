//! What is told of each word: the texts, and nothing else.

/// One word and its explanation, in paragraphs.
pub(super) struct Entry {
    pub(super) word: &'static str,
    /// The finding it is a cause of; `None` for a finding.
    pub(super) of: Option<&'static str>,
    pub(super) text: &'static str,
}

pub(super) const ENTRIES: &[Entry] = &[
    Entry {
        word: "syn_drop",
        of: None,
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
    Entry {
        word: "accept_queue_full",
        of: Some("syn_drop"),
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
    Entry {
        word: "ack_overflow",
        of: Some("syn_drop"),
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
    Entry {
        word: "abort_on_overflow",
        of: Some("syn_drop"),
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
    Entry {
        word: "syn_queue_full",
        of: Some("syn_drop and syn_cookies"),
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
    Entry {
        word: "syn_queue_pressure",
        of: Some("syn_drop"),
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
    Entry {
        word: "no_listener",
        of: Some("syn_drop"),
        text: "\
A SYN came for a port on which nothing listens. This host answered with a RST, and the client got
\"connection refused\" at once.

Mostly a server that is down, restarting or crashed, or that listens on another address than clients use:
on 127.0.0.1 only, on IPv4 only, in another network namespace or container.

  ss -ltnp 'sport = :PORT'                    who listens, and on which address
  ip netns exec NAME ss -ltn                  in the others
  systemctl status UNIT; journalctl -u UNIT   whether it died, and when

Start the server, or bind it to the address that clients use; let a socket unit hold the port where
restarts must not be seen. Many ports from one address are a scan, and want no change here. Do not drop such
SYNs in the firewall instead: clients then wait for minutes for what a RST tells them at once.",
    },
    Entry {
        word: "filtered",
        of: Some("syn_drop"),
        text: "\
The firewall of this host (nftables, iptables), a BPF program at the device or an IPsec policy dropped the
SYN. No counter of TCP moves; the client repeats its SYN and times out after about two minutes, or gets
an error at once where the rule says reject.

  nft list ruleset                            look for drop with a counter, and for policy drop
  iptables -nvL; ip6tables -nvL               packets beside DROP
  tc filter show dev DEV ingress; ip link     BPF programs and XDP at the device
  ip xfrm policy

Let the port in, above the rule that drops; in clouds and containers look for who writes the rules (an
agent, kube-proxy, docker), or yours will be gone at its next turn. Do not flush the rule set to see whether
it helps: with policy drop it locks you out.",
    },
    Entry {
        word: "reverse_path",
        of: Some("syn_drop"),
        text: "\
The SYN came in through one interface, and the route back to its sender leads out of another: the reverse
path filter dropped it. The client times out; others, whose route fits, are served.

  nstat -az TcpExtIPReversePathFilter
  ip route get CLIENT                         the way back, and the interface
  sysctl net.ipv4.conf.{all,DEV}.rp_filter    the higher one counts

Where asymmetric routes are meant (two uplinks, a VPN, a load balancer that leaves the client's address),
set rp_filter to 2 (loose) on that interface, or add the route or rule that is missing. Where they are not, the route is at fault, or the address is forged. Do not set 0 everywhere: it is what stops
forged addresses.",
    },
    Entry {
        word: "auth",
        of: Some("syn_drop"),
        text: "\
The listener wants signed segments (TCP MD5 for BGP, or TCP-AO), and the SYN had no signature or a wrong
one; or it was signed and no key is set for its sender. The SYN is dropped without an answer.

  nstat -az 'TcpExtTCPMD5*' 'TcpExtTCPAO*'    NotFound, Unexpected or Failure
  perf trace -e 'tcp:tcp_hash_*'              names the peer, from Linux 6.11 on
  dmesg | grep -i 'tcp.*hash'                 the same before

Compare key, key id and the peer's address on both ends: a peer that comes from another of its addresses,
or through a NAT, has no key here. Do not take the key off the listener to see whether it works: one
end without it refuses the other, and routing sessions in order go down with it.",
    },
    Entry {
        word: "bad_checksum",
        of: Some("syn_drop"),
        text: "\
The SYN's checksum is wrong: something on the way changed it, or a device computes it badly. The client
repeats it; where one packet in many is hit, connections merely open late now and then.

  nstat -az TcpInCsumErrors UdpInCsumErrors
  ethtool -S DEV | grep -i csum; ethtool -k DEV | grep checksum

Only from one peer: its side, or a box on its path (a NAT or tunnel that rewrites addresses). From all:
this host's device or driver; try ethtool -K DEV rx off, and a newer firmware. Virtual machines that talk
to each other: offload between the two ends, ethtool -K DEV tx off at the sender tells. Note that a
capture at the sender shows wrong checksums for every packet that the device is to complete: no evidence.",
    },
    Entry {
        word: "no_memory",
        of: Some("syn_drop"),
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
    Entry {
        word: "no_route",
        of: Some("syn_drop"),
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
    Entry {
        word: "socket_filter",
        of: Some("syn_drop"),
        text: "\
A filter on the listener itself dropped the SYN: a classic or eBPF program attached with SO_ATTACH_FILTER
or SO_ATTACH_BPF, or a program at its cgroup's ingress. The client times out.

  ss -ltnb                                    the classic filter of the socket (as root)
  bpftool cgroup tree                         cgroup_inet_ingress programs
  systemctl show UNIT -p IPAddressAllow -p IPAddressDeny

Ask who attached it: the application, systemd, or a container network. Allow the client there. Do not look
in the firewall's counters: it has passed that already.",
    },
    Entry {
        word: "other",
        of: Some("syn_drop and connect_failure"),
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
    Entry {
        word: "syn_cookies",
        of: None,
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
    Entry {
        word: "half_open",
        of: None,
        text: "\
One end thinks there is a connection, and the other does not, or no longer. Each holds memory or a
descriptor here, and whoever waits on one waits for long: the kernel gives up on unacknowledged data only
after a quarter of an hour, and on silence never.

Where in its life the connection is tells the three causes apart:

  ss -tn state syn-recv                       handshake: it never began
  ss -tno state established                   dead_peer: Send-Q stays, timer:(on,…,7) grows
  ss -tnp state close-wait                    half_closed: the peer closed, this process did not
  ss -tnp state fin-wait-2                    half_closed: this process closed, the peer did not
  ss -tnpo state established                  idle_without_keepalive: no timer:(keepalive,…)

handshake: the client waits for what does not arrive, or forged its address. dead_peer: both ends were
there, and the peer or the path is gone. half_closed: the network is in order, an application forgot
something.

Change the application first: TCP_USER_TIMEOUT and keepalive for peers that vanish, close() for those that
left. Do not shorten the sysctls of the whole host (tcp_retries2, tcp_fin_timeout) for one of them:
every connection over a bad path pays for it.",
    },
    Entry {
        word: "handshake",
        of: Some("half_open"),
        text: "\
This host answered a SYN, and repeats its SYN-ACK because no third ACK comes. The evidence says for how
many requests, from how many addresses, and whether the ACK did arrive and was thrown away.

`looks_like` reads it. `one_client`: that client, or the path back to it, is broken. Capture on both
ends; a SYN-ACK that leaves here and does not arrive there is a firewall, an asymmetric route or a NAT.
`one_prefix`: clients of one network (/24, /48), whose path is. `several_clients`: look for what they
share. `flood`: very many addresses (`sources`, an estimate), and next to no handshake completes
(`completion_ratio`): they are forged; keep net.ipv4.tcp_syncookies at 1, and filter upstream. A finding
about the listener's SYN queue then points here (`flood_finding`).

How the requests ended: `completed_late` (a slow or lossy path, nobody was lost), `requests_expired`
(nobody answered), `requests_reset` (the client did not want it any more: it had given up, or never
asked), `requests_aborted` (this host's own RST). `syn_qlen` are those that still wait.

Where the ACK was discarded, the handshake is not at fault. `overflow_victims`: the accept queue is full; see
`ack_overflow`. `deferred`: it has room, and the listener asked for connections with data only
(TCP_DEFER_ACCEPT), which these clients have not sent; `nstat -az TcpExtTCPDeferAcceptDrop` counts their ACKs.
Right for HTTP, wrong where the server speaks first.",
    },
    Entry {
        word: "dead_peer",
        of: Some("half_open"),
        text: "\
An established connection whose peer has stopped answering: data is repeated and not acknowledged, or
keepalive or window probes get no reply. `suspected` means so many timeouts in a row; `confirmed` that
the kernel gave up; `recovered` that the peer came back, and it was the path after all.

Usual reasons: the peer's machine went down without closing, a firewall or NAT forgot the connection
after idling, a container was moved, a cable. Other connections to the same address in trouble, too:
the path or the machine. Only this one: something in between forgot it.

Until then the application waits. TCP_USER_TIMEOUT bounds that for unacknowledged data, keepalive
(with short TCP_KEEPIDLE and TCP_KEEPINTVL) for idle connections; net.ipv4.tcp_retries2 bounds it for the
whole host, at 15 that is about 15 minutes.

`looks_like path_mtu`: the peer still talks, or has what came after the segment that fails, and that segment is a
full-sized one each time: it is too large for the path. Nobody is dead; see `explain path_mtu`.

`orphan`: the application has closed the connection, and its last bytes (or the FIN) are not acknowledged. Nobody is
told when the kernel gives up, after net.ipv4.tcp_orphan_retries. An application that must know its last bytes
arrived shuts its side down and reads until the peer's end before it closes.",
    },
    Entry {
        word: "half_closed",
        of: Some("half_open"),
        text: "\
Sockets that one side has closed, for longer than a minute. CLOSE_WAIT: the peer closed, and this
process has not: it did not notice the end of the stream, or lost the descriptor. FIN_WAIT2: this
process shut its side down, and the peer keeps its own open.

`looks_like` reads it. `leak`: the number grows again and again (`gained_sockets`); in the end accept() and open()
fail with EMFILE. Find the path that returns without close(), usually an error path, or a pool that never checks
its idle connections. `slow_peer`: nothing grows, and it is the peer that takes its time: it does not close
(FIN_WAIT2), or takes slowly what it is still sent (CLOSE_WAIT, `still_sending`). `forgotten`: nothing grows, and
nothing is left to do on them; a task is stuck, or forgot one. Of thousands some are counted and not looked at
(`unlisted_sockets`): `slow_peer` is then said by the others.

A socket that several processes hold (`shared_sockets`) closes with the last of them: a parent that forgot
its copy after fork(), or a child that inherited one it never uses, keeps it in CLOSE_WAIT for ever.

No sysctl mends CLOSE_WAIT: only the process can close its descriptor. `ls -l /proc/PID/fd` and `ss -tnp
state close-wait` name them.",
    },
    Entry {
        word: "idle_without_keepalive",
        of: Some("half_open"),
        text: "\
Found by `--audit keepalive`: established connections on which nothing has passed for 15 minutes or longer,
and which have SO_KEEPALIVE off. Nothing is wrong with them as far as anybody can see, and that is the
point: a peer that lost its power, or a firewall that forgot the connection, sends no FIN. TCP notices only
when it sends something, and nobody does. Such a connection stays for days, holds its descriptor and its
place in a pool, and fails the next request that is given to it.

`oldest_idle_s` and `most_frequent_remotes` say where to begin: many connections to one service are a pool,
many clients of one listener are a server without an idle timeout. To see them yourself:

  ss -tnpo state established                  those without timer:(keepalive,…) have it off
  ss -tni | grep lastsnd                      lastsnd, lastrcv: ms since data passed

Let the application set SO_KEEPALIVE with TCP_KEEPIDLE (or use a runtime that does), below the idle timeout of
what lies between: 350 s at some clouds, 5 days in Linux' own netfilter. net.ipv4.tcp_keepalive_time does
nothing for a socket that did not ask. A heartbeat of the protocol above serves as well, and checks more.",
    },
    Entry {
        word: "idle_without_timer",
        of: Some("half_open"),
        text: "\
Found by `--audit keepalive`: connections with bytes that the application wrote and the peer has not
acknowledged (`waiting_bytes`), on which nothing passes, while no retransmission timer and no window probe is
pending. The kernel will not try by itself again; only an ACK of the peer or another write() can move it.

This should not happen: every path in TCP that leaves data behind starts a timer. It is a bug of the kernel, of a
module, or of a program that restored the socket (TCP_REPAIR).

  ss -tinom                                   no timer:(…), and Send-Q above 0

Keep that output with the kernel's version, let the application close the connection, and report it.",
    },
    Entry {
        word: "retransmit_storm",
        of: None,
        text: "\
TCP is repeating far more than now and then: the rate is above the floor, and the share of what is sent is
too large. Each repeat is a stall that users feel: at least a round trip when acknowledgements tell
of the hole, 200 ms and more when only the timer does.

The scope is the narrowest that explains it: one connection, one remote address, one network, one listener,
one process, one network namespace, or the whole host. One remote or network: its side. One listener or
process with many remotes: this side, its qdisc or its limits. The host: its link.
The types in the evidence (`timeout_segments`, `fast_segments`, `tail_loss_probe_segments`) say how TCP
noticed, and the cause is concluded from them.",
    },
    Entry {
        word: "peer_unreachable",
        of: Some("retransmit_storm"),
        text: "\
Only timeouts, and nothing is acknowledged: the packets, or all answers to them, disappear. The peer is
down, or a firewall drops without a word, or the route leads nowhere.

`ip route get PEER`, `ip neigh show PEER` (FAILED is the next hop), then `mtr --tcp --port PORT PEER`. SYNs
among the repeats mean new connections fail as well; without them only what was established does,
which smells of a NAT or firewall that lost its state.",
    },
    Entry {
        word: "path_loss",
        of: Some("retransmit_storm"),
        text: "\
Packets are lost on the way, while others get through: acknowledgements tell of the holes, and most are
mended by fast retransmits.

Start at this end: `ip -s link` (errors, drops), `tc -s qdisc` (drops, overlimits), `ethtool -S` (ring
overruns, CRC errors). Then the path: `mtr --tcp`. One remote: its side or its path. Many: yours, often
a link that is full. `interface` is the one that all of it left by; of several, `top_interface_segments` left by
the one with the most: next to all of them, while others carry traffic too, is that link, an even share what they
have in common. Policers drop what shapers would delay: loss right at a round number of Mbit/s is
one.",
    },
    Entry {
        word: "path_mtu",
        of: Some("retransmit_storm"),
        text: "\
Only full-sized segments fail, while small ones pass: a link on the way carries less than both ends
believe, and the ICMP message that should say so does not arrive, or does not help. Typical: a VPN or tunnel, a cloud
network with a smaller MTU, a firewall that drops all ICMP. Handshakes and small requests work; large
answers hang. In the evidence, lost_segment_bytes is the smallest full-sized segment that fails, headers not
counted, and path_mtu_bytes what the kernel still believes in. `icmp none`: no ICMP message came, the hole is a
black one. icmp_mtu_bytes: one came, of a path that carries so much; if what fails is larger, headers included,
the kernel was told not to listen, otherwise a second link, behind the one that spoke, carries less and is silent.

Try `ping -M do -s 1472 PEER` downwards until it passes. Let ICMP \"fragmentation needed\" (type 3 code 4) and
\"packet too big\" through; clamp the MSS on the tunnel (`TCPMSS --clamp-mss-to-pmtu`); or set
net.ipv4.tcp_mtu_probing to 1 as a remedy on this host.",
    },
    Entry {
        word: "local_drop",
        of: Some("retransmit_storm and send_stall"),
        text: "\
The segments did not leave this host: sending them failed here. The network is innocent. What was in flight
before is repeated and fails (retransmit_storm); what an output firewall or a full queue drops from the
start never counts as sent, so that nothing is repeated, and window probes fail in its place although the
window is open (send_stall).

Look at the output firewall (`nft list ruleset`, counters of drop rules), at the queue (`tc -s qdisc`:
dropped), at the link (`ip -s link`), and at the route. `conntracer --emit drop` shows the place in the
kernel, where it names its reasons.",
    },
    Entry {
        word: "send_stall",
        of: None,
        text: "\
A connection has data to send and sends none of it: the persist timer asks, at growing intervals, whether
it may. Nothing is lost and nothing is repeated, so this is no storm. `ss -to` shows timer:(persist).

window_bytes tells the two cases apart: no room for a segment is the peer's doing, an open window is this
host's.",
    },
    Entry {
        word: "receiver_stalled",
        of: Some("retransmit_storm and send_stall"),
        text: "\
The peer answers each probe that its buffer is full: its host and the network work, its application does not
read. A backup that waits for its disk, a browser tab that is suspended, a consumer that hangs. What is to
be sent waits in this host's memory, and the process that writes blocks, or buffers without bound.

On the peer: `ss -tnp` (Recv-Q is full: whose socket), then what that process does. Here: a limit on what is
queued for one peer, and a write timeout (`TCP_USER_TIMEOUT` ends such a connection too).",
    },
    Entry {
        word: "reordering",
        of: Some("retransmit_storm"),
        text: "\
At least half of what was repeated had arrived already: nothing was lost. Packets overtake each other on the
way, or are late, or the ACKs are. The peer says so (duplicate SACK, RFC 2883), or the kernel finds out that an
ACK is of the first transmission (timestamps, RFC 3522, or F-RTO, RFC 5682) and takes back what it did about
the loss: losses_undone says how often. spurious_segments counts both, each segment once.

Several paths to one place: bonded links in round-robin mode, ECMP by packet, Wi-Fi. Late: a queue that
fills and empties (bufferbloat), a host that was paused. `nstat -az TcpExtTCPDSACKRecv TcpExtTCPLossUndo
TcpExtTCPSpuriousRTOs TcpExtTCPFullUndo TcpExtTCPSACKReorder` tells which.",
    },
    Entry {
        word: "unknown",
        of: Some("retransmit_storm"),
        text: "\
The types of the repeats do not tell why: too few, or too mixed. The rate and the scope are still true.

Compare `nstat -az 'TcpExt*'` before and after: TCPLostRetransmit and TCPTimeouts speak for loss,
TCPDSACKRecv for repeats that were not needed (reordering, or acknowledgements that came late).",
    },
    Entry {
        word: "connect_failure",
        of: None,
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
    Entry {
        word: "refused",
        of: Some("connect_failure"),
        text: "\
The answer to the SYN was no. With a RST it came from the host itself: nothing listens on that address and
port, or its firewall rejects with a RST. With an ICMP message a firewall on the way said it.

On the other host: `ss -ltn`. A service that is being restarted refuses for a moment; one that listens on
127.0.0.1 only refuses everybody else for ever.",
    },
    Entry {
        word: "timed_out",
        of: Some("connect_failure and connection_drop"),
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
    Entry {
        word: "unreachable",
        of: Some("connect_failure and connection_drop"),
        text: "\
There is no way to the address. told_by connect: this host's own routing table has none, nothing was sent.
told_by icmp: a router said so, or this host's own neighbour discovery did (EHOSTUNREACH after three
seconds: nobody answers ARP).

`ip route get PEER`, `ip neigh show`. ENETUNREACH for IPv6 addresses only: the name has an AAAA record, and this
host no IPv6.

As the end of a connection: it timed out, and an ICMP message had said why. ICMP alone never ends an
established connection on Linux.",
    },
    Entry {
        word: "reset",
        of: Some("connect_failure"),
        text: "\
A RST came in the middle of the handshake: after a SYN of the peer's own that met this one on the way
(simultaneous open, as NAT traversal tries it), and before its end. The answer to the SYN alone would be
refused, and what comes later ends an established connection: connection_drop, reset_received. So does the
RST of a middlebox that filters by content, which it sees no sooner.",
    },
    Entry {
        word: "cancelled",
        of: Some("connect_failure"),
        text: "\
The application closed the socket while its SYNs were unanswered: its own connect timeout was shorter than
the kernel's. The network's part is that of timed_out. Attempts given up within a second are not counted:
clients that race two addresses drop the slower one.",
    },
    Entry {
        word: "no_port",
        of: Some("connect_failure"),
        text: "\
connect() found no free local port for this remote address and port (EADDRNOTAVAIL). Each connection holds one
for its life, and TIME-WAIT holds it for a minute more on the side that closed first: about 28,000 ports
allow 470 new connections a second to one remote end.

`ss -tan dst PEER | awk '{print $1}' | sort | uniq -c`: many ESTAB is a leak or a missing pool, many TIME-WAIT are
short connections. Reuse connections; widen net.ipv4.ip_local_port_range; set net.ipv4.tcp_tw_reuse to 1.
An address that the application bound and this host does not have gives the same error.",
    },
    Entry {
        word: "denied",
        of: Some("connect_failure"),
        text: "\
Something forbade it. told_by connect: a prohibit rule or route of this host, or a BPF program of the
process's cgroup (`bpftool cgroup tree`: cgroup_inet4_connect, cgroup_inet6_connect). told_by icmp: a firewall
on the way answered \"administratively prohibited\" (IPv6 tells it apart from unreachable, IPv4 does not).

What a security module denies is refused before TCP is asked, and is not seen: look in its log.",
    },
    Entry {
        word: "connection_drop",
        of: None,
        text: "\
An established connection died: with an error, with a RST, or without the FINs of both sides. Orderly ends
make no finding, however short the connection was.

Those that died alike are one finding: of one process, to one remote end (connections that this host
opened) or of one listener (those that it accepted). `how` in the evidence is the exact cause, idle_least_s
and idle_most_s tell how long no data had passed before. The last_ figures are of the latest one.

Compare with `nstat -az TcpEstabResets TcpExtTCPAbortOnTimeout TcpExtTCPAbortOnClose TcpExtTCPAbortOnData` in
the namespace that the finding names. `conntracer --emit connection` prints every end, orderly ones too.",
    },
    Entry {
        word: "reset_received",
        of: Some("connection_drop"),
        text: "\
The peer, or something in its name, sent a RST. The application gets ECONNRESET, or EPIPE where the peer had
closed already and more was written.

Each after the same idle time (the summary says so): a load balancer, NAT or firewall forgot the
connection, or the peer has an idle timeout. Send keepalives more often than that, or close first. In the
middle of a transfer: the peer crashed, or closed with data unread. All at one moment: a restart.",
    },
    Entry {
        word: "reset_sent",
        of: Some("connection_drop"),
        text: "\
This host cut the connection. `how` says by what:

  closed_with_unread_data   close() while received data waits; the RST may destroy an answer
                            that the peer has not read yet
  closed_without_linger     SO_LINGER with a time of 0: close() is a RST
  closed_before_accept      the listener was closed with complete connections in its queue
  disconnected              connect() to AF_UNSPEC, or a protocol above TCP

The first is the one that nobody means: read to the end, or shutdown(SHUT_WR) and read until 0.",
    },
    Entry {
        word: "aborted",
        of: Some("connection_drop"),
        text: "\
The kernel ended it, and not for what the peer did. `how` says more: killed is `ss -K` or a BPF program;
orphan is a connection that the application had closed and the kernel could not afford any more
(net.ipv4.tcp_max_orphans, net.ipv4.tcp_mem), or would not wait for (TCP_LINGER2 below 0).",
    },
    Entry {
        word: "owner",
        of: None,
        text: "\
The process whose socket it is, never the one that happened to run when the kernel worked for it. An owner that
nobody knows is null. How it was learned, and what that is worth, says `source` (`owner_source` in events):

  connect, accept, listener   it called connect(), accept() or listen(); a connection that
                              waits to be accepted is its listener's
  passed                      the descriptor was passed to it, or it closed (without fentry:
                              read) what had been another's
  seeded                      it was found to hold a descriptor of the socket
  forked                      it is one of these and has forked since: it or descendants of it
                              hold the socket

`forked` is no fault. A child inherits every descriptor, and no hook tells which it closes: a server that forks for
each connection closes its own at once, and a helper that is started by exec() loses what has FD_CLOEXEC. If the
socket is in trouble, the open files of all processes are searched, within a second as a rule, and the finding is
said again with whoever holds it: one `owner`, `seeded`, or all `owners` of a socket that is shared.

A listener stays `forked` for as long as its process and its workers both hold it, which for a preforking server is
for ever. `ls -l /proc/PID/fd` and `ss -tnp` show who holds what.",
    },
];
