//! Sockets that are there before anything traces: in every state that lasts, held by this process, by
//! another, or by nobody.

use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::Socket;

use crate::{
    family::Family,
    forked::{self, Forked},
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
pub const TIME_WAIT: u8 = 6;

/// Retransmissions of a SYN and a SYN-ACK that nobody answers: what is half open stays for more than ten minutes, and
/// not for the kernel's one, while a slow machine makes the others and starts conntracer.
const RETRIES: &str = "12";

/// See the module. Everything is held until this is dropped.
#[derive(Debug)]
pub struct Old {
    pub netns: NetNs,
    /// Holds the connecting ends of all that live.
    pub clients: Forked,
    _listener: Socket,
    accepted: Vec<Socket>,
    waiting: Vec<Socket>,
    leaked: Vec<Socket>,
    shut: Option<Connection>,
    over: Vec<Connection>,
}

impl Old {
    /// Makes connections until there are `most`, or at least `least` and `time` is over: an emulated CPU
    /// takes a hundred times as long for each.
    pub fn new(family: Family, least: usize, most: usize, time: Duration) -> Result<Self> {
        let most = most.min(raise_descriptors()? / PER_CONNECTION);
        let netns = NetNs::new()?;
        // An orphan in FIN_WAIT2 is to stay while conntracer starts.
        netns.set_sysctl("net/ipv4/tcp_fin_timeout", "600")?;
        netns.set_sysctl("net/ipv4/tcp_syn_retries", RETRIES)?;
        netns.set_sysctl("net/ipv4/tcp_synack_retries", RETRIES)?;
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
        let over = live.split_off(live.len().saturating_sub(OVER));
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
        let (accepted, connected): (Vec<_>, Vec<_>) = live
            .into_iter()
            .map(|live| (live.accepted, live.connected))
            .unzip();
        // Killed, the other process closes them.
        connected.iter().try_for_each(abort_on_close)?;
        let descriptors: Vec<_> = connected.iter().map(AsRawFd::as_raw_fd).collect();
        let clients = Forked::run(c"ct-clients", &descriptors, forked::pause)?;
        wait::until(
            "the other process to let go of what it does not keep",
            SOON,
            || Ok((proc_net::held(clients.pid())?.len() == connected.len()).then_some(())),
        )?;
        Ok(Self {
            netns,
            clients,
            _listener: listener,
            accepted,
            waiting,
            leaked,
            shut: Some(shut),
            over,
        })
    }

    /// Closes both ends of some connections: they are in [`TIME_WAIT`] from now on, for the minute that the kernel gives
    /// them.
    pub fn end_some(&mut self) -> Result<()> {
        for Connection {
            accepted,
            connected,
        } in self.over.drain(..)
        {
            drop(connected);
            wait_state(&accepted, CLOSE_WAIT)?;
        }
        wait::until("connections in TIME_WAIT", SOON, || {
            let sockets = self.netns.run(proc_net::sockets)?;
            let over = sockets.iter().filter(|socket| socket.state == TIME_WAIT);
            Ok((over.count() == OVER).then_some(()))
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
        // Nothing is lost when it fails: the sockets end the long way.
        for accepted in self.accepted.drain(..) {
            let _refused = abort_on_close(&accepted);
        }
        for both in self.shut.take().into_iter().chain(self.over.drain(..)) {
            let _refused = both.abort();
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

/// Descriptors there must be for each connection: one end of it in three namespaces, for a while the other in
/// one, and a quarter more for whatever else this process has open.
const PER_CONNECTION: usize = 5;

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
