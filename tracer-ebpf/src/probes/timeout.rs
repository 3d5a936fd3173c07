//! Retransmission timers that fire, also those that send nothing: `tcp_retransmit_timer`, as `TcpExt
//! TCPTimeouts` counts them. What a timeout means for its connection is `rto`'s.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use conntracer_common::{netns::count, stats::hook, tcp::state};

use crate::{
    account::{Outcome, account},
    probes::{matching, netns},
    sock::{self, Anywhere, field},
};

#[fentry(function = "tcp_retransmit_timer")]
pub(crate) fn timeout_fentry(ctx: FEntryContext) -> i32 {
    account(hook::TIMEOUT, fired(ctx.arg(0)))
}

#[kprobe]
pub(crate) fn timeout_kprobe(ctx: ProbeContext) -> i32 {
    account(hook::TIMEOUT, fired(ctx.arg(0).unwrap_or(0)))
}

/// Counts what `tcp_retransmit_timer` counts: not a timer with nothing left to retransmit, nor one that has
/// become a probe of a window that was shut. A Fast Open child's is its request's timer.
#[inline(always)]
fn fired(sk: u64) -> Outcome {
    let net = sock::net_of(sk);
    if !matching::netns(net) {
        return Outcome::Filtered;
    }
    if field!(sk, fastopen_rsk: u64) == 0
        && (field!(sk, packets_out: u32) == 0 || is_window_probe(sk))
    {
        return Outcome::Aggregated;
    }
    netns::count(net, count::TIMEOUT);
    Outcome::Aggregated
}

#[inline(always)]
fn is_window_probe(sk: u64) -> bool {
    let state = field!(sk, skc_state: u8);
    field!(sk, snd_wnd: u32) == 0
        && !sock::is_orphan::<Anywhere>(sk)
        && state != state::SYN_SENT
        && state != state::SYN_RECV
}
