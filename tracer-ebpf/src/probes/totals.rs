//! What became of a listener's SYNs and third ACKs, cumulative; no programs.

use aya_ebpf::EbpfContext;
use conntracer_common::{
    netns::count as netns_count,
    record::{SYN_INTERVAL_NS, SYNACKS_PER_S, Socket, kind, syn_outcome},
    socket::Listener,
};

use crate::{
    account::{Outcome, is_streamed},
    emit::Lane,
    maps::{Client, LISTENERS, VICTIMS},
    probes::{listener, netns, sources},
    sock::{self, Typed, field},
    table::add,
};

/// Adds to one of a listener's totals.
#[inline(always)]
pub(crate) fn count(entry: &mut Listener, total: usize) {
    if let Some(total) = entry.syn.totals.get_mut(total) {
        add(total, 1);
    }
}

/// [`count`] for what is no outcome of a packet and not said by itself: the poll shows it, and so does
/// the listener's end.
#[inline(always)]
pub(crate) fn count_aside(entry: &mut Listener, total: usize, now_ns: u64) {
    count(entry, total);
    entry.emitted |= 1 << total;
    entry.syn.last_ns = now_ns;
}

/// A SYN-ACK was retransmitted. Says whether a record of it is within the listener's budget.
#[inline(always)]
pub(crate) fn retransmitted(
    entry: &mut Listener,
    now_ns: u64,
    times_before: u8,
    acked: u8,
) -> bool {
    count_aside(entry, syn_outcome::REPEATED, now_ns);
    if acked != 0 {
        count(entry, syn_outcome::REPEATED_ACKED);
    }
    if times_before == 0 {
        count(entry, syn_outcome::REQUESTS_REPEATED);
    }
    let times = times_before.saturating_add(1);
    // Where CPUs mix, a record more or less is emitted.
    if times > entry.syn.most_repeats {
        entry.syn.most_repeats = times;
    }
    if now_ns.wrapping_sub(entry.synacks_from_ns) >= SYNACKS_INTERVAL_NS {
        entry.synacks_from_ns = now_ns;
        entry.synacks = 0;
    }
    entry.synacks = entry.synacks.wrapping_add(1);
    entry.synacks <= SYNACKS_PER_S
}

/// What [`SYNACKS_PER_S`] counts in.
const SYNACKS_INTERVAL_NS: u64 = 1_000_000_000;

/// A third ACK made a connection, after so many retransmitted SYN-ACKs.
#[inline(always)]
pub(crate) fn completed(listener: u64, retransmitted: u8, cookie: u8) {
    // One not known yet is adopted at its next SYN.
    let Some(entry) = LISTENERS.edit(listener) else {
        return;
    };
    queued(entry, listener);
    count(entry, syn_outcome::COMPLETED);
    if retransmitted != 0 {
        count(entry, syn_outcome::COMPLETED_LATE);
    }
    if cookie != 0 {
        count(entry, syn_outcome::COOKIE_VALID);
    }
}

/// The same from a child (of a BTF tracepoint) that still has its listener's address (tracepoint hook type).
#[inline(always)]
pub(crate) fn completed_at(child: u64) {
    let listener = of_child(child);
    if let Some(entry) = LISTENERS.edit(listener) {
        queued(entry, listener);
        count(entry, syn_outcome::COMPLETED);
    }
}

/// A child was made: it joins the accept queue as soon as this is over (`inet_csk_complete_hashdance`).
/// Before the completion is counted, so that completions less the queue are never more than were accepted.
#[inline(always)]
fn queued(entry: &mut Listener, listener: u64) {
    let ack_backlog = field!(listener, sk_ack_backlog: u32) + 1;
    entry.syn.ack_backlog = ack_backlog;
    if ack_backlog > entry.syn.peak_ack_backlog {
        entry.syn.peak_ack_backlog = ack_backlog;
    }
}

/// The child's handshake took retransmitted SYN-ACKs (tracepoint hook type).
#[inline(always)]
pub(crate) fn completed_late_at(child: u64) {
    if let Some(entry) = LISTENERS.edit(of_child(child)) {
        count(entry, syn_outcome::COMPLETED_LATE);
    }
}

#[inline(always)]
fn of_child(child: u64) -> u64 {
    let mut socket = Socket::default();
    sock::fill_common::<Typed>(child, &mut socket);
    listener::by_port(socket.netns, socket.local_port, socket.local_addr)
}

/// Counts one outcome where the listener has no entry: its namespace's counts are complete all the same.
/// `without` is why it has none.
#[inline(always)]
pub(crate) fn outcome_without_entry(net: u64, outcome: usize, without: Outcome) -> Outcome {
    if outcome != syn_outcome::ADDED {
        netns::count(net, outcome);
    }
    without
}

/// Counts one outcome at a listener, and says so when it is bad and due.
#[inline(always)]
pub(crate) fn outcome<C: EbpfContext>(
    ctx: &C,
    listener: u64,
    entry: &mut Listener,
    outcome: usize,
    evidence: u8,
    skb: u64,
) -> Outcome {
    let now = sock::now_ns();
    count(entry, outcome);
    if outcome != syn_outcome::ADDED {
        netns::count(sock::net_of(listener), outcome);
    }
    if listener::is_excluded(entry) {
        return Outcome::Filtered;
    }
    let syn_qlen = field!(listener, icsk_qlen: u32);
    entry.syn.last_ns = now;
    if syn_qlen > entry.syn.peak_syn_qlen {
        entry.syn.peak_syn_qlen = syn_qlen;
    }
    entry.syn.syn_qlen = syn_qlen;
    // A stored request leaves the accept queue as it is; what makes that longer is seen by `queued`.
    if outcome == syn_outcome::ADDED {
        return Outcome::Aggregated;
    }
    let ack_backlog = field!(listener, sk_ack_backlog: u32);
    if ack_backlog > entry.syn.peak_ack_backlog {
        entry.syn.peak_ack_backlog = ack_backlog;
    }
    entry.syn.ack_backlog = ack_backlog;
    if outcome < syn_outcome::SYNS {
        sources::troubled(listener, entry, &sock::source_of(skb));
    }
    let bit = 1 << outcome;
    let first = entry.emitted & bit == 0;
    let is_due = first || now - entry.emitted_ns >= SYN_INTERVAL_NS;
    if !is_due && !is_streamed(kind::SYN) {
        return Outcome::Aggregated;
    }
    if is_due {
        entry.emitted |= bit;
        entry.emitted_ns = now;
    }
    entry.syn.evidence = evidence;
    listener::settings(entry, listener);
    if let Some(packet) = sock::packet(skb) {
        entry.syn.socket.remote_addr = packet.remote_addr;
        entry.syn.socket.remote_port = packet.remote_port;
    }
    // What is only streamed takes no room from what is rare.
    let lane = match (first, is_due) {
        (true, _) => Lane::Urgent,
        (false, true) => Lane::Rare,
        (false, false) => Lane::Bulk,
    };
    listener::said(ctx, entry, outcome as u8, lane)
}

/// What a client is told whose third ACK was discarded: with `tcp_abort_on_overflow` a RST, whatever the
/// reason (`tcp_check_req`, `listen_overflow`), unless it brought a cookie and there is no request to
/// reset; otherwise nothing, and it is a victim once.
#[inline(always)]
pub(crate) fn ack_discarded(entry: &mut Listener, sk: u64, skb: u64, outcome: usize, cookie: u8) {
    if cookie == 0 && listener::aborts_on_overflow(sock::net_of(sk)) == 1 {
        count(entry, syn_outcome::ABORTED);
        netns::count(sock::net_of(sk), netns_count::REQUEST_ABORTED);
    } else if outcome == syn_outcome::ACK_OVERFLOW && is_new_victim(sk, skb) {
        count(entry, syn_outcome::VICTIMS);
    }
}

/// Whether the third ACK of this packet's client is discarded for the first time. One that was longer ago than its
/// retransmissions can be apart (`TCP_RTO_MAX`) is another client at the same port.
#[inline(always)]
fn is_new_victim(listener: u64, skb: u64) -> bool {
    const SAME_CLIENT_NS: u64 = 120_000_000_000;
    let now = sock::now_ns();
    let Some(packet) = sock::packet(skb) else {
        return true;
    };
    let client = Client {
        local_addr: packet.local_addr,
        remote_addr: packet.remote_addr,
        local_port: packet.local_port,
        remote_port: packet.remote_port,
        netns: sock::net_inum(sock::net_of(listener)),
    };
    if let Some(last_ns) = VICTIMS.edit(&client) {
        let before = core::mem::replace(last_ns, now);
        return now.wrapping_sub(before) > SAME_CLIENT_NS;
    }
    // An LRU map has room for whatever is new; where two CPUs race for it the second is no loss.
    VICTIMS.insert(&client, &now);
    true
}
