//! Connections over loopback of which every state change is known beforehand: what streamed events
//! are counted against.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    family::Family,
    netns::NetNs,
    proc_net::sockets,
    socket::{abort_on_close, listen, tcp},
    wait::{self, SOON},
};

/// Of include/net/tcp_states.h.
const TIME_WAIT: u8 = 6;

/// How the client ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// It closes; the server reads the end, and closes too.
    Fin,
    /// It aborts; the server reads an error.
    Rst,
}

impl Close {
    /// State changes of one connection, both ends together, in the words of the output contract.
    ///
    /// `net/ipv4/tcp_minisocks.c` copies the listener into the child, whose first change therefore
    /// leaves `listen`; the socket that goes to TIME_WAIT does so by `fin_wait_2` → `closed`.
    #[must_use]
    pub const fn changes(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Fin => &[
                ("closed", "syn_sent"),
                ("listen", "syn_received"),
                ("syn_sent", "established"),
                ("syn_received", "established"),
                ("established", "fin_wait_1"),
                ("established", "close_wait"),
                ("fin_wait_1", "fin_wait_2"),
                ("close_wait", "last_ack"),
                ("fin_wait_2", "closed"),
                ("last_ack", "closed"),
            ],
            Self::Rst => &[
                ("closed", "syn_sent"),
                ("listen", "syn_received"),
                ("syn_sent", "established"),
                ("syn_received", "established"),
                // The client's, and the server's.
                ("established", "closed"),
                ("established", "closed"),
            ],
        }
    }
}

/// State changes of the one listener of [`live`].
pub const LISTENER_CHANGES: [(&str, &str); 2] = [("closed", "listen"), ("listen", "closed")];

/// Listens on `port`, lives through `connections` one after the other, each of one byte from client
/// to server, and closes the listener. Returns when nothing of them changes any more.
///
/// The byte is there for tracers that know an accepted connection by its first receive.
pub fn live(
    netns: &NetNs,
    family: Family,
    port: u16,
    connections: usize,
    ending: Close,
) -> Result<()> {
    let address = SocketAddr::new(family.loopback(), port);
    netns.run(|| {
        let listener = listen(family, address, 16)?;
        for _ in 0..connections {
            let client = tcp(family)?;
            client
                .connect(&address.into())
                .with_context(|| format!("connecting to {address}"))?;
            let (accepted, _) = listener.accept().context("accepting")?;
            (&client).write_all(&[1]).context("writing")?;
            let mut byte = [0];
            (&accepted).read_exact(&mut byte).context("reading")?;
            if ending == Close::Rst {
                abort_on_close(&client)?;
            }
            drop(client);
            match ((&accepted).read(&mut byte), ending) {
                (Ok(bytes), Close::Fin) => ensure!(bytes == 0, "more than one byte"),
                (Err(error), Close::Rst) if error.kind() == ErrorKind::ConnectionReset => {}
                (end, _) => bail!("a connection to end by {ending:?} ended with {end:?}"),
            }
        }
        drop(listener);
        wait::until("both ends to be forgotten", SOON, || {
            let mut left = sockets()?.into_iter().map(|socket| socket.state);
            Ok(left.all(|state| state == TIME_WAIT).then_some(()))
        })
    })
}
