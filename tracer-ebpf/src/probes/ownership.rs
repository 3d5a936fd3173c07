//! Whose a socket is, connection or listener, as the maps keep it; no programs.

use conntracer_common::{
    record::Owner,
    socket::{Held, Listener, SocketState},
};

use crate::{
    maps::{LISTENERS, SOCKETS},
    probes::matching,
    sock,
};

/// What the maps keep of that.
pub(crate) struct Ownership<'entry> {
    pub(crate) born_ns: u64,
    pub(crate) owner: &'entry mut Owner,
    /// See [`Listener::owned_ns`].
    pub(crate) owned_ns: &'entry mut u64,
    pub(crate) held: &'entry mut Held,
    verdict: &'entry mut u8,
}

impl<'entry> Ownership<'entry> {
    #[inline(always)]
    pub(crate) fn of_connection(entry: &'entry mut SocketState) -> Self {
        Self {
            born_ns: entry.born_ns,
            owner: &mut entry.owner,
            owned_ns: &mut entry.owned_ns,
            held: &mut entry.held,
            verdict: &mut entry.verdict,
        }
    }

    #[inline(always)]
    pub(crate) fn of_listener(entry: &'entry mut Listener) -> Self {
        Self {
            born_ns: entry.syn.socket.born_ns,
            owner: &mut entry.syn.owner,
            owned_ns: &mut entry.owned_ns,
            held: &mut entry.held,
            verdict: &mut entry.verdict,
        }
    }

    /// The process running now is the owner from here on. What the filter says of it.
    #[inline(always)]
    pub(crate) fn pass_to_current(&mut self, source: u8) -> u8 {
        sock::fill_current(self.owner, source);
        self.changed(sock::now_ns())
    }

    /// The owner is another since then. What the filter says of it.
    #[inline(always)]
    pub(crate) fn changed(&mut self, since_ns: u64) -> u8 {
        *self.owned_ns = since_ns;
        *self.verdict = matching::owner(self.owner);
        *self.verdict
    }
}

/// Changes what is kept of a socket, where anything is.
#[inline(always)]
pub(crate) fn edit<R>(sk: u64, change: impl FnOnce(Ownership<'_>) -> R) -> Option<R> {
    if let Some(entry) = SOCKETS.edit(sk) {
        return Some(change(Ownership::of_connection(entry)));
    }
    LISTENERS
        .edit(sk)
        .map(|entry| change(Ownership::of_listener(entry)))
}
