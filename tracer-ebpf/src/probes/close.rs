//! How established connections end; no programs. An orderly end is told from the fields alone and costs no
//! record unless somebody asked for it.

use aya_ebpf::programs::BtfTracePointContext;
use conntracer_common::{
    layout::ABSENT,
    record::{Close, close_flag, close_hint, kind, owner_source, rst_sender},
    transition::{Transition, unread},
};

use crate::{
    account::{Outcome, is_streamed},
    emit::{self, Lane},
    globals::global,
    maps::Rst,
    probes::{idle, listener, reset, socket},
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
    scratch::CLOSE.make(|record| {
        record.socket.born_ns = 0;
        record.socket.role = 0;
        record.socket.flags = 0;
        record.owner.source = 0;
        let matches = socket::fill(sk, &mut record.socket, &mut record.owner);
        // The RST follows, and is told of when it has reached its end already (`tcp_send_active_reset`).
        if abrupt && rst.sk == 0 && load!(sk, sk_err: u32) == 0 && !in_repair(sk) {
            reset::sent(&record.socket, u32::MAX, rst_sender::SOCKET);
        }
        if matches {
            said(ctx, sk, transition.old, &rst, record)
        } else {
            Outcome::Filtered
        }
    })
}

#[inline(always)]
fn said(ctx: &BtfTracePointContext, sk: u64, old: u8, rst: &Rst, record: &mut Close) -> Outcome {
    sock::fill_tcp(sk, &mut record.tcp);
    record.header = emit::header::<Close>();
    record.old_state = old;
    field_into!(sk, bytes_received, &mut record.bytes_received);
    field_into!(sk, sk_err, &mut record.error);
    field_into!(sk, sk_err_soft, &mut record.soft_error);
    let pause = idle::pause(sk, record.tcp.snd_una != record.tcp.snd_nxt);
    record.idle_ns = pause.before_ns();
    record.unanswered_ns = pause.unanswered_ns();
    record.reason = rst.reason;
    record.flags = 0;
    record.exit_code = 0;
    record.sender = 0;
    record.hints = 0;
    if global!(FACTS.args_tcp_send_reset) >= 3 {
        record.hints |= close_hint::SENDERS_TOLD;
    }
    if in_repair(sk) {
        record.hints |= close_hint::REPAIR;
    }
    record.routed = if global!(LAYOUT.sk_dst) == ABSENT {
        0
    } else if field!(sk, sk_dst: u64) != 0 {
        1
    } else {
        2
    };
    if rst.received != 0 {
        record.flags |= close_flag::RST_RECEIVED;
        reset::fill_sender(record);
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
    if field!(sk, is_mptcp: u8) != 0 {
        record.flags |= close_flag::SUBFLOW;
    }
    if rst.sk == 0 && record.error == 0 {
        closer(sk, record);
    }
    emit::emit(ctx, Lane::Bulk, &*record)
}

/// Whether the socket is taken away without a word (`tcp_disconnect`).
#[inline(always)]
fn in_repair(sk: u64) -> bool {
    (field!(sk, tcp_repair: u8) >> (global!(FACTS.repair_bit) & 7)) & 1 != 0
}

/// What is known of the process that closes a connection: it runs now where it has locked the socket, or where it closes
/// the listener of a connection that nobody accepted (`inet_csk_listen_stop`).
#[inline(always)]
fn closer(sk: u64, record: &mut Close) {
    if record.flags & close_flag::NOT_ACCEPTED != 0 {
        let Some(owner) = listener::closing(&record.socket) else {
            // A third ACK that met a listener which had just closed, in whatever task that came.
            record.owner.source = owner_source::UNKNOWN;
            return;
        };
        record.owner = *owner;
        // Of the listener: nobody looked for the connection's.
        record.owner.holders = 0;
    } else if field!(sk, sk_owned: u32) == 0 || sock::is_kernel() {
        return;
    } else if record.owner.source == owner_source::UNKNOWN {
        sock::fill_current(&mut record.owner, owner_source::PASSED);
    }
    let exit_code = sock::exit_code_of_current();
    if exit_code != sock::RUNS {
        record.flags |= close_flag::EXITING;
        record.exit_code = exit_code as u16;
    }
}
