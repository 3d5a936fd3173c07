//! Listeners and what became of their SYNs and third ACKs, cumulative; no programs.

use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, helpers::bpf_ktime_get_ns};
use aya_log_ebpf::debug;
use conntracer_common::{
    filter::verdict,
    layout::ABSENT,
    netns::count,
    record::{
        Owner, SYN_INTERVAL_NS, SYNACKS_PER_S, Socket, Syn, kind, listener_flag, owner_source,
        role, socket_flag, syn_outcome,
    },
    socket::Listener,
    tcp::state,
};

use crate::{
    emit::{self, Lane},
    maps::{
        Client, EMPTY_LISTENER, LISTEN_PORTS, LISTENERS, ListenKey, Outcome, VICTIMS, add,
        asked_for, global,
    },
    probes::{filter, fork, netns, socket, sources},
    sock::{self, Anywhere, Typed, field},
};

/// The value of `Syn::outcome` where no single outcome is meant.
const ALL: u8 = 255;

/// A socket starts to listen, in the context of listen()'s caller.
#[inline(always)]
pub(crate) fn listening(sk: u64) -> Outcome {
    // SAFETY: helper without preconditions.
    let born_ns = unsafe { bpf_ktime_get_ns() };
    let begun = insert(sk, born_ns, 0, |owner| {
        sock::fill_current(owner, owner_source::LISTENER);
    });
    match begun {
        Ok(entry) if entry.asked == verdict::REFUSED => Outcome::Filtered,
        Ok(_) => Outcome::Aggregated,
        Err(outcome) => outcome,
    }
}

/// Whether the owner of a listener is not asked for. Its entry counts all the same, because the kernel does.
#[inline(always)]
pub(crate) fn is_refused(entry: *mut Listener) -> bool {
    // SAFETY: a live map value of plain data.
    unsafe { filter::refuses(&raw mut (*entry).asked, &(*entry).syn.owner) }
}

/// A listener is found at start; its owner is looked for afterwards.
#[inline(always)]
pub(crate) fn seeded(sk: u64) -> Outcome {
    if LISTENERS.get_ptr_mut(sk).is_some() {
        return Outcome::Filtered;
    }
    match insert(sk, global!(OPTIONS.began_ns), socket_flag::OLDER, |_| ()) {
        Ok(_) => Outcome::Aggregated,
        Err(outcome) => outcome,
    }
}

/// Starts a listener's record; `Filtered` when nobody asks for it, `Lost` when the map is full.
#[inline(always)]
fn insert(
    sk: u64,
    born_ns: u64,
    flags: u32,
    own: impl FnOnce(&mut Owner),
) -> Result<&'static mut Listener, Outcome> {
    let mut socket = Socket::default();
    sock::fill_full::<Anywhere>(sk, &mut socket);
    // The tracepoint fires before the state is stored.
    socket.state = state::LISTEN;
    socket.role = role::LISTENER;
    socket.remote_addr = [0; 4];
    socket.remote_port = 0;
    if !socket::wanted(&socket) {
        return Err(Outcome::Filtered);
    }
    socket.flags = flags;
    // A `Listener` is too large for the stack beside everything else: inserted empty, filled in place.
    let empty = EMPTY_LISTENER.get(0).ok_or(Outcome::Lost)?;
    // One that is not seen to begin to listen may be met by two at once, and begins once.
    let once = if flags == 0 { 0 } else { BPF_NOEXIST };
    if LISTENERS.insert(sk, empty, u64::from(once)).is_err() {
        return LISTENERS
            .get_ptr_mut(sk)
            .map_or(Err(Outcome::Lost), |_| Err(Outcome::Filtered));
    }
    let entry = LISTENERS.get_ptr_mut(sk).ok_or(Outcome::Lost)?;
    // SAFETY: a live map value of plain data.
    let entry = unsafe { &mut *entry };
    own(&mut entry.syn.owner);
    entry.owned_ns = born_ns;
    entry.asked = filter::of(&entry.syn.owner);
    entry.syn.socket = socket;
    entry.syn.outcome = ALL;
    entry.syn.flags = listener_flags(sk);
    settings(entry, sk);
    entry.drops_base = field!(sk, sk_drops: u32);
    let key = key(socket.netns, socket.local_port, socket.local_addr);
    // SAFETY: plain data.
    entry.group_next = unsafe { LISTEN_PORTS.get(key) }.copied().unwrap_or(0);
    if let Some(next) = LISTENERS.get_ptr_mut(entry.group_next) {
        // SAFETY: a live map value of plain data.
        unsafe {
            (*next).group_previous = sk;
            let theirs = &(*next).syn.owner;
            let ours = &entry.syn.owner;
            // Whose one is that is still looked for, nobody knows yet.
            entry.mixed = (*next).mixed
                | u8::from(
                    ours.source == owner_source::UNKNOWN
                        || theirs.pid != ours.pid
                        || theirs.started_ms != ours.started_ms,
                );
        }
    }
    if LISTEN_PORTS.insert(key, sk, 0).is_err() {
        // No poll would tell of it, nor would a packet find it: the next one to reach it tries again.
        let _gone = LISTENERS.remove(sk);
        return Err(Outcome::Lost);
    }
    // Last: without its birth an entry is still being filled in.
    // SAFETY: a live map value; volatile, or it would be stored with the rest.
    unsafe { core::ptr::write_volatile(&raw mut entry.syn.socket.born_ns, born_ns) };
    Ok(entry)
}

/// Takes a socket out of its `SO_REUSEPORT` group; the key goes with the last member. Members that
/// listen or close on two CPUs at once may leave one out, whose drops then count for none of them.
#[inline(always)]
fn leave_group(socket: &Socket, next: u64, previous: u64) {
    if let Some(next) = LISTENERS.get_ptr_mut(next) {
        // SAFETY: a live map value of plain data, here and below.
        unsafe { (*next).group_previous = previous };
    }
    if let Some(previous) = LISTENERS.get_ptr_mut(previous) {
        unsafe { (*previous).group_next = next };
        return;
    }
    let key = key(socket.netns, socket.local_port, socket.local_addr);
    // Neither can fail for a reason that matters: the key is there, or nobody is left to look for it.
    if next == 0 {
        let _absent = LISTEN_PORTS.remove(key);
    } else {
        let _refused = LISTEN_PORTS.insert(key, next, 0);
    }
}

/// The member of `sk`'s group that dropped something not explained yet, `sk` itself when none did
/// (tracepoint hook type, which knows the address alone).
///
/// A global function, as the kernel's verifier calls it: it walks the loop once, not once for each way there.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn dropper(sk: u64) -> u64 {
    /// A group of more is searched no further: its first member stands for the rest.
    const MEMBERS: u32 = 32;
    let mut member = sk;
    for _ in 0..MEMBERS {
        let Some(entry) = LISTENERS.get_ptr_mut(member) else {
            return sk;
        };
        if unexplained(entry, field!(member, sk_drops: u32)) != 0 {
            return member;
        }
        // SAFETY: a live map value of plain data.
        member = unsafe { (*entry).group_next };
    }
    sk
}

/// A listener closes: its final totals are the last chance to be exact.
#[inline(always)]
pub(crate) fn closed<C: EbpfContext>(ctx: &C, sk: u64) -> Outcome {
    let Some(entry) = LISTENERS.get_ptr_mut(sk) else {
        return Outcome::Filtered;
    };
    // The last word on this socket says that it is the last.
    // SAFETY: a live map value of plain data; it stays readable until the map reuses it.
    unsafe { (*entry).syn.socket.state = state::CLOSE };
    // SAFETY: as above.
    let lane = if unsafe { (*entry).emitted } != 0 {
        Lane::Rare
    } else {
        Lane::Bulk
    };
    let outcome = if is_refused(entry) {
        Outcome::Filtered
    } else {
        said(ctx, entry, ALL, lane)
    };
    if removed(sk, entry) {
        outcome
    } else {
        Outcome::Lost
    }
}

/// A socket is gone: a SYN on another CPU may have adopted it after it had closed.
#[inline(always)]
pub(crate) fn destroyed(sk: u64) {
    if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        removed(sk, entry);
    }
}

/// Forgets a listener; whether it was known.
#[inline(always)]
fn removed(sk: u64, entry: *const Listener) -> bool {
    // SAFETY: as in `closed`.
    let entry = unsafe { &*entry };
    leave_group(&entry.syn.socket, entry.group_next, entry.group_previous);
    sources::forget(sk);
    LISTENERS.remove(sk).is_ok()
}

/// The entry of a listener; one older than the tracer is adopted at its first SYN, owner unknown. One that closed
/// meanwhile is not; that it is about to the state does not tell yet, and [`destroyed`] does.
#[inline(always)]
pub(crate) fn entry<C: EbpfContext>(ctx: &C, sk: u64) -> Result<*mut Listener, Outcome> {
    if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        return Ok(entry);
    }
    if field!(sk, skc_state: u8) != state::LISTEN {
        return Err(Outcome::Filtered);
    }
    // SAFETY: helper without preconditions.
    let now_ns = unsafe { bpf_ktime_get_ns() };
    let entry = match insert(sk, now_ns, socket_flag::OLDER, |_| ()) {
        Ok(entry) => entry,
        // Another CPU was first, or the walk at start.
        Err(outcome) => return LISTENERS.get_ptr_mut(sk).ok_or(outcome),
    };
    // By port: the log's arithmetic on a pointer would be refused where a program has it as one.
    debug!(
        ctx,
        "the listener at port {} is older than the tracer: adopted without an owner",
        entry.syn.socket.local_port
    );
    Ok(entry)
}

/// The owner of what goes to an address whose listener is known by it alone ([`by_port`]): nobody where
/// listeners of several processes share it, for any of them may be meant.
#[inline(always)]
pub(crate) fn owner_by_port(entry: &mut Listener) -> Owner {
    if entry.mixed == 0 {
        fork::mark(&mut entry.syn.owner, entry.owned_ns);
        entry.syn.owner
    } else {
        Owner::default()
    }
}

const fn key(netns: u32, port: u16, addr: [u32; 4]) -> ListenKey {
    ListenKey {
        addr,
        netns,
        port,
        pad: 0,
    }
}

/// The listener a packet for `addr:port` goes to: the exact address, then for IPv4 its any-address, then
/// IPv6's, as `__inet_lookup_listener` prefers them, unless it is of IPv6 only; 0 when none is known.
#[inline(always)]
pub(crate) fn by_port(netns: u32, port: u16, addr: [u32; 4]) -> u64 {
    // SAFETY: plain data, here and below.
    if let Some(sk) = unsafe { LISTEN_PORTS.get(key(netns, port, addr)) } {
        return *sk;
    }
    let [first, second, third, _] = addr;
    let is_v4 = [first, second, third] == [0, 0, sock::mapped(0)[2]];
    if is_v4 && let Some(sk) = unsafe { LISTEN_PORTS.get(key(netns, port, sock::mapped(0))) } {
        return *sk;
    }
    let any = unsafe { LISTEN_PORTS.get(key(netns, port, [0; 4])) }
        .copied()
        .unwrap_or(0);
    let refuses = is_v4
        && unsafe { LISTENERS.get(any) }
            .is_some_and(|entry| entry.syn.flags & listener_flag::V6_ONLY != 0);
    if refuses { 0 } else { any }
}

/// Adds to one of a listener's totals.
#[inline(always)]
pub(crate) fn count(entry: *mut Listener, total: usize) {
    if total < syn_outcome::COUNT {
        // SAFETY: a live map value, within its totals.
        unsafe { add((&raw mut (*entry).syn.totals).cast::<u64>().add(total), 1) };
    }
}

/// [`count`] for what is no outcome of a packet and not said by itself: the poll shows it, and so does
/// the listener's end.
#[inline(always)]
pub(crate) fn count_aside(entry: *mut Listener, total: usize) {
    count(entry, total);
    // SAFETY: a live map value of plain data; the helper has no preconditions.
    unsafe {
        (*entry).emitted |= 1 << total;
        (*entry).syn.last_ns = bpf_ktime_get_ns();
    }
}

/// A SYN-ACK was repeated. Says whether a record of it is within the listener's budget.
#[inline(always)]
pub(crate) fn repeated(entry: *mut Listener, repeats_before: u8, acked: u8) -> bool {
    count_aside(entry, syn_outcome::REPEATED);
    if acked != 0 {
        count(entry, syn_outcome::REPEATED_ACKED);
    }
    if repeats_before == 0 {
        count(entry, syn_outcome::REQUESTS_REPEATED);
    }
    let repeats = repeats_before.saturating_add(1);
    // SAFETY: a live map value of plain data; where CPUs mix, a record more or less is emitted.
    unsafe {
        if repeats > (*entry).syn.most_repeats {
            (*entry).syn.most_repeats = repeats;
        }
        let now = (*entry).syn.last_ns;
        if now.wrapping_sub((*entry).synacks_from_ns) >= SYNACKS_INTERVAL_NS {
            (*entry).synacks_from_ns = now;
            (*entry).synacks = 0;
        }
        (*entry).synacks = (*entry).synacks.wrapping_add(1);
        (*entry).synacks <= SYNACKS_PER_S
    }
}

/// What [`SYNACKS_PER_S`] counts in.
const SYNACKS_INTERVAL_NS: u64 = 1_000_000_000;

/// A third ACK made a connection, after so many repeated SYN-ACKs.
#[inline(always)]
pub(crate) fn completed(listener: u64, repeats: u8, cookie: u8) {
    // One not known yet is adopted at its next SYN.
    let Some(entry) = LISTENERS.get_ptr_mut(listener) else {
        return;
    };
    queued(entry, listener);
    count(entry, syn_outcome::COMPLETED);
    if repeats != 0 {
        count(entry, syn_outcome::COMPLETED_LATE);
    }
    if cookie != 0 {
        count(entry, syn_outcome::COOKIE_VALID);
    }
}

/// The same from a child (of a BTF tracepoint) that still has its listener's address (tracepoint hook type).
#[inline(always)]
pub(crate) fn completed_at(child: u64) {
    let listener = of_child(child);
    if let Some(entry) = LISTENERS.get_ptr_mut(listener) {
        queued(entry, listener);
        count(entry, syn_outcome::COMPLETED);
    }
}

/// A child was made: it joins the accept queue as soon as this is over (`inet_csk_complete_hashdance`).
/// Before the completion is counted, so that completions less the queue are never more than were accepted.
#[inline(always)]
fn queued(entry: *mut Listener, listener: u64) {
    let ack_backlog = field!(listener, sk_ack_backlog: u32) + 1;
    // SAFETY: a live map value of plain data; CPUs may mix a record's fields, never its totals.
    unsafe {
        (*entry).syn.ack_backlog = ack_backlog;
        if ack_backlog > (*entry).syn.peak_ack_backlog {
            (*entry).syn.peak_ack_backlog = ack_backlog;
        }
    }
}

/// The child's handshake took repeated SYN-ACKs (tracepoint hook type).
#[inline(always)]
pub(crate) fn completed_late_at(child: u64) {
    if let Some(entry) = LISTENERS.get_ptr_mut(of_child(child)) {
        count(entry, syn_outcome::COMPLETED_LATE);
    }
}

#[inline(always)]
fn of_child(child: u64) -> u64 {
    let mut socket = Socket::default();
    sock::fill_common::<Typed>(child, &mut socket);
    by_port(socket.netns, socket.local_port, socket.local_addr)
}

/// Counts one outcome where the listener has no entry: its namespace's counts are complete all the same. `refused`
/// is why it has none.
#[inline(always)]
pub(crate) fn outcome_without_entry(net: u64, outcome: usize, refused: Outcome) -> Outcome {
    if outcome != syn_outcome::ADDED {
        netns::count(net, outcome);
    }
    refused
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
        count(entry, outcome);
        if outcome != syn_outcome::ADDED {
            netns::count(sock::net_of(listener), outcome);
        }
        if is_refused(entry) {
            return Outcome::Filtered;
        }
        let syn_qlen = field!(listener, icsk_qlen: u32);
        (*entry).syn.last_ns = now;
        if syn_qlen > (*entry).syn.peak_syn_qlen {
            (*entry).syn.peak_syn_qlen = syn_qlen;
        }
        (*entry).syn.syn_qlen = syn_qlen;
        // A stored request leaves the accept queue as it is; what makes that longer is seen by `queued`.
        if outcome == syn_outcome::ADDED {
            return Outcome::Aggregated;
        }
        let ack_backlog = field!(listener, sk_ack_backlog: u32);
        if ack_backlog > (*entry).syn.peak_ack_backlog {
            (*entry).syn.peak_ack_backlog = ack_backlog;
        }
        (*entry).syn.ack_backlog = ack_backlog;
        if outcome < syn_outcome::SYNS {
            sources::troubled(listener, entry, &sock::source_of(skb));
        }
        let bit = 1 << outcome;
        let first = (*entry).emitted & bit == 0;
        if !first && !asked_for(kind::SYN) && now - (*entry).emitted_ns < SYN_INTERVAL_NS {
            return Outcome::Aggregated;
        }
        (*entry).emitted |= bit;
        (*entry).emitted_ns = now;
        (*entry).syn.evidence = evidence;
        settings(&mut *entry, listener);
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

/// What a client is told whose third ACK was refused: with `tcp_abort_on_overflow` a RST, whatever the
/// reason (`tcp_check_req`, `listen_overflow`), unless it brought a cookie and there is no request to
/// reset; otherwise nothing, and it is a victim once.
#[inline(always)]
pub(crate) fn refused(entry: *mut Listener, sk: u64, skb: u64, outcome: usize, cookie: u8) {
    if cookie == 0 && aborts_on_overflow(sock::net_of(sk)) == 1 {
        count(entry, syn_outcome::ABORTED);
        netns::count(sock::net_of(sk), count::REQUEST_ABORTED);
    } else if outcome == syn_outcome::ACK_OVERFLOW && is_new_victim(sk, skb) {
        count(entry, syn_outcome::VICTIMS);
    }
}

/// Whether the third ACK of this packet's client is refused for the first time. One that was refused
/// longer ago than its repeats can be apart (`TCP_RTO_MAX`) is another client at the same port.
#[inline(always)]
fn is_new_victim(listener: u64, skb: u64) -> bool {
    const SAME_CLIENT_NS: u64 = 120_000_000_000;
    // SAFETY: helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(packet) = sock::packet(skb) else {
        return true;
    };
    let client = Client {
        local_addr: packet.local_addr,
        remote_addr: packet.remote_addr,
        local_port: packet.local_port,
        remote_port: packet.remote_port,
        netns: sock::net_inum(sock::net_of(listener)),
    };
    if let Some(refused) = VICTIMS.get_ptr_mut(client) {
        // SAFETY: a live map value.
        let before = unsafe { core::ptr::replace(refused, now) };
        return now.wrapping_sub(before) > SAME_CLIENT_NS;
    }
    // An LRU map has room for whatever is new; where two CPUs race for it the second is no loss.
    let _raced = VICTIMS.insert(client, now, 0);
    true
}

/// Brings a listener's queues and settings up to date for the poll that is to read them; one of another
/// birth is another listener.
#[inline(always)]
pub(crate) fn refreshed(sk: u64, born_ns: u64) {
    if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        // SAFETY: a live map value of plain data.
        let entry = unsafe { &mut *entry };
        if entry.syn.socket.born_ns == born_ns {
            entry.syn.ack_backlog = field!(sk, sk_ack_backlog: u32);
            entry.syn.syn_qlen = field!(sk, icsk_qlen: u32);
            settings(entry, sk);
            fork::mark(&mut entry.syn.owner, entry.owned_ns);
        }
    }
}

/// What bounds the listener's queues, and what its namespace does when they are full.
#[inline(always)]
fn settings(entry: &mut Listener, listener: u64) {
    let net = sock::net_of(listener);
    entry.syn.max_ack_backlog = field!(listener, sk_max_ack_backlog: u32);
    entry.syn.max_syn_backlog = field!(net, net_max_syn_backlog: u32);
    entry.syn.somaxconn = field!(net, net_somaxconn: u32);
    entry.syn.syncookies = syncookies(net);
    entry.syn.abort_on_overflow = aborts_on_overflow(net);
}

/// `net.ipv4.tcp_syncookies` of a namespace, 255 when the kernel has no such field. An int up to 5.12,
/// a byte since: the low byte either way (little endian).
#[inline(always)]
pub(crate) fn syncookies(net: u64) -> u8 {
    if global!(LAYOUT.net_syncookies) == ABSENT {
        return ALL;
    }
    field!(net, net_syncookies: u8)
}

/// The same for `net.ipv4.tcp_abort_on_overflow`.
#[inline(always)]
pub(crate) fn aborts_on_overflow(net: u64) -> u8 {
    if global!(LAYOUT.net_abort_on_overflow) == ABSENT {
        return ALL;
    }
    field!(net, net_abort_on_overflow: u8)
}

/// Bits of `listener_flag`.
#[inline(always)]
fn listener_flags(sk: u64) -> u8 {
    let bit = |byte: u8, at: u8, flag: u8| {
        if (byte >> (at & 7)) & 1 != 0 { flag } else { 0 }
    };
    bit(
        field!(sk, skc_ipv6only: u8),
        global!(FACTS.ipv6only_bit),
        listener_flag::V6_ONLY,
    ) | bit(
        field!(sk, skc_reuseport: u8),
        global!(FACTS.reuseport_bit),
        listener_flag::REUSEPORT,
    )
}

/// Emits the map value itself: a copy of it would not fit on the stack.
#[inline(always)]
fn said<C: EbpfContext>(ctx: &C, entry: *mut Listener, outcome: u8, lane: Lane) -> Outcome {
    // SAFETY: a live map value of plain data.
    unsafe {
        (*entry).syn.header = emit::header::<Syn>(kind::SYN);
        (*entry).syn.outcome = outcome;
        fork::mark(&mut (*entry).syn.owner, (*entry).owned_ns);
        emit::emit(ctx, lane, &(*entry).syn)
    }
}

/// How far `sk_drops` is ahead of what was explained so far (tracepoint hook type).
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
