//! Segments repeated in every way there is, one after the other, each on a connection of its own.
//!
//! Which packets are lost is told to the receiving socket, as in [`crate::socket`]; what the sender makes
//! of it is its own affair, and its kernel's counters tell. The classes that a pattern aims at are waited
//! for, and what else comes with them is welcome.

use std::io::Write;

use anyhow::{Context, Result};
use socket2::Socket;

use crate::{
    counters::Counters,
    family::{Family, SERVER_PORT},
    link::Pair,
    netfilter::{Hook, drop_at, let_pass},
    socket::{self, Connection, connect_without_waiting, deafen, hear_again, make_lossy, tcp},
    wait::{self, EVENTUALLY},
};

/// Less than one segment.
const MESSAGE: &[u8] = &[0x5a; 1000];
/// What fits into the first window of a connection, and has to be repeated when it is lost.
const WINDOW: &[u8] = &[0x5a; 12_000];
/// Loss that is mended by fast retransmits, for the most part.
const LOSS_PERCENT: u8 = 5;

/// A pair whose server repeats what it sends.
#[derive(Debug)]
pub struct Repeats {
    pub pair: Pair,
    family: Family,
}

impl Repeats {
    pub fn new(family: Family) -> Result<Self> {
        Ok(Self {
            pair: Pair::new()?,
            family,
        })
    }

    /// All patterns.
    pub fn provoke(&self) -> Result<()> {
        self.syn()?;
        self.tail_loss_probe()?;
        self.timeouts()?;
        self.fast()?;
        self.acks_lost()?;
        self.not_sent()
    }

    /// A connect() that nobody answers.
    fn syn(&self) -> Result<()> {
        let unanswered = self.pair.server.run(|| -> Result<Socket> {
            let socket = tcp(self.family)?;
            connect_without_waiting(&socket, (self.family.ghost(), SERVER_PORT).into())?;
            Ok(socket)
        })?;
        self.wait("a repeated SYN", |counters| counters.syn_retrans)?;
        drop(unanswered);
        Ok(())
    }

    /// The end of a message is lost, and its repeat is not.
    fn tail_loss_probe(&self) -> Result<()> {
        self.with_lost(MESSAGE, "a tail loss probe", |counters| {
            counters.loss_probes
        })
    }

    /// A whole window is lost, and so is the probe: its first segment is repeated by the timer, the others by
    /// the ACKs that follow.
    fn timeouts(&self) -> Result<()> {
        let before = self.counters()?.slow_start_retrans;
        self.with_lost(WINDOW, "two timeouts", |counters| counters.timeouts / 2)?;
        wait::until("repeats in slow start", EVENTUALLY, || {
            Ok((self.counters()?.slow_start_retrans > before).then_some(()))
        })
    }

    /// Some segments are lost while the others arrive.
    fn fast(&self) -> Result<()> {
        let connection = self.pair.connect(self.family)?;
        make_lossy(&connection.connected, LOSS_PERCENT)?;
        let before = self.counters()?.fast_retrans;
        wait::until("a fast retransmit", EVENTUALLY, || {
            socket::transfer(&connection.accepted, &connection.connected, 256 * 1024)?;
            Ok((self.counters()?.fast_retrans > before).then_some(()))
        })?;
        hear_again(&connection.connected)?;
        settle(connection)
    }

    /// Everything arrives and no ACK comes back: what is repeated was not needed.
    fn acks_lost(&self) -> Result<()> {
        let connection = self.pair.connect(self.family)?;
        deafen(&connection.accepted)?;
        let before = self.counters()?.retrans_segs;
        (&connection.accepted)
            .write_all(MESSAGE)
            .context("writing to a peer that is not heard")?;
        wait::until("two repeats", EVENTUALLY, || {
            Ok((self.counters()?.retrans_segs >= before + 2).then_some(()))
        })?;
        hear_again(&connection.accepted)?;
        settle(connection)
    }

    /// What was sent is lost, and this host drops what it would repeat.
    fn not_sent(&self) -> Result<()> {
        let connection = self.pair.connect(self.family)?;
        deafen(&connection.connected)?;
        (&connection.accepted)
            .write_all(MESSAGE)
            .context("writing to a deaf peer")?;
        self.pair.server.run(|| drop_at(Hook::Output))?;
        self.wait("a repeat that fails", |counters| counters.retrans_fail)?;
        self.pair.server.run(let_pass)?;
        hear_again(&connection.connected)?;
        settle(connection)
    }

    /// Sends what is lost, until `count` rose; then the peer hears again.
    fn with_lost(&self, data: &[u8], what: &str, count: impl Fn(&Counters) -> u64) -> Result<()> {
        let connection = self.pair.connect(self.family)?;
        deafen(&connection.connected)?;
        let before = count(&self.counters()?);
        (&connection.accepted)
            .write_all(data)
            .context("writing to a deaf peer")?;
        wait::until(what, EVENTUALLY, || {
            Ok((count(&self.counters()?) > before).then_some(()))
        })?;
        hear_again(&connection.connected)?;
        settle(connection)
    }

    fn wait(&self, what: &str, count: impl Fn(&Counters) -> u64) -> Result<()> {
        let before = count(&self.counters()?);
        wait::until(what, EVENTUALLY, || {
            Ok((count(&self.counters()?) > before).then_some(()))
        })
    }

    fn counters(&self) -> Result<Counters> {
        self.pair.server.counters()
    }
}

/// Waits until nothing is in flight, and ends the connection without another segment.
fn settle(connection: Connection) -> Result<()> {
    socket::wait_acknowledged(&connection.accepted, EVENTUALLY)?;
    connection.abort()
}
