//! Bulk transfers from one host to another over a path that loses packets (by nftables, behind the link),
//! until it is mended.

use std::{
    io::Write,
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use socket2::Socket;

use crate::{
    counters::Counters,
    family::Family,
    link::Pair,
    netfilter::{Hook, Match, drop_some_at, let_pass},
    socket::{self, Connection},
    wait::{self, EVENTUALLY},
};

/// Transfers at the same time: enough that the pauses of one that waits for its timer are filled by others.
const TRANSFERS: usize = 24;

/// Written at once.
const CHUNK: usize = 64 * 1024;

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// So many percent of all packets, of either direction.
    Random(u8),
    /// Packets of more than so many bytes; the client goes on sending small ones.
    LargerThan(u32),
}

/// Transfers from the server to the client across a veth pair.
#[derive(Debug)]
pub struct Bulk {
    pub pair: Pair,
    family: Family,
    loss: Loss,
    before: Counters,
    transfers: Vec<Transfer>,
    is_over: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Transfer {
    connection: Connection,
    writer: JoinHandle<std::io::Result<()>>,
    reader: JoinHandle<std::io::Result<u64>>,
}

impl Bulk {
    pub fn new(family: Family, loss: Loss) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
            loss,
            before: Counters::default(),
            transfers: Vec::new(),
            is_over: Arc::new(AtomicBool::new(false)),
        })
    }

    /// What the sender's kernel counted since the connections were established.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// Starts the transfers and the loss, and waits until `segments` were retransmitted.
    pub fn provoke(&mut self, segments: u64) -> Result<()> {
        let connections = (0..TRANSFERS)
            .map(|_| self.pair.connect(self.family))
            .collect::<Result<Vec<_>>>()?;
        self.before = self.pair.server.counters()?;
        self.lose()?;
        for connection in connections {
            self.transfers.push(self.start(connection)?);
        }
        wait::until("the loss to be noticed", EVENTUALLY, || {
            if matches!(self.loss, Loss::LargerThan(_)) {
                self.ask()?;
            }
            Ok((self.counted()?.retrans_segs >= segments).then_some(()))
        })
    }

    /// Begins to lose what arrives.
    fn lose(&self) -> Result<()> {
        let Pair { server, client } = &self.pair;
        let lost_by_client = match self.loss {
            Loss::Random(percent) => {
                server.run(|| drop_some_at(Hook::Input, Match::Percent(percent)))?;
                Match::Percent(percent)
            }
            Loss::LargerThan(bytes) => Match::LargerThan(bytes),
        };
        client.run(|| drop_some_at(Hook::Input, lost_by_client))
    }

    fn start(&self, connection: Connection) -> Result<Transfer> {
        let duplicate = |socket: &Socket| socket.try_clone().context("duplicating a socket");
        let (accepted, connected) = (
            duplicate(&connection.accepted)?,
            duplicate(&connection.connected)?,
        );
        let is_over = Arc::clone(&self.is_over);
        Ok(Transfer {
            connection,
            writer: std::thread::spawn(move || write_until(&accepted, &is_over)),
            reader: std::thread::spawn(move || {
                std::io::copy(&mut { &connected }, &mut std::io::sink())
            }),
        })
    }

    /// Each client sends a small request.
    fn ask(&self) -> Result<()> {
        for transfer in &self.transfers {
            (&transfer.connection.connected)
                .write_all(&[0])
                .context("sending a request")?;
        }
        Ok(())
    }

    /// Ends the loss, lets the transfers run to their end, and waits until all of it is acknowledged.
    pub fn mend(&mut self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        self.pair.client.run(let_pass)?;
        if !matches!(self.loss, Loss::LargerThan(_)) {
            self.pair.server.run(let_pass)?;
        }
        for transfer in self.transfers.drain(..) {
            let accepted = &transfer.connection.accepted;
            join(transfer.writer).context("writing over a lossy path")?;
            socket::wait_acknowledged(accepted, EVENTUALLY)?;
            accepted
                .shutdown(Shutdown::Write)
                .context("shutting down")?;
            join(transfer.reader).context("reading over a lossy path")?;
            transfer.connection.abort()?;
        }
        Ok(())
    }
}

fn write_until(mut socket: &Socket, is_over: &AtomicBool) -> std::io::Result<()> {
    let chunk = vec![0; CHUNK];
    while !is_over.load(Ordering::Relaxed) {
        socket.write_all(&chunk)?;
    }
    Ok(())
}

fn join<T>(thread: JoinHandle<std::io::Result<T>>) -> Result<T> {
    Ok(thread
        .join()
        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))?)
}
