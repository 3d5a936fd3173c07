//! Packets freed by `kfree_skb`: TCP segments dropped before or at a socket. Written one by one when
//! asked for; SYNs are counted by where they were to go and why. On the tracepoint hook type also the place
//! where a discarded third ACK is seen.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    record::{Drop, kind},
    stats::hook,
    tcp::{flag, state},
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    globals::global,
    probes::{
        ack,
        early_drop::{self, Freed},
        listener, matching, percpu,
    },
    scratch,
    sock::{self, field},
};

#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn drop(ctx: BtfTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    let Some(packet) = sock::packet_of_tracepoint(skb) else {
        return 0;
    };
    // The receiving socket, which skb->sk is not, is an argument from 6.11 on.
    let rx_sk: u64 = if global!(FACTS.args_kfree_skb) >= 4 {
        ctx.arg(3)
    } else {
        0
    };
    if !is_syn(&packet) && !is_streamed(kind::DROP) {
        let at_listener = global!(OPTIONS.ack_by_skb) != 0
            && (global!(FACTS.args_kfree_skb) < 4
                || rx_sk != 0 && field!(rx_sk, skc_state: u8) == state::LISTEN);
        // Without reasons the counters are looked at after every segment: what rose is then this one's.
        if !at_listener && global!(FACTS.args_kfree_skb) >= 3 {
            return 0;
        }
    }
    account(
        hook::DROP,
        scratch::DROP.make(|record| try_drop(&ctx, rx_sk, skb, &packet, record)),
    )
}

/// Whether a packet asks for a connection.
fn is_syn(packet: &sock::Packet) -> bool {
    packet.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

#[inline(always)]
fn try_drop(
    ctx: &BtfTracePointContext,
    rx_sk: u64,
    skb: u64,
    packet: &sock::Packet,
    record: &mut Drop,
) -> Outcome {
    let args = global!(FACTS.args_kfree_skb);
    let reason = if args >= 3 {
        ctx.arg::<i32>(2) as u32
    } else {
        u32::MAX
    };
    record.socket.state = if rx_sk == 0 {
        state::CLOSE
    } else {
        field!(rx_sk, skc_state: u8)
    };
    let mut net = sock::net_of_packet(skb);
    if net == 0 && rx_sk != 0 {
        net = sock::net_of(rx_sk);
    }
    let netns = if net == 0 { 0 } else { sock::net_inum(net) };
    record.seq = packet.seq;
    record.reason = reason;
    record.tcp_flags = packet.flags;
    record.socket.sk = rx_sk;
    record.socket.local_addr = packet.local_addr;
    record.socket.remote_addr = packet.remote_addr;
    record.socket.netns = netns;
    record.socket.local_port = packet.local_port;
    record.socket.remote_port = packet.remote_port;
    record.socket.family = packet.family;
    if !matching::socket(&record.socket) {
        return Outcome::Filtered;
    }
    let risen_hints = if args < 3 {
        percpu::drops_since_last(net)
    } else {
        0
    };
    if global!(OPTIONS.ack_by_skb) != 0 && packet.flags & flag::RST == 0 {
        let sk = if record.socket.state == state::LISTEN && rx_sk != 0 {
            rx_sk
        } else {
            let sk = listener::by_port(netns, packet.local_port, packet.local_addr);
            if sk == 0 { 0 } else { listener::dropper(sk) }
        };
        if sk != 0 {
            let last = percpu::syns_since_last(net, netns, percpu::NO_FAMILY);
            account(
                hook::ACK,
                ack::freed_at_listener(ctx, sk, skb, packet, &last),
            );
        }
    }
    let early_drop = if is_syn(packet) {
        early_drop::freed(
            ctx,
            &Freed {
                skb,
                rx_sk,
                packet,
                netns,
                reason,
                risen_hints,
            },
        )
    } else {
        Outcome::NotOurs
    };
    if !is_streamed(kind::DROP) {
        return if early_drop == Outcome::NotOurs {
            Outcome::Aggregated
        } else {
            early_drop
        };
    }
    // A segment has no owner.
    if matching::by_owner() {
        return Outcome::Filtered;
    }
    record.header = emit::header::<Drop>();
    record.location = ctx.arg(1);
    let emitted = emit::emit(ctx, Lane::Bulk, &*record);
    if early_drop == Outcome::Lost {
        early_drop
    } else {
        emitted
    }
}
