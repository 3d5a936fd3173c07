//! Packets freed by `kfree_skb`: TCP segments dropped before or at a socket. Written when asked for;
//! on the tracepoint rung also the place where a refused third ACK is seen.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    record::{Drop, Socket, kind},
    stats::hook,
    tcp::{flag, state},
};

use crate::{
    emit::{self, Lane},
    maps::{Outcome, account, asked_for, global},
    probes::{ack, listener, percpu, socket},
    sock::{self, field},
};

#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn drop(ctx: BtfTracePointContext) -> i32 {
    if global!(OPTIONS.ack_by_skb) == 0 && !asked_for(kind::DROP) {
        return 0;
    }
    // The receiving socket, which skb->sk is not, is an argument from 6.11 on.
    let rx_sk: u64 = if global!(FACTS.args_kfree_skb) >= 4 {
        ctx.arg(3)
    } else {
        0
    };
    let listening = rx_sk != 0 && field!(rx_sk, skc_state: u8) == state::LISTEN;
    if !asked_for(kind::DROP) && global!(FACTS.args_kfree_skb) >= 4 && !listening {
        // Only drops at listeners matter, and this is none.
        return 0;
    }
    let skb: u64 = ctx.arg(0);
    let Some(packet) = sock::packet_of_tracepoint(skb) else {
        return 0;
    };
    account(hook::DROP, try_drop(&ctx, rx_sk, skb, &packet))
}

fn try_drop(ctx: &BtfTracePointContext, rx_sk: u64, skb: u64, packet: &sock::Packet) -> Outcome {
    let args = global!(FACTS.args_kfree_skb);
    let reason = if args >= 3 {
        ctx.arg::<i32>(2) as u32
    } else {
        u32::MAX
    };
    let mut net = sock::net_of_packet(skb);
    if net == 0 && rx_sk != 0 {
        net = sock::net_of(rx_sk);
    }
    let netns = if net == 0 { 0 } else { sock::net_inum(net) };

    let socket = Socket {
        sk: rx_sk,
        local_addr: packet.local_addr,
        remote_addr: packet.remote_addr,
        netns,
        local_port: packet.local_port,
        remote_port: packet.remote_port,
        family: packet.family,
        state: if rx_sk == 0 {
            state::CLOSE
        } else {
            field!(rx_sk, skc_state: u8)
        },
        ..Socket::default()
    };
    if !socket::wanted(&socket) {
        return Outcome::Filtered;
    }
    if global!(OPTIONS.ack_by_skb) != 0 && packet.flags & flag::RST == 0 {
        let sk = if socket.state == state::LISTEN && rx_sk != 0 {
            rx_sk
        } else {
            let sk = listener::by_port(netns, packet.local_port, packet.local_addr);
            if sk == 0 { 0 } else { listener::dropper(sk) }
        };
        if sk != 0 {
            let counted = percpu::counted_since_last(net, skb);
            account(
                hook::ACK,
                ack::freed_at_listener(ctx, sk, skb, packet, &counted),
            );
        }
    }
    if !asked_for(kind::DROP) {
        return Outcome::Aggregated;
    }
    let record = Drop {
        header: emit::header::<Drop>(kind::DROP),
        socket,
        location: ctx.arg(1),
        seq: packet.seq,
        reason,
        tcp_flags: packet.flags,
        ..Drop::default()
    };
    emit::emit(ctx, Lane::Bulk, &record)
}
