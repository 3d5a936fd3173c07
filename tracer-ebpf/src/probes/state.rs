//! `inet_sock_set_state`: births and ends, half-closed ages, and the stand-in for hooks whose better
//! hook type is missing.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    netns::count,
    record::{State, kind, role},
    stats::hook,
    tcp::state,
};

use crate::{
    emit::{self, Lane},
    maps::{Outcome, SOCKETS, account, asked_for, global},
    probes::{close, connect, failure, filter, listener, netns, socket},
    sock::{self, SOCK_DEAD, Typed, field, load},
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn state(ctx: BtfTracePointContext) -> i32 {
    account(hook::STATE, try_state(&ctx))
}

/// In its program and not beside it: two frames would not fit on the stack.
#[inline(always)]
fn try_state(ctx: &BtfTracePointContext) -> Outcome {
    let sk: u64 = ctx.arg(0);
    let old = ctx.arg::<i32>(1) as u8;
    let new = ctx.arg::<i32>(2) as u8;
    // This also fires for SCTP, DCCP and MPTCP.
    let tcp = sock::tcp_sock(sk);
    if tcp == 0 {
        return Outcome::Filtered;
    }
    if new == state::CLOSE && attempt_failed(sk, old) {
        netns::count(sock::net_of(sk), count::ATTEMPT_FAILED);
    }
    // A birth is of another owner than the socket's last life.
    if new != state::SYN_SENT && socket::is_refused(sk) {
        return Outcome::Filtered;
    }
    let told = new == state::CLOSE || asked_for(kind::STATE) || asked_for(kind::CLOSE);
    if is_closed(sk, old, new) && (told || troubled(sk, tcp)) {
        socket::claimed(sk);
    }
    let outcome = match new {
        state::SYN_SENT if global!(OPTIONS.connect_by_state) != 0 => {
            let connected = connect::connecting::<Typed, _>(ctx, sk);
            account(hook::CONNECT, connected);
            match connected {
                Outcome::Filtered => Outcome::Filtered,
                _ => Outcome::Aggregated,
            }
        }
        // The child's own state is a copy of the listener's at this moment.
        state::SYN_RECV if old == state::LISTEN && global!(OPTIONS.ack_by_skb) != 0 => {
            // So is its address: the listener's own, which no look-up by packet could miss.
            listener::completed_at(sk);
            socket::born_of::<Typed>(sk, 0)
        }
        state::ESTABLISHED if old == state::SYN_RECV && global!(OPTIONS.ack_by_skb) != 0 => {
            // The request's repeats became the child's retransmissions (`tcp_create_openreq_child`).
            if load!(tcp, total_retrans: u32) != 0 {
                listener::completed_late_at(sk);
            }
            Outcome::Aggregated
        }
        state::LISTEN => listener::listening(sk),
        state::CLOSE if old == state::LISTEN => listener::closed(ctx, sk),
        state::CLOSE if old == state::SYN_SENT => failure::closed(ctx, sk),
        state::CLOSE if old != state::SYN_RECV && old != state::CLOSE => {
            close::ended(ctx, sk, tcp, old)
        }
        // Nobody holds one that is closed, and the kernel ends it (`tcp_fin_timeout`).
        state::FIN_WAIT2 if load!(sk, skc_flags: u64) & SOCK_DEAD != 0 => Outcome::Aggregated,
        state::CLOSE_WAIT | state::FIN_WAIT2 => half_closed(sk, new),
        _ => Outcome::Aggregated,
    };
    if filter::by_owner() && outcome == Outcome::Filtered {
        return outcome;
    }
    let said = if asked_for(kind::STATE) {
        said(ctx, sk, old, new, Lane::Bulk)
    } else if new == state::CLOSE && troubled(sk, tcp) {
        said(ctx, sk, old, new, Lane::Rare)
    } else {
        return outcome;
    };
    // Two records of one event: it is lost when one of them is.
    if outcome == Outcome::Lost {
        outcome
    } else {
        said
    }
}

/// Whether `tcp_done` ends a socket that was never established, which it counts in `Tcp AttemptFails`. It is
/// called with the error stored; `tcp_close`, `tcp_disconnect` and a failing connect() set the state alone
/// and before any error. A child that could not be finished (`put_and_exit` of `tcp_v4/v6_syn_recv_sock`)
/// has no error, and is dead before it is done.
#[inline(always)]
fn attempt_failed(sk: u64, old: u8) -> bool {
    if old != state::SYN_SENT && old != state::SYN_RECV {
        return false;
    }
    load!(sk, sk_err: u32) != 0
        || (old == state::SYN_RECV && field!(sk, skc_flags: u64) & SOCK_DEAD != 0)
}

/// Whether a process closes a connection that it holds, or shuts it down. Other processes lock a socket too, to
/// look at it, and then act on the segments that came meanwhile; or they kill it, which is an error to it
/// (`tcp_abort`). Neither makes these changes without one.
#[inline(always)]
fn is_closed(sk: u64, old: u8, new: u8) -> bool {
    let at_once = new == state::CLOSE && (old == state::ESTABLISHED || old == state::CLOSE_WAIT);
    (new == state::FIN_WAIT1 || new == state::LAST_ACK || at_once)
        && load!(sk, sk_err: u32) == 0
        && load!(sk, sk_owned: u32) != 0
}

/// Enters a half-closed state. A connection older than the tracer is adopted without an owner, so that a
/// leak is seen all the same. That the state was left shows when userspace looks at the socket.
#[inline(always)]
fn half_closed(sk: u64, state: u8) -> Outcome {
    let entry = match SOCKETS.get_ptr_mut(sk) {
        Some(entry) => entry,
        None => {
            let outcome = socket::adopted::<Typed>(sk, role::UNKNOWN, 0, |_| ());
            match SOCKETS.get_ptr_mut(sk) {
                Some(entry) => entry,
                None => return outcome,
            }
        }
    };
    // SAFETY: a live map value of plain data; the helper has no preconditions.
    unsafe {
        (*entry).half_closed = state;
        (*entry).since_ns = bpf_ktime_get_ns();
    }
    Outcome::Aggregated
}

/// Whether a closing connection was in trouble. The cheap signs first: nearly every one has none.
#[inline(always)]
fn troubled(sk: u64, tcp: u64) -> bool {
    if load!(sk, sk_err: u32) == 0 && load!(tcp, total_retrans: u32) == 0 {
        return false;
    }
    // SAFETY: plain data.
    unsafe { SOCKETS.get(sk) }.is_some_and(|entry| entry.troubled != 0)
}

#[inline(always)]
fn said(ctx: &BtfTracePointContext, sk: u64, old: u8, new: u8, lane: Lane) -> Outcome {
    let mut record = State {
        header: emit::header::<State>(kind::STATE),
        error: field!(sk, sk_err: u32),
        old_state: old,
        new_state: new,
        retransmits: field!(sk, icsk_retransmits: u8),
        probes_out: field!(sk, icsk_probes_out: u8),
        ..State::default()
    };
    if !socket::fill(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    if old == state::LISTEN || new == state::LISTEN {
        socket::inherit(sk, u64::MAX, &mut record.owner);
    }
    emit::emit(ctx, lane, &record)
}
