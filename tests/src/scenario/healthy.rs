//! Connections that want for nothing: the control that no finding may come of, and the load that
//! the cost of tracing is measured with.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    thread,
};

use anyhow::{Context, Result, ensure};
use socket2::Socket;

use crate::{
    family::{Family, SERVER_PORT},
    link::Pair,
    socket::{self, listen, tcp},
    wait::EVENTUALLY,
};

/// Connections of the control run, one after the other.
pub const CONNECTIONS: u32 = 300;

/// Listeners they are shared among: a host has more than one, and a tracer keeps them apart.
pub const LISTENERS: u16 = 4;

/// Bytes of the bulk transfer to each listener.
pub const BULK_BYTES: u64 = 1 << 20;

/// Short connections and a few bulk transfers across a veth pair.
#[derive(Debug)]
pub struct Healthy {
    pub pair: Pair,
    family: Family,
    listeners: Vec<Socket>,
}

impl Healthy {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
            listeners: Vec::new(),
        })
    }

    /// Runs everything to its orderly end; the listeners go on listening.
    pub fn run(&mut self) -> Result<()> {
        let family = self.family;
        let addresses: Vec<_> = (0..LISTENERS)
            .map(|offset| family.veth_listener_on(SERVER_PORT + offset))
            .collect();
        self.listeners = self.pair.server.run(|| {
            addresses
                .iter()
                .map(|address| listen(family, *address, 128))
                .collect::<Result<Vec<_>>>()
        })?;
        let share = CONNECTIONS / u32::from(LISTENERS);
        thread::scope(|scope| {
            let serving: Vec<_> = self
                .listeners
                .iter()
                .map(|listener| {
                    scope.spawn(move || {
                        serve(listener, share)?;
                        let (accepted, _) = listener.accept().context("accepting")?;
                        drain(&accepted, BULK_BYTES)
                    })
                })
                .collect();
            self.pair.client.run(|| {
                addresses.iter().try_for_each(|address| {
                    (0..share).try_for_each(|_| ask(family, *address))?;
                    send_bulk(&connect(family, *address)?)
                })
            })?;
            serving.into_iter().try_for_each(|server| {
                server
                    .join()
                    .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            })
        })
    }
}

/// One request and its answer, both one byte; the client closes first.
pub fn ask(family: Family, address: SocketAddr) -> Result<()> {
    let mut client = &connect(family, address)?;
    client.write_all(&[1]).context("asking")?;
    client.read_exact(&mut [0]).context("reading the answer")
}

/// Answers `connections` calls of [`ask`].
pub fn serve(listener: &Socket, connections: u32) -> Result<()> {
    for _ in 0..connections {
        let (accepted, _) = listener.accept().context("accepting")?;
        let mut accepted = &accepted;
        let mut byte = [0];
        accepted
            .read_exact(&mut byte)
            .context("reading the question")?;
        accepted.write_all(&byte).context("answering")?;
        // The client's FIN: closing before it would put TIME_WAIT on the server's side at random.
        let rest = accepted.read(&mut byte).context("reading the end")?;
        ensure!(rest == 0, "a question of more than one byte");
    }
    Ok(())
}

fn connect(family: Family, address: SocketAddr) -> Result<Socket> {
    let client = tcp(family)?;
    client
        .connect(&address.into())
        .with_context(|| format!("connecting to {address}"))?;
    Ok(client)
}

fn drain(accepted: &Socket, bytes: u64) -> Result<()> {
    let read =
        std::io::copy(&mut { accepted }.take(bytes), &mut std::io::sink()).context("receiving")?;
    ensure!(read == bytes, "received {read} of {bytes} bytes");
    Ok(())
}

fn send_bulk(mut client: &Socket) -> Result<()> {
    std::io::copy(&mut std::io::repeat(0).take(BULK_BYTES), &mut client).context("sending")?;
    socket::wait_acknowledged(client, EVENTUALLY)
}
