//! ICMP messages about connections that are being opened: type, code and sender, kept for the attempt that they end.
//!
//! `tcp_v4/v6_err` runs once for each ICMP error about TCP, and tells nobody what it was: the application gets an errno
//! that several types and codes share. Part of the `failure` hook, and no event of its own.

use aya_ebpf::{
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};

use conntracer_common::socket::{IcmpSaid, icmp_key};

use crate::{
    maps::ICMP_SAID,
    sock::{self, field},
};

#[fentry(function = "tcp_v4_err")]
pub(crate) fn icmp_fentry_v4(ctx: FEntryContext) -> i32 {
    v4(ctx.arg(0))
}

#[kprobe]
pub(crate) fn icmp_kprobe_v4(ctx: ProbeContext) -> i32 {
    v4(ctx.arg(0).unwrap_or(0))
}

#[fentry(function = "tcp_v6_err")]
pub(crate) fn icmp_fentry_v6(ctx: FEntryContext) -> i32 {
    v6(
        ctx.arg(0),
        ctx.arg::<u64>(2) as u8,
        ctx.arg::<u64>(3) as u8,
        ctx.arg::<u64>(4),
    )
}

#[kprobe]
pub(crate) fn icmp_kprobe_v6(ctx: ProbeContext) -> i32 {
    v6(
        ctx.arg(0).unwrap_or(0),
        ctx.arg::<u64>(2).unwrap_or(0) as u8,
        ctx.arg::<u64>(3).unwrap_or(0) as u8,
        ctx.arg(4).unwrap_or(0),
    )
}

/// The data begin at the IPv4 header that the message quotes, with the first bytes of the segment behind it.
#[inline(always)]
fn v4(skb: u64) -> i32 {
    let quoted = field!(skb, skb_data: u64);
    let length = u64::from(sock::read::<u8>(quoted, 0) & 0x0f) * 4;
    let icmp = header(skb, field!(skb, skb_transport_header: u16));
    let outer = header(skb, field!(skb, skb_network_header: u16));
    let said = IcmpSaid {
        remote_addr: sock::mapped(sock::read(quoted, 16)),
        from: sock::mapped(sock::read(outer, 12)),
        ktime_ns: sock::now_ns(),
        netns: sock::net_inum(sock::net_of_packet(skb)),
        icmp_type: sock::read(icmp, 0),
        icmp_code: sock::read(icmp, 1),
        pad: [0; 2],
    };
    keep(&said, quoted + length)
}

/// The same, with the segment at an offset into the data.
#[inline(always)]
fn v6(skb: u64, icmp_type: u8, icmp_code: u8, offset: u64) -> i32 {
    let quoted = field!(skb, skb_data: u64);
    let outer = header(skb, field!(skb, skb_network_header: u16));
    let said = IcmpSaid {
        remote_addr: sock::read(quoted, 24),
        from: sock::read(outer, 8),
        ktime_ns: sock::now_ns(),
        netns: sock::net_inum(sock::net_of_packet(skb)),
        icmp_type,
        icmp_code,
        pad: [0; 2],
    };
    keep(&said, quoted + (offset & 0xffff))
}

#[inline(always)]
fn header(skb: u64, offset: u16) -> u64 {
    field!(skb, skb_head: u64) + u64::from(offset)
}

#[inline(always)]
fn keep(said: &IcmpSaid, segment: u64) -> i32 {
    let local_port = u16::from_be(sock::read(segment, 0));
    let remote_port = u16::from_be(sock::read(segment, 2));
    let key = icmp_key(said.netns, local_port, remote_port, said.remote_addr[3]);
    // Without room nothing is known of it, which is said.
    ICMP_SAID.insert(key, said);
    0
}
