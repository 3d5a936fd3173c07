//! How long no data has passed on a connection; on demand, the record of one that has been idle for so long
//! and that nothing will tell that its peer is gone. A raw tracepoint program attached to nothing, run by
//! BPF_PROG_TEST_RUN with the socket's address, its birth and the time as arguments.

use core::ffi::c_void;

use aya_ebpf::programs::RawTracePointContext;
use conntracer_common::{
    record::{Idle, answer, idle_flag},
    tcp::{pending, state},
    transition::{Pause, ago_jiffies, idle_jiffies},
};

use crate::{
    account::Outcome,
    emit::{self, Lane},
    globals::global,
    probes::socket,
    sock::{self, field},
};

/// Without aya's attribute for raw tracepoints, whose programs return 0 whatever they say.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub(crate) extern "C" fn idle(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    looked_at(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// What userspace is answered.
#[inline(always)]
fn looked_at(ctx: &RawTracePointContext, sk: u64, born_ns: u64, limit_ns: u64) -> u32 {
    let alive = socket::is_alive(sk, born_ns);
    let state = field!(sk, skc_state: u8);
    if !alive || state == state::CLOSE {
        return answer::NOTHING;
    }
    let idle_ns = idle_ns(sk);
    if idle_ns == u64::MAX || idle_ns < limit_ns {
        return answer::NOTHING;
    }
    let mut record = Idle {
        header: emit::header::<Idle>(),
        idle_ns,
        ..Idle::default()
    };
    sock::fill_tcp(sk, &mut record.tcp);
    if state == state::ESTABLISHED && record.tcp.keepalive == 0 {
        record.flags |= idle_flag::KEEPALIVE_OFF;
    }
    if record.tcp.snd_una != record.tcp.write_seq && record.tcp.pending == pending::NONE {
        record.flags |= idle_flag::NO_TIMER;
    }
    if record.flags == 0 || !socket::fill(sk, &mut record.socket, &mut record.owner) {
        return answer::NOTHING;
    }
    if emit::emit(ctx, Lane::Bulk, &record) == Outcome::Lost {
        answer::LOST
    } else {
        answer::SAID
    }
}

/// How long ago a time of a socket's was, which is in `tcp_jiffies32`; `u64::MAX` where it never was.
#[inline(always)]
pub(crate) fn ago_ns(then: u32) -> u64 {
    let ago = ago_jiffies(sock::now_jiffies(), then);
    if ago == u32::MAX {
        return u64::MAX;
    }
    u64::from(ago) * u64::from(global!(OPTIONS.tick_ns))
}

/// How long ago the peer last acknowledged or sent anything. An ACK sets the one, data the other, and a socket that was
/// never established has neither.
#[inline(always)]
pub(crate) fn heard_idle_ns(sk: u64) -> u64 {
    let (acked, received) = (field!(sk, rcv_tstamp: u32), field!(sk, icsk_lrcvtime: u32));
    let idle = idle_jiffies(sock::now_jiffies(), acked, received);
    if idle == u32::MAX {
        return u64::MAX;
    }
    u64::from(idle) * u64::from(global!(OPTIONS.tick_ns))
}

/// What a dying socket knows of the time that passed before.
#[inline(always)]
pub(crate) fn pause(sk: u64, in_flight: bool) -> Pause {
    let first_tx = field!(sk, first_tx_mstamp: u64);
    Pause {
        sent_ns: ago_ns(field!(sk, lsndtime: u32)),
        heard_ns: heard_idle_ns(sk),
        first_tx_ns: if first_tx == 0 {
            u64::MAX
        } else {
            sock::now_ns().saturating_sub(first_tx.wrapping_mul(1000))
        },
        in_flight,
    }
}

/// Since data last went either way; `lsndtime` and `lrcvtime` are `tcp_jiffies32`, set when the connection is
/// established too, and 0 on a socket that never was.
#[inline(always)]
pub(crate) fn idle_ns(sk: u64) -> u64 {
    let (sent, received) = (field!(sk, lsndtime: u32), field!(sk, icsk_lrcvtime: u32));
    let idle = idle_jiffies(sock::now_jiffies(), sent, received);
    if idle == u32::MAX {
        return u64::MAX;
    }
    u64::from(idle) * u64::from(global!(OPTIONS.tick_ns))
}
