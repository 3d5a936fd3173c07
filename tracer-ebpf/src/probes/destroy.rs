//! The end of a `struct sock`: its address may be another connection's a moment later.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::stats::hook;

use crate::{
    account::{Outcome, account},
    maps::SOCKETS,
    probes::{listener, socket},
};

#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn destroy(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let is_excluded = socket::is_excluded(sk);
    let outcome = if !SOCKETS.remove(sk) {
        // Outside the filter, a listener, or a socket that never connected.
        listener::destroyed(sk);
        Outcome::Filtered
    } else if is_excluded {
        Outcome::Filtered
    } else {
        Outcome::Aggregated
    };
    account(hook::DESTROY, outcome)
}
