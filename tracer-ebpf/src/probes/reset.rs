//! Resets sent and received. Written when asked for, or when the connection was in trouble before:
//! then the reset is how the trouble ended.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    netns::count,
    record::{Close, Reset, Socket, kind, role, rst_sender},
    stats::hook,
    tcp::state,
};

use crate::{
    account::{Outcome, account, is_streamed},
    emit::{self, Lane},
    globals::global,
    maps::{ANSWERED, LAST_RST, LastRst, Rst, SENT_RSTS, SentRst, SentRstKey},
    probes::{matching, netns, socket},
    sock::{self, Anywhere, field},
};

#[btf_tracepoint(function = "tcp_receive_reset")]
pub(crate) fn reset_received(ctx: BtfTracePointContext) -> i32 {
    let sk: u64 = ctx.arg(0);
    remember(sk, u32::MAX, 1);
    account(hook::RESET_RECEIVED, reset(&ctx, sk, u32::MAX, 1))
}

/// Leaves the RST to the change of state that follows it on this CPU.
#[inline(always)]
fn remember(sk: u64, reason: u32, received: u32) {
    if let Some(last) = LAST_RST.edit(0) {
        *last = LastRst {
            rst: Rst {
                sk,
                reason,
                received,
            },
            born_ns: socket::born_ns(sk),
        };
    }
}

/// The RST that a closing socket sent or received just before; told once. Without one `sk` is 0, which 5.10's
/// verifier follows where it takes an `Option`'s missing value for a read of what was never written.
#[inline(always)]
pub(crate) fn last_of(sk: u64) -> Rst {
    let mut rst = Rst {
        sk: 0,
        reason: u32::MAX,
        received: 0,
    };
    if let Some(last) = LAST_RST.edit(0)
        && last.rst.sk == sk
        && last.born_ns == socket::born_ns(sk)
    {
        rst = last.rst;
        last.rst.sk = 0;
    }
    rst
}

/// Keeps how a RST was sent, for the end that it reaches: between the same ends, and from the same end to any port of
/// the other's, in case that is translated on the way.
#[inline(always)]
pub(crate) fn sent(socket: &Socket, reason: u32, how: u8) {
    let mut key = SentRstKey {
        local_addr: socket.local_addr,
        remote_addr: socket.remote_addr,
        ports: u64::from(socket.local_port) | u64::from(socket.remote_port) << 16,
    };
    let value = SentRst {
        at_ns: sock::now_ns(),
        reason,
        netns: socket.netns,
        how,
        state: socket.state,
        pad: [0; 6],
    };
    SENT_RSTS.insert(&key, &value);
    key.ports = u64::from(socket.local_port);
    SENT_RSTS.insert(&key, &value);
}

/// Says how the RST was sent that a connection received, where this host sent it.
#[inline(always)]
pub(crate) fn fill_sender(record: &mut Close) {
    /// A RST crosses from one namespace to another within the same softirq, unless a queue holds it up.
    const RECENT_NS: u64 = 1_000_000_000;
    let socket = &record.socket;
    let mut key = SentRstKey {
        local_addr: socket.remote_addr,
        remote_addr: socket.local_addr,
        ports: u64::from(socket.remote_port) | u64::from(socket.local_port) << 16,
    };
    let mut translated = 0;
    let mut found = SENT_RSTS.get(&key);
    // Of a connection that was accepted, the remote port is its client's alone.
    if found.is_none() && socket.role == role::PASSIVE {
        key.ports = u64::from(socket.remote_port);
        translated = rst_sender::TRANSLATED;
        found = SENT_RSTS.get(&key);
    }
    let Some(rst) = found else {
        return;
    };
    if sock::now_ns() - rst.at_ns > RECENT_NS {
        return;
    }
    record.sender = rst.how | translated;
    record.sender_state = rst.state;
    record.sender_reason = rst.reason;
    record.sender_netns = rst.netns;
}

/// `sk` is NULL where no listener was found (from 6.12 on such resets are reported), `skb` where the
/// reset is this host's own decision. The reason is an argument from 6.12 on.
#[btf_tracepoint(function = "tcp_send_reset")]
pub(crate) fn reset_sent(ctx: BtfTracePointContext) -> i32 {
    let reason = if global!(FACTS.args_tcp_send_reset) >= 3 {
        ctx.arg::<i32>(2) as u32
    } else {
        u32::MAX
    };
    let sk: u64 = ctx.arg(0);
    let skb: u64 = ctx.arg(1);
    // Both may be NULL to the verifier, which wants each asked before anything is read through it.
    let outcome = if sk != 0 {
        // By this host's own decision; after the change to CLOSE there is nothing left to tell.
        if skb == 0 && field!(sk, skc_state: u8) != state::CLOSE {
            remember(sk, reason, 0);
        }
        sent_by(sk, skb, reason);
        netns::count(sock::net_of(sk), count::RESET_SENT);
        note_answer(sk, skb);
        reset(&ctx, sk, reason, 0)
    } else if skb != 0 {
        netns::count(sock::net_of_packet(skb), count::RESET_SENT);
        unconnected(&ctx, skb, reason)
    } else {
        Outcome::Aggregated
    };
    account(hook::RESET_SENT, outcome)
}

/// A socket answers a segment with a RST: where it has no connection yet, only what came in answer to its SYN makes it.
///
/// A global function, as the kernel's verifier calls it: it walks this once, not once for each way here.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn note_answer(sk: u64, skb: u64) -> u64 {
    if skb == 0 || field!(sk, skc_state: u8) != state::SYN_SENT {
        return 0;
    }
    u64::from(ANSWERED.insert(sk, sock::now_ns()))
}

/// Keeps a RST of a socket; a listener's and a request's answer to a segment is between the ends that the segment names.
#[inline(always)]
fn sent_by(sk: u64, skb: u64, reason: u32) {
    let mut socket = Socket::default();
    let state = field!(sk, skc_state: u8);
    if state == state::TIME_WAIT || state == state::NEW_SYN_RECV {
        sock::fill_common::<Anywhere>(sk, &mut socket);
    } else {
        sock::fill_full::<Anywhere>(sk, &mut socket);
    }
    if state == state::LISTEN {
        let Some(packet) = sock::packet(skb) else {
            return;
        };
        socket.local_addr = packet.local_addr;
        socket.remote_addr = packet.remote_addr;
        socket.remote_port = packet.remote_port;
    }
    let how = if skb == 0 {
        rst_sender::SOCKET
    } else {
        rst_sender::ANSWER
    };
    sent(&socket, reason, how);
}

#[inline(always)]
fn reset(ctx: &BtfTracePointContext, sk: u64, reason: u32, received: u8) -> Outcome {
    let is_streamed = is_streamed(kind::RESET);
    if !is_streamed && !socket::is_troubled(sk) {
        return Outcome::Aggregated;
    }
    let sk_state = field!(sk, skc_state: u8);
    // Time-wait and request sockets have only a sock_common.
    let whole = sk_state != state::TIME_WAIT && sk_state != state::NEW_SYN_RECV;
    let mut record = Reset {
        header: emit::header::<Reset>(),
        reason,
        received,
        retransmits: if whole {
            field!(sk, icsk_retransmits: u8)
        } else {
            0
        },
        ..Reset::default()
    };
    let matches = if whole {
        socket::fill(sk, &mut record.socket, &mut record.owner)
    } else {
        sock::fill_common::<Anywhere>(sk, &mut record.socket);
        // Whose it was is not kept.
        matching::socket(&record.socket) && !matching::by_owner()
    };
    if !matches {
        return Outcome::Filtered;
    }
    let lane = if is_streamed { Lane::Bulk } else { Lane::Rare };
    emit::emit(ctx, lane, &record)
}

/// A reset in answer to a segment that found no socket.
#[inline(always)]
fn unconnected(ctx: &BtfTracePointContext, skb: u64, reason: u32) -> Outcome {
    let Some(packet) = sock::packet(skb) else {
        return Outcome::Filtered;
    };
    let socket = Socket {
        local_addr: packet.local_addr,
        remote_addr: packet.remote_addr,
        netns: sock::net_inum(sock::net_of_packet(skb)),
        local_port: packet.local_port,
        remote_port: packet.remote_port,
        family: packet.family,
        state: state::CLOSE,
        ..Socket::default()
    };
    sent(&socket, reason, rst_sender::NO_SOCKET);
    if !is_streamed(kind::RESET) {
        return Outcome::Aggregated;
    }
    if matching::by_owner() || !matching::socket(&socket) {
        return Outcome::Filtered;
    }
    let record = Reset {
        header: emit::header::<Reset>(),
        socket,
        reason,
        ..Reset::default()
    };
    emit::emit(ctx, Lane::Bulk, &record)
}
