//! A connection with data to send that sends none of it: its peer does not read, or this host itself drops what
//! leaves.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
};

use anyhow::{Context, Result};

use crate::{
    counters::Counters,
    family::Family,
    link::{Pair, SERVER},
    netfilter::{Hook, drop_at, let_pass},
    queue,
    socket::{self, Connection},
    wait::{self, EVENTUALLY},
};

/// Probes to wait for: as many as open a finding.
const PROBES: u8 = 3;

/// What drops what leaves this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Netfilter, and TCP is told an error.
    Firewall,
    /// The interface's queue has no room, and TCP is told so.
    Queue,
}

/// An established connection across a veth pair. The server's side is the one that stalls.
#[derive(Debug)]
pub struct SendStall {
    pub pair: Pair,
    connection: Connection,
    before: Counters,
}

impl SendStall {
    pub fn new(family: Family) -> Result<Self> {
        let pair = Pair::new()?;
        let connection = pair.connect(family)?;
        let before = pair.server.counters()?;
        Ok(Self {
            pair,
            connection,
            before,
        })
    }

    /// What the sender's kernel counted since the connection was established.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// The server writes until nothing is taken any more, and the client reads nothing of it.
    pub fn stop_reading(&self) -> Result<()> {
        wait::until("the receiver's window to be shut", EVENTUALLY, || {
            socket::fill(&self.connection.accepted)?;
            self.has_probed()
        })
    }

    /// The client reads a byte now and then, too little for its window to open, while the server has probed so many
    /// times.
    pub fn sip(&self, probes: u8) -> Result<()> {
        wait::until("the sender to have probed", EVENTUALLY, || {
            (&self.connection.connected)
                .read_exact(&mut [0])
                .context("reading a byte")?;
            let info = socket::tcp_info(&self.connection.accepted)?;
            Ok((info.tcpi_backoff >= probes).then_some(()))
        })
    }

    /// Bytes that the client has not read.
    pub fn unread(&self) -> Result<u64> {
        rustix::io::ioctl_fionread(&self.connection.connected).context("asking for what is unread")
    }

    /// The client reads all there is, until the server sends again.
    pub fn read_again(&self) -> Result<()> {
        let connected = &self.connection.connected;
        connected
            .set_nonblocking(true)
            .context("setting O_NONBLOCK")?;
        wait::until("all data to be acknowledged", EVENTUALLY, || {
            loop {
                match (&mut { connected }).read(&mut [0; 16 * 1024]) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("reading from a connection"),
                }
            }
            let info = socket::tcp_info(&self.connection.accepted)?;
            Ok((info.tcpi_unacked == 0 && info.tcpi_backoff == 0).then_some(()))
        })
    }

    /// The server's own host drops what leaves it, while it goes on writing.
    pub fn shut_in(&self, barrier: Barrier) -> Result<()> {
        self.pair.server.run(|| match barrier {
            Barrier::Firewall => drop_at(Hook::Output),
            Barrier::Queue => queue::shut(SERVER),
        })?;
        (&self.connection.accepted)
            .write_all(&[0x5a; 1000])
            .context("writing what does not leave this host")?;
        wait::until("probes to fail", EVENTUALLY, || self.has_probed())
    }

    /// Everything passes again; returns when all is well.
    pub fn let_out(&self, barrier: Barrier) -> Result<()> {
        self.pair.server.run(|| match barrier {
            Barrier::Firewall => let_pass(),
            Barrier::Queue => queue::open(SERVER),
        })?;
        socket::wait_acknowledged(&self.connection.accepted, EVENTUALLY)
    }

    fn has_probed(&self) -> Result<Option<()>> {
        let info = socket::tcp_info(&self.connection.accepted)?;
        // Answered ones raise the backoff alone, and those that a queue dropped the count of probes (`tcp_send_probe0`).
        let probes = info.tcpi_backoff.max(info.tcpi_probes);
        Ok((info.tcpi_unacked == 0 && probes >= PROBES).then_some(()))
    }

    /// Local and remote address of the sender.
    pub fn endpoints(&self) -> Result<(SocketAddr, SocketAddr)> {
        self.connection.endpoints()
    }

    /// Ends the connection without another segment to wait for.
    pub fn quiet(self) -> Result<()> {
        self.connection.abort()
    }
}
