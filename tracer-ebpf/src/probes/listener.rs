//! Listeners: their beginning and end, their look-up by socket and by address, and how they are set; no programs.
//! What became of their SYNs is `totals`'.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::debug;
use conntracer_common::{
    filter::verdict,
    layout::ABSENT,
    record::{Owner, Socket, Syn, listener_flag, owner_source, role, socket_flag},
    socket::Listener,
    syn::Queues,
    tcp::state,
};

use crate::{
    account::Outcome,
    emit::{self, Lane},
    globals::global,
    maps::{CLOSED_LISTENERS, ClosedListener, LISTEN_PORTS, LISTENERS, ListenKey},
    probes::{fork, matching, sources},
    sock::{self, Anywhere, field},
    table::{add, write_once, zeros},
};

/// The value of `Syn::outcome` where no single outcome is meant.
const ALL: u8 = 255;

/// A socket starts to listen, in the context of listen()'s caller.
#[inline(always)]
pub(crate) fn listening(sk: u64) -> Outcome {
    let begun = insert(sk, sock::now_ns(), 0, |owner| {
        sock::fill_current(owner, owner_source::LISTENER);
    });
    match begun {
        Ok(entry) if entry.verdict == verdict::EXCLUDED => Outcome::Filtered,
        Ok(_) => Outcome::Aggregated,
        Err(outcome) => outcome,
    }
}

/// Whether the filter excludes a listener's owner. Its entry counts all the same, because the kernel does.
#[inline(always)]
pub(crate) fn is_excluded(entry: &mut Listener) -> bool {
    matching::excludes(&mut entry.verdict, &entry.syn.owner)
}

/// A listener is found at start; its owner is looked for afterwards.
#[inline(always)]
pub(crate) fn seeded(sk: u64) -> Outcome {
    if LISTENERS.has(sk) {
        return Outcome::Filtered;
    }
    match insert(sk, global!(OPTIONS.began_ns), socket_flag::OLDER, |_| ()) {
        Ok(_) => Outcome::Aggregated,
        Err(outcome) => outcome,
    }
}

/// Starts a listener's record; `Filtered` when it does not match, `Lost` when the map is full.
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
    if !matching::socket(&socket) {
        return Err(Outcome::Filtered);
    }
    socket.flags = flags;
    // One that is not seen to begin to listen may be met by two at once, and begins once.
    let zeros = zeros().ok_or(Outcome::Lost)?;
    let inserted = if flags == 0 {
        LISTENERS.insert(sk, zeros)
    } else {
        LISTENERS.insert_new(sk, zeros)
    };
    if !inserted {
        return Err(if LISTENERS.has(sk) {
            Outcome::Filtered
        } else {
            Outcome::Lost
        });
    }
    let entry = LISTENERS.edit(sk).ok_or(Outcome::Lost)?;
    let key = key(socket.netns, socket.local_port, socket.local_addr);
    own(&mut entry.syn.owner);
    entry.owned_ns = born_ns;
    entry.verdict = matching::owner(&entry.syn.owner);
    entry.syn.socket = socket;
    entry.syn.outcome = ALL;
    entry.syn.flags = listener_flags(sk);
    settings(entry, sk);
    entry.drops_base = field!(sk, sk_drops: u32);
    entry.group_next = LISTEN_PORTS.get(&key).copied().unwrap_or(0);
    // Not itself: its own key went with its last life.
    if let Some(next) = LISTENERS.edit(entry.group_next) {
        next.group_previous = sk;
        let theirs = &next.syn.owner;
        let ours = &entry.syn.owner;
        // Whose one is that is still looked for, nobody knows yet.
        entry.mixed = next.mixed
            | u8::from(
                ours.source == owner_source::UNKNOWN
                    || theirs.pid != ours.pid
                    || theirs.started_ms != ours.started_ms,
            );
    }
    if !LISTEN_PORTS.insert(&key, &sk) {
        // No poll would tell of it, nor would a packet find it: the next one to reach it tries again.
        LISTENERS.remove(sk);
        return Err(Outcome::Lost);
    }
    // Last: without its birth an entry is still being filled in.
    write_once(&mut entry.syn.socket.born_ns, born_ns);
    Ok(entry)
}

/// Takes a socket out of its `SO_REUSEPORT` group; the key goes with the last member. Members that
/// listen or close on two CPUs at once may leave one out, whose drops then count for none of them.
#[inline(always)]
fn leave_group(socket: &Socket, next: u64, previous: u64) {
    if let Some(next) = LISTENERS.edit(next) {
        next.group_previous = previous;
    }
    if let Some(previous) = LISTENERS.edit(previous) {
        previous.group_next = next;
        return;
    }
    let key = key(socket.netns, socket.local_port, socket.local_addr);
    // Neither can fail for a reason that matters: the key is there, or nobody is left to look for it.
    if next == 0 {
        LISTEN_PORTS.remove(&key);
    } else {
        LISTEN_PORTS.insert(&key, &next);
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
        let Some(entry) = LISTENERS.get(member) else {
            return sk;
        };
        if unexplained(entry, field!(member, sk_drops: u32)) != 0 {
            return member;
        }
        member = entry.group_next;
    }
    sk
}

/// A listener closes: its final totals are the last chance to be exact.
#[inline(always)]
pub(crate) fn closed<C: EbpfContext>(ctx: &C, sk: u64) -> Outcome {
    let mut listener = ClosedListener {
        owner: Owner::default(),
        netns: sock::netns_of::<Anywhere>(sk),
        local_port: u16::from_be(field!(sk, inet_sport: u16)),
        pad: 0,
    };
    let known = LISTENERS.edit(sk);
    if let Some(entry) = &known {
        listener.owner = entry.syn.owner;
    }
    if listener.owner.source == owner_source::UNKNOWN {
        sock::fill_current(&mut listener.owner, owner_source::LISTENER);
    }
    CLOSED_LISTENERS.insert(sock::current_thread(), &listener);
    let Some(entry) = known else {
        return Outcome::Filtered;
    };
    // The last word on this socket says that it is the last.
    entry.syn.socket.state = state::CLOSE;
    let lane = if entry.emitted != 0 {
        Lane::Rare
    } else {
        Lane::Bulk
    };
    let outcome = if is_excluded(entry) {
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

/// The owner of the listener that the running thread closes, if a connection waited for accept() there.
#[inline(always)]
pub(crate) fn closing(socket: &Socket) -> Option<&'static Owner> {
    let listener = CLOSED_LISTENERS.get(sock::current_thread())?;
    let is_its = listener.netns == socket.netns && listener.local_port == socket.local_port;
    is_its.then_some(&listener.owner)
}

/// A socket is gone: a SYN on another CPU may have adopted it after it had closed.
#[inline(always)]
pub(crate) fn destroyed(sk: u64) {
    if let Some(entry) = LISTENERS.edit(sk) {
        removed(sk, entry);
    }
}

/// Forgets a listener; whether it was known.
#[inline(always)]
fn removed(sk: u64, entry: &Listener) -> bool {
    leave_group(&entry.syn.socket, entry.group_next, entry.group_previous);
    sources::forget(sk);
    LISTENERS.remove(sk)
}

/// The entry of a listener; one older than the tracer is adopted at its first SYN, owner unknown. One that closed
/// meanwhile is not; that it is about to the state does not tell yet, and [`destroyed`] does.
#[inline(always)]
pub(crate) fn entry<C: EbpfContext>(ctx: &C, sk: u64) -> Result<&'static mut Listener, Outcome> {
    if let Some(entry) = LISTENERS.edit(sk) {
        return Ok(entry);
    }
    if field!(sk, skc_state: u8) != state::LISTEN {
        return Err(Outcome::Filtered);
    }
    let entry = match insert(sk, sock::now_ns(), socket_flag::OLDER, |_| ()) {
        Ok(entry) => entry,
        // Another CPU was first, or the walk at start.
        Err(outcome) => return LISTENERS.edit(sk).ok_or(outcome),
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
        place: netns as u64 | (port as u64) << 32,
    }
}

/// The listener a packet for `addr:port` goes to: the exact address, then for IPv4 its any-address, then
/// IPv6's, as `__inet_lookup_listener` prefers them, unless it is of IPv6 only; 0 when none is known.
#[inline(always)]
pub(crate) fn by_port(netns: u32, port: u16, addr: [u32; 4]) -> u64 {
    let at = |addr| LISTEN_PORTS.get(key(netns, port, addr)).copied();
    if let Some(sk) = at(addr) {
        return sk;
    }
    let [first, second, third, _] = addr;
    let is_v4 = [first, second, third] == [0, 0, sock::mapped(0)[2]];
    if is_v4 && let Some(sk) = at(sock::mapped(0)) {
        return sk;
    }
    let any = at([0; 4]).unwrap_or(0);
    let is_v6_only = |entry: &Listener| entry.syn.flags & listener_flag::V6_ONLY != 0;
    if is_v4 && LISTENERS.get(any).is_some_and(is_v6_only) {
        0
    } else {
        any
    }
}

/// Brings a listener's queues and settings up to date for the poll that is to read them; one of another
/// birth is another listener.
#[inline(always)]
pub(crate) fn refreshed(sk: u64, born_ns: u64) {
    if let Some(entry) = LISTENERS.edit(sk)
        && entry.syn.socket.born_ns == born_ns
    {
        entry.syn.ack_backlog = field!(sk, sk_ack_backlog: u32);
        entry.syn.syn_qlen = field!(sk, icsk_qlen: u32);
        entry.syn.bound_ifindex = field!(sk, skc_bound_dev_if: u32);
        settings(entry, sk);
        fork::mark(&mut entry.syn.owner, entry.owned_ns);
    }
}

/// What bounds the listener's queues, and what its namespace does when they are full.
#[inline(always)]
pub(crate) fn settings(entry: &mut Listener, listener: u64) {
    let net = sock::net_of(listener);
    entry.syn.max_ack_backlog = field!(listener, sk_max_ack_backlog: u32);
    entry.syn.max_syn_backlog = field!(net, net_max_syn_backlog: u32);
    entry.syn.somaxconn = field!(net, net_somaxconn: u32);
    entry.syn.syncookies = syncookies(net);
    entry.syn.abort_on_overflow = aborts_on_overflow(net);
}

/// A listener's queues as they stand now.
#[inline(always)]
pub(crate) fn queues(sk: u64) -> Queues {
    let net = sock::net_of(sk);
    Queues {
        ack_backlog: field!(sk, sk_ack_backlog: u32),
        max_ack_backlog: field!(sk, sk_max_ack_backlog: u32),
        syn_qlen: field!(sk, icsk_qlen: u32),
        max_syn_backlog: field!(net, net_max_syn_backlog: u32),
        syncookies: syncookies(net),
    }
}

/// `net.ipv4.tcp_syncookies` of a namespace, 255 when the kernel has no such field. An int up to 5.12,
/// a byte since: the low byte either way (little endian).
#[inline(always)]
pub(crate) fn syncookies(net: u64) -> u8 {
    if global!(LAYOUT.net_syncookies) == ABSENT {
        return u8::MAX;
    }
    field!(net, net_syncookies: u8)
}

/// The same for `net.ipv4.tcp_abort_on_overflow`.
#[inline(always)]
pub(crate) fn aborts_on_overflow(net: u64) -> u8 {
    if global!(LAYOUT.net_abort_on_overflow) == ABSENT {
        return u8::MAX;
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
pub(crate) fn said<C: EbpfContext>(
    ctx: &C,
    entry: &mut Listener,
    outcome: u8,
    lane: Lane,
) -> Outcome {
    entry.syn.header = emit::header::<Syn>();
    entry.syn.outcome = outcome;
    fork::mark(&mut entry.syn.owner, entry.owned_ns);
    emit::emit(ctx, lane, &entry.syn)
}

/// How far `sk_drops` is ahead of what was explained so far (tracepoint hook type).
#[inline(always)]
pub(crate) fn unexplained(entry: &Listener, drops: u32) -> u64 {
    let explained = entry.drops_base.wrapping_add(entry.drops_explained as u32);
    let ahead = drops.wrapping_sub(explained) as i32;
    if ahead > 0 { ahead as u64 } else { 0 }
}

#[inline(always)]
pub(crate) fn explain(entry: &mut Listener, drops: u64) {
    add(&mut entry.drops_explained, drops);
}
