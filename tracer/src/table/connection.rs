//! Connections that were seen in trouble, and what each event changed about them.
//!
//! A healthy connection never gets an entry: entries begin with a retransmission, an unanswered probe
//! or a snapshot that shows one, and end with the socket. Owners learned once stay known.

use std::net::SocketAddr;

use conntracer_common::{retransmit::advanced, tcp::ca};

use crate::{
    event::{Body, Event, Owner, Socket, Tcp, TcpState},
    finding::Subject,
    id::SocketId,
    table::Bounded,
    time::Ktime,
};

/// Which connection: the socket and its birth, and its ends where the birth was not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    pub id: SocketId,
    ends: Option<(SocketAddr, SocketAddr)>,
}

impl ConnectionKey {
    #[must_use]
    pub fn of(socket: &Socket) -> Self {
        let unborn = socket.id.born == Ktime(0);
        Self {
            id: socket.id,
            ends: unborn.then_some((socket.local, socket.remote)),
        }
    }

    /// The eBPF side has no room for it: it cannot be asked about, and no change of its state is told.
    #[must_use]
    pub const fn is_untracked(&self) -> bool {
        self.ends.is_some()
    }
}

/// One connection as last seen.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    pub key: ConnectionKey,
    pub netns: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub owner: Option<Owner>,
    /// Its birth was not seen.
    pub older: bool,
    pub tcp: Tcp,
    /// When `tcp` was read.
    pub last: Ktime,
}

impl Connection {
    #[must_use]
    pub fn seen(socket: &Socket, owner: Option<Owner>, tcp: Tcp, last: Ktime) -> Self {
        Self {
            key: ConnectionKey::of(socket),
            netns: socket.netns,
            local: socket.local,
            remote: socket.remote,
            owner,
            older: socket.older,
            tcp,
            last,
        }
    }

    #[must_use]
    pub const fn subject(&self) -> Subject {
        Subject::Connection {
            netns: self.netns,
            local: self.local,
            remote: self.remote,
            id: self.key.id.sk,
            born: self.key.id.born,
        }
    }
}

/// What an event did to a connection.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub connection: &'a Connection,
    /// The peer acknowledged something since the last event (`snd_una` advanced).
    pub progress: bool,
    /// The peer sent something since the last event (`rcv_nxt` advanced).
    pub peer_spoke: bool,
    /// Data segments sent since the last event, or in the socket's life at its first; 0 where the
    /// kernel does not count them.
    pub sent: u32,
}

/// The table.
#[derive(Debug)]
pub struct Connections {
    table: Bounded<ConnectionKey, Connection>,
}

impl Connections {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            table: Bounded::new(limit),
        }
    }

    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.table.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Folds an event in; `None` when it is about no connection in trouble.
    pub fn apply(&mut self, event: &Event) -> Option<Change<'_>> {
        let about = event.body.about();
        let (socket, owner) = (about.socket?, about.owner.copied());
        let (tcp, begins) = match &event.body {
            // The answer to a poll may come when the socket is gone.
            Body::Retransmit(body) => (Some(&body.tcp), !body.is_polled()),
            Body::Probe(body) => (Some(&body.tcp), true),
            // A socket that is gone has no fields left to compare.
            Body::Snapshot(body) if body.socket.state != TcpState::Close => {
                (Some(&body.tcp), in_trouble(&body.tcp))
            }
            Body::Seed(body) => (Some(&body.tcp), in_trouble(&body.tcp)),
            Body::Snapshot(_) | Body::State(_) | Body::Reset(_) => (None, false),
            _ => return None,
        };
        let key = ConnectionKey::of(socket);
        if self.table.touch(&key).is_none() {
            let tcp = tcp.filter(|_| begins)?;
            self.table
                .insert(key, Connection::seen(socket, owner, *tcp, event.time));
            let connection = self.table.get(&key)?;
            return Some(Change {
                connection,
                progress: false,
                peer_spoke: false,
                sent: tcp.data_segs_out,
            });
        }
        let connection = self.table.get_mut(&key)?;
        connection.owner = owner.or(connection.owner);
        // The answer to a poll overtakes what waits in a ring: older fields change nothing.
        let Some(tcp) = tcp.filter(|_| event.time >= connection.last) else {
            return Some(Change {
                connection,
                progress: false,
                peer_spoke: false,
                sent: 0,
            });
        };
        connection.last = event.time;
        let before = std::mem::replace(&mut connection.tcp, *tcp);
        Some(Change {
            connection,
            progress: advanced(before.snd_una, tcp.snd_una),
            peer_spoke: advanced(before.rcv_nxt, tcp.rcv_nxt),
            sent: tcp.data_segs_out.saturating_sub(before.data_segs_out),
        })
    }

    /// Forgets the connection whose end this was, once it is judged.
    pub fn forget_closed(&mut self, body: &Body) {
        if let Body::State(state) = body
            && state.new == TcpState::Close
        {
            self.table.remove(&ConnectionKey::of(&state.socket));
        }
    }
}

fn in_trouble(tcp: &Tcp) -> bool {
    // Window probes that are answered raise the backoff alone.
    let probes = tcp.backoff > 0 && tcp.packets_out == 0;
    tcp.retransmits > 0 || tcp.probes_out > 0 || probes || tcp.ca_state == ca::LOSS
}
