//! The state of one socket now: emitted by other hooks, and on demand for the sockets that detectors
//! watch. On demand it is a raw tracepoint program attached to nothing, run by BPF_PROG_TEST_RUN with
//! the socket's address and birth as arguments.

use core::ffi::c_void;

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use conntracer_common::{
    record::{Snapshot, Socket, answer, snapshot_flag},
    tcp::state,
    transition::unread,
};

use crate::{
    account::Outcome,
    emit::{self, Lane},
    maps::SOCKETS,
    probes::{idle, listener, socket},
    sock::{self, SOCK_DEAD, SOCK_DONE, field, field_into},
};

/// Without aya's attribute, whose programs return 0 whatever they say.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub(crate) extern "C" fn snapshot(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    let sk: u64 = ctx.arg(0);
    let born_ns: u64 = ctx.arg(1);
    let outcome = if socket::is_alive(sk, born_ns) {
        taken(&ctx, sk, false)
    } else {
        gone(&ctx, sk, born_ns)
    };
    // No event of a hook: who asked counts what there was no room for.
    match outcome {
        Outcome::Emitted => answer::SAID,
        Outcome::Lost => answer::LOST,
        Outcome::Aggregated | Outcome::Filtered | Outcome::NotOurs => answer::NOTHING,
    }
}

/// The same for a listener: nothing is emitted, its entry in `LISTENERS` is brought up to date.
#[raw_tracepoint]
pub(crate) fn refresh(ctx: RawTracePointContext) -> i32 {
    listener::refreshed(ctx.arg(0), ctx.arg(1));
    0
}

/// Emits what the socket looks like now.
#[inline(always)]
pub(crate) fn taken<C: EbpfContext>(ctx: &C, sk: u64, adopt: bool) -> Outcome {
    let mut record = Snapshot {
        header: emit::header::<Snapshot>(),
        ..Snapshot::default()
    };
    let matches = if adopt {
        socket::fill_troubled(sk, &mut record.socket, &mut record.owner)
    } else {
        socket::fill(sk, &mut record.socket, &mut record.owner)
    };
    if !matches {
        return Outcome::Filtered;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    record.received_idle_ns = idle::ago_ns(field!(sk, icsk_lrcvtime: u32));
    record.sent_idle_ns = idle::ago_ns(field!(sk, lsndtime: u32));
    record.heard_idle_ns = idle::heard_idle_ns(sk);
    field_into!(sk, retrans_stamp, &mut record.retrans_stamp);
    let flags = field!(sk, skc_flags: u64);
    let copied_seq = field!(sk, copied_seq: u32);
    let fin_came = flags & SOCK_DONE != 0;
    record.unread = unread(record.tcp.rcv_nxt, copied_seq, fin_came);
    if flags & SOCK_DEAD == 0 && field!(sk, sk_socket: u64) == 0 {
        record.flags |= snapshot_flag::NOT_ACCEPTED;
    }
    if fin_came && copied_seq != record.tcp.rcv_nxt {
        record.flags |= snapshot_flag::END_UNREAD;
    }
    record.since_ns = SOCKETS.get(sk).map_or(0, |entry| entry.since_ns);
    emit::emit(ctx, Lane::Bulk, &record)
}

/// The watched socket is no more; its address may be another's.
#[inline(always)]
fn gone<C: EbpfContext>(ctx: &C, sk: u64, born_ns: u64) -> Outcome {
    let record = Snapshot {
        header: emit::header::<Snapshot>(),
        socket: Socket {
            sk,
            born_ns,
            state: state::CLOSE,
            ..Socket::default()
        },
        ..Snapshot::default()
    };
    emit::emit(ctx, Lane::Bulk, &record)
}
