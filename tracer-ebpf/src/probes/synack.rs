//! SYN-ACKs sent again: `tcp_retransmit_synack`, by the request's timer or a retransmitted SYN.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    netns::count,
    record::{SynAck, kind},
    stats::hook,
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    globals::global,
    probes::{listener, matching, netns, socket, sources, totals},
    sock::{self, Anywhere, field},
};

#[btf_tracepoint(function = "tcp_retransmit_synack")]
pub(crate) fn synack(ctx: BtfTracePointContext) -> i32 {
    account(hook::SYNACK, try_synack(&ctx))
}

fn try_synack(ctx: &BtfTracePointContext) -> Outcome {
    let listener: u64 = ctx.arg(0);
    let request: u64 = ctx.arg(1);
    netns::count(sock::net_of(request), count::SYN_ACK_RETRANSMITTED);
    let num_retrans = field!(request, req_num_retrans: u8);
    let acked = (field!(request, ireq_acked: u8) >> (global!(FACTS.ireq_acked_bit) & 7)) & 1;
    // A request sock begins with a sock_common, filled like a full socket's.
    let mut record = SynAck {
        header: emit::header::<SynAck>(),
        request,
        ack_backlog: field!(listener, sk_ack_backlog: u32),
        max_ack_backlog: field!(listener, sk_max_ack_backlog: u32),
        syn_qlen: field!(listener, icsk_qlen: u32),
        num_retrans,
        num_timeout: field!(request, req_num_timeout: u8) >> 1,
        acked,
        ..SynAck::default()
    };
    sock::fill_common::<Anywhere>(request, &mut record.socket);
    if !matching::socket(&record.socket) {
        return Outcome::Filtered;
    }
    record.socket.sk = listener;
    // Not known where a filter names the remote end, which a listener has none of: then every record goes.
    if let Ok(entry) = listener::entry(ctx, listener) {
        let now_ns = record.header.ktime_ns;
        let within_budget = totals::retransmitted(entry, now_ns, num_retrans, acked);
        if listener::is_excluded(entry) {
            return Outcome::Filtered;
        }
        sources::troubled(listener, entry, &record.socket.remote_addr);
        if !within_budget && !is_streamed(kind::SYNACK) {
            return Outcome::Aggregated;
        }
        record.socket.born_ns = entry.syn.socket.born_ns;
        // A request lives no longer than its listener.
        socket::inherit_from(entry, u64::MAX, &mut record.owner);
    }
    emit::emit(ctx, Lane::Bulk, &record)
}
