//! SYNs that came in and were freed before a listener decided on them, cumulative by where they were
//! to go and why; no programs.
//!
//! No drops, and not counted here: what this host sends itself, a retransmitted SYN of a request that is
//! waiting already and a deferred accept (both are freed at the listener, for no reason), and SYNs
//! within a connection, which are answered with an ACK.

use aya_ebpf::programs::BtfTracePointContext;
use conntracer_common::{
    early_drop::{path_by_route, remote_bit},
    layout::ABSENT,
    record::{EarlyDrop, early_drop_hint, path},
    socket::EarlyDropEntry,
    tcp::{AF_INET6, state},
};

use crate::{
    account::Outcome,
    globals::global,
    maps::{EARLY_DROP_SAID, EARLY_DROPS, EARLY_DROPS_OVERFLOW, EarlyDropKey, LISTENERS},
    probes::{
        cumulative::{Counts, Cumulative, Tally},
        listener, matching,
    },
    sock::{self, field, field_into},
};

/// A SYN that was freed, and what is known of it.
pub(crate) struct Freed<'a> {
    pub(crate) skb: u64,
    pub(crate) rx_sk: u64,
    pub(crate) packet: &'a sock::Packet,
    pub(crate) netns: u32,
    pub(crate) reason: u32,
    /// Bits of `early_drop_hint`: which counters rose, where the kernel gives no reason.
    pub(crate) risen_hints: u8,
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
    if matching::by_owner() && LISTENERS.edit(sk).is_none_or(listener::is_excluded) {
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
        key.hints = syn.risen_hints | listener_hints(sk, syn.skb) | device_hints(syn.skb, key.path);
    }
    COUNTS.count(
        ctx,
        key,
        |record| record.remotes |= remote_bit(&packet.remote_addr),
        |record, key, first| {
            if first {
                record.location = key.location;
                record.reason = key.reason;
                record.hints = key.hints;
                record.path = key.path;
                record.socket.netns = key.netns;
                record.socket.family = key.family;
                record.socket.local_addr = key.addr;
                record.socket.local_port = key.port;
                record.socket.state = state::CLOSE;
            }
            name_last(record, syn, sk);
        },
    )
}

const COUNTS: Counts<EarlyDropEntry> = Counts {
    map: &EARLY_DROPS,
    overflow: &EARLY_DROPS_OVERFLOW,
    said: &EARLY_DROP_SAID,
};

impl Cumulative for EarlyDropEntry {
    type Key = EarlyDropKey;
    type Record = EarlyDrop;

    #[inline(always)]
    fn blur(key: &mut EarlyDropKey) {
        key.addr = [0; 4];
        key.port = 0;
    }

    #[inline(always)]
    fn parts(&mut self) -> (&mut EarlyDrop, &mut u64) {
        (&mut self.early_drop, &mut self.emitted_ns)
    }

    #[inline(always)]
    fn tally(record: &mut EarlyDrop) -> Tally<'_> {
        Tally {
            header: &mut record.header,
            count: &mut record.count,
            first_ns: &mut record.first_ns,
            last_ns: &mut record.last_ns,
        }
    }
}

/// Fills in who sent the last one, by which device, and whose the listener is.
#[inline(always)]
fn name_last(early_drop: &mut EarlyDrop, syn: &Freed<'_>, sk: u64) {
    early_drop.socket.remote_addr = syn.packet.remote_addr;
    early_drop.socket.remote_port = syn.packet.remote_port;
    early_drop.socket.sk = sk;
    early_drop.ifindex = field!(syn.skb, skb_iif: u32);
    let dev = field!(syn.skb, skb_dev: u64);
    if dev != 0
        && global!(LAYOUT.dev_name) != ABSENT
        && field!(dev, dev_ifindex: u32) == early_drop.ifindex
    {
        field_into!(dev, dev_name, &mut early_drop.device);
    }
    if sk != 0
        && let Some(known) = LISTENERS.edit(sk)
    {
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

/// What is known of the listener a packet was to reach: one that is bound to another device is none to it.
#[inline(always)]
fn listener_hints(sk: u64, skb: u64) -> u8 {
    let is_for_others = |bound: u32| bound != 0 && bound != field!(skb, skb_iif: u32);
    if sk == 0
        || global!(LAYOUT.skc_bound_dev_if) != ABSENT
            && is_for_others(field!(sk, skc_bound_dev_if: u32))
    {
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
    let flags = if family == AF_INET6 {
        field!(dst, rt6i_flags: u32)
    } else {
        field!(dst, rt_flags: u32)
    };
    path_by_route(flags, field!(skb, skb_iif: u32))
}
