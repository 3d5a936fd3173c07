//! The state of one socket now: emitted by other hooks, and on demand for the sockets that detectors
//! watch. On demand it is a raw tracepoint program attached to nothing, run by BPF_PROG_TEST_RUN with
//! the socket's address and birth as arguments.

use aya_ebpf::{EbpfContext, macros::raw_tracepoint, programs::RawTracePointContext};
use conntracer_common::{
    record::{Owner, Snapshot, Socket, Tcp, kind},
    tcp::state,
};

use crate::{
    emit::{self, Lane},
    maps::{Outcome, SOCKETS},
    probes::socket,
    sock,
};

#[raw_tracepoint]
pub fn snapshot(ctx: RawTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    let born_ns: u64 = ctx.arg(1);
    // SAFETY: plain data.
    let alive = unsafe { SOCKETS.get(sk) }.is_some_and(|entry| entry.born_ns == born_ns);
    let outcome = if alive { taken(&ctx, sk, false) } else { gone(&ctx, sk, born_ns) };
    i32::from(outcome == Outcome::Emitted)
}

/// Emits what the socket looks like now.
#[inline(always)]
pub fn taken<C: EbpfContext>(ctx: &C, sk: u64, adopt: bool) -> Outcome {
    let Some((socket, owner)) = socket::known(sk, adopt) else {
        return Outcome::Filtered;
    };
    // SAFETY: plain data.
    let since_ns = unsafe { SOCKETS.get(sk) }.map_or(0, |entry| entry.since_ns);
    let record = Snapshot {
        header: emit::header::<Snapshot>(kind::SNAPSHOT),
        socket,
        owner,
        tcp: sock::tcp(sk),
        since_ns,
    };
    emit::emit(ctx, Lane::Bulk, &record)
}

/// The watched socket is no more; its address may be another's.
#[inline(always)]
fn gone<C: EbpfContext>(ctx: &C, sk: u64, born_ns: u64) -> Outcome {
    let record = Snapshot {
        header: emit::header::<Snapshot>(kind::SNAPSHOT),
        socket: Socket { sk, born_ns, state: state::CLOSE, ..Socket::default() },
        owner: Owner::default(),
        tcp: Tcp::default(),
        since_ns: 0,
    };
    emit::emit(ctx, Lane::Bulk, &record)
}
