//! The end of a `struct sock`: its address may be another connection's a moment later.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::stats::hook;

use crate::{
    maps::{Outcome, SOCKETS, account},
    probes::{listener, socket},
};

#[btf_tracepoint(function = "tcp_destroy_sock")]
pub(crate) fn destroy(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let refused = socket::is_refused(sk);
    let outcome = match SOCKETS.remove(sk) {
        Ok(()) if !refused => Outcome::Aggregated,
        Ok(()) => Outcome::Filtered,
        // Outside the filter, a listener, or a socket that never connected.
        Err(_) => {
            listener::destroyed(sk);
            Outcome::Filtered
        }
    };
    account(hook::DESTROY, outcome)
}
