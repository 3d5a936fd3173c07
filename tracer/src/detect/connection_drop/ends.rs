//! Who sent the RST that a connection received, as far as this host can know: its own sockets, its kernel for no socket,
//! or nobody that was seen.

use std::net::SocketAddr;

use conntracer_common::stats::hook;

use super::how::How;
use crate::{
    detect::room::Context,
    event::{Close, Owner, SentBy, TcpState},
    table::Bounded,
    time::Ktime,
};

/// Whose a RST was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum By {
    /// It is not asked of this death.
    NotAsked,
    /// The kernel does not tell of each RST that it sends, or its hook was not attached.
    NotKnown,
    /// No TCP of this host was seen to send it.
    Unseen,
    /// The socket at the other end, which died like this, as far as it was seen.
    Socket(Option<How>),
    /// The kernel of the other end, in answer to a segment for a socket in this state.
    Answer(TcpState),
    /// The same for a segment that met no socket.
    NoSocket { translated: bool },
}

impl By {
    pub(super) const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::NotAsked | Self::NotKnown => return None,
            Self::Unseen => "no TCP socket of this host",
            Self::Socket(_) => "the socket at the other end, on this host",
            Self::Answer(_) => "the kernel at the other end, on this host",
            Self::NoSocket { .. } => "the kernel of this host, for no socket",
        })
    }
}

/// How the other end of a connection died, and whose it was.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) netns: u32,
    pub(super) how: How,
    pub(super) owner: Option<Owner>,
    at: Ktime,
}

/// Connections that died lately, by their ends.
#[derive(Debug)]
pub(super) struct Ends(Bounded<(SocketAddr, SocketAddr), End>);

impl Ends {
    /// A RST crosses from one namespace to another at once: more than die in one moment need not be kept. Half a
    /// megabyte.
    const LIMIT: usize = 4096;

    pub(super) fn new() -> Self {
        Self(Bounded::new(Self::LIMIT))
    }

    pub(super) fn add(&mut self, ending: &Close, how: How, now: Ktime) {
        let socket = &ending.socket;
        let end = End {
            netns: socket.netns,
            how,
            owner: ending.owner,
            at: now,
        };
        self.0.insert((socket.local, socket.remote), end);
    }

    /// The other end of a connection, where it died just before.
    pub(super) fn other(&self, ending: &Close, now: Ktime) -> Option<&End> {
        /// What the eBPF side takes for recent, too.
        const RECENT: std::time::Duration = std::time::Duration::from_secs(1);
        let socket = &ending.socket;
        self.0
            .get(&(socket.remote, socket.local))
            .filter(|end| now.since(end.at) <= RECENT)
    }

    /// Who sent the RST that ended a connection.
    pub(super) fn sender(&self, ending: &Close, cx: &Context<'_>) -> By {
        let other = self.other(ending, cx.now).map(|end| end.how);
        let other = other.filter(|how| how.sends_reset());
        match ending.sender.map(|sender| (sender.by, sender.translated)) {
            Some((SentBy::Socket, _)) => By::Socket(other),
            None if other.is_some() => By::Socket(other),
            Some((SentBy::Answer(state), _)) => By::Answer(state),
            Some((SentBy::NoSocket, translated)) => By::NoSocket { translated },
            None if ending.senders_told && cx.hears_since(hook::RESET_SENT, cx.now) => By::Unseen,
            None => By::NotKnown,
        }
    }
}
