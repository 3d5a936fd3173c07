//! `inet_sock_set_state`: births and ends, half-closed ages, and the stand-in for hooks whose better
//! hook type is missing.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    netns::count,
    record::{State, kind, role},
    stats::hook,
    tcp::state,
    transition::{Action, Transition},
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    globals::global,
    maps::SOCKETS,
    probes::{close, connect, failure, listener, matching, netns, socket, totals},
    sock::{self, Anywhere, Typed, field, load},
};

#[btf_tracepoint(function = "inet_sock_set_state")]
pub(crate) fn state(ctx: BtfTracePointContext) -> i32 {
    account(hook::STATE, try_state(&ctx))
}

/// In its program and not beside it: two frames would not fit on the stack.
#[inline(always)]
fn try_state(ctx: &BtfTracePointContext) -> Outcome {
    let sk: u64 = ctx.arg(0);
    let transition = Transition {
        old: ctx.arg::<i32>(1) as u8,
        new: ctx.arg::<i32>(2) as u8,
    };
    let Transition { old, new } = transition;
    // This also fires for SCTP, DCCP and MPTCP.
    let tcp = sock::tcp_sock(sk);
    if tcp == 0 {
        return Outcome::Filtered;
    }
    if new == state::CLOSE
        && transition.gives_up()
        && transition.counts_as_failed(load!(sk, sk_err: u32), || sock::is_orphan::<Anywhere>(sk))
    {
        netns::count(sock::net_of(sk), count::ATTEMPT_FAILED);
    }
    // A birth is of another owner than the socket's last life.
    if new != state::SYN_SENT && socket::is_excluded(sk) {
        return Outcome::Filtered;
    }
    if is_by_holder(sk, transition)
        && (new == state::CLOSE
            || is_streamed(kind::STATE)
            || is_streamed(kind::CLOSE)
            || troubled(sk, tcp))
    {
        socket::claimed(sk);
    }
    let by_state = global!(OPTIONS.connect_by_state) != 0;
    let by_skb = global!(OPTIONS.ack_by_skb) != 0;
    let outcome = match transition.action(by_state, by_skb, || sock::is_orphan::<Typed>(sk)) {
        Action::Nothing => Outcome::Aggregated,
        Action::Connect => {
            let connected = connect::connecting::<Typed, _>(ctx, sk);
            account(hook::CONNECT, connected);
            match connected {
                Outcome::Filtered => Outcome::Filtered,
                _ => Outcome::Aggregated,
            }
        }
        Action::ChildMade => {
            // The listener's own address, which no look-up by packet could miss.
            totals::completed_at(sk);
            socket::born_of::<Typed>(sk, 0)
        }
        Action::ChildEstablished => {
            if load!(tcp, total_retrans: u32) != 0 {
                totals::completed_late_at(sk);
            }
            Outcome::Aggregated
        }
        Action::Listen => listener::listening(sk),
        Action::ListenerClosed => listener::closed(ctx, sk),
        Action::AttemptFailed => failure::closed(ctx, sk),
        Action::ConnectionClosed => close::closed(ctx, sk, tcp, transition),
        Action::HalfClosed => half_closed(sk, new),
    };
    if matching::by_owner() && outcome == Outcome::Filtered {
        return outcome;
    }
    let said = if is_streamed(kind::STATE) {
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

/// Whether a process closes a connection that it holds, or shuts it down.
#[inline(always)]
fn is_by_holder(sk: u64, transition: Transition) -> bool {
    transition.is_by_holder() && load!(sk, sk_err: u32) == 0 && load!(sk, sk_owned: u32) != 0
}

/// Enters a half-closed state. A connection older than the tracer is adopted without an owner, so that a
/// leak is seen all the same. That the state was left shows when userspace looks at the socket.
#[inline(always)]
fn half_closed(sk: u64, state: u8) -> Outcome {
    let entry = match SOCKETS.edit(sk) {
        Some(entry) => entry,
        None => {
            let outcome = socket::adopted::<Typed>(sk, role::UNKNOWN, 0, |_| ());
            match SOCKETS.edit(sk) {
                Some(entry) => entry,
                None => return outcome,
            }
        }
    };
    entry.half_closed = state;
    entry.since_ns = sock::now_ns();
    Outcome::Aggregated
}

/// Whether a closing connection was in trouble. The cheap signs first: nearly every one has none.
#[inline(always)]
fn troubled(sk: u64, tcp: u64) -> bool {
    (load!(sk, sk_err: u32) != 0 || load!(tcp, total_retrans: u32) != 0) && socket::is_troubled(sk)
}

#[inline(always)]
fn said(ctx: &BtfTracePointContext, sk: u64, old: u8, new: u8, lane: Lane) -> Outcome {
    let mut record = State {
        header: emit::header::<State>(),
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
