//! Every retransmission timeout, also those that send nothing because the segment never left the host:
//! `tcp_enter_loss`, or the change of the congestion state to Loss. How many there were is `timeout`'s.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, kprobe},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext},
};
use conntracer_common::{stats::hook, tcp::ca};

use crate::{
    account::{Outcome, account},
    probes::snapshot,
};

#[fentry(function = "tcp_enter_loss")]
pub(crate) fn rto_fentry(ctx: FEntryContext) -> i32 {
    account(hook::RTO, timed_out(&ctx, ctx.arg(0)))
}

#[kprobe]
pub(crate) fn rto_kprobe(ctx: ProbeContext) -> i32 {
    account(hook::RTO, timed_out(&ctx, ctx.arg(0).unwrap_or(0)))
}

#[btf_tracepoint(function = "tcp_cong_state_set")]
pub(crate) fn rto_tracepoint(ctx: BtfTracePointContext) -> i32 {
    let entered = ctx.arg::<i32>(1) as u8 & 0x1f;
    if entered != ca::LOSS {
        return 0;
    }
    account(hook::RTO, timed_out(&ctx, ctx.arg(0)))
}

#[inline(always)]
fn timed_out<C: EbpfContext>(ctx: &C, sk: u64) -> Outcome {
    snapshot::taken(ctx, sk, true)
}
