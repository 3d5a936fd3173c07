//! Retransmitted data, SYN and FIN segments: `tcp_retransmit_skb`, cumulative by connection, those of a
//! handshake one record each; read in batches.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    layout::ABSENT,
    netns::count as netns_count,
    record::{Header, RETRANSMIT_INTERVAL_NS, Retransmit, Retransmits, Socket, Tcp, kind},
    retransmit::{Attempt, class, is_untried, is_without_timeout},
    socket::Retransmitted,
    stats::hook,
    tcp::state,
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    globals::global,
    maps::{RETRANSMITS, RetransmitKey},
    probes::{netns, socket},
    scratch,
    sock::{self, field, field_into},
    table::{write_once, zeros},
};

#[btf_tracepoint(function = "tcp_retransmit_skb")]
pub(crate) fn retransmit(ctx: BtfTracePointContext) -> i32 {
    account(hook::RETRANSMIT, try_retransmit(&ctx))
}

fn try_retransmit(ctx: &BtfTracePointContext) -> Outcome {
    let sk: u64 = ctx.arg(0);
    let skb: u64 = ctx.arg(1);
    count(ctx, sk, skb);
    scratch::RETRANSMIT.make(|record| said(ctx, sk, skb, record))
}

#[inline(always)]
fn said(ctx: &BtfTracePointContext, sk: u64, skb: u64, record: &mut Retransmit) -> Outcome {
    record.header = emit::header::<Retransmit>();
    record.socket.born_ns = 0;
    record.socket.role = 0;
    record.socket.flags = 0;
    record.owner.source = 0;
    if !socket::fill_troubled(sk, &mut record.socket, &mut record.owner) {
        return Outcome::Filtered;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    field_into!(sk, dsack_dups, &mut record.dsack_dups);
    record.error = error(ctx);
    record.failures_traced = u8::from(traces_failures());
    record.without_timeout = without_timeout(sk);
    // A queued skb has no headers to parse: everything is in TCP_SKB_CB.
    let cb = skb + u64::from(global!(LAYOUT.skb_cb));
    record.segs = segments(cb);
    field_into!(cb, cb_seq, &mut record.seq);
    field_into!(cb, cb_end_seq, &mut record.end_seq);
    // One byte up to 6.12, two from 6.18 on; the low one holds the flags (little endian).
    field_into!(cb, cb_tcp_flags, &mut record.tcp_flags);
    field_into!(cb, cb_sacked, &mut record.sacked);
    match entry(&record.socket) {
        Some(entry) => cumulated(ctx, entry, record),
        None => emit::emit(ctx, Lane::Bulk, &*record),
    }
}

/// Where a connection's events are counted; `None` when there is no room. An unanswered connect() sends
/// once a second and is soon another socket: its entry would hold one event.
#[inline(always)]
fn entry(socket: &Socket) -> Option<&'static mut Retransmitted> {
    if socket.born_ns == 0 || socket.state == state::SYN_SENT || socket.state == state::SYN_RECV {
        return None;
    }
    let key = RetransmitKey {
        sk: socket.sk,
        born_ns: socket.born_ns,
    };
    if let Some(entry) = RETRANSMITS.edit(&key) {
        return Some(entry);
    }
    // The socket is locked: no other CPU inserts the same key. The look-up below tells whether there was room.
    RETRANSMITS.insert_new(&key, zeros()?);
    RETRANSMITS.edit(&key)
}

/// Counts an event, and says so when it is due. A record that finds the ring full is nothing lost: the next
/// one says all, and so does a poll.
#[inline(always)]
fn cumulated(ctx: &BtfTracePointContext, entry: &mut Retransmitted, event: &Retransmit) -> Outcome {
    let totals = &mut entry.retransmits.totals;
    let is_first = totals.events == 0;
    // Written under the socket's lock alone.
    let started = entry.started + 1;
    write_once(&mut entry.started, started);
    let before: Option<&Tcp> = (!is_first).then_some(&entry.retransmits.last.tcp);
    totals.count(event, before);
    let sk = event.socket.sk;
    field_into!(sk, icsk_pmtu, &mut totals.pmtu);
    totals.tells_icmp = u8::from(global!(LAYOUT.mtu_info) != ABSENT);
    // IPv6 has packets of more than 64 kB (RFC 2675), and no path that only they are too large for.
    totals.icmp_mtu = field!(sk, mtu_info: u32) as u16;
    let device = field!(field!(sk, sk_dst: u64), dst_dev: u64);
    let egress = &mut entry.retransmits.egress;
    field_into!(device, dev_name, &mut egress.device);
    field_into!(device, dev_ifindex, &mut egress.ifindex);
    let totals = &mut entry.retransmits.totals;
    totals.min_rtt_us = if global!(LAYOUT.rtt_min) == ABSENT {
        0
    } else {
        field!(sk + u64::from(global!(LAYOUT.rtt_min)), sample_value: u32)
    };
    entry.retransmits.last = *event;
    entry.retransmits.last.header =
        Header::of::<Retransmits>(event.header.ktime_ns, event.header.cpu);
    write_once(&mut entry.finished, started);
    let is_streamed = is_streamed(kind::RETRANSMIT);
    let now = event.header.ktime_ns;
    if !is_first && !is_streamed && now - entry.emitted_ns < RETRANSMIT_INTERVAL_NS {
        return Outcome::Aggregated;
    }
    match emit::emit(ctx, Lane::Bulk, &entry.retransmits) {
        Outcome::Emitted => {
            entry.emitted_ns = now;
            entry.emitted = entry.retransmits.totals.events;
            Outcome::Emitted
        }
        // Who asked for every event misses this one.
        lost if is_streamed => lost,
        _ => Outcome::Aggregated,
    }
}

/// See [`is_without_timeout`].
#[inline(always)]
fn without_timeout(sk: u64) -> u8 {
    let ca_state = field!(sk, icsk_ca_state: u8) & 0x1f;
    u8::from(
        global!(LAYOUT.undo_marker) != ABSENT
            && is_without_timeout(
                ca_state,
                field!(sk, icsk_pending: u8),
                field!(sk, undo_marker: u32),
            ),
    )
}

/// From 6.17 on failed attempts are reported too, with the error.
#[inline(always)]
fn error(ctx: &BtfTracePointContext) -> u32 {
    if traces_failures() {
        ctx.arg::<i32>(2).unsigned_abs()
    } else {
        0
    }
}

#[inline(always)]
fn traces_failures() -> bool {
    global!(FACTS.args_tcp_retransmit_skb) >= 3
}

#[inline(always)]
fn segments(cb: u64) -> u32 {
    let segs = u32::from(field!(cb, cb_gso_segs: u16));
    if segs == 0 { 1 } else { segs }
}

/// Counts in the namespace what was sent again, by class, and what could not be sent.
#[inline(always)]
fn count(ctx: &BtfTracePointContext, sk: u64, skb: u64) {
    let cb = skb + u64::from(global!(LAYOUT.skb_cb));
    let index = match error(ctx) {
        0 => {
            netns_count::RETRANSMITTED
                + usize::from(class(&Attempt {
                    state: field!(sk, skc_state: u8),
                    tcp_flags: field!(cb, cb_tcp_flags: u8),
                    sacked: field!(cb, cb_sacked: u8),
                    ca_state: field!(sk, icsk_ca_state: u8) & 0x1f,
                    pending: field!(sk, icsk_pending: u8),
                    without_timeout: without_timeout(sk),
                    retransmits: field!(sk, icsk_retransmits: u8),
                    backoff: field!(sk, icsk_backoff: u8),
                }))
        }
        errno if is_untried(errno) => return,
        _ => netns_count::RETRANSMIT_FAILED,
    };
    netns::count_many(sock::net_of(sk), index, u64::from(segments(cb)));
}
