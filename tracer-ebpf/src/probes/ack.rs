//! What becomes of every third ACK: `tcp_v4/v6_syn_recv_sock` returns the child, or NULL when there is
//! no room for it. The client of a discarded one believes it is connected.

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{
    record::syn_outcome,
    stats::hook,
    syn::Discard,
    tcp::{flag, state},
};

use crate::{
    account::{Outcome, account},
    maps::{ACK_BRACKET, Bracket},
    probes::{
        bracket::{enter, leave},
        listener,
        percpu::SinceLast,
        socket, totals,
    },
    sock::{self, Anywhere, field},
};

#[fentry(function = "tcp_v4_syn_recv_sock")]
pub(crate) fn ack_fentry_v4(ctx: FEntryContext) -> i32 {
    enter(&ACK_BRACKET, ctx.arg(0), ctx.arg(1), ctx.arg(2));
    0
}

#[fentry(function = "tcp_v6_syn_recv_sock")]
pub(crate) fn ack_fentry_v6(ctx: FEntryContext) -> i32 {
    enter(&ACK_BRACKET, ctx.arg(0), ctx.arg(1), ctx.arg(2));
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
        &ACK_BRACKET,
        ctx.arg(0).unwrap_or(0),
        ctx.arg(1).unwrap_or(0),
        ctx.arg(2).unwrap_or(0),
    );
    0
}

#[kretprobe]
pub(crate) fn ack_kretprobe(ctx: RetProbeContext) -> i32 {
    acked(&ctx, ctx.ret())
}

#[inline(always)]
fn acked<C: EbpfContext>(ctx: &C, child: u64) -> i32 {
    let outcome = leave(&ACK_BRACKET, |before| ack_done(ctx, before, child));
    account(hook::ACK, outcome)
}

#[inline(always)]
fn ack_done<C: EbpfContext>(ctx: &C, before: &Bracket, child: u64) -> Outcome {
    if child != 0 {
        // Another CPU made one of the same request first: this one was destroyed already (`inet_ehash_nolisten`).
        if field!(child, skc_state: u8) == state::CLOSE {
            return Outcome::Aggregated;
        }
        totals::completed(before.sk, before.retransmitted, before.cookie);
        return socket::born_of::<Anywhere>(child, before.sk);
    }
    let discard = match before.counted_since() {
        Some(rise) => Discard::by_counters(&rise),
        None => Discard::by_backlog(true, before.ack_backlog, before.max_ack_backlog),
    };
    let mut entry = listener::entry(ctx, before.sk);
    if before.cookie != 0
        && let Ok(entry) = &mut entry
    {
        totals::count(entry, syn_outcome::COOKIE_VALID);
    }
    if !discard.is_drop {
        return Outcome::Aggregated;
    }
    match entry {
        Ok(entry) => {
            let Discard {
                outcome, evidence, ..
            } = discard;
            totals::ack_discarded(entry, before.sk, before.skb, outcome, before.cookie);
            totals::outcome(ctx, before.sk, entry, outcome, evidence, before.skb)
        }
        Err(without) => {
            totals::outcome_without_entry(sock::net_of(before.sk), discard.outcome, without)
        }
    }
}

/// A segment that `kfree_skb` freed at a listener (tracepoint hook type), with what the kernel counted on this
/// CPU since the last look. Without counters: a third ACK that is discarded raises `sk_drops` by 2
/// (`tcp_listendrop`, and `sk_drops_add` at the discard), anything else by 1; those are explained but are no
/// drops of a connection.
#[inline(always)]
pub(crate) fn freed_at_listener<C: EbpfContext>(
    ctx: &C,
    sk: u64,
    skb: u64,
    packet: &sock::Packet,
    last: &SinceLast,
) -> Outcome {
    let entry = match listener::entry(ctx, sk) {
        Ok(entry) => entry,
        Err(without) => return without,
    };
    let risen = listener::unexplained(entry, field!(sk, sk_drops: u32));
    // No more than this segment's share: another CPU may have dropped a SYN it has yet to explain.
    listener::explain(entry, if risen > 1 { 2 } else { risen });
    if packet.flags & (flag::SYN | flag::ACK | flag::RST) != flag::ACK {
        return Outcome::Aggregated;
    }
    let discard = if last.known {
        Discard::by_counters(&last.rise)
    } else {
        let max_ack_backlog = field!(sk, sk_max_ack_backlog: u32);
        Discard::by_backlog(risen > 1, field!(sk, sk_ack_backlog: u32), max_ack_backlog)
    };
    if !discard.is_drop {
        return Outcome::Aggregated;
    }
    // Whether it brought a cookie does not show here.
    totals::ack_discarded(entry, sk, skb, discard.outcome, 0);
    totals::outcome(ctx, sk, entry, discard.outcome, discard.evidence, skb)
}
