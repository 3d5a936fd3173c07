//! Birth, look-up and adoption of connections in the `SOCKETS` map; no programs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use conntracer_common::{
    record::{Owner, Socket, owner_source, role},
    socket::SocketState,
};

use crate::{
    maps::{EMPTY_SOCKET, LISTENERS, Outcome, SOCKETS, global},
    sock,
};

/// Whether a socket is asked for.
#[inline(always)]
pub(crate) fn wanted(socket: &Socket) -> bool {
    global!(FILTER).matches(socket)
}

/// Whether the filter asks for anything at all; a constant to the verifier.
#[inline(always)]
pub(crate) fn filters() -> bool {
    global!(FILTER.netns) != 0 || global!(FILTER).has_endpoint()
}

/// Starts a connection's life without an owner: `Filtered` when nobody asks for it, `Lost` when the map
/// is full.
#[inline(always)]
pub(crate) fn born(sk: u64, role: u8, listener: u64) -> Result<&'static mut SocketState, Outcome> {
    if filters() {
        let mut socket = Socket::default();
        sock::fill_full(sk, &mut socket);
        if !wanted(&socket) {
            return Err(Outcome::Filtered);
        }
    }
    // Inserted empty and filled in place: nothing of it stands on the stack.
    let empty = EMPTY_SOCKET.get(0).ok_or(Outcome::Lost)?;
    SOCKETS.insert(sk, empty, 0).map_err(|_| Outcome::Lost)?;
    let entry = SOCKETS.get_ptr_mut(sk).ok_or(Outcome::Lost)?;
    // SAFETY: a live map value of plain data; the helper has no preconditions.
    let entry = unsafe { &mut *entry };
    entry.born_ns = unsafe { bpf_ktime_get_ns() };
    entry.listener = listener;
    entry.role = role;
    Ok(entry)
}

/// Starts an accepted connection's life; until accepted it is its listener's.
#[inline(always)]
pub(crate) fn born_of(child: u64, listener: u64) -> Outcome {
    match born(child, role::PASSIVE, listener) {
        Ok(entry) => {
            inherit(listener, &mut entry.owner);
            Outcome::Aggregated
        }
        Err(outcome) => outcome,
    }
}

/// The owner a listener's children inherit until accepted.
#[inline(always)]
pub(crate) fn inherit(listener: u64, owner: &mut Owner) {
    // SAFETY: plain data; a concurrent update can at worst mix two owners of one listener.
    if let Some(entry) = unsafe { LISTENERS.get(listener) } {
        *owner = entry.syn.owner;
        if owner.source != owner_source::UNKNOWN {
            owner.source = owner_source::LISTENER;
        }
    }
}

/// Fills in what a connection is and what `SOCKETS` knows of it; false when it is not asked for.
#[inline(always)]
pub(crate) fn fill(sk: u64, socket: &mut Socket, owner: &mut Owner) -> bool {
    sock::fill_full(sk, socket);
    if filters() && !wanted(socket) {
        return false;
    }
    // SAFETY: plain data.
    if let Some(entry) = unsafe { SOCKETS.get(sk) } {
        socket.born_ns = entry.born_ns;
        socket.role = entry.role;
        *owner = entry.owner;
    }
    true
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
        sock::fill_full(sk, socket);
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
            }
        }
    }
    fill(sk, socket, owner)
}
