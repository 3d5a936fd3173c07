//! Retransmitted data, SYN and FIN segments: `tcp_retransmit_skb`, one record each, read in batches.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    record::{Retransmit, kind},
    stats::hook,
};

use crate::{
    emit::{self, Lane},
    maps::{Outcome, account, global},
    probes::socket,
    sock::{self, field},
};

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub fn retransmit(ctx: BtfTracePointContext) -> i32 {
    account(hook::RETRANSMIT, try_retransmit(&ctx))
}

fn try_retransmit(ctx: &BtfTracePointContext) -> Outcome {
    let sk: u64 = ctx.arg(0);
    let skb: u64 = ctx.arg(1);
    let Some((socket, owner)) = socket::known(sk, true) else {
        return Outcome::Filtered;
    };
    // From 6.17 on failed attempts are reported too, with the error.
    let error = if global!(FACTS.args_tcp_retransmit_skb) >= 3 {
        ctx.arg::<i32>(2).unsigned_abs()
    } else {
        0
    };
    // A queued skb has no headers to parse: everything is in TCP_SKB_CB.
    let cb = skb + u64::from(global!(LAYOUT.skb_cb));
    let segs = u32::from(field!(cb, cb_gso_segs: u16));
    let record = Retransmit {
        header: emit::header::<Retransmit>(kind::RETRANSMIT),
        socket,
        owner,
        tcp: sock::tcp(sk),
        seq: field!(cb, cb_seq: u32),
        end_seq: field!(cb, cb_end_seq: u32),
        segs: if segs == 0 { 1 } else { segs },
        error,
        // One byte up to 6.12, two from 6.18 on; the low one holds the flags (little endian).
        tcp_flags: field!(cb, cb_tcp_flags: u8),
        sacked: field!(cb, cb_sacked: u8),
        pad: [0; 6],
    };
    emit::emit(ctx, Lane::Bulk, &record)
}
