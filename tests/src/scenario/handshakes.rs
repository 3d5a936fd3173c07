//! Handshakes that get as far as a repeated SYN-ACK, and how they end: given up, taken back by their
//! client, or completed after all.

use std::net::SocketAddr;

use anyhow::Result;
use socket2::Socket;

use crate::{
    counters::Counters,
    family::Family,
    link::Pair,
    packet::{send_rst, send_syn},
    socket::{connect_without_waiting, deafen, hear_again, listen, tcp},
    wait::{self, EVENTUALLY, SOON},
};

/// As many requests as open a finding at their first repeat, and one more.
pub const REQUESTS: u64 = 6;

/// Far above [`REQUESTS`]: with a backlog that is half full, the kernel repeats less often.
const BACKLOG: i32 = 128;

/// A listener, and somebody else's namespace to send from.
#[derive(Debug)]
pub struct Handshakes {
    pub pair: Pair,
    family: Family,
    listener: Option<Socket>,
    clients: Vec<Socket>,
    before: Counters,
}

impl Handshakes {
    pub fn new(family: Family) -> Result<Self> {
        let pair = Pair::new()?;
        let before = pair.server.counters()?;
        Ok(Self {
            pair,
            family,
            listener: None,
            clients: Vec::new(),
            before,
        })
    }

    /// What the kernel counted since `new`.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// Sends the SYNs of [`REQUESTS`] clients who will not answer, and waits until each of the SYN-ACKs
    /// was repeated.
    pub fn begin(&mut self) -> Result<()> {
        self.listen()?;
        self.each_ghost(send_syn)?;
        self.wait_repeated()
    }

    /// Lets the kernel give each up at the second timeout, after 3 s.
    pub fn expire_early(&self) -> Result<()> {
        self.pair
            .server
            .set_sysctl("net/ipv4/tcp_synack_retries", "1")
    }

    /// Waits until the last timers have fired: the one that repeats and the one that gives up.
    pub fn wait_expired(&self) -> Result<()> {
        wait::until("every request to expire", EVENTUALLY, || {
            Ok((self.counted()?.timeouts >= 2 * REQUESTS).then_some(()))
        })
    }

    /// Every client takes its SYN back.
    pub fn reset(&self) -> Result<()> {
        self.each_ghost(send_rst)?;
        wait::until("every request to be reset", SOON, || {
            Ok((self.counted()?.embryonic_rsts >= REQUESTS).then_some(()))
        })
    }

    /// Connects [`REQUESTS`] clients who are deaf until each of the SYN-ACKs was repeated.
    pub fn begin_deaf(&mut self) -> Result<()> {
        self.listen()?;
        let (family, address) = (self.family, self.family.veth_listener());
        self.clients = self.pair.client.run(|| {
            (0..REQUESTS)
                .map(|_| {
                    let client = tcp(family)?;
                    deafen(&client)?;
                    connect_without_waiting(&client, address)?;
                    Ok(client)
                })
                .collect::<Result<_>>()
        })?;
        self.wait_repeated()
    }

    /// Lets the clients hear, and waits until each handshake is complete.
    pub fn hear(&self) -> Result<()> {
        self.clients.iter().try_for_each(hear_again)?;
        wait::until("every handshake to complete", EVENTUALLY, || {
            Ok((self.counted()?.passive_opens >= REQUESTS).then_some(()))
        })
    }

    /// Closes the listener: its requests are never repeated again.
    pub fn quiet(&mut self) {
        self.listener = None;
    }

    fn listen(&mut self) -> Result<()> {
        let (family, address) = (self.family, self.family.veth_listener());
        self.listener = Some(self.pair.server.run(|| listen(family, address, BACKLOG))?);
        Ok(())
    }

    fn wait_repeated(&self) -> Result<()> {
        wait::until("a repetition of every SYN-ACK", EVENTUALLY, || {
            Ok((self.counted()?.syn_retrans >= REQUESTS).then_some(()))
        })
    }

    fn each_ghost(
        &self,
        send: impl Fn(Family, SocketAddr, SocketAddr) -> Result<()> + Sync + Send,
    ) -> Result<()> {
        let (family, address) = (self.family, self.family.veth_listener());
        self.pair.client.run(|| {
            (20_000..)
                .take(usize::try_from(REQUESTS)?)
                .try_for_each(|port| send(family, SocketAddr::new(family.ghost(), port), address))
        })
    }
}
