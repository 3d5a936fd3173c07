//! What this host dropped of connections in trouble, by their two ends.

use std::net::SocketAddr;

use crate::{
    event::{Dropped, Ends, Socket, Tcp, ends},
    table::{Bounded, connection::Connection},
};

/// Connections of which something is kept, as many as are looked up.
const MAX_CONNECTIONS: usize = 4096;
/// Places at which segments of one connection are dropped.
const MAX_PLACES: usize = 8;
/// Both ends may be here, and other namespaces may have the same addresses.
const MAX_SOCKETS: usize = 4;

/// How far the sequence number of a segment of the connection may be from where the connection stands: a quarter of the
/// largest window there is (RFC 7323), and more than 10 Gbit/s carry until the next look. Another connection's is as
/// near by chance once in eight times.
const NEAR: u32 = 1 << 28;

/// A connection, as far as its drops are told apart by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whose<'a> {
    pub(crate) netns: u32,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) tcp: &'a Tcp,
}

impl<'a> Whose<'a> {
    pub(crate) const fn of(connection: &'a Connection) -> Self {
        Self {
            netns: connection.netns,
            local: connection.local,
            remote: connection.remote,
            tcp: &connection.tcp,
        }
    }

    pub(crate) const fn seen(socket: &Socket, tcp: &'a Tcp) -> Self {
        Self {
            netns: socket.netns,
            local: socket.local,
            remote: socket.remote,
            tcp,
        }
    }

    /// Whether a segment between these ends is the connection's: two pairs of namespaces may have the same addresses and
    /// ports.
    pub(crate) fn lost(&self, dropped: &Dropped) -> bool {
        if dropped.netns == self.netns {
            return true;
        }
        let stands = if dropped.from == self.local {
            self.tcp.snd_nxt
        } else {
            self.tcp.rcv_nxt
        };
        let distance = dropped.seq.wrapping_sub(stands);
        stands != 0 && distance.min(distance.wrapping_neg()) < NEAR
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DroppedHere {
    known: Bounded<Ends, Known>,
    /// Records applied, and sockets met: what was concluded before may be otherwise.
    changes: u64,
}

/// Of one connection.
#[derive(Debug, Default)]
struct Known {
    places: Vec<Dropped>,
    /// The namespaces of the sockets that lost these segments: one, or both ends' of a connection within this host.
    sockets: Vec<u32>,
}

impl Default for DroppedHere {
    fn default() -> Self {
        Self {
            known: Bounded::new(MAX_CONNECTIONS),
            changes: 0,
        }
    }
}

impl DroppedHere {
    pub(crate) const fn evicted(&self) -> u64 {
        self.known.evicted()
    }

    /// Grows with all that may make another answer.
    pub(crate) const fn changes(&self) -> u64 {
        self.changes
    }

    pub(crate) fn apply(&mut self, dropped: &Dropped) {
        self.changes = self.changes.saturating_add(1);
        let ends = ends(dropped.to, dropped.from);
        if self.known.touch(&ends).is_none() {
            self.known.insert(ends, Known::default());
        }
        let Some(Known { places, .. }) = self.known.get_mut(&ends) else {
            return;
        };
        let is_same = |known: &&mut Dropped| {
            (known.to, known.netns, known.reason, known.layer)
                == (dropped.to, dropped.netns, dropped.reason, dropped.layer)
                && (known.hook, known.rule, known.table, known.chain)
                    == (dropped.hook, dropped.rule, dropped.table, dropped.chain)
        };
        if let Some(known) = places.iter_mut().find(is_same) {
            *known = *dropped;
        } else if places.len() < MAX_PLACES {
            places.push(*dropped);
        }
    }

    /// What was dropped between two ends, place by place.
    pub(crate) fn of(&self, one: SocketAddr, other: SocketAddr) -> &[Dropped] {
        self.known
            .get(&ends(one, other))
            .map_or(&[], |known| known.places.as_slice())
    }

    /// A socket in trouble: what was dropped between its ends may be its own.
    pub(crate) fn meet(&mut self, connection: &Connection) {
        let ends = ends(connection.local, connection.remote);
        let Some(known) = self.known.get_mut(&ends) else {
            return;
        };
        let is_its_own = |place| Whose::of(connection).lost(place);
        if !known.sockets.contains(&connection.netns)
            && known.sockets.len() < MAX_SOCKETS
            && known.places.iter().any(is_its_own)
        {
            known.sockets.push(connection.netns);
            self.changes = self.changes.saturating_add(1);
        }
    }

    /// What was dropped of sockets in a namespace, or in any, connection by connection.
    pub(crate) fn of_sockets(
        &self,
        netns: Option<u32>,
    ) -> impl Iterator<Item = (&Ends, &[Dropped])> {
        let is_there = move |known: &Known| match netns {
            Some(netns) => known.sockets.contains(&netns),
            None => !known.sockets.is_empty(),
        };
        let known = self.known.iter().filter(move |(_, known)| is_there(known));
        known.map(|(ends, known)| (ends, known.places.as_slice()))
    }
}
