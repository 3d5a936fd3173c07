//! SYNs from an address that never answers: a handful leave half-open handshakes behind, many fill
//! the SYN queue.

use std::net::SocketAddr;

use anyhow::Result;
use socket2::Socket;

use crate::{
    counters::Counters,
    family::Family,
    link::Pair,
    packet::send_syn,
    socket::listen,
    wait::{self, SOON},
};

/// Limit of the SYN queue in the flood. Kernels before 5.10.259 or so take this many, later ones one
/// more.
const SHORT_BACKLOG: i32 = 4;

/// SYNs of the flood.
pub const FLOOD: u16 = 40;

/// Limit far above what the quiet handshakes need.
const LONG_BACKLOG: i32 = 128;

/// Handshakes left half-open.
pub const HANDSHAKES: u16 = 3;

/// Far above [`FLOOD`], so that the rule about the last quarter of this limit never decides.
const MAX_SYN_BACKLOG: &str = "4096";

/// What the listener's namespace does with a full SYN queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cookies {
    /// `tcp_syncookies=0`: SYNs are dropped.
    Never,
    /// `tcp_syncookies=1`: cookies are sent.
    WhenFull,
}

/// A listener, and somebody else's namespace to send from.
#[derive(Debug)]
pub struct GhostSyns {
    pub pair: Pair,
    family: Family,
    listener: Option<Socket>,
    before: Counters,
}

impl GhostSyns {
    pub fn new(family: Family, cookies: Cookies) -> Result<Self> {
        let pair = Pair::new()?;
        pair.server
            .set_sysctl("net/ipv4/tcp_max_syn_backlog", MAX_SYN_BACKLOG)?;
        let value = match cookies {
            Cookies::Never => "0",
            Cookies::WhenFull => "1",
        };
        pair.server.set_sysctl("net/ipv4/tcp_syncookies", value)?;
        let before = pair.server.counters()?;
        Ok(Self {
            pair,
            family,
            listener: None,
            before,
        })
    }

    /// What the kernel counted since `new`.
    pub fn counted(&self) -> Result<Counters> {
        Ok(self.pair.server.counters()? - self.before)
    }

    /// Sends [`FLOOD`] SYNs to a listener whose SYN queue is short.
    pub fn flood(&mut self) -> Result<()> {
        self.send(SHORT_BACKLOG, FLOOD)?;
        let surely_full = u64::from(FLOOD) - u64::from(SHORT_BACKLOG.unsigned_abs()) - 1;
        wait::until("the SYN queue to overflow", SOON, || {
            let counted = self.counted()?;
            let overflowed = counted.req_q_full_drop + counted.req_q_full_do_cookies;
            Ok((counted.in_segs >= u64::from(FLOOD) && overflowed >= surely_full).then_some(()))
        })
    }

    /// Sends [`HANDSHAKES`] SYNs to a listener with room for them, and waits until each of the
    /// SYN-ACKs was repeated twice (after 1 s and 3 s).
    pub fn abandon(&mut self) -> Result<()> {
        self.send(LONG_BACKLOG, HANDSHAKES)?;
        wait::until("two repetitions of every SYN-ACK", SOON, || {
            Ok((self.counted()?.syn_retrans >= 2 * u64::from(HANDSHAKES)).then_some(()))
        })
    }

    /// Closes the listener: its requests are never repeated again.
    pub fn quiet(&mut self) {
        self.listener = None;
    }

    fn send(&mut self, backlog: i32, count: u16) -> Result<()> {
        let (family, address) = (self.family, self.family.veth_listener());
        self.listener = Some(self.pair.server.run(|| listen(family, address, backlog))?);
        self.pair.client.run(|| {
            (0..count).try_for_each(|number| {
                send_syn(
                    family,
                    SocketAddr::new(family.ghost(), 20_000 + number),
                    address,
                )
            })
        })
    }
}
