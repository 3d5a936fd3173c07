//! A SYN flood from forged addresses against one listener, while another one of the same namespace has
//! trouble of its own.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::Range,
};

use anyhow::{Context, Result, bail};
use socket2::Socket;

use crate::{
    counters::Counters,
    cpu,
    family::{Family, SERVER_PORT},
    link::Pair,
    packet,
    socket::{abort_on_close, connect_without_waiting, listen, tcp},
    wait::{self, SOON},
};

/// SYNs, unless `CONNTRACER_FLOOD_SYNS` says otherwise: an emulated CPU takes a hundred times as long for
/// each, and VMs are sent fewer.
const SYNS: u32 = 200_000;

/// A quarter of the SYNs come from addresses of their own: 50,000 of 200,000.
const SYNS_PER_SOURCE: u32 = 4;

/// SYNs at once, and then a rest: whoever streams an event of each has room for more in the smallest of its buffers.
const AT_ONCE: u32 = 1_000;

/// The network that the forged addresses are of (RFC 2544 tests, 198.18.0.0/15: room for 131,072).
const FORGED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
const FORGED_PREFIX: u8 = 15;

/// A SYN queue that a flood fills at once.
const SHORT_BACKLOG: i32 = 16;

/// Far above the backlog, so that the rule about the last quarter of this limit never decides.
const MAX_SYN_BACKLOG: &str = "4096";

/// The other listener's port and accept queue, and the clients that want in.
pub const STUCK_PORT: u16 = SERVER_PORT + 1;
const STUCK_BACKLOG: i32 = 1;
const STUCK_CLIENTS: u64 = 12;

/// How many a backlog of 1 takes.
const STUCK_QUEUE: u64 = 2;

/// See the module.
#[derive(Debug)]
pub struct SynFlood {
    pub pair: Pair,
    pub syns: u32,
    listeners: Vec<Socket>,
    clients: Vec<Socket>,
    before: Counters,
}

impl SynFlood {
    pub fn new() -> Result<Self> {
        let syns = match env::var("CONNTRACER_FLOOD_SYNS") {
            Ok(text) => text.parse().context("CONNTRACER_FLOOD_SYNS is no number")?,
            Err(_) => SYNS,
        };
        let pair = Pair::new()?;
        pair.route_to_nowhere(FORGED, FORGED_PREFIX)?;
        for (name, value) in [
            ("net/ipv4/tcp_syncookies", "1"),
            ("net/ipv4/tcp_max_syn_backlog", MAX_SYN_BACKLOG),
        ] {
            pair.server.set_sysctl(name, value)?;
        }
        let before = pair.server.counters()?;
        Ok(Self {
            pair,
            syns,
            listeners: Vec::new(),
            clients: Vec::new(),
            before,
        })
    }

    /// Distinct sources.
    #[must_use]
    pub const fn sources(&self) -> u32 {
        self.syns / SYNS_PER_SOURCE
    }

    /// What the kernel counted since `new`.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// Sends the SYNs, half before and half after the other listener's queue overflows, with a `rest` now and then.
    pub fn flood(&mut self, mut rest: impl FnMut() -> Result<()> + Send) -> Result<()> {
        let address = Family::V4.veth_listener();
        self.listeners = self.pair.server.run(|| {
            Ok(vec![
                listen(Family::V4, address, SHORT_BACKLOG)?,
                listen(Family::V4, stuck(), STUCK_BACKLOG)?,
            ])
        })?;
        self.send(0..self.syns / 2, &mut rest)?;
        // Those that the queue takes first: the SYNs of the others are then dropped, and the listener has
        // no SYN-ACK to repeat, which would be among the flood's.
        self.connect(STUCK_QUEUE)?;
        wait::until("the other accept queue to fill", SOON, || {
            Ok((self.counted()?.passive_opens >= STUCK_QUEUE).then_some(()))
        })?;
        self.connect(STUCK_CLIENTS)?;
        wait::until("the other accept queue to overflow", SOON, || {
            Ok((self.counted()?.listen_overflows > 0).then_some(()))
        })?;
        self.send(self.syns / 2..self.syns, &mut rest)
    }

    /// So many clients more for the other listener.
    fn connect(&mut self, count: u64) -> Result<()> {
        let clients = self.pair.client.run(|| {
            (0..count)
                .map(|_| {
                    let client = tcp(Family::V4)?;
                    abort_on_close(&client)?;
                    connect_without_waiting(&client, stuck())?;
                    Ok(client)
                })
                .collect::<Result<Vec<_>>>()
        })?;
        self.clients.extend(clients);
        Ok(())
    }

    /// Takes clients and listeners away: no counter moves any more.
    pub fn quiet(&mut self) -> Result<()> {
        self.clients.clear();
        // What the clients sent last has arrived before their listener goes.
        self.pair.wait_drained()?;
        self.listeners.clear();
        Ok(())
    }

    /// On one CPU, so that the datagram of `wait_drained` cannot overtake the last SYN.
    fn send(
        &self,
        numbers: Range<u32>,
        rest: &mut (impl FnMut() -> Result<()> + Send),
    ) -> Result<()> {
        let SocketAddr::V4(address) = Family::V4.veth_listener() else {
            bail!("an address of IPv4");
        };
        let sources = self.sources().max(1);
        let source = |number: u32| {
            let ip = Ipv4Addr::from(FORGED.to_bits() + number % sources);
            // Another port each time round: a repeated SYN would be the same request's.
            let port = 1024 + u16::try_from(number / sources).unwrap_or(u16::MAX - 1024);
            SocketAddrV4::new(ip, port)
        };
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    cpu::pin_to_one()?;
                    // Threads begin where their maker may run.
                    self.pair.client.run(|| {
                        for first in numbers.clone().step_by(AT_ONCE as usize) {
                            let some = first..numbers.end.min(first.saturating_add(AT_ONCE));
                            packet::flood(some.map(source), address)?;
                            rest()?;
                        }
                        Ok(())
                    })?;
                    self.pair.wait_drained()
                })
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        })
    }
}

/// The other listener.
#[must_use]
pub const fn stuck() -> SocketAddr {
    Family::V4.veth_listener_on(STUCK_PORT)
}
