//! What `explain` says of `connection_drop` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "connection_drop",
        text: "\
An established connection died: with an error, with a RST, or without the FINs of both sides. Orderly ends
make no finding, however short the connection was.

Those that died alike are one finding: of one process, to one remote end (connections that this host
opened) or of one listener (those that it accepted). `how` in the evidence is the exact cause, idle_least_s
and idle_most_s tell how long no data had passed before. The last_ figures are of the latest one.

Compare with `nstat -az TcpEstabResets TcpExtTCPAbortOnTimeout TcpExtTCPAbortOnClose TcpExtTCPAbortOnData` in
the namespace that the finding names. `conntracer --emit connection` prints every end, orderly ones too.",
    },
    Word {
        word: "reset_received",
        text: "\
The peer, or something in its name, sent a RST. The application gets ECONNRESET, or EPIPE where the peer had
closed already and more was written.

Each after the same idle time (the summary says so): a load balancer, NAT or firewall forgot the
connection, or the peer has an idle timeout. Send keepalives more often than that, or close first. In the
middle of a transfer: the peer crashed, or closed with data unread. All at one moment: a restart.",
    },
    Word {
        word: "reset_sent",
        text: "\
This host cut the connection. `how` says by what:

  closed_with_unread_data   close() while received data waits; the RST may destroy an answer
                            that the peer has not read yet
  closed_without_linger     SO_LINGER with a time of 0: close() is a RST
  closed_before_accept      the listener was closed with complete connections in its queue
  disconnected              connect() to AF_UNSPEC, or a protocol above TCP

The first is the one that nobody means: read to the end, or shutdown(SHUT_WR) and read until 0.",
    },
    Word {
        word: "aborted",
        text: "\
The kernel ended it, and not for what the peer did. `how` says more: killed is `ss -K` or a BPF program;
orphan is a connection that the application had closed and the kernel could not afford any more
(net.ipv4.tcp_max_orphans, net.ipv4.tcp_mem), or would not wait for (TCP_LINGER2 below 0).",
    },
];
