//! A server that stops accepting: its accept queue fills, and the kernel refuses SYNs
//! ([`AcceptQueueFull`]) or third ACKs ([`AckOverflow`]).

use std::os::fd::{AsRawFd as _, RawFd};

use anyhow::{Context as _, Result};
use socket2::Socket;

use crate::{
    family::Family,
    netns::NetNs,
    socket::{abort_on_close, connect_without_waiting, deafen, hear_again, listen, listen_on, tcp},
    wait::{self, SOON},
};

/// The queue takes one more than it is asked for: `sk_acceptq_is_full` tests for greater.
pub const BACKLOG: i32 = 1;
const QUEUED: u64 = BACKLOG as u64 + 1;

/// Connections tried against a queue that holds [`QUEUED`].
pub const CLIENTS: u64 = 20;

/// SYNs meet a full accept queue.
#[derive(Debug)]
pub struct AcceptQueueFull {
    pub netns: NetNs,
    family: Family,
    listener: Option<Socket>,
    clients: Vec<Socket>,
}

impl AcceptQueueFull {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self::within(NetNs::new()?, family))
    }

    /// The same in a namespace that others use too.
    #[must_use]
    pub fn within(netns: NetNs, family: Family) -> Self {
        Self {
            netns,
            family,
            listener: None,
            clients: Vec::new(),
        }
    }

    /// Listens, for a [`provoke`](Self::provoke) that comes later.
    pub fn open(&mut self) -> Result<()> {
        let socket = self.netns.run(|| tcp(self.family))?;
        self.open_with(socket)
    }

    /// The descriptor of the listener, for those who are to inherit it.
    pub fn listener(&self) -> Result<RawFd> {
        Ok(self.listener.as_ref().context("not listening")?.as_raw_fd())
    }

    /// A socket at its address, for another process to listen on.
    pub fn bound(&self) -> Result<Socket> {
        let socket = self.netns.run(|| tcp(self.family))?;
        socket.bind(&self.family.loopback_listener().into())?;
        Ok(socket)
    }

    fn open_with(&mut self, socket: Socket) -> Result<()> {
        let address = self.family.loopback_listener();
        let listener = self.netns.run(|| listen_on(socket, address, BACKLOG))?;
        self.listener = Some(listener);
        Ok(())
    }

    /// Listens, unless it does already, and connects [`CLIENTS`] times without ever accepting. Over
    /// loopback a handshake completes within connect(), so each SYN finds the queue as the one before
    /// left it.
    pub fn provoke(&mut self) -> Result<()> {
        if self.listener.is_none() {
            self.open()?;
        }
        self.overflow()
    }

    /// The same with a socket that is yet to listen.
    pub fn provoke_with(&mut self, socket: Socket) -> Result<()> {
        self.open_with(socket)?;
        self.overflow()
    }

    /// The same where another process listens.
    pub fn overflow(&mut self) -> Result<()> {
        let family = self.family;
        let before = self.netns.counters()?;
        self.clients = self
            .netns
            .run(|| connect_all(family, CLIENTS, |_| Ok(())))?;
        wait::until("the accept queue to refuse the other SYNs", SOON, || {
            let refused = (self.netns.counters()? - before).listen_overflows;
            Ok((refused >= CLIENTS - QUEUED).then_some(()))
        })
    }

    /// As many clients as the queue has room for.
    pub fn join(&mut self) -> Result<()> {
        let family = self.family;
        self.clients = self.netns.run(|| connect_all(family, QUEUED, |_| Ok(())))?;
        Ok(())
    }

    /// Ends the clients, so that no SYN is repeated; the listener stays.
    pub fn quiet(&mut self) -> Result<()> {
        abort_all(&mut self.clients)
    }
}

/// Third ACKs meet a full accept queue.
#[derive(Debug)]
pub struct AckOverflow {
    pub netns: NetNs,
    family: Family,
    listener: Option<Socket>,
    clients: Vec<Socket>,
}

/// Handshakes that are under way when the queue shrinks.
pub const HANDSHAKES: u64 = 6;

/// Those of them for which the queue has no room.
pub const VICTIMS: u64 = HANDSHAKES - QUEUED;

impl AckOverflow {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            netns: NetNs::new()?,
            family,
            listener: None,
            clients: Vec::new(),
        })
    }

    /// Waits until the refused clients have tried again: the listener repeats its SYN-ACKs, they their
    /// ACKs, and each of those is one more ListenOverflows.
    pub fn repeat(&self) -> Result<()> {
        let before = self.netns.counters()?;
        wait::until("the refused ACKs to be repeated", SOON, || {
            let again = (self.netns.counters()? - before).listen_overflows;
            Ok((again >= VICTIMS).then_some(()))
        })
    }

    /// Lets [`HANDSHAKES`] clients get as far as a SYN-ACK they do not hear, shrinks the accept
    /// queue, and lets them hear: all send their third ACK, and the queue takes [`QUEUED`].
    pub fn provoke(&mut self) -> Result<()> {
        let (family, address) = (self.family, self.family.loopback_listener());
        let before = self.netns.counters()?;
        (self.listener, self.clients) = self.netns.run(|| {
            // Large enough for the SYN queue, which has the same limit.
            let listener = listen(family, address, 64)?;
            let clients = connect_all(family, HANDSHAKES, deafen)?;
            listener.listen(BACKLOG)?;
            for client in &clients {
                hear_again(client)?;
            }
            Ok((Some(listener), clients))
        })?;
        wait::until("the accept queue to refuse the other ACKs", SOON, || {
            let refused = (self.netns.counters()? - before).listen_overflows;
            Ok((refused >= VICTIMS).then_some(()))
        })
    }

    /// Ends the clients with a RST, which also ends their requests.
    pub fn quiet(&mut self) -> Result<()> {
        abort_all(&mut self.clients)
    }
}

fn connect_all(
    family: Family,
    count: u64,
    prepare: impl Fn(&Socket) -> Result<()>,
) -> Result<Vec<Socket>> {
    (0..count)
        .map(|_| {
            let client = tcp(family)?;
            prepare(&client)?;
            connect_without_waiting(&client, family.loopback_listener())?;
            Ok(client)
        })
        .collect()
}

fn abort_all(clients: &mut Vec<Socket>) -> Result<()> {
    clients
        .drain(..)
        .try_for_each(|client| abort_on_close(&client))
}
