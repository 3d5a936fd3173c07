//! Active opens: `tcp_connect`, in the context of the caller of connect().

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use conntracer_common::{
    record::{Connect, kind, owner_source, role},
    stats::hook,
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    probes::socket,
    sock::{self, Anywhere, Reach},
};

#[fentry(function = "tcp_connect")]
pub(crate) fn connect_fentry(ctx: FEntryContext) -> i32 {
    account(hook::CONNECT, connecting::<Anywhere, _>(&ctx, ctx.arg(0)))
}

#[kprobe]
pub(crate) fn connect_kprobe(ctx: ProbeContext) -> i32 {
    account(
        hook::CONNECT,
        connecting::<Anywhere, _>(&ctx, ctx.arg(0).unwrap_or(0)),
    )
}

/// Also called by the state hook (CLOSE → SYN_SENT) where it stands in for `tcp_connect`; the local
/// port may not be bound yet there.
#[inline(always)]
pub(crate) fn connecting<R: Reach, C: EbpfContext>(ctx: &C, sk: u64) -> Outcome {
    let outcome = socket::born::<R>(sk, role::ACTIVE, 0, |owner| {
        sock::fill_current(owner, owner_source::CONNECT);
    });
    if outcome != Outcome::Aggregated || !is_streamed(kind::CONNECT) {
        return outcome;
    }
    let mut record = Connect {
        header: emit::header::<Connect>(),
        ..Connect::default()
    };
    if !socket::fill(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    emit::emit(ctx, Lane::Bulk, &record)
}
