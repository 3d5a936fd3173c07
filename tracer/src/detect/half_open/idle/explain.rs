//! What `explain` says of `idle` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "idle_without_keepalive",
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
    Word {
        word: "idle_without_timer",
        text: "\
Found by `--audit keepalive`: connections with bytes that the application wrote and the peer has not
acknowledged (`waiting_bytes`), on which nothing passes, while no retransmission timer and no window probe is
pending. The kernel will not try by itself again; only an ACK of the peer or another write() can move it.

This should not happen: every path in TCP that leaves data behind starts a timer. It is a bug of the kernel, of a
module, or of a program that restored the socket (TCP_REPAIR).

  ss -tinom                                   no timer:(…), and Send-Q above 0

Keep that output with the kernel's version, let the application close the connection, and report it.",
    },
];
