//! Keepalive and zero-window probes: `tcp_write_wakeup(sk, mib)`, where `mib` tells which.
//!
//! The first probe after silence is healthy and costs no record; one sent while an earlier one is unanswered
//! is a record. So is a window probe that is not the first, though the peer answers: it shows how long data
//! has waited; and any that this host drops.

use aya_ebpf::{
    EbpfContext,
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{
    record::{Probe, kind},
    stats::hook,
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    globals::global,
    maps::TCP_PROBE_BRACKET,
    probes::socket,
    sock::{self, field},
};

#[fexit(function = "tcp_write_wakeup")]
pub(crate) fn tcp_probe_fexit(ctx: FExitContext) -> i32 {
    account(
        hook::PROBE,
        probed(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2)),
    )
}

#[kprobe]
pub(crate) fn tcp_probe_kprobe(ctx: ProbeContext) -> i32 {
    let mib: u32 = ctx.arg(1).unwrap_or(0);
    if let Some(bracket) = TCP_PROBE_BRACKET.edit(0) {
        *bracket = [ctx.arg(0).unwrap_or(0), u64::from(mib)];
    }
    0
}

#[kretprobe]
pub(crate) fn tcp_probe_kretprobe(ctx: RetProbeContext) -> i32 {
    let Some(bracket) = TCP_PROBE_BRACKET.edit(0) else {
        return 0;
    };
    let [sk, mib] = core::mem::replace(bracket, [0, 0]);
    if sk == 0 {
        return 0;
    }
    account(hook::PROBE, probed(&ctx, sk, mib as u32, ctx.ret()))
}

#[inline(always)]
fn probed<C: EbpfContext>(ctx: &C, sk: u64, mib: u32, result: i32) -> Outcome {
    // Probes before this one: the caller counts this one after it is sent.
    let unanswered = field!(sk, icsk_probes_out: u8);
    let keepalive = mib == u32::from(global!(FACTS.mib_tcp_keepalive));
    // Raised by every window probe until the window opens (`tcp_send_probe0`, `tcp_ack_probe`).
    let waits = !keepalive && (field!(sk, icsk_backoff: u8) != 0 || result != 0);
    if unanswered == 0 && !waits && !is_streamed(kind::PROBE) {
        return Outcome::Aggregated;
    }
    let mut record = Probe {
        header: emit::header::<Probe>(),
        result,
        keepalive: u8::from(keepalive),
        ..Probe::default()
    };
    if !socket::fill_troubled(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    emit::emit(ctx, Lane::Bulk, &record)
}
