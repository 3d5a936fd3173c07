//! What `explain` says of `retransmit_storm` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "retransmit_storm",
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
    Word {
        word: "peer_unreachable",
        text: "\
Only timeouts, and nothing is acknowledged: the packets, or all answers to them, disappear. The peer is
down, or a firewall drops without a word, or the route leads nowhere.

`ip route get PEER`, `ip neigh show PEER` (FAILED is the next hop), then `mtr --tcp --port PORT PEER`. SYNs
among the repeats mean new connections fail as well; without them only what was established does,
which smells of a NAT or firewall that lost its state.",
    },
    Word {
        word: "path_loss",
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
    Word {
        word: "path_mtu",
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
    Word {
        word: "local_drop",
        text: "\
The segments did not leave this host: sending them failed here. The network is innocent. What was in flight
before is repeated and fails (retransmit_storm); what an output firewall or a full queue drops from the
start never counts as sent, so that nothing is repeated, and window probes fail in its place although the
window is open (send_stall).

Look at the output firewall (`nft list ruleset`, counters of drop rules), at the queue (`tc -s qdisc`:
dropped), at the link (`ip -s link`), and at the route. `conntracer --emit drop` shows the place in the
kernel, where it names its reasons.",
    },
    Word {
        word: "receiver_stalled",
        text: "\
The peer answers each probe that its buffer is full: its host and the network work, its application does not
read. A backup that waits for its disk, a browser tab that is suspended, a consumer that hangs. What is to
be sent waits in this host's memory, and the process that writes blocks, or buffers without bound.

On the peer: `ss -tnp` (Recv-Q is full: whose socket), then what that process does. Here: a limit on what is
queued for one peer, and a write timeout (`TCP_USER_TIMEOUT` ends such a connection too).",
    },
    Word {
        word: "reordering",
        text: "\
At least half of what was repeated had arrived already: nothing was lost. Packets overtake each other on the
way, or are late, or the ACKs are. The peer says so (duplicate SACK, RFC 2883), or the kernel finds out that an
ACK is of the first transmission (timestamps, RFC 3522, or F-RTO, RFC 5682) and takes back what it did about
the loss: losses_undone says how often. spurious_segments counts both, each segment once.

Several paths to one place: bonded links in round-robin mode, ECMP by packet, Wi-Fi. Late: a queue that
fills and empties (bufferbloat), a host that was paused. `nstat -az TcpExtTCPDSACKRecv TcpExtTCPLossUndo
TcpExtTCPSpuriousRTOs TcpExtTCPFullUndo TcpExtTCPSACKReorder` tells which.",
    },
    Word {
        word: "unknown",
        text: "\
The types of the repeats do not tell why: too few, or too mixed. The rate and the scope are still true.

Compare `nstat -az 'TcpExt*'` before and after: TCPLostRetransmit and TCPTimeouts speak for loss,
TCPDSACKRecv for repeats that were not needed (reordering, or acknowledgements that came late).",
    },
];
