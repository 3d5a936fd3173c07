//! Sockets that are handed on by fork(): `sched_process_fork`, in the context of the parent, before the child
//! runs.
//!
//! A child inherits every descriptor. Whether it keeps it, and whether its parent does, no hook tells: a socket
//! whose owner has forked since it got it is said to be its or a descendant's (`FORKED`), until a search for holders
//! finds it in one pair of hands. When a process forked is noted here, and looked at where the owner of a socket is
//! told: a fork() costs a write to an array, and a healthy connection nothing.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    record::{Owner, owner_source},
    socket::{FORKS_UNSEEN, fork_place},
    stats::hook,
};

use crate::{
    account::{Outcome, account},
    maps::FORKS,
    sock::{self, load},
};

#[btf_tracepoint(function = "sched_process_fork")]
pub(crate) fn fork(ctx: BtfTracePointContext) -> i32 {
    let (parent, child): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let pid = load!(parent, task_tgid: u32);
    // A thread is no process of its own.
    if load!(child, task_tgid: u32) == pid {
        return 0;
    }
    let outcome = FORKS
        .edit(fork_place(pid))
        .map_or(Outcome::Lost, |forked_ns| {
            *forked_ns = sock::now_ns();
            Outcome::Aggregated
        });
    account(hook::FORK, outcome)
}

/// Says of an owner that it has forked since it was known to hold its socket alone. What nobody owns stays so.
#[inline(always)]
pub(crate) fn mark(owner: &mut Owner, owned_ns: u64) {
    if owner.source != owner_source::UNKNOWN
        && owner.source != owner_source::FORKED
        && (is_after(fork_place(owner.pid), owned_ns) || is_after(FORKS_UNSEEN, owned_ns))
    {
        owner.source = owner_source::FORKED;
        // Those of before.
        owner.holders = 0;
    }
}

#[inline(always)]
fn is_after(place: u32, owned_ns: u64) -> bool {
    FORKS
        .get(place)
        .is_some_and(|forked_ns| *forked_ns > owned_ns)
}
