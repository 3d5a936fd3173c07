//! Descriptors that change hands: `__receive_sock`, in the context of the process that receives one by
//! SCM_RIGHTS, pidfd_getfd() or a seccomp notifier.
//!
//! Who passes a descriptor on commonly closes its own: the socket is the receiver's. A search for holders
//! says who else has it. Of `probes::accept`'s tracepoint, a receive by another process than the owner tells
//! the same.

use aya_ebpf::{
    helpers::bpf_ktime_get_ns,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use conntracer_common::{
    record::{Owner, owner_source},
    socket::Listener,
    stats::hook,
};

use crate::{
    maps::{LISTENERS, Outcome, SOCKETS, account},
    probes::{filter, socket},
    sock,
};

#[fentry(function = "__receive_sock")]
pub(crate) fn pass_fentry(ctx: FEntryContext) -> i32 {
    received(ctx.arg(0))
}

#[kprobe]
pub(crate) fn pass_kprobe(ctx: ProbeContext) -> i32 {
    received(ctx.arg(0).unwrap_or(0))
}

#[inline(always)]
fn received(file: u64) -> i32 {
    let sk = socket::behind(file);
    if sk == 0 {
        // A file of another kind: no event of this hook.
        return 0;
    }
    // SAFETY: live map values of plain data.
    let outcome = if let Some(entry) = SOCKETS.get_ptr_mut(sk) {
        let entry = unsafe { &mut *entry };
        passed(&mut entry.owner, &mut entry.owned_ns, &mut entry.asked)
    } else if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        let entry = unsafe { &mut *entry };
        let Listener {
            syn,
            owned_ns,
            asked,
            ..
        } = entry;
        passed(&mut syn.owner, owned_ns, asked)
    } else {
        Outcome::Filtered
    };
    account(hook::PASS, outcome)
}

/// The process that runs now is the owner from here on.
#[inline(always)]
fn passed(owner: &mut Owner, owned_ns: &mut u64, asked: &mut u8) -> Outcome {
    if owner.source == owner_source::UNKNOWN || owner.pid != sock::current_pid() {
        sock::fill_current(owner, owner_source::PASSED);
        // SAFETY: helper without preconditions.
        *owned_ns = unsafe { bpf_ktime_get_ns() };
        *asked = filter::of(owner);
    }
    Outcome::Aggregated
}
