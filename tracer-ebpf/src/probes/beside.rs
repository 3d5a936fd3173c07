//! Other connections to the address of a silent one: a raw tracepoint program attached to nothing, run by
//! BPF_PROG_TEST_RUN on each socket with its address and birth as arguments. What it looks for and what it found is in
//! `BESIDE`.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use conntracer_common::{record::Socket, tcp::state};

use crate::{
    maps::BESIDE,
    probes::{idle, socket},
    sock::{self, Anywhere, field},
};

#[raw_tracepoint]
pub(crate) fn beside(ctx: RawTracePointContext) -> i32 {
    let (sk, born_ns): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    if socket::is_alive(sk, born_ns) {
        looked_at(sk);
    }
    0
}

#[inline(always)]
fn looked_at(sk: u64) {
    let Some(found) = BESIDE.edit(0) else {
        return;
    };
    let state = field!(sk, skc_state: u8);
    if state == state::SYN_SENT || state == state::SYN_RECV || state == state::CLOSE {
        return;
    }
    let mut socket = Socket::default();
    sock::fill_common::<Anywhere>(sk, &mut socket);
    let [a, b, c, d] = socket.remote_addr;
    let [e, f, g, h] = found.remote_addr;
    // Word by word: an array would be compared by a call.
    if socket.netns != found.netns || (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) != 0 {
        return;
    }
    found.connections += 1;
    let idle_ns = idle::heard_idle_ns(sk);
    if idle_ns < found.heard_idle_ns {
        found.heard_idle_ns = idle_ns;
    }
    if idle_ns < found.silent_ns {
        found.answered += 1;
    }
}
