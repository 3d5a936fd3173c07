//! SYNs that never reach a listener's decision: nobody listens, or something on the way drops them.

use std::net::SocketAddr;

use anyhow::Result;
use socket2::Socket;

use crate::{
    counters::Counters,
    family::{Family, SERVER_PORT},
    link::{Pair, SERVER},
    netfilter::{self, Hook},
    packet::{send_damaged_syn, send_syn},
    socket::{deafen, listen, want_authentication, want_md5},
    xdp,
};

/// SYNs sent, each from a port of its own.
pub const SYNS: u16 = 6;

/// Room for all of them.
const BACKLOG: i32 = 128;

/// What stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Nothing: the control.
    None,
    ClosedPort,
    Firewall(Hook),
    /// Strict `rp_filter`, and SYNs from where no route leads back to. IPv4 only.
    ReversePath,
    BadChecksum,
    /// The listener wants segments signed, and these are not.
    Md5,
    /// The same by TCP's Authentication Option.
    Authentication,
    /// An XDP program in generic mode.
    Xdp,
    /// The listener's own filter.
    SocketFilter,
}

/// A server, with a listener unless that is what is missing, and somebody else's namespace to send from.
#[derive(Debug)]
pub struct Refused {
    pub pair: Pair,
    family: Family,
    obstacle: Obstacle,
    listener: Option<Socket>,
    before: Counters,
}

impl Refused {
    pub fn new(family: Family, obstacle: Obstacle) -> Result<Self> {
        let pair = Pair::new()?;
        match obstacle {
            Obstacle::Firewall(hook) => pair.server.run(|| netfilter::drop_at(hook))?,
            Obstacle::Xdp => pair.server.run(|| xdp::drop_all(SERVER))?,
            Obstacle::ReversePath => {
                pair.server
                    .set_sysctl(&format!("net/ipv4/conf/{SERVER}/rp_filter"), "1")?;
            }
            _ => {}
        }
        let before = pair.server.counters()?;
        Ok(Self {
            pair,
            family,
            obstacle,
            listener: None,
            before,
        })
    }

    /// Listens, unless nobody is to; false where the kernel lacks what is needed.
    pub fn listen(&mut self) -> Result<bool> {
        if self.obstacle == Obstacle::ClosedPort {
            return Ok(true);
        }
        let (family, address) = (self.family, self.address());
        let listener = self.pair.server.run(|| listen(family, address, BACKLOG))?;
        let able = match self.obstacle {
            Obstacle::Md5 => want_md5(&listener, self.source(0).ip())?,
            Obstacle::Authentication => want_authentication(&listener, self.source(0).ip())?,
            Obstacle::SocketFilter => {
                deafen(&listener)?;
                true
            }
            _ => true,
        };
        self.listener = Some(listener);
        Ok(able)
    }

    /// Sends [`SYNS`] SYNs.
    pub fn send(&self) -> Result<()> {
        (0..SYNS).try_for_each(|number| self.send_one(number, SERVER_PORT))
    }

    /// Sends one to a port of choice; the same `number` is the same client.
    pub fn send_one(&self, number: u16, port: u16) -> Result<()> {
        let (family, source) = (self.family, self.source(number));
        let destination = family.veth_listener_on(port);
        self.pair.client.run(|| {
            if self.obstacle == Obstacle::BadChecksum {
                send_damaged_syn(family, source, destination)
            } else {
                send_syn(family, source, destination)
            }
        })
    }

    /// Where the SYNs go.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.family.veth_listener()
    }

    /// What the server's kernel counted since `new`.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    const fn source(&self, number: u16) -> SocketAddr {
        let address = match self.obstacle {
            Obstacle::ReversePath => self.family.stranger(),
            _ => self.family.ghost(),
        };
        SocketAddr::new(address, 20_000 + number)
    }
}
