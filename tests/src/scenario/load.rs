//! A host that has much to do and wants for nothing: short connections one after the other, beside a bulk
//! transfer that goes on all the while.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    cpu,
    family::{Family, SERVER_PORT},
    link::Pair,
    scenario::healthy::{ask, serve},
    socket::{self, listen},
    wait::EVENTUALLY,
};

/// Clients at a time, each with a listener of its own: as many tuples as ports and TIME_WAIT leave room for.
const CLIENTS: u16 = 2;
/// Connections that a client makes between two looks at the clock, and rests: whoever streams the dozen events of each
/// has room for more in the smallest of its buffers.
const ROUND: u32 = 100;
/// Written at once by the bulk transfer.
const CHUNK: usize = 64 * 1024;

/// A pair of hosts that are busy.
#[derive(Debug)]
pub struct Load {
    pub pair: Pair,
    family: Family,
}

impl Load {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
        })
    }

    /// Makes `connections` short ones, or as many as there is time for, and says how many. Clients take a `rest` now and
    /// then.
    pub fn run(
        &self,
        connections: u32,
        limit: Duration,
        rest: &(impl Fn() -> Result<()> + Sync),
    ) -> Result<u32> {
        let deadline = Instant::now() + limit;
        let bulk = self.pair.connect(self.family)?;
        let is_over = AtomicBool::new(false);
        let made = thread::scope(|scope| -> Result<u32> {
            // Packets of one connection that are sent on two CPUs overtake each other on a veth.
            let writing = scope.spawn(|| {
                cpu::pin_to_one()?;
                let chunk = vec![0; CHUNK];
                while !is_over.load(Ordering::Relaxed) {
                    (&bulk.accepted)
                        .write_all(&chunk)
                        .context("writing in bulk")?;
                }
                socket::wait_acknowledged(&bulk.accepted, EVENTUALLY)?;
                bulk.accepted
                    .shutdown(Shutdown::Write)
                    .context("shutting down")
            });
            let reading = scope.spawn(|| {
                cpu::pin_to_one()?;
                std::io::copy(&mut { &bulk.connected }, &mut std::io::sink())
                    .context("reading in bulk")
            });
            let clients: Vec<_> = (0..CLIENTS)
                .map(|offset| self.family.veth_listener_on(SERVER_PORT + 1 + offset))
                .map(|address| {
                    scope.spawn(move || {
                        self.client(address, connections / u32::from(CLIENTS), deadline, rest)
                    })
                })
                .collect();
            let made = clients.into_iter().map(joined).sum::<Result<u32>>();
            is_over.store(true, Ordering::Relaxed);
            joined(writing)?;
            joined(reading)?;
            made
        })?;
        Ok(made)
    }

    fn client(
        &self,
        address: SocketAddr,
        connections: u32,
        deadline: Instant,
        rest: &(impl Fn() -> Result<()> + Sync),
    ) -> Result<u32> {
        let listener = self
            .pair
            .server
            .run(|| listen(self.family, address, i32::from(u8::MAX)))?;
        let mut made = 0;
        while made < connections && Instant::now() < deadline {
            thread::scope(|scope| -> Result<()> {
                let serving = scope.spawn(|| serve(&listener, ROUND));
                self.pair
                    .client
                    .run(|| (0..ROUND).try_for_each(|_| ask(self.family, address)))?;
                joined(serving)
            })?;
            made += ROUND;
            rest()?;
        }
        Ok(made)
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
}
