//! Sockets that are there before anything traces: in every state that lasts, held by this process or by
//! nobody.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::Socket;

use crate::{
    family::Family,
    netns::NetNs,
    proc_net,
    socket::{Connection, abort_on_close, connect_without_waiting, deafen, listen, tcp, tcp_info},
    wait::{self, SOON},
};

/// Connections whose client has closed and whose server has not.
const LEAKED: usize = 5;
/// Sockets in CLOSE_WAIT: those, and the peer of one that only shut its sending side.
pub const CLOSE_WAITS: usize = LEAKED + 1;
/// Connections that both sides have closed.
const OVER: usize = 2;
/// Connections that wait to be accepted, and handshakes whose client does not hear the answer.
const WAITING: usize = 3;
const EMBRYONIC: usize = 2;

/// include/net/tcp_states.h.
const CLOSE_WAIT: u8 = 8;
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;

/// See the module. Everything is held until this is dropped.
#[derive(Debug)]
pub struct Old {
    pub netns: NetNs,
    _listener: Socket,
    live: Vec<Connection>,
    waiting: Vec<Socket>,
    leaked: Vec<Socket>,
    shut: Option<Connection>,
}

impl Old {
    /// Makes connections until there are `most`, or at least `least` and `time` is over: an emulated CPU
    /// takes a hundred times as long for each.
    pub fn new(family: Family, least: usize, most: usize, time: Duration) -> Result<Self> {
        let most = most.min(raise_descriptors()? / PER_CONNECTION);
        let netns = NetNs::new()?;
        // An orphan in FIN_WAIT2 is to stay while conntracer starts.
        netns.set_sysctl("net/ipv4/tcp_fin_timeout", "600")?;
        let address = family.loopback_listener();
        let (listener, mut live) = netns.run(|| {
            let listener = listen(family, address, 64)?;
            let deadline = Instant::now() + time;
            let mut live = Vec::new();
            while live.len() < most && (live.len() < least || Instant::now() < deadline) {
                live.push(connection(family, &listener)?);
            }
            Ok((listener, live))
        })?;
        let mut leaked = Vec::new();
        for _ in 0..LEAKED {
            let Connection {
                accepted,
                connected,
            } = live.pop().context("more connections than are leaked")?;
            drop(connected);
            wait_state(&accepted, CLOSE_WAIT)?;
            leaked.push(accepted);
        }
        let shut = live.pop().context("more connections than are shut")?;
        shut.connected
            .shutdown(std::net::Shutdown::Write)
            .context("shutting a connection")?;
        wait_state(&shut.connected, FIN_WAIT2)?;
        for _ in 0..OVER {
            let Connection {
                accepted,
                connected,
            } = live.pop().context("more connections than are closed")?;
            drop(connected);
            wait_state(&accepted, CLOSE_WAIT)?;
        }
        wait::until("connections in TIME_WAIT", SOON, || {
            let sockets = netns.run(proc_net::sockets)?;
            let over = sockets.iter().filter(|socket| socket.state == TIME_WAIT);
            Ok((over.count() == OVER).then_some(()))
        })?;
        let waiting = netns.run(|| {
            (0..WAITING + EMBRYONIC)
                .map(|at| {
                    let client = tcp(family)?;
                    if at < EMBRYONIC {
                        deafen(&client)?;
                    }
                    abort_on_close(&client)?;
                    connect_without_waiting(&client, address)?;
                    Ok(client)
                })
                .collect::<Result<_>>()
        })?;
        Ok(Self {
            netns,
            _listener: listener,
            live,
            waiting,
            leaked,
            shut: Some(shut),
        })
    }

    /// Closes what was leaked.
    pub fn mend(&mut self) {
        self.leaked.clear();
    }
}

impl Drop for Old {
    /// Without a word of goodbye: ten thousand FINs would take their time.
    fn drop(&mut self) {
        for connection in self.live.drain(..).chain(self.shut.take()) {
            // Nothing is lost when it fails: the sockets end the long way.
            let _aborted = connection.abort();
        }
        self.waiting.clear();
    }
}

fn connection(family: Family, listener: &Socket) -> Result<Connection> {
    let client = tcp(family)?;
    connect_without_waiting(&client, family.loopback_listener())?;
    Connection::accept(listener, client)
}

fn wait_state(socket: &Socket, state: u8) -> Result<()> {
    wait::until("a half-closed state", SOON, || {
        Ok((tcp_info(socket)?.tcpi_state == state).then_some(()))
    })
}

/// Descriptors there must be for each connection: both ends of it in three namespaces, and a quarter more
/// for whatever else this process has open.
const PER_CONNECTION: usize = 8;

/// Takes as many descriptors as this process may have at all, and says how many that is.
fn raise_descriptors() -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).context("raising the limit of descriptors")?;
    let most = raised.current.unwrap_or(u64::MAX);
    Ok(usize::try_from(most).unwrap_or(usize::MAX))
}
