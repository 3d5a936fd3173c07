//! Unnecessary retransmissions: `tcp_undo_cwnd_reduction`, by which the kernel takes back what it did about a loss
//! because nothing was lost, as `TcpExt TCPLossUndo`, `TCPFullUndo`, `TCPPartialUndo` and `TCPDSACKUndo` count them.
//! Cumulative by connection, beside what it retransmitted.
//!
//! Without that function, by the change of the congestion state that mostly comes with it: where segments were lost
//! `undo_marker` stays as it is.

use aya_ebpf::{
    EbpfContext,
    macros::{btf_tracepoint, fentry, kprobe},
    programs::{BtfTracePointContext, FEntryContext, ProbeContext},
};
use conntracer_common::{
    netns::count,
    record::{RETRANSMIT_INTERVAL_NS, Undo},
    socket::Retransmitted,
    stats::hook,
    tcp::{ca, state},
    undo::{unnecessary, way},
};

use crate::{
    account::{Outcome, account},
    emit::{self, Lane},
    maps::{RETRANSMITS, RetransmitKey, SOCKETS},
    probes::{netns, socket},
    sock::{self, field, field_into, load},
    table::write_once,
};

#[fentry(function = "tcp_undo_cwnd_reduction")]
pub(crate) fn undo_fentry(ctx: FEntryContext) -> i32 {
    account(hook::UNDO, undone(&ctx, ctx.arg(0), ctx.arg(1)))
}

#[kprobe]
pub(crate) fn undo_kprobe(ctx: ProbeContext) -> i32 {
    let (sk, unmarks) = (ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0));
    account(hook::UNDO, undone(&ctx, sk, unmarks))
}

#[btf_tracepoint(function = "tcp_cong_state_set")]
pub(crate) fn undo_tracepoint(ctx: BtfTracePointContext) -> i32 {
    let entered = ctx.arg::<i32>(1) as u8 & 0x1f;
    account(hook::UNDO, changed(&ctx, ctx.arg(0), entered))
}

/// `unmarks` is a register: of a `bool` its lowest byte is told.
#[inline(always)]
fn undone<C: EbpfContext>(ctx: &C, sk: u64, unmarks: u64) -> Outcome {
    let ca_state = field!(sk, icsk_ca_state: u8) & 0x1f;
    told(ctx, sk, way(ca_state, unmarks as u8 != 0, is_over(sk)))
}

/// A congestion state is entered; the one that is left is still in the socket.
#[inline(always)]
fn changed<C: EbpfContext>(ctx: &C, sk: u64, entered: u8) -> Outcome {
    let tcp = sock::tcp_sock(sk);
    if tcp == 0 {
        return Outcome::NotOurs;
    }
    let left = load!(tcp, icsk_ca_state: u8) & 0x1f;
    // As a connection is made (`tcp_ca_openreq_child`).
    if left == ca::OPEN && entered == ca::OPEN {
        return Outcome::NotOurs;
    }
    let undoable = u8::from(load!(tcp, undo_marker: u32) != 0);
    let Some(entry) = SOCKETS.edit(sk) else {
        return Outcome::NotOurs;
    };
    let recovers = entered == ca::LOSS || entered == ca::RECOVERY;
    let noted = undoable & u8::from(recovers);
    let was_undoable = core::mem::replace(&mut entry.undoable, noted);
    // A SYN that was retransmitted without need clears the marker, and nothing is taken back
    // (`tcp_try_undo_spurious_syn`).
    let opens = matches!(load!(sk, skc_state: u8), state::SYN_SENT | state::SYN_RECV);
    if recovers || was_undoable == 0 || undoable != 0 || opens {
        return Outcome::NotOurs;
    }
    // What unmarks what was lost is not seen here: where all was said to have come twice, that did it.
    let unmarks = load!(tcp, undo_retrans: u32) != 0;
    let over = is_over(sk);
    told(ctx, sk, way(left, unmarks && !over, over))
}

/// Whether all that was in flight when the recovery began is acknowledged.
#[inline(always)]
fn is_over(sk: u64) -> bool {
    field!(sk, snd_una: u32).wrapping_sub(field!(sk, high_seq: u32)) <= i32::MAX as u32
}

/// Counts one, and says so when it is due: as with the retransmissions that it is about.
#[inline(always)]
fn told<C: EbpfContext>(ctx: &C, sk: u64, way: u8) -> Outcome {
    netns::count(sock::net_of(sk), count::UNDONE + usize::from(way));
    let mut record = Undo {
        header: emit::header::<Undo>(),
        ..Undo::default()
    };
    if !socket::fill_troubled(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    field_into!(sk, dsack_dups, &mut record.dsack_dups);
    let segments = unnecessary(field!(sk, undo_retrans: u32));
    let key = RetransmitKey {
        sk,
        born_ns: record.socket.born_ns,
    };
    match RETRANSMITS.edit(&key) {
        Some(entry) => cumulated(ctx, entry, &mut record, way, segments),
        None => {
            record.totals.count(way, segments);
            emit::emit(ctx, Lane::Bulk, &record)
        }
    }
}

#[inline(always)]
fn cumulated<C: EbpfContext>(
    ctx: &C,
    entry: &mut Retransmitted,
    record: &mut Undo,
    way: u8,
    segments: u32,
) -> Outcome {
    let is_first = entry.undone.last_ns == 0;
    let now = record.header.ktime_ns;
    // Written under the socket's lock alone.
    let started = entry.started + 1;
    write_once(&mut entry.started, started);
    entry.undone.totals.count(way, segments);
    entry.undone.last_ns = now;
    entry.undone.dsack_dups = record.dsack_dups;
    write_once(&mut entry.finished, started);
    if !is_first && now - entry.undone.emitted_ns < RETRANSMIT_INTERVAL_NS {
        return Outcome::Aggregated;
    }
    record.first_ns = entry.retransmits.totals.first_ns;
    record.totals = entry.undone.totals;
    if emit::emit(ctx, Lane::Bulk, &*record) != Outcome::Emitted {
        // The next one says all, and so does a poll.
        return Outcome::Aggregated;
    }
    entry.undone.emitted_ns = now;
    entry.undone.emitted = record.totals.undos();
    Outcome::Emitted
}
