//! How established connections end; no programs. An orderly end is told from the fields alone and costs no
//! record unless somebody asked for it.

use aya_ebpf::programs::BtfTracePointContext;
use conntracer_common::{
    record::{Close, close_flag, kind},
    transition::{Transition, unread},
};

use crate::{
    account::{Outcome, is_streamed},
    emit::{self, Lane},
    maps::Rst,
    probes::{idle, reset, socket},
    scratch,
    sock::{self, SOCK_DEAD, SOCK_DONE, SOCK_LINGER, field, field_into, load},
};

/// A connection becomes CLOSE: in an orderly way from a state that has one, when no error and no RST came
/// with it and the FIN was acknowledged. Too many orphans, and `tcp_close` gives up what it has just sent: the
/// RST follows the change of state (`tcp_check_oom`).
#[inline(always)]
pub(crate) fn closed(
    ctx: &BtfTracePointContext,
    sk: u64,
    tcp: u64,
    transition: Transition,
) -> Outcome {
    let rst = reset::last_of(sk);
    let abrupt = transition.is_without_fin()
        || rst.sk != 0
        || load!(sk, sk_err: u32) != 0
        || load!(tcp, snd_una: u32) != load!(tcp, write_seq: u32);
    if !abrupt && !is_streamed(kind::CLOSE) {
        return Outcome::Aggregated;
    }
    scratch::CLOSE.make(|record| said(ctx, sk, transition.old, &rst, record))
}

#[inline(always)]
fn said(ctx: &BtfTracePointContext, sk: u64, old: u8, rst: &Rst, record: &mut Close) -> Outcome {
    record.socket.born_ns = 0;
    record.socket.role = 0;
    record.socket.flags = 0;
    record.owner.source = 0;
    if !socket::fill(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    record.header = emit::header::<Close>();
    record.old_state = old;
    field_into!(sk, bytes_received, &mut record.bytes_received);
    field_into!(sk, sk_err, &mut record.error);
    field_into!(sk, sk_err_soft, &mut record.soft_error);
    record.idle_ns = idle::idle_ns(sk);
    record.reason = rst.reason;
    record.flags = 0;
    if rst.received != 0 {
        record.flags |= close_flag::RST_RECEIVED;
    } else if rst.sk != 0 {
        record.flags |= close_flag::RST_SENT;
    }
    let flags = field!(sk, skc_flags: u64);
    let fin_came = flags & SOCK_DONE != 0;
    record.unread = unread(
        field!(sk, rcv_nxt: u32),
        field!(sk, copied_seq: u32),
        fin_came,
    );
    if flags & SOCK_DEAD != 0 {
        record.flags |= close_flag::ORPHAN;
    } else if field!(sk, sk_socket: u64) == 0 {
        record.flags |= close_flag::NOT_ACCEPTED;
    }
    if fin_came {
        record.flags |= close_flag::FIN_RECEIVED;
    }
    if flags & SOCK_LINGER != 0 && field!(sk, sk_lingertime: u64) == 0 {
        record.flags |= close_flag::NO_LINGER;
    }
    emit::emit(ctx, Lane::Bulk, &*record)
}
