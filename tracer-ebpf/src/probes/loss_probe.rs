//! Tail loss probes: `tcp_send_loss_probe`, as `TcpExt TCPLossProbes` counts them. One that sends a segment
//! again is `retransmit`'s too; one that carries new data passes no other hook.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{netns::count, stats::hook};

use crate::{
    account::{Outcome, account},
    maps::LOSS_PROBE_BRACKET,
    probes::{matching, netns},
    sock::{self, field},
};

#[fentry(function = "tcp_send_loss_probe")]
pub(crate) fn loss_probe_fentry(ctx: FEntryContext) -> i32 {
    enter(ctx.arg(0))
}

#[fexit(function = "tcp_send_loss_probe")]
pub(crate) fn loss_probe_fexit(_ctx: FExitContext) -> i32 {
    leave()
}

#[kprobe]
pub(crate) fn loss_probe_kprobe(ctx: ProbeContext) -> i32 {
    enter(ctx.arg(0).unwrap_or(0))
}

#[kretprobe]
pub(crate) fn loss_probe_kretprobe(_ctx: RetProbeContext) -> i32 {
    leave()
}

/// An earlier probe that is not settled yet forbids another one, and leaves its mark where this one's
/// would be.
#[inline(always)]
fn enter(sk: u64) -> i32 {
    // Timers run with bottom halves off until the exit.
    if let Some(bracket) = LOSS_PROBE_BRACKET.edit(0) {
        let unsettled = field!(sk, tlp_high_seq: u32) != 0;
        *bracket = if unsettled { 0 } else { sk };
    }
    0
}

#[inline(always)]
fn leave() -> i32 {
    let Some(bracket) = LOSS_PROBE_BRACKET.edit(0) else {
        return 0;
    };
    let sk = core::mem::replace(bracket, 0);
    if sk == 0 || field!(sk, tlp_high_seq: u32) == 0 {
        return 0;
    }
    account(hook::LOSS_PROBE, sent(sock::net_of(sk)))
}

#[inline(always)]
fn sent(net: u64) -> Outcome {
    if !matching::netns(net) {
        return Outcome::Filtered;
    }
    netns::count(net, count::LOSS_PROBE);
    Outcome::Aggregated
}
