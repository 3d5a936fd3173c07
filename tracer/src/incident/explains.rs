//! Which findings are of one story, and which is the cause of another.
//!
//! Each line has its reason in the protocol: what the one does to a segment is what the other sees of it. Of a pair that is
//! not here neither is the other's cause.

use std::time::Duration;

use crate::finding::{Finding, Subject, Value};

/// A RST is there a moment after it was sent. Later it ends another connection of the same ends.
const RESET_IN: Duration = Duration::from_secs(1);

/// Whether what `cause` tells of makes what `symptom` tells of, for connections that both met.
pub(super) fn explains(cause: &Finding, symptom: &Finding) -> bool {
    match (words(cause), words(symptom)) {
        // A port without a listener answers with a RST, and nothing else does not answer.
        (("syn_drop", "no_listener"), symptom) => {
            matches!(symptom, ("connect_failure", "refused" | "reset"))
        }
        // A rule may reject, with a RST or an ICMP message.
        (("syn_drop", "filtered"), ("connect_failure", of)) => of != "no_port",
        // No SYN is answered.
        (
            ("accept_delay" | "syn_drop", _),
            ("connect_failure", "timed_out" | "cancelled" | "reset")
            | ("retransmit_storm", "syns_unanswered" | "peer_unreachable"),
        )
        // A completed connection waited in the queue until its client gave up, or had sent a window full.
        | (
            ("accept_delay", _),
            ("connection_drop" | "send_stall", _) | ("half_open", "half_closed"),
        )
        // A window that its process keeps shut is what the peer cannot send into.
        | (
            ("receive_stall", _),
            ("send_stall" | "retransmit_storm", "receiver_stalled"),
        )
        // A third ACK that is discarded: the client believes in a connection that the server does not have.
        | (
            ("syn_drop", "abort_on_overflow" | "ack_overflow"),
            ("connection_drop", _) | ("half_open", "dead_peer" | "handshake"),
        )
        // Segments that never leave this host, or never pass a narrow link, are not answered.
        | (
            ("retransmit_storm" | "send_stall", "local_drop") | ("retransmit_storm", "path_mtu"),
            ("half_open", "dead_peer") | ("connection_drop", "timed_out"),
        ) => true,
        // Who sends a RST ends the connection of who receives it.
        (
            ("connection_drop", "reset_sent" | "aborted" | "timed_out"),
            ("connection_drop", "reset_received"),
        ) => {
            is_other_end(cause, symptom) && is_one_moment(cause, symptom)
        }
        _ => explains_at_listener(cause, symptom),
    }
}

/// Whether two findings that met the same connections tell one story, of which neither is known to be the cause: nothing is
/// answered, seen in several ways; or both ends tell of one end. That a connection loses segments is no reason for its
/// process to reset it.
pub(super) fn is_one_story(one: &Finding, other: &Finding) -> bool {
    let ends = |finding| matches!(words(finding), ("connection_drop", _));
    (is_silence(one) && is_silence(other))
        || (ends(one) && ends(other) && is_other_end(one, other) && is_one_moment(one, other))
}

fn is_silence(finding: &Finding) -> bool {
    match words(finding) {
        ("half_open", cause) => matches!(cause, "dead_peer" | "handshake"),
        ("connection_drop", cause) => matches!(cause, "timed_out" | "unreachable"),
        ("connect_failure", cause) => matches!(cause, "timed_out" | "cancelled" | "unreachable"),
        ("retransmit_storm", cause) => cause != "reordering",
        ("send_stall", _) => true,
        _ => false,
    }
}

fn is_one_moment(one: &Finding, other: &Finding) -> bool {
    one.last.since(other.last).max(other.last.since(one.last)) <= RESET_IN
}

/// The same of two findings about one listener, which have met no connection in common.
pub(super) fn explains_at_listener(cause: &Finding, symptom: &Finding) -> bool {
    match (words(cause), words(symptom)) {
        // Nobody takes what is completed: the queue in front of it is full.
        (("accept_delay", _), ("syn_drop", of)) => is_of_accept_queue(of),
        // Who was to listen there does not get the port, and so nobody does.
        (("bind_failure", _), ("syn_drop", "no_listener")) => symptom.since >= cause.since,
        // Requests that nobody completes fill the SYN queue, where they are so many.
        (("half_open", "handshake"), ("syn_drop" | "syn_cookies", _)) => {
            let flood = symptom
                .evidence
                .iter()
                .find(|of| of.name == "flood_finding");
            flood.is_some_and(|flood| flood.value == Value::Count(cause.id))
        }
        _ => false,
    }
}

/// Whether SYNs find nobody who listens.
pub(super) fn finds_nobody(finding: &Finding) -> bool {
    words(finding) == ("syn_drop", "no_listener")
}

/// Whether a process does not get its port.
pub(super) fn is_bind(finding: &Finding) -> bool {
    finding.kind.name() == "bind_failure"
}

/// Whether two findings about one listener tell of the same queue.
pub(super) fn is_one_queue(one: &Finding, other: &Finding) -> bool {
    let tells = |finding| match words(finding) {
        ("accept_delay", _) => true,
        ("syn_drop", cause) => is_of_accept_queue(cause),
        _ => false,
    };
    tells(one) && tells(other)
}

/// How long a server's failure may have been over when a proxy ends what its clients wait for: it has tried again, and
/// another server.
const PASSED_ON_IN: Duration = Duration::from_secs(10);

/// Clients that gave up one by one are no pattern.
const GAVE_UP: u64 = 3;

/// Whether a process tells that a server failed it.
pub(super) fn is_of_server(finding: &Finding) -> bool {
    finding.kind.name() == "connect_failure"
        || finding.kind.name() == "connection_drop"
            && matches!(finding.subject, Subject::Peer { .. })
}

/// Whether what a process did to its clients, or they to it, may have come of the server that failed it: it began after
/// that, while it went on or soon after. A process that resets its clients does so for a reason of its own; of clients that
/// gave up there must be several.
pub(super) fn are_legs(server: &Finding, client: &Finding) -> bool {
    if !is_of_server(server) || !matches!(client.subject, Subject::Listener { .. }) {
        return false;
    }
    let is_passed_on = match words(client) {
        ("connection_drop", "reset_sent") => true,
        ("connection_drop", "reset_received") => client.count >= GAVE_UP,
        _ => false,
    };
    is_passed_on && client.since >= server.since && client.since.since(server.last) <= PASSED_ON_IN
}

fn is_of_accept_queue(cause: &str) -> bool {
    matches!(
        cause,
        "accept_queue_full" | "ack_overflow" | "abort_on_overflow"
    )
}

fn words(finding: &Finding) -> (&str, &str) {
    (finding.kind.name(), &finding.cause)
}

/// Whether two findings are not told by the same end of a connection.
fn is_other_end(one: &Finding, other: &Finding) -> bool {
    let local = |finding: &Finding| match finding.subject {
        Subject::Listener { local, .. } | Subject::Connection { local, .. } => Some(local),
        _ => None,
    };
    one.subject.netns() != other.subject.netns()
        || local(one).is_none()
        || local(one) != local(other)
}
