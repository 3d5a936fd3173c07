//! What becomes of every SYN that reaches a listener.
//!
//! `tcp_conn_request` drops a SYN without a word: it returns 0 on every path and the packet is
//! *consumed*, so `kfree_skb` never sees it. The programs bracket it and read this CPU's SNMP counters of the namespace on both sides: bottom halves are off in between,
//! so the difference is what the kernel itself decided about this one packet. Where the counters
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
    tcp::flag,
};

use crate::{
    maps::{Bracket, FILTER, Injected, Mib, Outcome, SYN_BRACKET, account},
    probes::{
        bracket::{enter, leave},
        listener, netns, percpu,
    },
    sock::{self, field, load},
};

/// The value of `net.ipv4.tcp_syncookies` that sends a cookie for every SYN.
const ALWAYS: u8 = 2;

#[fentry(function = "tcp_conn_request")]
pub(crate) fn syn_fentry(ctx: FEntryContext) -> i32 {
    enter(SYN_BRACKET.get_ptr_mut(0), ctx.arg(2), ctx.arg(3), 0);
    0
}

#[fexit(function = "tcp_conn_request")]
pub(crate) fn syn_fexit(ctx: FExitContext) -> i32 {
    account(
        hook::SYN,
        leave(SYN_BRACKET.get_ptr_mut(0), |before| syn_done(&ctx, before)),
    )
}

#[kprobe]
pub(crate) fn syn_kprobe(ctx: ProbeContext) -> i32 {
    enter(
        SYN_BRACKET.get_ptr_mut(0),
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
        leave(SYN_BRACKET.get_ptr_mut(0), |before| syn_done(&ctx, before)),
    )
}

#[inline(always)]
fn syn_done<C: EbpfContext>(ctx: &C, before: &Bracket) -> Outcome {
    let net = sock::net_of(before.sk);
    let (outcome, evidence) = match before.counted_since() {
        Some(counted) => {
            note_dropped_cookie(net, &counted);
            let no_route = || percpu::no_routes(net, sock::is_v6(before.skb)) != before.no_routes;
            let outcome = by_counters(&counted, no_route, || *before);
            (outcome, syn_evidence::COUNTERS)
        }
        None => (by_fields(before), syn_evidence::FIELDS),
    };
    match listener::entry(ctx, before.sk) {
        Ok(entry) => listener::outcome(ctx, before.sk, entry, outcome, evidence, before.skb),
        Err(refused) => listener::outcome_without_entry(net, outcome, refused),
    }
}

/// The kernel decides on a cookie first, and then finds the accept queue full (`tcp_conn_request`).
#[inline(always)]
fn note_dropped_cookie(net: u64, counted: &Mib) {
    if counted.drops != 0 && counted.full_cookies != 0 {
        netns::count(net, count::COOKIE_DROPPED);
    }
}

/// The kernel counts ListenDrops for every SYN it drops here, and beside it why. Whether no route was found, and
/// the listener, are asked for only where that does not tell.
#[inline(always)]
fn by_counters(
    counted: &Mib,
    no_route: impl FnOnce() -> bool,
    listener: impl FnOnce() -> Bracket,
) -> usize {
    if counted.drops == 0 {
        if counted.full_cookies != 0 {
            syn_outcome::COOKIE
        } else {
            syn_outcome::ADDED
        }
    } else if counted.overflows != 0 {
        syn_outcome::ACCEPT_QUEUE_FULL
    } else if counted.full_drop != 0 {
        syn_outcome::SYN_QUEUE_FULL
    } else if no_route() {
        syn_outcome::NO_ROUTE
    } else {
        pressure_or_other(&listener())
    }
}

/// Neither queue is full: with cookies off, the last quarter of `tcp_max_syn_backlog` is kept for
/// peers known to be alive (`tcp_conn_request`).
#[inline(always)]
fn pressure_or_other(before: &Bracket) -> usize {
    let net = sock::net_of(before.sk);
    let limit = field!(net, net_max_syn_backlog: u32);
    if listener::syncookies(net) == 0 && limit.wrapping_sub(before.syn_qlen) < limit >> 2 {
        syn_outcome::SYN_QUEUE_PRESSURE
    } else {
        syn_outcome::OTHER
    }
}

/// The same from the listener alone: `sk_drops` rose, and the queues stood so and so. The kernel looks
/// at the SYN queue first; `qlen == limit` is full on some stable releases and not on others, so the
/// accept queue goes before it there.
#[inline(always)]
fn by_fields(before: &Bracket) -> usize {
    let cookies = listener::syncookies(sock::net_of(before.sk));
    let dropped = field!(before.sk, sk_drops: u32) != before.drops;
    if !dropped {
        let full = before.syn_qlen >= before.max_ack_backlog;
        let stored = field!(before.sk, icsk_qlen: u32) > before.syn_qlen;
        return if cookies != 0 && full && !stored {
            syn_outcome::COOKIE
        } else {
            syn_outcome::ADDED
        };
    }
    full_queue(before, cookies)
}

#[inline(always)]
fn full_queue(listener: &Bracket, cookies: u8) -> usize {
    if cookies == 0 && listener.syn_qlen > listener.max_ack_backlog {
        syn_outcome::SYN_QUEUE_FULL
    } else if listener.ack_backlog > listener.max_ack_backlog {
        syn_outcome::ACCEPT_QUEUE_FULL
    } else if cookies == 0 && listener.syn_qlen >= listener.max_ack_backlog {
        syn_outcome::SYN_QUEUE_FULL
    } else {
        pressure_or_other(listener)
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
    let counted = percpu::counted_since_last(net, netns, packet.family);
    let mut sk = listener::by_port(netns, packet.local_port, packet.local_addr);
    if sk == 0 {
        // TCP is given what has a route; a packet socket's copy has none, and no device either (`packet_rcv`).
        if net == 0 {
            return Outcome::NotOurs;
        }
        // Every listener that is asked for is known by its address, if there was room for it.
        let refused = if FILTER.has_endpoint::<Injected>() || !netns::wanted(net) {
            Outcome::Filtered
        } else {
            Outcome::Lost
        };
        let outcome = if counted.known {
            by_counters(&counted.mib, || counted.no_route, || Bracket::now(0, skb))
        } else {
            syn_outcome::ADDED
        };
        return listener::outcome_without_entry(net, outcome, refused);
    }
    if !counted.known || counted.mib.drops != 0 {
        sk = listener::dropper(sk);
    }
    let entry = match listener::entry(ctx, sk) {
        Ok(entry) => entry,
        Err(refused) => return refused,
    };
    let risen = || listener::unexplained(entry, field!(sk, sk_drops: u32)) != 0;
    let (outcome, evidence) = if counted.known {
        if counted.mib.drops != 0 && risen() {
            listener::explain(entry, 1);
        }
        note_dropped_cookie(net, &counted.mib);
        let outcome = by_counters(&counted.mib, || counted.no_route, || Bracket::now(sk, skb));
        (outcome, syn_evidence::COUNTERS)
    } else {
        // The first SYN of this namespace on this CPU.
        let cookies = listener::syncookies(net);
        let outcome = if risen() {
            listener::explain(entry, 1);
            full_queue(&Bracket::now(sk, skb), cookies)
        } else if cookies == ALWAYS {
            syn_outcome::COOKIE
        } else {
            syn_outcome::ADDED
        };
        (outcome, syn_evidence::FIELDS)
    };
    listener::outcome(ctx, sk, entry, outcome, evidence, skb)
}
