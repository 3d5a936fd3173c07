//! Retransmitted data, SYN and FIN segments: `tcp_retransmit_skb`, one record each, read in batches.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    netns::count,
    record::{Retransmit, kind},
    retransmit::{Attempt, class, is_untried},
    stats::hook,
};

use crate::{
    emit::{self, Lane},
    maps::{Outcome, account, global},
    probes::{netns, socket},
    sock::{self, field, field_into},
};

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub(crate) fn retransmit(ctx: BtfTracePointContext) -> i32 {
    account(hook::RETRANSMIT, try_retransmit(&ctx))
}

fn try_retransmit(ctx: &BtfTracePointContext) -> Outcome {
    let sk: u64 = ctx.arg(0);
    let skb: u64 = ctx.arg(1);
    counted(ctx, sk, skb);
    let mut record = Retransmit {
        header: emit::header::<Retransmit>(kind::RETRANSMIT),
        ..Retransmit::default()
    };
    if !socket::fill_troubled(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    field_into!(sk, dsack_dups, &mut record.dsack_dups);
    record.error = error(ctx);
    record.failures_traced = u8::from(traces_failures());
    // A queued skb has no headers to parse: everything is in TCP_SKB_CB.
    let cb = skb + u64::from(global!(LAYOUT.skb_cb));
    record.segs = segments(cb);
    field_into!(cb, cb_seq, &mut record.seq);
    field_into!(cb, cb_end_seq, &mut record.end_seq);
    // One byte up to 6.12, two from 6.18 on; the low one holds the flags (little endian).
    field_into!(cb, cb_tcp_flags, &mut record.tcp_flags);
    field_into!(cb, cb_sacked, &mut record.sacked);
    emit::emit(ctx, Lane::Bulk, &record)
}

/// From 6.17 on failed attempts are reported too, with the error.
#[inline(always)]
fn error(ctx: &BtfTracePointContext) -> u32 {
    if traces_failures() {
        ctx.arg::<i32>(2).unsigned_abs()
    } else {
        0
    }
}

#[inline(always)]
fn traces_failures() -> bool {
    global!(FACTS.args_tcp_retransmit_skb) >= 3
}

#[inline(always)]
fn segments(cb: u64) -> u32 {
    let segs = u32::from(field!(cb, cb_gso_segs: u16));
    if segs == 0 { 1 } else { segs }
}

/// Counts in the namespace what was sent again, by class, and what could not be sent.
#[inline(always)]
fn counted(ctx: &BtfTracePointContext, sk: u64, skb: u64) {
    let cb = skb + u64::from(global!(LAYOUT.skb_cb));
    let index = match error(ctx) {
        0 => {
            count::RETRANSMITTED
                + usize::from(class(&Attempt {
                    state: field!(sk, skc_state: u8),
                    tcp_flags: field!(cb, cb_tcp_flags: u8),
                    sacked: field!(cb, cb_sacked: u8),
                    ca_state: field!(sk, icsk_ca_state: u8) & 0x1f,
                    pending: field!(sk, icsk_pending: u8),
                }))
        }
        errno if is_untried(errno) => return,
        _ => count::RETRANSMIT_FAILED,
    };
    netns::count_many(sock::net_of(sk), index, u64::from(segments(cb)));
}
