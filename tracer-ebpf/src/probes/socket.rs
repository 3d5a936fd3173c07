//! Birth, look-up and adoption of connections in the `SOCKETS` map; no programs.

use conntracer_common::{
    filter::verdict,
    record::{Owner, Socket, owner_source, role, socket_flag},
    socket::{Listener, SocketState},
    tcp::IPPROTO_MPTCP,
};

use crate::{
    account::Outcome,
    maps::{LISTENERS, SOCKETS},
    probes::{fork, listener, matching, ownership::Ownership},
    sock::{self, Anywhere, Reach, field},
    table::zeros,
};

/// Whether the owner of a connection is known, and excluded by the filter.
#[inline(always)]
pub(crate) fn is_excluded(sk: u64) -> bool {
    matching::by_owner()
        && SOCKETS
            .get(sk)
            .is_some_and(|entry| entry.verdict == verdict::EXCLUDED)
}

/// When a connection began; 0 where it is not known.
#[inline(always)]
pub(crate) fn born_ns(sk: u64) -> u64 {
    SOCKETS.get(sk).map_or(0, |entry| entry.born_ns)
}

/// Whether the connection of this birth is known still.
#[inline(always)]
pub(crate) fn is_alive(sk: u64, born_ns: u64) -> bool {
    SOCKETS
        .get(sk)
        .is_some_and(|entry| entry.born_ns == born_ns)
}

/// Whether a connection was in trouble before.
#[inline(always)]
pub(crate) fn is_troubled(sk: u64) -> bool {
    SOCKETS.get(sk).is_some_and(|entry| entry.troubled != 0)
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

/// Starts a connection's life: `Filtered` when it does not match, `Lost` when the map is full. One whose
/// owner does not has an entry all the same: it says so.
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
    if !matching::address::<R>(sk, role) {
        return Outcome::Filtered;
    }
    let born_ns = sock::now_ns();
    let mut state = SocketState {
        born_ns,
        listener,
        owned_ns: born_ns,
        role,
        older,
        ..SocketState::default()
    };
    own(&mut state.owner);
    state.verdict = matching::owner(&state.owner);
    if !SOCKETS.insert(sk, &state) {
        Outcome::Lost
    } else if state.verdict == verdict::EXCLUDED {
        Outcome::Filtered
    } else {
        Outcome::Aggregated
    }
}

/// Starts a connection's life on the passive side. Its owner is its listener's until accepted: looked up
/// when first needed, which for a healthy connection is never.
#[inline(always)]
pub(crate) fn born_of<R: Reach>(child: u64, listener: u64) -> Outcome {
    born::<R>(child, role::PASSIVE, listener, |_| ())
}

/// The owner of a listener, which its children inherit until accepted.
#[inline(always)]
pub(crate) fn inherit(listener: u64, child_born_ns: u64, owner: &mut Owner) {
    if let Some(entry) = LISTENERS.edit(listener) {
        inherit_from(entry, child_born_ns, owner);
    }
}

/// The same from its entry. One that is younger than the child is another listener at a reused address, unless it
/// only was seen late.
#[inline(always)]
pub(crate) fn inherit_from(entry: &mut Listener, child_born_ns: u64, owner: &mut Owner) {
    let syn = &mut entry.syn;
    if syn.socket.born_ns <= child_born_ns || syn.socket.flags & socket_flag::OLDER != 0 {
        fork::mark(&mut syn.owner, entry.owned_ns);
        *owner = syn.owner;
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
    if LISTENERS
        .get(listener)
        .is_some_and(|entry| entry.mixed == 0)
    {
        inherit(listener, child_born_ns, owner);
    }
}

/// Fills in what a connection is and what `SOCKETS` knows of it; false when it does not match.
#[inline(always)]
pub(crate) fn fill(sk: u64, socket: &mut Socket, owner: &mut Owner) -> bool {
    let Some(entry) = fill_known(sk, socket, owner) else {
        return matching::socket(socket);
    };
    matching::socket(socket) && !matching::excludes(&mut entry.verdict, owner)
}

/// The same whether it matches or not; what is known, where it is.
#[inline(always)]
pub(crate) fn fill_known(
    sk: u64,
    socket: &mut Socket,
    owner: &mut Owner,
) -> Option<&'static mut SocketState> {
    sock::fill_full::<Anywhere>(sk, socket);
    let entry = SOCKETS.edit(sk)?;
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
    Some(entry)
}

/// Makes the process running now the owner of a connection that only who holds it can do this to, where another
/// is known as its owner, or none: it was handed on, or accepted by a process that never received from it. What
/// the kernel does on its own is nobody's.
#[inline(always)]
pub(crate) fn claimed(sk: u64) {
    let Some(entry) = SOCKETS.edit(sk) else {
        return;
    };
    let source = match entry.owner.source {
        owner_source::UNKNOWN if entry.role == role::PASSIVE => owner_source::ACCEPT,
        owner_source::UNKNOWN => return,
        _ => owner_source::PASSED,
    };
    if entry.owner.pid != sock::current_pid() && !sock::is_kernel() {
        Ownership::of_connection(entry).pass_to_current(source);
    }
}

/// [`fill`] for a connection in trouble: marks it, so that its end is emitted, and adopts it as seen
/// mid-life when it is older than the tracer. A full map leaves it unknown: `born_ns` stays 0 and
/// says so.
#[inline(always)]
pub(crate) fn fill_troubled(sk: u64, socket: &mut Socket, owner: &mut Owner) -> bool {
    if let Some(entry) = SOCKETS.edit(sk) {
        entry.troubled = 1;
    } else if let Some(zeros) = zeros() {
        sock::fill_full::<Anywhere>(sk, socket);
        if !matching::socket(socket) {
            return false;
        }
        if SOCKETS.insert(sk, zeros)
            && let Some(entry) = SOCKETS.edit(sk)
        {
            entry.born_ns = sock::now_ns();
            entry.troubled = 1;
            entry.older = 1;
        }
    }
    fill(sk, socket, owner)
}
