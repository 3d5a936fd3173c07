//! A bulk transfer over a path that loses a tenth of its packets, until it is mended.

use std::{
    io::Write,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, bail};
use socket2::Socket;

use crate::{
    counters::Counters,
    family::Family,
    link::Pair,
    socket::{self, Connection, connect_without_waiting, listen, tcp},
    wait::{self, EVENTUALLY},
};

/// Enough for a storm of both timeouts and fast retransmits. Little enough that one segment is not
/// lost six times in a row (one in a million; at 30 % it happens): the gap before the next timeout
/// would be 13 s, and a storm rightly ends after 10.
const LOSS_PERCENT: u8 = 10;

/// Written at once: some forty segments.
const CHUNK: usize = 64 * 1024;

/// A transfer from the server to the client across a veth pair.
#[derive(Debug)]
pub struct LossyPath {
    pub pair: Pair,
    family: Family,
    address: SocketAddr,
    before: Counters,
    transfer: Option<Transfer>,
}

#[derive(Debug)]
struct Transfer {
    listener: Socket,
    connection: Connection,
    is_over: Arc<AtomicBool>,
    writer: JoinHandle<std::io::Result<u64>>,
    reader: JoinHandle<std::io::Result<u64>>,
}

impl LossyPath {
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
            before: Counters::default(),
            transfer: None,
        }
    }

    /// What the sender's kernel counted since the connection was established.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// Starts the transfer and the loss, and waits until `segments` were retransmitted.
    pub fn provoke(&mut self, segments: u64) -> Result<()> {
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
        self.before = self.pair.server.counters()?;
        socket::make_lossy(&connection.connected, LOSS_PERCENT)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let writer = {
            let socket = connection
                .accepted
                .try_clone()
                .context("duplicating a socket")?;
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || write_until(&socket, &is_over))
        };
        let reader = {
            let socket = connection
                .connected
                .try_clone()
                .context("duplicating a socket")?;
            std::thread::spawn(move || std::io::copy(&mut { &socket }, &mut std::io::sink()))
        };
        self.transfer = Some(Transfer {
            listener,
            connection,
            is_over,
            writer,
            reader,
        });
        self.wait_retransmitted(segments)
    }

    /// Waits until `segments` were retransmitted since the connection was
    /// established.
    pub fn wait_retransmitted(&self, segments: u64) -> Result<()> {
        wait::until("the loss to be noticed", EVENTUALLY, || {
            Ok((self.counted()?.retrans_segs >= segments).then_some(()))
        })
    }

    /// Ends the loss, lets the transfer run to its end, and waits until all of it is acknowledged.
    pub fn mend(&mut self) -> Result<()> {
        let transfer = self.transfer.take().context("no transfer to mend")?;
        socket::hear_again(&transfer.connection.connected)?;
        transfer.is_over.store(true, Ordering::Relaxed);
        let written = join(transfer.writer).context("writing over a lossy path")?;
        socket::wait_acknowledged(&transfer.connection.accepted, EVENTUALLY)?;
        transfer
            .connection
            .accepted
            .shutdown(std::net::Shutdown::Write)
            .context("shutting down")?;
        let read = join(transfer.reader).context("reading over a lossy path")?;
        drop(transfer.listener);
        transfer.connection.abort()?;
        if written != read {
            bail!("wrote {written} bytes and read {read}");
        }
        Ok(())
    }

    /// Local and remote address of the sender.
    pub fn endpoints(&self) -> Result<(SocketAddr, SocketAddr)> {
        let accepted = &self
            .transfer
            .as_ref()
            .context("no transfer")?
            .connection
            .accepted;
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
}

fn write_until(mut socket: &Socket, is_over: &AtomicBool) -> std::io::Result<u64> {
    let chunk = vec![0; CHUNK];
    let mut written = 0;
    while !is_over.load(Ordering::Relaxed) {
        socket.write_all(&chunk)?;
        written += CHUNK as u64;
    }
    Ok(written)
}

fn join(thread: JoinHandle<std::io::Result<u64>>) -> Result<u64> {
    Ok(thread
        .join()
        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))?)
}
