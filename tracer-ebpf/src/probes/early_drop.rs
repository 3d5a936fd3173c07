//! SYNs that came in and were freed before a listener decided on them, cumulative by where they were
//! to go and why; no programs.
//!
//! No drops, and not counted here: what this host sends itself, a repeated SYN of a request that is
//! waiting already and a deferred accept (both are freed at the listener, for no reason), and SYNs
//! within a connection, which are answered with an ACK.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::BtfTracePointContext};
use conntracer_common::{
    layout::ABSENT,
    record::{EarlyDrop, early_drop_hint, kind, path},
    tcp::state,
};

use crate::{
    emit,
    maps::{
        EARLY_DROP_SAID, EARLY_DROPS, EARLY_DROPS_OVERFLOW, EMPTY_EARLY_DROP, EarlyDropKey,
        LISTENERS, Outcome, add, asked_for, global,
    },
    probes::{
        counted::{self, Key},
        filter, listener,
    },
    sock::{self, field},
};

/// `RTCF_LOCAL` and `RTF_LOCAL` (include/uapi/linux/in_route.h, ipv6_route.h).
const ROUTE_LOCAL: u32 = 0x8000_0000;
/// `LOOPBACK_IFINDEX` (include/net/flow.h).
const LOOPBACK: u32 = 1;

/// A SYN that was freed, and what is known of it.
pub(crate) struct Freed<'a> {
    pub(crate) skb: u64,
    pub(crate) rx_sk: u64,
    pub(crate) packet: &'a sock::Packet,
    pub(crate) netns: u32,
    pub(crate) reason: u32,
    /// Bits of `early_drop_hint`: which counters rose, where the kernel gives no reason.
    pub(crate) counted: u8,
}

/// Counts a SYN that was freed, and says so when it is due. `NotOurs` for what is no drop.
#[inline(always)]
pub(crate) fn freed(ctx: &BtfTracePointContext, syn: &Freed<'_>) -> Outcome {
    let unspecified =
        syn.reason == u32::MAX || syn.reason == u32::from(global!(FACTS.reason_not_specified));
    if is_sent_here(syn.skb) {
        return Outcome::NotOurs;
    }
    if syn.rx_sk != 0 && (unspecified || field!(syn.rx_sk, skc_state: u8) != state::LISTEN) {
        return Outcome::NotOurs;
    }
    let packet = syn.packet;
    let sk = if syn.rx_sk != 0 {
        syn.rx_sk
    } else {
        listener::by_port(syn.netns, packet.local_port, packet.local_addr)
    };
    // What goes to no listener is nobody's.
    if filter::by_owner() && LISTENERS.get_ptr_mut(sk).is_none_or(listener::is_refused) {
        return Outcome::Filtered;
    }
    let mut key = EarlyDropKey {
        location: 0,
        addr: packet.local_addr,
        netns: syn.netns,
        reason: syn.reason,
        port: packet.local_port,
        family: packet.family,
        path: path_of(syn.skb, packet.family),
        hints: 0,
        pad: 0,
    };
    if unspecified {
        key.location = ctx.arg(1);
        key.hints = syn.counted | listener_hints(sk) | device_hints(syn.skb, key.path);
    }
    let Some((entry, first)) = counted::entry(
        &EARLY_DROPS,
        &EARLY_DROPS_OVERFLOW,
        &EMPTY_EARLY_DROP,
        &mut key,
    ) else {
        return Outcome::Lost;
    };
    // SAFETY: a live map value of plain data; CPUs may mix a record's fields, never its count.
    unsafe {
        let now = bpf_ktime_get_ns();
        let early_drop = &raw mut (*entry).early_drop;
        add(&raw mut (*early_drop).count, 1);
        add_bit(
            &raw mut (*early_drop).remotes,
            remote_hash(&packet.remote_addr),
        );
        (*early_drop).last_ns = now;
        if first {
            (*early_drop).location = key.location;
            (*early_drop).reason = key.reason;
            (*early_drop).hints = key.hints;
            (*early_drop).path = key.path;
            (*early_drop).socket.netns = key.netns;
            (*early_drop).socket.family = key.family;
            (*early_drop).socket.local_addr = key.addr;
            (*early_drop).socket.local_port = key.port;
            (*early_drop).socket.state = state::CLOSE;
        }
        let asked = asked_for(kind::EARLY_DROP);
        let emitted_ns = &raw mut (*entry).emitted_ns;
        let lane = counted::lane(&EARLY_DROP_SAID, emitted_ns, now, first, asked);
        if first || lane.is_some() {
            name_last(early_drop, syn, sk);
        }
        if first {
            // Last: a poll takes an entry without it for unfinished.
            (*early_drop).first_ns = now;
        }
        let Some(lane) = lane else {
            return Outcome::Aggregated;
        };
        (*early_drop).header = emit::header::<EarlyDrop>(kind::EARLY_DROP);
        emit::emit(ctx, lane, &*early_drop)
    }
}

impl Key for EarlyDropKey {
    fn blur(&mut self) {
        self.addr = [0; 4];
        self.port = 0;
    }
}

/// Fills in who sent the last one, by which device, and whose the listener is.
///
/// # Safety
/// `early_drop` points into a map value.
#[inline(always)]
unsafe fn name_last(early_drop: *mut EarlyDrop, syn: &Freed<'_>, sk: u64) {
    // SAFETY: the caller's.
    let early_drop = unsafe { &mut *early_drop };
    early_drop.socket.remote_addr = syn.packet.remote_addr;
    early_drop.socket.remote_port = syn.packet.remote_port;
    early_drop.socket.sk = sk;
    early_drop.ifindex = field!(syn.skb, skb_iif: u32);
    let dev = field!(syn.skb, skb_dev: u64);
    if dev != 0
        && global!(LAYOUT.dev_name) != ABSENT
        && field!(dev, dev_ifindex: u32) == early_drop.ifindex
    {
        sock::field_into!(dev, dev_name, &mut early_drop.device);
    }
    if sk != 0
        && let Some(known) = LISTENERS.get_ptr_mut(sk)
    {
        // SAFETY: a live map value of plain data; a concurrent update can at worst mix two owners of one listener.
        let known = unsafe { &mut *known };
        early_drop.owner = listener::owner_by_port(known);
        early_drop.listener_addr = known.syn.socket.local_addr;
    }
}

/// Whether a packet was made by this host and is on its way out: it holds the socket that sent it, and was
/// not received yet. One that came over a loopback or a veth pair may hold it for a while longer
/// (`ip_rcv_core` takes it away), others one that they were matched with early.
#[inline(always)]
fn is_sent_here(skb: u64) -> bool {
    field!(skb, skb_sk: u64) != 0 && field!(skb, skb_iif: u32) == 0
}

/// What is known of the listener a packet was to reach.
#[inline(always)]
fn listener_hints(sk: u64) -> u8 {
    if sk == 0 {
        0
    } else if field!(sk, sk_filter: u64) == 0 {
        early_drop_hint::LISTENER
    } else {
        early_drop_hint::LISTENER | early_drop_hint::SOCKET_FILTER
    }
}

/// What is known of the device a packet came by. In generic mode XDP drops what is a packet to the kernel
/// already, and gives no reason (net/core/dev.c, `bpf_prog_run_generic_xdp`).
#[inline(always)]
fn device_hints(skb: u64, path: u8) -> u8 {
    let dev = field!(skb, skb_dev: u64);
    if path == path::PREROUTING && dev != 0 && field!(dev, dev_xdp_prog: u64) != 0 {
        early_drop_hint::XDP
    } else {
        0
    }
}

/// One of [`path`]: how far a received packet came, by its route.
#[inline(always)]
fn path_of(skb: u64, family: u16) -> u8 {
    // The low bit is SKB_DST_NOREF (include/linux/skbuff.h).
    let dst = field!(skb, skb_refdst: u64) & !1;
    if dst == 0 {
        return path::PREROUTING;
    }
    if field!(skb, skb_iif: u32) == LOOPBACK {
        return path::UNKNOWN;
    }
    let flags = if family == conntracer_common::tcp::AF_INET6 {
        field!(dst, rt6i_flags: u32)
    } else {
        field!(dst, rt_flags: u32)
    };
    if flags & ROUTE_LOCAL != 0 {
        path::INPUT
    } else {
        path::FORWARD
    }
}

/// Which of 64 bits stands for a remote address. Multiplicative: the peers of one network differ in
/// their last bytes.
#[inline(always)]
fn remote_hash(addr: &[u32; 4]) -> u32 {
    const GOLDEN: u32 = 0x9e37_79b1;
    let folded = (addr[0].wrapping_mul(GOLDEN) ^ addr[1])
        .wrapping_mul(GOLDEN)
        .wrapping_add(addr[2])
        .wrapping_mul(GOLDEN)
        ^ addr[3];
    folded.wrapping_mul(GOLDEN) >> 26
}

/// Sets one of 64 bits; a bit that another CPU sets at the same moment may be missed, which makes the
/// least number of remotes smaller and not wrong.
///
/// # Safety
/// `bits` points into a map value.
#[inline(always)]
unsafe fn add_bit(bits: *mut u64, bit: u32) {
    // SAFETY: the caller's.
    unsafe { *bits |= 1 << (bit & 63) };
}
