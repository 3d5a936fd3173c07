//! Birth, look-up and adoption of connections in the `SOCKETS` map; no programs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use conntracer_common::{
    filter::{Read, verdict},
    record::{Owner, Socket, owner_source, role, socket_flag},
    socket::SocketState,
    tcp::IPPROTO_MPTCP,
};

use crate::{
    maps::{EMPTY_SOCKET, FILTER, Injected, LISTENERS, Outcome, SOCKETS},
    probes::{filter, fork, listener},
    sock::{self, Anywhere, Reach, field},
};

/// Whether a socket is asked for, as far as it can be told without its owner.
#[inline(always)]
pub(crate) fn wanted(socket: &Socket) -> bool {
    !filters() || FILTER.matches::<Injected>(socket)
}

/// Whether the filter asks for anything but owners; a constant to the verifier.
#[inline(always)]
pub(crate) fn filters() -> bool {
    Injected::read(&FILTER.used.netns) != 0 || FILTER.has_endpoint::<Injected>()
}

/// [`wanted`] of a socket of which nothing was read yet: no more is than the filter asks about.
#[inline(always)]
fn is_wanted<R: Reach>(sk: u64, role: u8) -> bool {
    if FILTER.has_endpoint::<Injected>() {
        let mut socket = Socket::default();
        sock::fill_full::<R>(sk, &mut socket);
        socket.role = role;
        wanted(&socket)
    } else {
        !filters() || FILTER.wants_netns::<Injected>(sock::netns_of::<R>(sk))
    }
}

/// Whether the owner of a connection is known, and not asked for.
#[inline(always)]
pub(crate) fn is_refused(sk: u64) -> bool {
    // SAFETY: plain data.
    filter::by_owner()
        && unsafe { SOCKETS.get(sk) }.is_some_and(|entry| entry.asked == verdict::REFUSED)
}

/// When a connection began; 0 where it is not known.
#[inline(always)]
pub(crate) fn born_ns(sk: u64) -> u64 {
    // SAFETY: plain data.
    unsafe { SOCKETS.get(sk) }.map_or(0, |entry| entry.born_ns)
}

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;

/// The socket behind an open file; 0 when it is none.
#[inline(always)]
pub(crate) fn behind(file: u64) -> u64 {
    let inode = field!(file, file_inode: u64);
    if field!(inode, inode_mode: u16) & S_IFMT != S_IFSOCK {
        return 0;
    }
    let sk = field!(field!(file, file_private: u64), socket_sk: u64);
    // What the process holds is the MPTCP socket; what the hooks see is TCP's below it.
    if field!(sk, sk_protocol: u16) == IPPROTO_MPTCP {
        return field!(sk, mptcp_first: u64);
    }
    sk
}

/// Starts a connection's life: `Filtered` when nobody asks for it, `Lost` when the map is full. One whose
/// owner is not asked for has an entry all the same: it says so.
#[inline(always)]
pub(crate) fn born<R: Reach>(
    sk: u64,
    role: u8,
    listener: u64,
    own: impl FnOnce(&mut Owner),
) -> Outcome {
    begun::<R>(sk, role, listener, 0, own)
}

/// [`born`] for one whose birth was not seen.
#[inline(always)]
pub(crate) fn adopted<R: Reach>(
    sk: u64,
    role: u8,
    listener: u64,
    own: impl FnOnce(&mut Owner),
) -> Outcome {
    begun::<R>(sk, role, listener, 1, own)
}

#[inline(always)]
fn begun<R: Reach>(
    sk: u64,
    role: u8,
    listener: u64,
    older: u8,
    own: impl FnOnce(&mut Owner),
) -> Outcome {
    if !is_wanted::<R>(sk, role) {
        return Outcome::Filtered;
    }
    // SAFETY: helper without preconditions.
    let born_ns = unsafe { bpf_ktime_get_ns() };
    let mut state = SocketState {
        born_ns,
        listener,
        owned_ns: born_ns,
        role,
        older,
        ..SocketState::default()
    };
    own(&mut state.owner);
    state.asked = filter::of(&state.owner);
    match SOCKETS.insert(sk, &state, 0) {
        Ok(()) if state.asked == verdict::REFUSED => Outcome::Filtered,
        Ok(()) => Outcome::Aggregated,
        Err(_) => Outcome::Lost,
    }
}

/// Starts a connection's life on the passive side. Its owner is its listener's until accepted: looked up
/// when first needed, which for a healthy connection is never.
#[inline(always)]
pub(crate) fn born_of<R: Reach>(child: u64, listener: u64) -> Outcome {
    born::<R>(child, role::PASSIVE, listener, |_| ())
}

/// The owner of a listener, which its children inherit until accepted. One that is younger than the
/// child is another listener at a reused address, unless it only was seen late.
#[inline(always)]
pub(crate) fn inherit(listener: u64, child_born_ns: u64, owner: &mut Owner) {
    let Some(entry) = LISTENERS.get_ptr_mut(listener) else {
        return;
    };
    // SAFETY: a live map value of plain data; a concurrent update can at worst mix two owners of one listener.
    let entry = unsafe { &mut *entry };
    if entry.syn.socket.born_ns <= child_born_ns || entry.syn.socket.flags & socket_flag::OLDER != 0
    {
        fork::mark(&mut entry.syn.owner, entry.owned_ns);
        *owner = entry.syn.owner;
        // Of the listener: nobody looked for the connection's.
        owner.holders = 0;
        if owner.source != owner_source::UNKNOWN && owner.source != owner_source::FORKED {
            owner.source = owner_source::LISTENER;
        }
    }
}

/// [`inherit`] where the listener was found by its address alone.
#[inline(always)]
fn inherit_by_port(listener: u64, child_born_ns: u64, owner: &mut Owner) {
    // SAFETY: plain data.
    if unsafe { LISTENERS.get(listener) }.is_some_and(|entry| entry.mixed == 0) {
        inherit(listener, child_born_ns, owner);
    }
}

/// Fills in what a connection is and what `SOCKETS` knows of it; false when it is not asked for.
#[inline(always)]
pub(crate) fn fill(sk: u64, socket: &mut Socket, owner: &mut Owner) -> bool {
    let Some(entry) = fill_known(sk, socket, owner) else {
        return wanted(socket);
    };
    // SAFETY: a live map value of plain data.
    wanted(socket) && !unsafe { filter::refuses(&raw mut (*entry).asked, owner) }
}

/// The same whoever asks; what is known, where it is.
#[inline(always)]
pub(crate) fn fill_known(
    sk: u64,
    socket: &mut Socket,
    owner: &mut Owner,
) -> Option<*mut SocketState> {
    sock::fill_full::<Anywhere>(sk, socket);
    let kept = SOCKETS.get_ptr_mut(sk)?;
    // SAFETY: a live map value of plain data.
    let entry = unsafe { &mut *kept };
    fork::mark(&mut entry.owner, entry.owned_ns);
    socket.born_ns = entry.born_ns;
    socket.role = entry.role;
    socket.flags = u32::from(entry.older) * socket_flag::OLDER;
    *owner = entry.owner;
    if entry.role == role::PASSIVE && owner.source == owner_source::UNKNOWN {
        if entry.listener == 0 {
            let sk = listener::by_port(socket.netns, socket.local_port, socket.local_addr);
            inherit_by_port(sk, socket.born_ns, owner);
        } else {
            inherit(entry.listener, socket.born_ns, owner);
        }
    }
    Some(kept)
}

/// Makes the process running now the owner of a connection that only who holds it can do this to, where another
/// is known as its owner, or none: it was handed on, or accepted by a process that never received from it. What
/// the kernel does on its own is nobody's.
#[inline(always)]
pub(crate) fn claimed(sk: u64) {
    let Some(entry) = SOCKETS.get_ptr_mut(sk) else {
        return;
    };
    // SAFETY: a live map value of plain data.
    let entry = unsafe { &mut *entry };
    let source = match entry.owner.source {
        owner_source::UNKNOWN if entry.role == role::PASSIVE => owner_source::ACCEPT,
        owner_source::UNKNOWN => return,
        _ => owner_source::PASSED,
    };
    if entry.owner.pid == sock::current_pid() || sock::is_kernel() {
        return;
    }
    sock::fill_current(&mut entry.owner, source);
    entry.asked = filter::of(&entry.owner);
    // SAFETY: helper without preconditions.
    entry.owned_ns = unsafe { bpf_ktime_get_ns() };
}

/// [`fill`] for a connection in trouble: marks it, so that its end is emitted, and adopts it as seen
/// mid-life when it is older than the tracer. A full map leaves it unknown: `born_ns` stays 0 and
/// says so.
#[inline(always)]
pub(crate) fn fill_troubled(sk: u64, socket: &mut Socket, owner: &mut Owner) -> bool {
    if let Some(entry) = SOCKETS.get_ptr_mut(sk) {
        // SAFETY: a live map value of plain data.
        unsafe { (*entry).troubled = 1 };
    } else if let Some(empty) = EMPTY_SOCKET.get(0) {
        sock::fill_full::<Anywhere>(sk, socket);
        if !wanted(socket) {
            return false;
        }
        if SOCKETS.insert(sk, empty, 0).is_ok()
            && let Some(entry) = SOCKETS.get_ptr_mut(sk)
        {
            // SAFETY: as above.
            unsafe {
                (*entry).born_ns = bpf_ktime_get_ns();
                (*entry).troubled = 1;
                (*entry).older = 1;
            }
        }
    }
    fill(sk, socket, owner)
}
