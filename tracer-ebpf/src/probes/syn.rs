//! What becomes of every SYN that reaches a listener.
//!
//! `tcp_conn_request` drops a SYN without a word: it returns 0 on every path and the packet is
//! *consumed*, so `kfree_skb` never sees it. The programs bracket it and read this CPU's SNMP counters of the
//! namespace on both sides: bottom halves are off in between, so the difference is what the kernel itself decided about this one packet. Where the counters
//! cannot be read, `sk_drops` and the queue lengths tell, and the record says that it was inferred.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{
    netns::count,
    record::{syn_evidence, syn_outcome},
    stats::hook,
    syn::{Queues, SynCounters, by_counters, by_queues, by_queues_after},
    tcp::flag,
};

use crate::{
    account::{Outcome, account},
    globals::{FILTER, Injected},
    maps::{Bracket, SYN_BRACKET},
    probes::{
        bracket::{enter, leave},
        listener, matching, netns, percpu, totals,
    },
    sock::{self, field, load},
};

#[fentry(function = "tcp_conn_request")]
pub(crate) fn syn_fentry(ctx: FEntryContext) -> i32 {
    enter(&SYN_BRACKET, ctx.arg(2), ctx.arg(3), 0);
    0
}

#[fexit(function = "tcp_conn_request")]
pub(crate) fn syn_fexit(ctx: FExitContext) -> i32 {
    account(
        hook::SYN,
        leave(&SYN_BRACKET, |before| syn_done(&ctx, before)),
    )
}

#[kprobe]
pub(crate) fn syn_kprobe(ctx: ProbeContext) -> i32 {
    enter(
        &SYN_BRACKET,
        ctx.arg(2).unwrap_or(0),
        ctx.arg(3).unwrap_or(0),
        0,
    );
    0
}

#[kretprobe]
pub(crate) fn syn_kretprobe(ctx: RetProbeContext) -> i32 {
    account(
        hook::SYN,
        leave(&SYN_BRACKET, |before| syn_done(&ctx, before)),
    )
}

#[inline(always)]
fn syn_done<C: EbpfContext>(ctx: &C, before: &Bracket) -> Outcome {
    let net = sock::net_of(before.sk);
    let (outcome, evidence) = match before.counted_since() {
        Some(rise) => {
            note_dropped_cookie(net, &rise);
            let no_route = || percpu::no_routes(net, sock::is_v6(before.skb)) != before.no_routes;
            let outcome = by_counters(&rise, no_route, || queues_before(before));
            (outcome, syn_evidence::COUNTERS)
        }
        None => (by_fields(before), syn_evidence::FIELDS),
    };
    match listener::entry(ctx, before.sk) {
        Ok(entry) => totals::outcome(ctx, before.sk, entry, outcome, evidence, before.skb),
        Err(without) => totals::outcome_without_entry(net, outcome, without),
    }
}

/// A call of its own, or LLVM lays out all that follows once more for it.
#[inline(never)]
fn by_fields(before: &Bracket) -> usize {
    let dropped = field!(before.sk, sk_drops: u32) != before.drops;
    let stored = field!(before.sk, icsk_qlen: u32) > before.syn_qlen;
    by_queues(&queues_before(before), dropped, stored)
}

#[inline(always)]
fn queues_before(before: &Bracket) -> Queues {
    let net = sock::net_of(before.sk);
    Queues {
        ack_backlog: before.ack_backlog,
        max_ack_backlog: before.max_ack_backlog,
        syn_qlen: before.syn_qlen,
        max_syn_backlog: field!(net, net_max_syn_backlog: u32),
        syncookies: listener::syncookies(net),
    }
}

#[inline(always)]
fn note_dropped_cookie(net: u64, rise: &SynCounters) {
    if rise.dropped_cookie() {
        netns::count(net, count::COOKIE_DROPPED);
    }
}

/// A SYN handed to a listener is consumed with its device already taken away by `tcp_v4/v6_rcv`,
/// whatever became of it: this alone selects exactly those SYNs.
#[btf_tracepoint(function = "consume_skb")]
pub(crate) fn syn_tracepoint(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    if !sock::is_consumed_by_tcp(skb) {
        return 0;
    }
    let Some(packet) = sock::packet_of_tracepoint(skb) else {
        return 0;
    };
    if packet.flags & (flag::SYN | flag::ACK | flag::RST) != flag::SYN {
        return 0;
    }
    account(hook::SYN, consumed(&ctx, skb, &packet))
}

#[inline(always)]
fn consumed<C: EbpfContext>(ctx: &C, skb: u64, packet: &sock::Packet) -> Outcome {
    let net = sock::net_of_route(load!(skb, skb_refdst: u64));
    let netns = sock::net_inum(net);
    // Looked at for every SYN, also those of listeners unknown: the next one must see only its own.
    let last = percpu::syns_since_last(net, netns, packet.family);
    let mut sk = listener::by_port(netns, packet.local_port, packet.local_addr);
    if sk == 0 {
        // TCP is given what has a route; a packet socket's copy has none, and no device either (`packet_rcv`).
        if net == 0 {
            return Outcome::NotOurs;
        }
        // Every listener that matches is known by its address, if there was room for it.
        let without = if FILTER.has_endpoint::<Injected>() || !matching::netns(net) {
            Outcome::Filtered
        } else {
            Outcome::Lost
        };
        let outcome = if last.known {
            by_counters(&last.rise, || last.no_route, || listener::queues(0))
        } else {
            syn_outcome::ADDED
        };
        return totals::outcome_without_entry(net, outcome, without);
    }
    if !last.known || last.rise.drops != 0 {
        sk = listener::dropper(sk);
    }
    let entry = match listener::entry(ctx, sk) {
        Ok(entry) => entry,
        Err(without) => return without,
    };
    let risen = || listener::unexplained(entry, field!(sk, sk_drops: u32)) != 0;
    let (outcome, evidence) = if last.known {
        if last.rise.drops != 0 && risen() {
            listener::explain(entry, 1);
        }
        note_dropped_cookie(net, &last.rise);
        let outcome = by_counters(&last.rise, || last.no_route, || listener::queues(sk));
        (outcome, syn_evidence::COUNTERS)
    } else {
        // The first SYN of this namespace on this CPU.
        let dropped = risen();
        if dropped {
            listener::explain(entry, 1);
        }
        let outcome = by_queues_after(&listener::queues(sk), dropped);
        (outcome, syn_evidence::FIELDS)
    };
    totals::outcome(ctx, sk, entry, outcome, evidence, skb)
}
