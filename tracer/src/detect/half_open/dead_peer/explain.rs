//! What `explain` says of `dead_peer`: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "dead_peer",
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
];
