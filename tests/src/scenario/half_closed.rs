//! A server that does not close what its clients have closed: sockets pile up in CLOSE_WAIT.

use anyhow::Result;
use socket2::Socket;

use crate::{
    family::Family,
    link::Pair,
    socket::{self, Connection, connect_without_waiting, listen, tcp},
    wait::{self, SOON},
};

/// Sockets left half-closed.
pub const LEAKED: usize = 5;

/// `TCP_CLOSE_WAIT` of include/net/tcp_states.h, as TCP_INFO gives it.
const CLOSE_WAIT: u8 = 8;

/// Connections across a veth pair, closed by the client only.
#[derive(Debug)]
pub struct HalfClosed {
    pub pair: Pair,
    family: Family,
    listener: Option<Socket>,
    leaked: Vec<Socket>,
}

impl HalfClosed {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
            listener: None,
            leaked: Vec::new(),
        })
    }

    /// Accepts [`LEAKED`] connections, lets the clients close them, and keeps the sockets.
    pub fn provoke(&mut self) -> Result<()> {
        let (family, address) = (self.family, self.family.veth_listener());
        let listener = self.pair.server.run(|| listen(family, address, 16))?;
        for _ in 0..LEAKED {
            let client = self.pair.client.run(|| {
                let client = tcp(family)?;
                connect_without_waiting(&client, address)?;
                Ok(client)
            })?;
            let Connection {
                accepted,
                connected,
            } = self
                .pair
                .server
                .run(|| Connection::accept(&listener, client))?;
            drop(connected);
            wait::until("the server's socket to be in CLOSE_WAIT", SOON, || {
                Ok((socket::tcp_info(&accepted)?.tcpi_state == CLOSE_WAIT).then_some(()))
            })?;
            self.leaked.push(accepted);
        }
        self.listener = Some(listener);
        Ok(())
    }

    /// Closes what was leaked.
    pub fn mend(&mut self) {
        self.leaked.clear();
    }
}
