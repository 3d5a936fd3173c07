//! Descriptors that change hands: `__receive_sock`, in the context of the process that receives one by
//! SCM_RIGHTS, pidfd_getfd() or a seccomp notifier.
//!
//! Who passes a descriptor on commonly closes its own: the socket is the receiver's. A search for holders
//! says who else has it. Of `probes::accept`'s tracepoint, a receive by another process than the owner tells
//! the same.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use conntracer_common::{record::owner_source, stats::hook};

use crate::{
    account::{Outcome, account},
    probes::{ownership, socket},
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
    // The process that runs now is the owner from here on.
    let known = ownership::edit(sk, |mut ownership| {
        let owner = &*ownership.owner;
        if owner.source == owner_source::UNKNOWN || owner.pid != sock::current_pid() {
            ownership.pass_to_current(owner_source::PASSED);
        }
    });
    let outcome = known.map_or(Outcome::Filtered, |()| Outcome::Aggregated);
    account(hook::PASS, outcome)
}
