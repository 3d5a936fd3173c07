//! Accepted connections: whose they become. fexit `inet_csk_accept` runs in the acceptor's context;
//! the fallback is the owner's first receive.
//!
//! No kprobe hook type: a kretprobe on a function that blocks runs out of instances with as many blocked
//! acceptors, and says nothing.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fexit},
    programs::{BtfTracePointContext, FExitContext},
};
use conntracer_common::{
    filter::verdict,
    record::{Accept, Owner, kind, owner_source, role, syn_outcome},
    socket::SocketState,
    stats::hook,
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    maps::{LISTENERS, SOCKETS},
    probes::{ownership::Ownership, socket, totals},
    sock::{self, Anywhere, load},
};

/// The return value's slot is the number of parameters: 2 from 6.10 on, 4 before. A slot too small
/// would load and return an argument, so BTF chooses the program. (One program with a branch would do,
/// were it not that LLVM merges the branches into arithmetic on the context, which is refused.)
#[fexit(function = "inet_csk_accept")]
pub(crate) fn accept_fexit_2(ctx: FExitContext) -> i32 {
    returned(&ctx, ctx.arg(2), ctx.arg(0))
}

#[fexit(function = "inet_csk_accept")]
pub(crate) fn accept_fexit_4(ctx: FExitContext) -> i32 {
    returned(&ctx, ctx.arg(4), ctx.arg(0))
}

#[inline(always)]
fn returned(ctx: &FExitContext, child: u64, listener: u64) -> i32 {
    if child == 0 {
        // An error, EAGAIN of a non-blocking accept() among them: no connection, no event.
        return 0;
    }
    account(hook::ACCEPT, accepted(ctx, child, listener))
}

/// Runs at every receive of every connection: one look-up, and nothing more while its owner receives. Another
/// process that does was passed the descriptor, or inherited it.
///
/// Most receives are a process's, which has locked the socket. Those of the kernel itself (`tcp_read_sock` by
/// TLS or sockmap, as data arrives) run in whatever task was interrupted, and never with that lock.
#[btf_tracepoint(function = "tcp_rcv_space_adjust")]
pub(crate) fn accept_tracepoint(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let Some(entry) = SOCKETS.edit(sk) else {
        return 0;
    };
    let is_owner = entry.owner.pid == sock::current_pid();
    let source = entry.owner.source;
    let begins = match source {
        owner_source::UNKNOWN => true,
        // A search came before the first receive. Of one that is older only the walk at start did: what a later one
        // found had an owner before.
        owner_source::SEEDED if entry.older == 0 => is_owner && entry.accepted == 0,
        owner_source::SEEDED => is_owner && entry.owned_ns == 0,
        _ => false,
    };
    if entry.role == role::PASSIVE && begins {
        if load!(sk, sk_owned: u32) != 0 {
            // A first receive is no accept(): the listener's last one stays unknown on this hook type.
            return account(hook::ACCEPT, said(&ctx, sk, owned(entry)));
        }
    } else if !is_owner && source != owner_source::UNKNOWN && load!(sk, sk_owned: u32) != 0 {
        let mut user = Owner::default();
        sock::fill_current(&mut user, owner_source::PASSED);
        // A kernel thread receives for somebody else.
        if user.source != owner_source::UNKNOWN {
            entry.owner = user;
            Ownership::of_connection(entry).changed(sock::now_ns());
            return account(hook::PASS, Outcome::Aggregated);
        }
    }
    0
}

#[inline(always)]
fn accepted(ctx: &FExitContext, child: u64, listener: u64) -> Outcome {
    let now_ns = sock::now_ns();
    if let Some(entry) = LISTENERS.edit(listener) {
        totals::count(entry, syn_outcome::ACCEPTED);
        entry.syn.last_accept_ns = now_ns;
        // A listener older than the tracer becomes its acceptor's.
        if entry.syn.owner.source == owner_source::UNKNOWN {
            sock::fill_current(&mut entry.syn.owner, owner_source::ACCEPT);
            Ownership::of_listener(entry).changed(now_ns);
        }
    }
    let outcome = match SOCKETS.edit(child) {
        Some(entry) => owned(entry),
        // Older than the tracer: its handshake was not seen.
        None => socket::adopted::<Anywhere>(child, role::PASSIVE, listener, |owner| {
            sock::fill_current(owner, owner_source::ACCEPT);
        }),
    };
    said(ctx, child, outcome)
}

/// A connection that is known becomes the running process's.
#[inline(always)]
fn owned(entry: &mut SocketState) -> Outcome {
    entry.accepted = 1;
    let verdict = Ownership::of_connection(entry).pass_to_current(owner_source::ACCEPT);
    if verdict == verdict::EXCLUDED {
        Outcome::Filtered
    } else {
        Outcome::Aggregated
    }
}

#[inline(always)]
fn said<C: EbpfContext>(ctx: &C, child: u64, outcome: Outcome) -> Outcome {
    if outcome != Outcome::Aggregated || !is_streamed(kind::ACCEPT) {
        return outcome;
    }
    let mut record = Accept {
        header: emit::header::<Accept>(),
        ..Accept::default()
    };
    if !socket::fill(child, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    emit::emit(ctx, Lane::Bulk, &record)
}
