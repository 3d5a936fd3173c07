//! Connections that wait for accept(): a raw tracepoint program attached to nothing, run by BPF_PROG_TEST_RUN on one
//! listener with its address, its birth and the age asked about as arguments. What it finds is in `ACCEPT_QUEUE`.
//!
//! The queue is read without its lock. A connection that is accepted meanwhile may lead to another one's memory: what does
//! not look like a connection of this listener that nobody holds ends the walk.

use core::ffi::c_void;

use aya_ebpf::programs::RawTracePointContext;
use conntracer_common::{
    record::{AcceptQueue, MAX_WAITING, accept_queue_flag, answer, syn_outcome},
    socket::Listener,
    tcp::state,
};

use crate::{
    emit,
    maps::{ACCEPT_QUEUE, LISTENERS, SOCKETS},
    probes::{fork, idle, listener},
    sock::{self, Anywhere, field},
};

/// Without aya's attribute for raw tracepoints, whose programs return 0 whatever they say.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tp")]
pub(crate) extern "C" fn accept_queue(ctx: *mut c_void) -> u32 {
    let ctx = RawTracePointContext::new(ctx);
    looked_at(ctx.arg(0), ctx.arg(1), ctx.arg(2))
}

/// Says whether the oldest connection is at least so old, or with 0 for an age, whether the listener is there.
#[inline(always)]
fn looked_at(sk: u64, born_ns: u64, limit_ns: u64) -> u32 {
    let ack_backlog = field!(sk, sk_ack_backlog: u32);
    if ack_backlog == 0 && limit_ns != 0 {
        return answer::NOTHING;
    }
    let Some(entry) = LISTENERS.edit(sk) else {
        return answer::NOTHING;
    };
    if entry.syn.socket.born_ns != born_ns
        || field!(sk, skc_state: u8) != state::LISTEN
        || listener::is_excluded(entry)
    {
        return answer::NOTHING;
    }
    let Some(found) = ACCEPT_QUEUE.edit(0) else {
        return answer::NOTHING;
    };
    found.header = emit::header::<AcceptQueue>();
    found.socket = entry.syn.socket;
    found.socket.remote_addr = [0; 4];
    found.socket.remote_port = 0;
    found.oldest_ns = 0;
    found.waiting = 0;
    found.fins_now = 0;
    found.resets_now = 0;
    walk(sk, entry, found);
    fork::mark(&mut entry.syn.owner, entry.owned_ns);
    found.owner = entry.syn.owner;
    found.ack_backlog = ack_backlog;
    found.max_ack_backlog = field!(sk, sk_max_ack_backlog: u32);
    found.last_accept_ns = entry.syn.last_accept_ns;
    found.accepted = entry.syn.totals[syn_outcome::ACCEPTED];
    found.completed = entry.syn.totals[syn_outcome::COMPLETED];
    found.fins = entry.fins;
    found.resets = entry.resets;
    let is_late = found.oldest_ns != u64::MAX && found.oldest_ns >= limit_ns && found.waiting != 0;
    found.flags = if is_late { accept_queue_flag::LATE } else { 0 };
    if is_late || limit_ns == 0 {
        answer::SAID
    } else {
        answer::NOTHING
    }
}

/// Goes through the queue, from the oldest on. Counts are kept in memory: in registers the verifier would tell every sum
/// from every other.
#[inline(always)]
fn walk(listener: u64, entry: &mut Listener, found: &mut AcceptQueue) {
    let port = found.socket.local_port;
    let mut request = field!(listener, icsk_accept_head: u64);
    for _ in 0..MAX_WAITING {
        if request == 0 {
            break;
        }
        let child = field!(request, req_sk: u64);
        if child == 0
            || field!(child, skc_num: u16) != port && field!(child, inet_sport: u16) != port.to_be()
            || field!(child, sk_socket: u64) != 0
        {
            break;
        }
        request = field!(request, req_next: u64);
        one(child, entry, found);
    }
}

#[inline(always)]
fn one(child: u64, entry: &mut Listener, found: &mut AcceptQueue) {
    let known = SOCKETS.edit(child);
    if found.waiting == 0 {
        let since_ns = match &known {
            Some(state) if state.older == 0 => state.born_ns,
            _ => 0,
        };
        found.oldest_ns = if since_ns == 0 {
            // Set as the connection is made, and by what the application sends, which has none yet.
            idle::ago_ns(field!(child, lsndtime: u32))
        } else {
            sock::now_ns().saturating_sub(since_ns)
        };
        ends(child, found);
    }
    found.waiting += 1;
    let state = field!(child, skc_state: u8);
    let is_reset = state == state::CLOSE && is_reset(field!(child, sk_err: u32));
    if is_reset {
        found.resets_now += 1;
    } else if state == state::CLOSE_WAIT {
        found.fins_now += 1;
    } else {
        return;
    }
    let Some(known) = known else { return };
    if known.ended_waiting == 0 {
        known.ended_waiting = 1;
        if is_reset {
            entry.resets += 1;
        } else {
            entry.fins += 1;
        }
    }
}

/// Whether a RST is what an error of a connection came of (`tcp_reset`).
#[inline(always)]
const fn is_reset(error: u32) -> bool {
    const EPIPE: u32 = 32;
    const ECONNRESET: u32 = 104;
    error == ECONNRESET || error == EPIPE
}

#[inline(always)]
fn ends(child: u64, found: &mut AcceptQueue) {
    let mut socket = conntracer_common::record::Socket::default();
    sock::fill_common::<Anywhere>(child, &mut socket);
    found.socket.remote_addr = socket.remote_addr;
    found.socket.remote_port = socket.remote_port;
    found.oldest_local = socket.local_addr;
}
