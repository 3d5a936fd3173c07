//! `conntracer explain`: what a finding or a cause means, how to be sure, and what to do, as a good
//! colleague would tell it.
//!
//! The words are those of the output contract. A cause with one spelling in two findings
//! (`syn_queue_full`) has one entry that speaks of both.

use super::fill::fill;

/// Columns of the explanations: what is read easily, and fits every terminal.
const COLUMNS: usize = 80;

/// One word and its explanation, in paragraphs.
struct Entry {
    word: &'static str,
    /// The finding it is a cause of; `None` for a finding.
    of: Option<&'static str>,
    text: &'static str,
}

const ENTRIES: &[Entry] = &[
    Entry {
        word: "syn_drop",
        of: None,
        text: "\
A listener on this host turned clients away during the handshake. The client does not learn of it:
it repeats its SYN after 1, 2, 4 … seconds, so what users see is a connection that takes one or more
whole seconds to open, or times out. The application sees nothing at all, and its own metrics stay
green: the connection never reached it.

The count is the kernel's, not a sample. Compare `nstat -az TcpExtListenDrops TcpExtListenOverflows`
in the network namespace that the finding names.

The cause says which of the listener's two queues was full. First look at who should call accept():
a queue that is full because nobody empties it is not mended by making it longer.",
    },
    Entry {
        word: "accept_queue_full",
        of: Some("syn_drop"),
        text: "\
A SYN came while the accept queue was full: connections were complete, and the application had not
called accept() on them. The kernel drops the SYN, and the client tries again after a second.

The evidence tells the two cases apart. `since_last_accept_s` large: the application is stuck, stopped
or out of workers; find out where it hangs (its stack, its locks, its own downstream). Small: it
accepts, but more slowly than clients come; give it more workers, or accept in a loop until EAGAIN.

Only bursts that the application works off by itself call for a longer queue. Its length is the
smaller of listen()'s backlog and net.core.somaxconn at the time of listen(): raise both, then restart
the application. `ss -ltn` shows the length now (Recv-Q) and the limit (Send-Q).",
    },
    Entry {
        word: "ack_overflow",
        of: Some("syn_drop"),
        text: "\
The third ACK of a handshake found the accept queue full. The client believes it is connected, and may
have sent its request; this host has thrown the ACK away and will repeat its SYN-ACK. If the queue
does not move, the client sees a connection that opens at once and then says nothing: the most
misleading of timeouts.

What to do is what `accept_queue_full` says. If net.ipv4.tcp_abort_on_overflow is 1, such clients get a
reset instead; 0 (the default) lets most of them in a second later.",
    },
    Entry {
        word: "syn_queue_full",
        of: Some("syn_drop and syn_cookies"),
        text: "\
More handshakes were waiting for their third ACK than the listener may keep: the accept queue's limit
bounds the SYN queue, too. With net.ipv4.tcp_syncookies at 0 the SYN is dropped (`syn_drop`); at 1 it is
answered with a cookie (`syn_cookies`) and no client is lost.

Either clients come in bursts, over long paths; then raise listen()'s backlog and net.core.somaxconn.
Or somebody sends SYNs and never answers: see whether there is a `half_open` finding of the same
listener, and what it says about the number of sources. Then keep cookies on, and leave the queue.",
    },
    Entry {
        word: "syn_queue_pressure",
        of: Some("syn_drop"),
        text: "\
SYN cookies are off, and less than a quarter of net.ipv4.tcp_max_syn_backlog was left. The kernel then
keeps the rest for peers it has talked to before, and drops SYNs of all others.

Set net.ipv4.tcp_syncookies to 1, the default of nearly every distribution, or raise
net.ipv4.tcp_max_syn_backlog together with the backlog of listen().",
    },
    Entry {
        word: "other",
        of: Some("syn_drop"),
        text: "\
The kernel turned the client away for none of the usual reasons: no memory for the connection, no route
back to the client, a security module that said no, or a TCP option (MD5, AO) that did not fit.

Look at TcpExt TCPMemoryPressures and net.ipv4.tcp_mem, at `ip route get CLIENT`, and at the audit log;
`conntracer --emit drop` shows each drop with the kernel's own reason, where it has one.",
    },
    Entry {
        word: "syn_cookies",
        of: None,
        text: "\
A listener's SYN queue was full, and SYNs were answered with cookies: the state of the handshake went
into the sequence number instead of memory. No client is lost, so this is no drop. What it costs:
window scaling and selective acknowledgement are lost to clients without timestamps, and a third ACK
that gets lost loses the connection silently.

Now and then under load it is the intended safety valve. Lasting, it means a flood of SYNs, or queues
that are too short for the clients you have: see `syn_queue_full`.",
    },
    Entry {
        word: "half_open",
        of: None,
        text: "\
One end thinks there is a connection, and the other does not, or no longer: a handshake that never
completes, a peer that vanished without a word, or a socket whose other side is closed. Each holds
memory or a descriptor, and an application that waits on one waits for a long time: by default the
kernel gives up on unacknowledged data only after a quarter of an hour, and on silence never.

The cause says which end is missing: `handshake`, `dead_peer` or `half_closed`.",
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

Where the ACK was discarded, the handshake is not at fault: the accept queue is full. See
`ack_overflow`.",
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
whole host, at 15 that is about 15 minutes.",
    },
    Entry {
        word: "half_closed",
        of: Some("half_open"),
        text: "\
Sockets that one side has closed, for longer than a minute. CLOSE_WAIT: the peer closed, and this
process has not: it did not notice the end of the stream, or lost the descriptor. FIN_WAIT2: this
process shut its side down, and the peer keeps its own open.

If the number grows (`gained_sockets`), it is a descriptor leak: in the end accept() and open() fail with
EMFILE. Find the path that returns without close(), usually an error path, or a pool that never checks its
idle connections. If it does not grow, it is one slow peer or one forgotten connection.

No sysctl mends CLOSE_WAIT: only the process can close its descriptor. `ls -l /proc/PID/fd` and `ss -tnp
state close-wait` name them.",
    },
    Entry {
        word: "retransmit_storm",
        of: None,
        text: "\
TCP is repeating far more than now and then: the rate is above the floor, and the share of what is sent is
too large. Each repeat is a stall that users feel: at least a round trip when acknowledgements tell
of the hole, 200 ms and more when only the timer does.

The scope is the narrowest that explains it: one connection, one remote address, or the whole host.
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
a link that is full. Policers drop what shapers would delay: loss right at a round number of Mbit/s is
one.",
    },
    Entry {
        word: "path_mtu",
        of: Some("retransmit_storm"),
        text: "\
Only full-sized segments fail, while small ones pass: a link on the way carries less than both ends
believe, and the ICMP message that should say so does not arrive. Typical: a VPN or tunnel, a cloud
network with a smaller MTU, a firewall that drops all ICMP. Handshakes and small requests work; large
answers hang.

Try `ping -M do -s 1472 PEER` downwards until it passes. Let ICMP \"fragmentation needed\" (type 3 code 4) and
\"packet too big\" through; clamp the MSS on the tunnel (`TCPMSS --clamp-mss-to-pmtu`); or set
net.ipv4.tcp_mtu_probing to 1 as a remedy on this host.",
    },
    Entry {
        word: "local_drop",
        of: Some("retransmit_storm"),
        text: "\
The segments did not leave this host: sending them failed here. The network is innocent.

Look at the output firewall (`nft list ruleset`, counters of drop rules), at the queue (`tc -s qdisc`:
dropped), at the link (`ip -s link`), and at the route. `conntracer --emit drop` shows the place in the
kernel, where it names its reasons.",
    },
    Entry {
        word: "unknown",
        of: Some("retransmit_storm"),
        text: "\
The types of the repeats do not tell why: too few, or too mixed. The rate and the scope are still true.

Compare `nstat -az 'TcpExt*'` before and after: TCPLostRetransmit and TCPTimeouts speak for loss,
TCPDSACKRecv for repeats that were not needed (reordering, or acknowledgements that came late).",
    },
];

/// The explanation of `word`, however it is cased or joined.
#[must_use]
pub fn text(word: &str) -> Option<String> {
    // `half_open.dead_peer` is what the hook plan calls it.
    let word = word
        .rsplit('.')
        .next()
        .unwrap_or(word)
        .to_ascii_lowercase()
        .replace(['-', ' '], "_");
    let entry = ENTRIES.iter().find(|entry| entry.word == word)?;
    let of = entry
        .of
        .map_or_else(String::new, |finding| format!(", a cause of {finding}"));
    let causes: Vec<&str> = causes(entry.word).collect();
    let causes = if causes.is_empty() {
        String::new()
    } else {
        let causes = format!("Causes: {}. Ask for each by name.", causes.join(", "));
        format!("\n\n{}", fill(&causes, COLUMNS, 0, 0))
    };
    Some(format!(
        "{}{of}\n\n{}{causes}\n",
        entry.word,
        filled(entry.text)
    ))
}

/// Paragraphs filled to [`COLUMNS`].
fn filled(text: &str) -> String {
    let paragraphs: Vec<String> = text
        .split("\n\n")
        .map(|paragraph| fill(paragraph, COLUMNS, 0, 0))
        .collect();
    paragraphs.join("\n\n")
}

/// Every word that can be explained.
#[must_use]
pub fn words() -> String {
    let rows = ENTRIES
        .iter()
        .filter(|entry| entry.of.is_none())
        .map(|entry| {
            let causes: Vec<&str> = causes(entry.word).collect();
            format!("  {:<18}{}\n", entry.word, causes.join(", "))
        });
    std::iter::once("conntracer explain WORD, with one of:\n".to_owned())
        .chain(rows)
        .collect()
}

fn causes(finding: &str) -> impl Iterator<Item = &'static str> {
    ENTRIES
        .iter()
        .filter(move |entry| {
            entry
                .of
                .is_some_and(|of| of.split(" and ").any(|part| part == finding))
        })
        .map(|entry| entry.word)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::finding::FindingKind;

    #[rstest]
    #[case(FindingKind::SynDrop)]
    #[case(FindingKind::SynCookies)]
    #[case(FindingKind::HalfOpen)]
    #[case(FindingKind::RetransmitStorm)]
    fn every_finding_is_explained(#[case] kind: FindingKind) {
        let text = text(kind.name()).unwrap();
        assert!(text.contains("Causes: "), "{text}");
    }

    #[test]
    fn words_are_found_however_they_are_written() {
        assert_eq!(text("half_open.dead_peer"), text("Dead-Peer"));
        assert!(text("dead_peer").is_some());
        assert!(text("nonsense").is_none());
    }

    #[test]
    fn text_fits_a_terminal() {
        for entry in ENTRIES {
            let text = text(entry.word).unwrap();
            for line in text.lines() {
                assert!(line.chars().count() <= COLUMNS, "{}: {line}", entry.word);
            }
        }
    }
}
