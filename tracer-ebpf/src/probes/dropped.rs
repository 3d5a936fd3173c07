//! Segments of connections that are dropped on this host, whatever the segment and wherever: counted by their two ends
//! and the place, for the findings of connections in trouble.
//!
//! `kfree_skb` is on no healthy connection's way. What is freed there for a reason that is no drop, and what a kernel
//! without reasons frees anywhere but in the functions that drop, is left after one look-up. SYNs that come in are
//! `early_drop`'s.

use aya_ebpf::{EbpfContext as _, macros::btf_tracepoint, programs::BtfTracePointContext};
use conntracer_common::{
    early_drop::path_by_route,
    layout::ABSENT,
    record::{Dropped, drop_hook, drop_layer, drop_rule, path},
    tcp::{AF_INET6, flag},
};

use crate::{
    globals::global,
    maps::{DROP_LAYERS, DROP_PLACES, DROPPED, DROPPED_COUNTED, DROPPED_PACE, DroppedKey},
    probes::nft,
    sock::{self, Packet, field, field_into},
    table::{add, write_once, zeros},
};

/// New entries that a CPU may make in so long: a flood of segments from everywhere fills the map in no less than a
/// second, while the ends that are dropped again and again stay.
const PACE_NS: u64 = 100_000_000;
const PACE_MOST: u64 = 100;
/// Searches for a rule in so long, at some 0.5 µs each: 1 % of the CPU.
const SEARCHES_MOST: u64 = 2000;

#[btf_tracepoint(function = "kfree_skb")]
pub(crate) fn dropped(ctx: BtfTracePointContext) -> i32 {
    let location: u64 = ctx.arg(1);
    let reason = if global!(FACTS.args_kfree_skb) >= 3 {
        ctx.arg::<i32>(2) as u32
    } else {
        u32::MAX
    };
    let layer = layer_of(reason, location);
    if layer == drop_layer::NONE {
        return 0;
    }
    let skb: u64 = ctx.arg(0);
    if let Some(packet) = sock::packet_of_tracepoint(skb) {
        let is_sent_here = field!(skb, skb_iif: u32) == 0;
        if is_sent_here || packet.flags & (flag::SYN | flag::ACK | flag::RST) != flag::SYN {
            count(&Drop {
                context: ctx.as_ptr(),
                skb,
                packet: &packet,
                location,
                reason,
                layer,
            });
        }
    }
    0
}

/// One of [`drop_layer`].
#[inline(always)]
fn layer_of(reason: u32, location: u64) -> u8 {
    if global!(FACTS.args_kfree_skb) >= 3 {
        return DROP_LAYERS
            .get(reason)
            .map_or(drop_layer::NONE, |layer| *layer as u8);
    }
    let Some(places) = DROP_PLACES.get(0) else {
        return drop_layer::NONE;
    };
    for place in places {
        if location >= place.start && location < place.end {
            return place.layer as u8;
        }
    }
    drop_layer::NONE
}

struct Drop<'a> {
    /// Address of the program's arguments, on the stack of what drops.
    context: *const core::ffi::c_void,
    skb: u64,
    packet: &'a Packet,
    location: u64,
    reason: u32,
    layer: u8,
}

#[inline(always)]
fn count(drop: &Drop<'_>) {
    let packet = drop.packet;
    let net = sock::net_of_packet(drop.skb);
    let netns = if net == 0 { 0 } else { sock::net_inum(net) };
    let hook = hook_of(drop);
    let now = sock::now_ns();
    let mut found = nft::Found::default();
    if drop.layer == drop_layer::NETFILTER && nft::is_known() {
        if !has_pace(now, Pace::Searches) {
            tally(1);
            return;
        }
        found = nft::search(drop.context, drop.location);
    }
    let key = DroppedKey {
        local_addr: packet.local_addr,
        remote_addr: packet.remote_addr,
        place: u64::from(netns)
            | u64::from(packet.local_port) << 32
            | u64::from(packet.remote_port) << 48,
        why: u64::from(drop.reason) | u64::from(drop.layer) << 32 | u64::from(hook) << 40,
        rule_handle: found.handle,
        chain: found.chain,
    };
    if let Some(entry) = DROPPED.edit(&key) {
        counted(entry, drop, now);
        return;
    }
    if !has_pace(now, Pace::Entries) {
        tally(1);
        return;
    }
    let Some(zeros) = zeros::<Dropped>() else {
        return;
    };
    let new = DROPPED.insert_new(&key, zeros);
    let Some(entry) = DROPPED.edit(&key) else {
        tally(1);
        return;
    };
    counted(entry, drop, now);
    if new {
        entry.local_addr = packet.local_addr;
        entry.remote_addr = packet.remote_addr;
        entry.local_port = packet.local_port;
        entry.remote_port = packet.remote_port;
        entry.family = packet.family;
        entry.netns = netns;
        entry.reason = drop.reason;
        entry.layer = drop.layer;
        entry.hook = hook;
        name_device(entry, drop.skb);
        if found.chain != 0 {
            name_rule(entry, &found);
        }
        // Last: a poll takes an entry without it for unfinished.
        write_once(&mut entry.first_ns, now);
    }
}

/// One more at an entry.
#[inline(always)]
fn counted(entry: &mut Dropped, drop: &Drop<'_>, now: u64) {
    let flags = drop.packet.flags;
    add(&mut entry.count, 1);
    if flags & flag::FIN != 0 {
        add(&mut entry.fins, 1);
    }
    entry.last_ns = now;
    entry.seq = drop.packet.seq;
    entry.location = drop.location;
    entry.tcp_flags |= flags;
    field_into!(drop.skb, skb_iif, &mut entry.ifindex);
    tally(0);
}

#[inline(always)]
fn tally(which: usize) {
    if let Some([counted, left_out]) = DROPPED_COUNTED.edit(0) {
        add(if which == 0 { counted } else { left_out }, 1);
    }
}

enum Pace {
    Entries,
    Searches,
}

/// Whether this CPU may make one more entry now, or search for one more rule.
#[inline(always)]
fn has_pace(now: u64, what: Pace) -> bool {
    let Some([since, made, searched]) = DROPPED_PACE.edit(0) else {
        return false;
    };
    if now - *since >= PACE_NS {
        *since = now;
        *made = 0;
        *searched = 0;
    }
    match what {
        Pace::Entries => {
            *made += 1;
            *made <= PACE_MOST
        }
        Pace::Searches => {
            *searched += 1;
            *searched <= SEARCHES_MOST
        }
    }
}

#[inline(always)]
fn name_rule(entry: &mut Dropped, found: &nft::Found) {
    let table = field!(found.chain, nft_chain_table: u64);
    sock::read_into(&mut entry.table, field!(table, nft_table_name: u64), 0);
    sock::read_into(
        &mut entry.chain,
        field!(found.chain, nft_chain_name: u64),
        0,
    );
    entry.table_family = field!(table, nft_table_family: u8) & 0x3f;
    entry.rule_handle = found.handle;
    entry.rule = if found.handle == 0 {
        drop_rule::POLICY
    } else {
        drop_rule::RULE
    };
}

#[inline(always)]
fn name_device(entry: &mut Dropped, skb: u64) {
    let dev = field!(skb, skb_dev: u64);
    if dev != 0 && global!(LAYOUT.dev_name) != ABSENT {
        field_into!(dev, dev_name, &mut entry.device);
    }
}

/// One of [`drop_hook`]: where on its way a segment is, by what it was given on it. One that this host sends has its
/// device from POST_ROUTING on (`ip_output`), one that it forwards another device than it came by.
#[inline(always)]
fn hook_of(drop: &Drop<'_>) -> u8 {
    match drop.layer {
        drop_layer::TC_INGRESS => return drop_hook::INGRESS,
        drop_layer::TC_EGRESS | drop_layer::QDISC => return drop_hook::EGRESS,
        drop_layer::NETFILTER => {}
        _ => return drop_hook::UNKNOWN,
    }
    let skb = drop.skb;
    let ifindex = field!(skb, skb_iif: u32);
    let dev = field!(skb, skb_dev: u64);
    if ifindex == 0 {
        return if dev == 0 {
            drop_hook::OUTPUT
        } else {
            drop_hook::POSTROUTING
        };
    }
    // The low bit is SKB_DST_NOREF (include/linux/skbuff.h).
    let dst = field!(skb, skb_refdst: u64) & !1;
    if dst == 0 {
        return drop_hook::PREROUTING;
    }
    let flags = if drop.packet.family == AF_INET6 {
        field!(dst, rt6i_flags: u32)
    } else {
        field!(dst, rt_flags: u32)
    };
    match path_by_route(flags, ifindex) {
        path::INPUT => drop_hook::INPUT,
        path::FORWARD if field!(dev, dev_ifindex: u32) == ifindex => drop_hook::FORWARD,
        path::FORWARD => drop_hook::POSTROUTING,
        _ => drop_hook::UNKNOWN,
    }
}
