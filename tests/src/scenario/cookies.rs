//! A listener that answers every SYN with a cookie, clients who bring theirs back, and strangers who bring
//! cookies that nobody made.

use std::{net::SocketAddr, thread};

use anyhow::Result;
use socket2::Socket;

use super::healthy::{ask, serve};
use crate::{
    family::Family,
    link::Pair,
    packet::send_ack,
    socket::listen,
    wait::{self, SOON},
};

/// Clients who complete their handshake with the cookie they were given.
pub const HONEST: u16 = 5;

/// ACKs with an invented cookie. One in four million such numbers is a valid cookie.
pub const FORGED: u16 = 3;

/// A SYN cookie of no SYN.
const NO_COOKIE: u32 = 0x1234_5678;

/// `tcp_syncookies=2` at the server of a pair.
#[derive(Debug)]
pub struct AlwaysCookies {
    pub pair: Pair,
    family: Family,
    listener: Option<Socket>,
}

impl AlwaysCookies {
    pub fn new(family: Family) -> Result<Self> {
        let pair = Pair::new()?;
        pair.server.set_sysctl("net/ipv4/tcp_syncookies", "2")?;
        Ok(Self {
            pair,
            family,
            listener: None,
        })
    }

    /// Serves the honest, and then hears from the forgers; the listener goes on listening.
    pub fn provoke(&mut self) -> Result<()> {
        let (family, address) = (self.family, self.family.veth_listener());
        let listener = self.pair.server.run(|| listen(family, address, 128))?;
        let listener = &*self.listener.insert(listener);
        thread::scope(|scope| {
            let serving = scope.spawn(|| serve(listener, u32::from(HONEST)));
            self.pair
                .client
                .run(|| (0..HONEST).try_for_each(|_| ask(family, address)))?;
            serving
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        })?;
        self.pair.client.run(|| {
            (0..FORGED).try_for_each(|number| {
                let source = SocketAddr::new(family.ghost(), 30_000 + number);
                send_ack(family, source, address, NO_COOKIE)
            })
        })?;
        wait::until("the forged cookies to be refused", SOON, || {
            let failed = self.pair.server.counters()?.syncookies_failed;
            Ok((failed >= u64::from(FORGED)).then_some(()))
        })
    }
}
