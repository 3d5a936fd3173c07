//! The receiving side of a connection, on demand: whether its window is shut because nobody reads. A raw tracepoint
//! program attached to nothing, run by BPF_PROG_TEST_RUN with the socket's address, its birth, and the time without data
//! as arguments, which is 0 for a record in any case.

use core::ffi::c_void;

use aya_ebpf::programs::RawTracePointContext;
use conntracer_common::{
    layout::ABSENT,
    record::{Receive, answer, receive_flag},
    tcp::state,
    transition::receive_window,
};

use crate::{
    account::Outcome,
    emit::{self, Lane},
    globals::global,
    probes::{idle, socket},
    sock::field,
};

/// Without aya's attribute for raw tracepoints, whose programs return 0 whatever they say.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub(crate) extern "C" fn receive(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    looked_at(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// What userspace is answered.
#[inline(always)]
fn looked_at(ctx: &RawTracePointContext, sk: u64, born_ns: u64, quiet_ns: u64) -> u32 {
    let is_known = global!(LAYOUT.copied_seq) != ABSENT && global!(LAYOUT.rcv_wnd) != ABSENT;
    if !is_known || !socket::is_alive(sk, born_ns) || !receives(field!(sk, skc_state: u8)) {
        return answer::NOTHING;
    }
    // One that waits for accept(), or that no process holds any more: nobody could read from it.
    if field!(sk, sk_socket: u64) == 0 {
        return answer::NOTHING;
    }
    let (rcv_nxt, copied_seq) = (field!(sk, rcv_nxt: u32), field!(sk, copied_seq: u32));
    let mut record = Receive {
        copied_seq,
        unread: rcv_nxt.wrapping_sub(copied_seq),
        window: receive_window(field!(sk, rcv_wup: u32), field!(sk, rcv_wnd: u32), rcv_nxt),
        mss: u32::from(field!(sk, icsk_rcv_mss: u16)),
        data_idle_ns: idle::ago_ns(field!(sk, icsk_lrcvtime: u32)),
        ..Receive::default()
    };
    let is_shut = record.unread != 0 && record.window < record.mss;
    record.flags = if is_shut { receive_flag::SHUT } else { 0 };
    if quiet_ns != 0 && (!is_shut || record.data_idle_ns < quiet_ns) {
        return answer::NOTHING;
    }
    if !socket::fill(sk, &mut record.socket, &mut record.owner) {
        return answer::NOTHING;
    }
    record.header = emit::header::<Receive>();
    record.memory = field!(sk, sk_rmem_alloc: u32);
    record.memory_max = field!(sk, sk_rcvbuf: u32);
    if emit::emit(ctx, Lane::Bulk, &record) == Outcome::Lost {
        answer::LOST
    } else {
        answer::SAID
    }
}

/// Whether the peer may still send.
#[inline(always)]
const fn receives(of: u8) -> bool {
    matches!(of, state::ESTABLISHED | state::FIN_WAIT1 | state::FIN_WAIT2)
}
