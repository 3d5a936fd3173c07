//! What `explain` says of `handshake` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "half_open",
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
    Word {
        word: "handshake",
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
];
