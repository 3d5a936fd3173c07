//! What becomes of every SYN and every third ACK that reaches a listener.
//!
//! `tcp_conn_request` drops a SYN without a word: it returns 0 on every path and the packet is
//! *consumed*, so `kfree_skb` never sees it. The programs bracket it (and `tcp_v4/v6_syn_recv_sock`)
//! and read this CPU's SNMP counters of the namespace on both sides: bottom halves are off in between,
//! so the difference is what the kernel itself decided about this one packet. Where the counters
//! cannot be read, `sk_drops` and the queue lengths tell, and the record says that it was inferred.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, fexit, kprobe, kretprobe},
    programs::{BtfTracePointContext, FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{
    record::{syn_evidence, syn_outcome},
    stats::hook,
    tcp::flag,
};

use crate::{
    maps::{ACK_BRACKET, Bracket, Listener, Mib, Outcome, SYN_BRACKET, account, add},
    probes::{listener, percpu, socket},
    sock::{self, field},
};

const NO_MIB: Mib = Mib {
    overflows: 0,
    drops: 0,
    full_drop: 0,
    full_cookies: 0,
};

#[fentry(function = "tcp_conn_request")]
pub(crate) fn syn_fentry(ctx: FEntryContext) -> i32 {
    enter(SYN_BRACKET.get_ptr_mut(0), ctx.arg(2), ctx.arg(3));
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

#[fentry(function = "tcp_v4_syn_recv_sock")]
pub(crate) fn ack_fentry_v4(ctx: FEntryContext) -> i32 {
    enter(ACK_BRACKET.get_ptr_mut(0), ctx.arg(0), ctx.arg(1));
    0
}

#[fentry(function = "tcp_v6_syn_recv_sock")]
pub(crate) fn ack_fentry_v6(ctx: FEntryContext) -> i32 {
    enter(ACK_BRACKET.get_ptr_mut(0), ctx.arg(0), ctx.arg(1));
    0
}

/// The return value's slot is the number of parameters, 6 or 7 with stable back-ports in between: BTF
/// chooses the program.
#[fexit(function = "tcp_v4_syn_recv_sock")]
pub(crate) fn ack_fexit_v4_6(ctx: FExitContext) -> i32 {
    acked(&ctx, ctx.arg(6))
}

#[fexit(function = "tcp_v4_syn_recv_sock")]
pub(crate) fn ack_fexit_v4_7(ctx: FExitContext) -> i32 {
    acked(&ctx, ctx.arg(7))
}

#[fexit(function = "tcp_v6_syn_recv_sock")]
pub(crate) fn ack_fexit_v6_6(ctx: FExitContext) -> i32 {
    acked(&ctx, ctx.arg(6))
}

#[fexit(function = "tcp_v6_syn_recv_sock")]
pub(crate) fn ack_fexit_v6_7(ctx: FExitContext) -> i32 {
    acked(&ctx, ctx.arg(7))
}

#[kprobe]
pub(crate) fn ack_kprobe(ctx: ProbeContext) -> i32 {
    enter(
        ACK_BRACKET.get_ptr_mut(0),
        ctx.arg(0).unwrap_or(0),
        ctx.arg(1).unwrap_or(0),
    );
    0
}

#[kretprobe]
pub(crate) fn ack_kretprobe(ctx: RetProbeContext) -> i32 {
    acked(&ctx, ctx.ret())
}

/// Remembers the listener as it is before the kernel decides.
#[inline(always)]
fn enter(bracket: Option<*mut Bracket>, sk: u64, skb: u64) {
    let Some(bracket) = bracket else {
        return;
    };
    // SAFETY: a live per-CPU map value; bottom halves are off from here to the exit.
    unsafe {
        if (*bracket).skb == skb && skb != 0 {
            (*bracket).nested += 1;
            return;
        }
        *bracket = Bracket {
            sk,
            skb,
            mib: percpu::mib(sock::net_of(sk)).unwrap_or(NO_MIB),
            drops: field!(sk, sk_drops: u32),
            ack_backlog: field!(sk, sk_ack_backlog: u32),
            max_ack_backlog: field!(sk, sk_max_ack_backlog: u32),
            syn_qlen: field!(sk, icsk_qlen: u32),
            nested: 0,
            pad: 0,
        };
    }
}

/// Judges at the exit of the outermost call, and frees the slot for the next entry. `NotOurs` in a
/// nested call, or when the entry was not seen.
#[inline(always)]
fn leave(bracket: Option<*mut Bracket>, judge: impl FnOnce(&Bracket) -> Outcome) -> Outcome {
    let Some(bracket) = bracket else {
        return Outcome::NotOurs;
    };
    // SAFETY: as in `enter`.
    unsafe {
        if (*bracket).nested > 0 {
            (*bracket).nested -= 1;
            return Outcome::NotOurs;
        }
        if (*bracket).skb == 0 {
            return Outcome::NotOurs;
        }
        let outcome = judge(&*bracket);
        (*bracket).skb = 0;
        outcome
    }
}

#[inline(always)]
fn syn_done<C: EbpfContext>(ctx: &C, before: &Bracket) -> Outcome {
    let entry = match listener::entry(ctx, before.sk) {
        Ok(entry) => entry,
        Err(refused) => return refused,
    };
    let net = sock::net_of(before.sk);
    let (outcome, evidence) = match percpu::mib(net) {
        Some(after) => (by_counters(before, &after), syn_evidence::COUNTERS),
        None => (by_fields(before, net), syn_evidence::FIELDS),
    };
    listener::outcome(ctx, before.sk, entry, outcome, evidence, before.skb)
}

/// The kernel counts ListenDrops for every SYN it drops here, and beside it why.
#[inline(always)]
fn by_counters(before: &Bracket, after: &Mib) -> usize {
    if after.drops == before.mib.drops {
        if after.full_cookies != before.mib.full_cookies {
            return syn_outcome::COOKIE;
        }
        return syn_outcome::ADDED;
    }
    if after.overflows != before.mib.overflows {
        syn_outcome::ACCEPT_QUEUE_FULL
    } else if after.full_drop != before.mib.full_drop {
        syn_outcome::SYN_QUEUE_FULL
    } else {
        pressure_or_other(before)
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
fn by_fields(before: &Bracket, net: u64) -> usize {
    let cookies = listener::syncookies(net);
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

#[inline(always)]
fn acked<C: EbpfContext>(ctx: &C, child: u64) -> i32 {
    let outcome = leave(ACK_BRACKET.get_ptr_mut(0), |before| {
        ack_done(ctx, before, child)
    });
    account(hook::ACK, outcome)
}

#[inline(always)]
fn ack_done<C: EbpfContext>(ctx: &C, before: &Bracket, child: u64) -> Outcome {
    if child != 0 {
        return socket::born_of(child, before.sk);
    }
    let entry = match listener::entry(ctx, before.sk) {
        Ok(entry) => entry,
        Err(refused) => return refused,
    };
    let (overflowed, evidence) = match percpu::mib(sock::net_of(before.sk)) {
        Some(after) => (
            after.overflows != before.mib.overflows,
            syn_evidence::COUNTERS,
        ),
        None => (
            before.ack_backlog > before.max_ack_backlog,
            syn_evidence::FIELDS,
        ),
    };
    let outcome = if overflowed {
        syn_outcome::ACK_OVERFLOW
    } else {
        syn_outcome::ACK_OTHER
    };
    listener::outcome(ctx, before.sk, entry, outcome, evidence, before.skb)
}

/// A SYN handed to a listener is consumed with its device already taken away by `tcp_v4/v6_rcv`,
/// whatever became of it: this alone selects exactly those SYNs.
#[btf_tracepoint(function = "consume_skb")]
pub(crate) fn syn_tracepoint(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    if !sock::is_consumed_by_tcp(skb) {
        return 0;
    }
    let Some(packet) = sock::packet(skb) else {
        return 0;
    };
    if packet.flags & (flag::SYN | flag::ACK | flag::RST) != flag::SYN {
        return 0;
    }
    account(hook::SYN, consumed(&ctx, skb, &packet))
}

#[inline(always)]
fn consumed<C: EbpfContext>(ctx: &C, skb: u64, packet: &sock::Packet) -> Outcome {
    let net = sock::net_of_packet(skb);
    let sk = listener::by_port(sock::net_inum(net), packet.local_port, packet.local_addr);
    if sk == 0 {
        return Outcome::Filtered;
    }
    let entry = match listener::entry(ctx, sk) {
        Ok(entry) => entry,
        Err(refused) => return refused,
    };
    let now = Bracket {
        sk,
        skb,
        mib: NO_MIB,
        drops: field!(sk, sk_drops: u32),
        ack_backlog: field!(sk, sk_ack_backlog: u32),
        max_ack_backlog: field!(sk, sk_max_ack_backlog: u32),
        syn_qlen: field!(sk, icsk_qlen: u32),
        nested: 0,
        pad: 0,
    };
    let cookies = listener::syncookies(net);
    // SAFETY: a live map value of plain data.
    let (unexplained, last_qlen) = unsafe {
        let last_qlen = (*entry).last_qlen;
        (*entry).last_qlen = now.syn_qlen;
        (unexplained(entry, now.drops), last_qlen)
    };
    let outcome = if unexplained > 0 {
        explain(entry, 1);
        full_queue(&now, cookies)
    } else if cookies != 0 && now.syn_qlen >= now.max_ack_backlog && now.syn_qlen <= last_qlen {
        syn_outcome::COOKIE
    } else {
        syn_outcome::ADDED
    };
    listener::outcome(ctx, sk, entry, outcome, syn_evidence::FIELDS, skb)
}

/// How far `sk_drops` is ahead of what was explained so far.
///
/// # Safety
/// `entry` is a live map value.
#[inline(always)]
unsafe fn unexplained(entry: *mut Listener, drops: u32) -> i32 {
    // SAFETY: the caller's.
    unsafe {
        drops
            .wrapping_sub((*entry).drops_base)
            .wrapping_sub((*entry).drops_explained as u32) as i32
    }
}

#[inline(always)]
fn explain(entry: *mut Listener, drops: u64) {
    // SAFETY: a live map value of plain data.
    unsafe { add(&raw mut (*entry).drops_explained, drops) };
}

/// A segment that `kfree_skb` freed at a listener (tracepoint rung): a third ACK that found the accept
/// queue full raises `sk_drops` by 2 (`tcp_listendrop`, and `sk_drops_add` at the discard), anything
/// else by 1; those are explained but are no SYN drops.
#[inline(always)]
pub(crate) fn freed_at_listener<C: EbpfContext>(
    ctx: &C,
    sk: u64,
    skb: u64,
    packet: &sock::Packet,
) -> Outcome {
    let entry = match listener::entry(ctx, sk) {
        Ok(entry) => entry,
        Err(refused) => return refused,
    };
    // SAFETY: a live map value of plain data.
    let drops = unsafe { unexplained(entry, field!(sk, sk_drops: u32)) };
    if drops <= 0 {
        return Outcome::Aggregated;
    }
    let third_ack = packet.flags & (flag::SYN | flag::ACK | flag::RST) == flag::ACK;
    let full = field!(sk, sk_ack_backlog: u32) > field!(sk, sk_max_ack_backlog: u32);
    explain(entry, if drops > 1 { 2 } else { 1 });
    if third_ack && full {
        listener::outcome(
            ctx,
            sk,
            entry,
            syn_outcome::ACK_OVERFLOW,
            syn_evidence::FIELDS,
            skb,
        )
    } else {
        Outcome::Aggregated
    }
}
