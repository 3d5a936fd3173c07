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

/// Listeners that nobody connects to: a host has more than one, and a tracer keeps them apart.
const BYSTANDERS: u16 = 3;

/// Bytes of its bulk transfer.
pub const BULK_BYTES: u64 = 4 << 20;

/// Short connections and one bulk transfer across a veth pair.
#[derive(Debug)]
pub struct Healthy {
    pub pair: Pair,
    family: Family,
}

impl Healthy {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
        })
    }

    /// Runs everything to its orderly end.
    pub fn run(&self) -> Result<()> {
        let (family, address) = (self.family, self.family.veth_listener());
        let listener = self.pair.server.run(|| listen(family, address, 128))?;
        let bystanders = self.pair.server.run(|| {
            (1..=BYSTANDERS)
                .map(|offset| listen(family, family.veth_listener_on(SERVER_PORT + offset), 128))
                .collect::<Result<Vec<_>>>()
        })?;
        thread::scope(|scope| {
            let serving = scope.spawn(|| {
                serve(&listener, CONNECTIONS)?;
                let (accepted, _) = listener.accept().context("accepting")?;
                drain(&accepted, BULK_BYTES)
            });
            self.pair.client.run(|| {
                (0..CONNECTIONS).try_for_each(|_| ask(family, address))?;
                let client = connect(family, address)?;
                std::io::copy(&mut std::io::repeat(0).take(BULK_BYTES), &mut { &client })
                    .context("sending")?;
                wait_end(&client)
            })?;
            serving
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
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

fn wait_end(client: &Socket) -> Result<()> {
    socket::wait_acknowledged(client, EVENTUALLY)
}
