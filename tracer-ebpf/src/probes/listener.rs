//! Listeners and what became of their SYNs and third ACKs, cumulative; no programs.

use aya_ebpf::{EbpfContext, helpers::bpf_ktime_get_ns};
use aya_log_ebpf::debug;
use conntracer_common::{
    record::{SYN_INTERVAL_NS, Socket, Syn, kind, owner_source, role, syn_outcome},
    socket::Listener,
    tcp::state,
};

use crate::{
    emit::{self, Lane},
    maps::{EMPTY_LISTENER, LISTEN_PORTS, LISTENERS, ListenKey, Outcome, add, asked_for, global},
    probes::socket,
    sock::{self, field},
};

/// The value of `Syn::outcome` where no single outcome is meant.
const ALL: u8 = 255;

/// A socket starts to listen, in the context of listen()'s caller.
#[inline(always)]
pub(crate) fn listening(sk: u64) -> Outcome {
    match insert(sk) {
        Ok(entry) => {
            sock::fill_current(&mut entry.syn.owner, owner_source::LISTENER);
            Outcome::Aggregated
        }
        Err(outcome) => outcome,
    }
}

/// Starts a listener's record without an owner; `Filtered` when nobody asks for it, `Lost` when the map is full.
#[inline(always)]
fn insert(sk: u64) -> Result<&'static mut Listener, Outcome> {
    let mut socket = Socket::default();
    sock::fill_full(sk, &mut socket);
    // The tracepoint fires before the state is stored.
    socket.state = state::LISTEN;
    socket.role = role::LISTENER;
    socket.remote_addr = [0; 4];
    socket.remote_port = 0;
    if !socket::wanted(&socket) {
        return Err(Outcome::Filtered);
    }
    // SAFETY: helper without preconditions.
    socket.born_ns = unsafe { bpf_ktime_get_ns() };
    // A `Listener` is too large for the stack beside everything else: inserted empty, filled in place.
    let empty = EMPTY_LISTENER.get(0).ok_or(Outcome::Lost)?;
    LISTENERS.insert(sk, empty, 0).map_err(|_| Outcome::Lost)?;
    let entry = LISTENERS.get_ptr_mut(sk).ok_or(Outcome::Lost)?;
    // SAFETY: a live map value of plain data.
    let entry = unsafe { &mut *entry };
    entry.syn.socket = socket;
    entry.syn.outcome = ALL;
    entry.syn.syncookies = ALL;
    entry.drops_base = field!(sk, sk_drops: u32);
    if global!(OPTIONS.syn_by_skb) != 0 || global!(OPTIONS.ack_by_skb) != 0 {
        let key = key(socket.netns, socket.local_port, socket.local_addr);
        LISTEN_PORTS.insert(key, sk, 0).map_err(|_| Outcome::Lost)?;
    }
    Ok(entry)
}

/// A listener closes: its final totals are the last chance to be exact.
#[inline(always)]
pub(crate) fn closed<C: EbpfContext>(ctx: &C, sk: u64) -> Outcome {
    let Some(entry) = LISTENERS.get_ptr_mut(sk) else {
        return Outcome::Filtered;
    };
    // SAFETY: a live map value of plain data; it stays readable until the map reuses it.
    let socket = unsafe { (*entry).syn.socket };
    let mut outcome = Outcome::Aggregated;
    // SAFETY: as above.
    if unsafe { (*entry).emitted } != 0 {
        outcome = said(ctx, entry, ALL, Lane::Rare);
    }
    if global!(OPTIONS.syn_by_skb) != 0 || global!(OPTIONS.ack_by_skb) != 0 {
        let key = key(socket.netns, socket.local_port, socket.local_addr);
        // Absent when another listener of the same SO_REUSEPORT group closed first.
        let _absent = LISTEN_PORTS.remove(key);
    }
    match LISTENERS.remove(sk) {
        Ok(()) => outcome,
        Err(_) => Outcome::Lost,
    }
}

/// The entry of a listener; one older than the tracer is adopted at its first SYN, owner unknown.
#[inline(always)]
pub(crate) fn entry<C: EbpfContext>(ctx: &C, sk: u64) -> Result<*mut Listener, Outcome> {
    if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        return Ok(entry);
    }
    let entry = insert(sk)?;
    debug!(
        ctx,
        "listener {:x} is older than the tracer: adopted without an owner", sk
    );
    Ok(entry)
}

const fn key(netns: u32, port: u16, addr: [u32; 4]) -> ListenKey {
    ListenKey {
        addr,
        netns,
        port,
        pad: 0,
    }
}

/// The listener a packet for `addr:port` goes to: the exact address, then IPv4's any-address, then
/// IPv6's, as `__inet_lookup_listener` prefers them; 0 when none is known.
#[inline(always)]
pub(crate) fn by_port(netns: u32, port: u16, addr: [u32; 4]) -> u64 {
    // SAFETY: plain data, here and below.
    if let Some(sk) = unsafe { LISTEN_PORTS.get(key(netns, port, addr)) } {
        return *sk;
    }
    if let Some(sk) = unsafe { LISTEN_PORTS.get(key(netns, port, sock::mapped(0))) } {
        return *sk;
    }
    unsafe { LISTEN_PORTS.get(key(netns, port, [0; 4])) }
        .copied()
        .unwrap_or(0)
}

/// Counts one outcome at a listener, and says so when it is bad and due.
#[inline(always)]
pub(crate) fn outcome<C: EbpfContext>(
    ctx: &C,
    listener: u64,
    entry: *mut Listener,
    outcome: usize,
    evidence: u8,
    skb: u64,
) -> Outcome {
    // SAFETY: a live map value of plain data; CPUs may mix a record's fields, never its totals.
    unsafe {
        let now = bpf_ktime_get_ns();
        add(
            (&raw mut (*entry).syn.totals)
                .cast::<u64>()
                .add(outcome & 7),
            1,
        );
        let ack_backlog = field!(listener, sk_ack_backlog: u32);
        let syn_qlen = field!(listener, icsk_qlen: u32);
        (*entry).syn.last_ns = now;
        if ack_backlog > (*entry).syn.peak_ack_backlog {
            (*entry).syn.peak_ack_backlog = ack_backlog;
        }
        if syn_qlen > (*entry).syn.peak_syn_qlen {
            (*entry).syn.peak_syn_qlen = syn_qlen;
        }
        if outcome == syn_outcome::ADDED {
            return Outcome::Aggregated;
        }
        let bit = 1 << outcome;
        let first = (*entry).emitted & bit == 0;
        if !first && !asked_for(kind::SYN) && now - (*entry).emitted_ns < SYN_INTERVAL_NS {
            return Outcome::Aggregated;
        }
        (*entry).emitted |= bit;
        (*entry).emitted_ns = now;
        let net = sock::net_of(listener);
        (*entry).syn.ack_backlog = ack_backlog;
        (*entry).syn.syn_qlen = syn_qlen;
        (*entry).syn.max_ack_backlog = field!(listener, sk_max_ack_backlog: u32);
        (*entry).syn.max_syn_backlog = field!(net, net_max_syn_backlog: u32);
        (*entry).syn.syncookies = syncookies(net);
        (*entry).syn.evidence = evidence;
        if let Some(packet) = sock::packet(skb) {
            (*entry).syn.socket.remote_addr = packet.remote_addr;
            (*entry).syn.socket.remote_port = packet.remote_port;
        }
        said(
            ctx,
            entry,
            outcome as u8,
            if first { Lane::Urgent } else { Lane::Rare },
        )
    }
}

/// `net.ipv4.tcp_syncookies` of a namespace, 255 when the kernel has no such field.
#[inline(always)]
pub(crate) fn syncookies(net: u64) -> u8 {
    if global!(LAYOUT.net_syncookies) == conntracer_common::layout::ABSENT {
        return ALL;
    }
    // An int up to 5.12, a byte since: the low byte either way (little endian).
    field!(net, net_syncookies: u8)
}

/// Emits the map value itself: a copy of it would not fit on the stack.
#[inline(always)]
fn said<C: EbpfContext>(ctx: &C, entry: *mut Listener, outcome: u8, lane: Lane) -> Outcome {
    // SAFETY: a live map value of plain data.
    unsafe {
        (*entry).syn.header = emit::header::<Syn>(kind::SYN);
        (*entry).syn.outcome = outcome;
        emit::emit(ctx, lane, &(*entry).syn)
    }
}

/// How far `sk_drops` is ahead of what was explained so far (tracepoint rung).
#[inline(always)]
pub(crate) fn unexplained(entry: *mut Listener, drops: u32) -> u64 {
    // SAFETY: a live map value of plain data.
    let explained = unsafe {
        (*entry)
            .drops_base
            .wrapping_add((*entry).drops_explained as u32)
    };
    let ahead = drops.wrapping_sub(explained) as i32;
    if ahead > 0 { ahead as u64 } else { 0 }
}

#[inline(always)]
pub(crate) fn explain(entry: *mut Listener, drops: u64) {
    // SAFETY: a live map value of plain data.
    unsafe { add(&raw mut (*entry).drops_explained, drops) };
}
