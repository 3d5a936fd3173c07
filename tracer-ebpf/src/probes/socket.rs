//! Birth, look-up and adoption of connections in the `SOCKETS` map; no programs.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use conntracer_common::{
    record::{Owner, Socket, role},
    socket::SocketState,
};

use crate::{
    maps::{LISTENERS, Outcome, SOCKETS, global},
    sock,
};

/// Whether a socket is asked for.
#[inline(always)]
pub fn wanted(socket: &Socket) -> bool {
    global!(FILTER).matches(socket)
}

/// Whether the filter asks for anything at all; a constant to the verifier.
#[inline(always)]
pub fn filters() -> bool {
    global!(FILTER.netns) != 0 || global!(FILTER).has_endpoint()
}

/// Starts a connection's life: `Filtered` when nobody asks for it, `Lost` when the map is full.
#[inline(always)]
pub fn born(sk: u64, role: u8, listener: u64, owner: Owner) -> Outcome {
    if filters() && !wanted(&sock::full(sk)) {
        return Outcome::Filtered;
    }
    // SAFETY: helper without preconditions.
    let born_ns = unsafe { bpf_ktime_get_ns() };
    let state = SocketState { born_ns, listener, owner, role, ..SocketState::default() };
    match SOCKETS.insert(sk, state, 0) {
        Ok(()) => Outcome::Aggregated,
        Err(_) => Outcome::Lost,
    }
}

/// The owner a listener's children inherit until accepted.
#[inline(always)]
pub fn inherited(listener: u64) -> Owner {
    // SAFETY: values are plain data; a concurrent update can at worst mix two owners of one listener.
    match unsafe { LISTENERS.get(listener) } {
        Some(entry) => {
            let mut owner = entry.syn.owner;
            if owner.source != conntracer_common::record::owner_source::UNKNOWN {
                owner.source = conntracer_common::record::owner_source::LISTENER;
            }
            owner
        }
        None => Owner::default(),
    }
}

/// Fills in what `SOCKETS` knows of a connection; a connection older than the tracer is adopted as
/// seen mid-life when `adopt` is set. Marks it troubled with the same flag, so that its end is
/// emitted. `None` when it is not asked for.
#[inline(always)]
pub fn known(sk: u64, adopt: bool) -> Option<(Socket, Owner)> {
    let mut socket = sock::full(sk);
    if filters() && !wanted(&socket) {
        return None;
    }
    if let Some(entry) = SOCKETS.get_ptr_mut(sk) {
        // SAFETY: a live map value of plain data.
        unsafe {
            socket.born_ns = (*entry).born_ns;
            socket.role = (*entry).role;
            if adopt {
                (*entry).troubled = 1;
            }
            return Some((socket, (*entry).owner));
        }
    }
    if adopt {
        // SAFETY: helper without preconditions.
        let born_ns = unsafe { bpf_ktime_get_ns() };
        let state =
            SocketState { born_ns, role: role::UNKNOWN, troubled: 1, ..SocketState::default() };
        // A full map leaves the connection unknown: born_ns stays 0 and says so.
        if SOCKETS.insert(sk, state, 0).is_ok() {
            socket.born_ns = born_ns;
        }
    }
    Some((socket, Owner::default()))
}
