//! A peer that vanishes in the middle of a connection, and may come back.

use std::{io::Write, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use socket2::Socket;

use crate::{
    counters::Counters,
    family::Family,
    link::Pair,
    socket::{self, Connection, connect_without_waiting, listen, tcp},
    wait::EVENTUALLY,
};

/// When the kernel gives up: long enough for four retransmission timeouts (0.2, 0.6, 1.4 and 3 s
/// after the loss), short enough to wait for.
const USER_TIMEOUT: Duration = Duration::from_secs(6);

/// What the server has to say when nobody listens any more; less than one segment.
const MESSAGE: &[u8] = &[0x5a; 1000];

/// An established connection across a veth pair. The server's side is the one to look at.
#[derive(Debug)]
pub struct DeadPeer {
    pub pair: Pair,
    family: Family,
    address: SocketAddr,
    listener: Option<Socket>,
    connection: Option<Connection>,
    before: Counters,
    gives_up: bool,
}

impl DeadPeer {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self::across(Pair::new()?, family, family.veth_listener()))
    }

    /// The same on a pair that others use too.
    #[must_use]
    pub fn across(pair: Pair, family: Family, address: SocketAddr) -> Self {
        Self {
            pair,
            family,
            address,
            listener: None,
            connection: None,
            before: Counters::default(),
            gives_up: true,
        }
    }

    /// The same where the peer is to come back: however long that takes here, the kernel has not given up by then.
    #[must_use]
    pub fn for_a_while(self) -> Self {
        Self {
            gives_up: false,
            ..self
        }
    }

    /// Establishes the connection and shows that it works.
    pub fn connect(&mut self) -> Result<()> {
        let (family, address) = (self.family, self.address);
        let listener = self.pair.server.run(|| listen(family, address, 16))?;
        let client = self.pair.client.run(|| {
            let client = tcp(family)?;
            connect_without_waiting(&client, address)?;
            Ok(client)
        })?;
        let connection = self
            .pair
            .server
            .run(|| Connection::accept(&listener, client))?;
        connection
            .accepted
            .set_tcp_user_timeout(self.gives_up.then_some(USER_TIMEOUT))
            .context("setting TCP_USER_TIMEOUT")?;
        socket::transfer(&connection.connected, &connection.accepted, 4096)?;
        socket::transfer(&connection.accepted, &connection.connected, 4096)?;
        self.listener = Some(listener);
        self.connection = Some(connection);
        Ok(())
    }

    /// The client goes deaf and dumb, and the server goes on talking.
    pub fn vanish(&mut self) -> Result<()> {
        socket::wait_acknowledged(&self.connection()?.accepted, EVENTUALLY)?;
        self.before = self.pair.server.counters()?;
        socket::deafen(&self.connection()?.connected)?;
        self.speak()
    }

    /// The server says something.
    pub fn speak(&self) -> Result<()> {
        (&self.connection()?.accepted)
            .write_all(MESSAGE)
            .context("writing to a dead peer")
    }

    /// The server closes its end, and the client's is handed out.
    pub fn close(&mut self) -> Result<Socket> {
        let connection = self.connection.take().context("not connected")?;
        Ok(connection.connected)
    }

    /// Waits until the client has acknowledged what the server said.
    pub fn wait_answered(&self) -> Result<()> {
        socket::wait_acknowledged(&self.connection()?.accepted, EVENTUALLY)
    }

    /// What the server's kernel counted since the client vanished.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// The client hears again, before the server has given up; returns when all is well.
    pub fn come_back(&self) -> Result<()> {
        socket::hear_again(&self.connection()?.connected)?;
        self.wait_answered()
    }

    /// Waits until the server's kernel gives up, and returns the errno it gives.
    pub fn wait_given_up(&self) -> Result<i32> {
        let error = socket::wait_error(&self.connection()?.accepted, EVENTUALLY)?;
        error.raw_os_error().context("an error without a number")
    }

    /// The server's side.
    pub fn accepted(&self) -> Result<&Socket> {
        Ok(&self.connection()?.accepted)
    }

    /// Local and remote address of the server's side.
    pub fn endpoints(&self) -> Result<(SocketAddr, SocketAddr)> {
        let accepted = &self.connection()?.accepted;
        let local = accepted
            .local_addr()?
            .as_socket()
            .context("not an IP address")?;
        let remote = accepted
            .peer_addr()?
            .as_socket()
            .context("not an IP address")?;
        Ok((local, remote))
    }

    /// Ends what is left of the connection without another segment to wait for.
    pub fn quiet(&mut self) -> Result<()> {
        self.listener = None;
        self.connection.take().map_or(Ok(()), Connection::abort)
    }

    fn connection(&self) -> Result<&Connection> {
        self.connection.as_ref().context("not connected")
    }
}
