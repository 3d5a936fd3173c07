//! The loads: the same work each time, of which nothing waits for a timer.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, bail, ensure};
use conntracer_tests::{
    counters::Counters,
    family::Family,
    netns::NetNs,
    scenario::healthy,
    socket::{listen, tcp, tcp_info, wait_readable},
    wait::{self, SOON},
};
use socket2::{SockAddr, SockFilter, Socket, Type};

use crate::meter::{Meter, Spent};

/// First port of the listeners. Below the range the clients get theirs from.
pub(crate) const FIRST_PORT: u16 = 1025;

/// With TIME_WAIT for a second at least, this is how many connections a second one listener can
/// take: as many as there are.
const CLIENT_PORTS: &str = "2048 65535";

/// A client never has more than one connection open, so its listener never queues more.
const BACKLOG: i32 = 16;

/// The queue takes one more than it is asked for: `sk_acceptq_is_full` tests for greater.
const SHORT_BACKLOG: i32 = 1;
const SHORT_QUEUE: u32 = 2;

/// Bytes of a segment of the lossy connections, its options included: small, so that the work is the
/// kernel's and not the copying.
const MSS: u32 = 500;
/// Segments that a lossy connection loses at once, and those that come after them. Three duplicate ACKs
/// tell the sender (RFC 5681).
const LOST: u32 = 64;
const BEHIND: u32 = 16;
/// Twice what is in flight then: the window must not be what holds the segments back.
const WINDOW: u32 = 2 * (LOST + BEHIND);
/// Written at a time while the congestion window opens: more than it takes.
const CHUNK: usize = 64 * 1024;
/// It doubles with each chunk from ten segments on.
const MAX_CHUNKS: u32 = 16;
/// Bytes of a buffer that holds the window several times over; more is not to be had (net.core.rmem_max).
const BUFFER: usize = 200 * 1024;

/// linux/filter.h: the mark of a packet, which on the loopback is that of the socket that sent it.
const MARK_OF_PACKET: u32 = 0xffff_f000 + 20;
const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JMP_JEQ_K: u16 = 0x15;
const BPF_RET_K: u16 = 0x06;
/// The mark of what is lost.
const TO_LOSE: u32 = 1;

/// A namespace for them, with its sysctls.
pub(crate) fn namespace() -> Result<NetNs> {
    let netns = NetNs::new()?;
    for (name, value) in [
        ("net/ipv4/ip_local_port_range", CLIENT_PORTS),
        ("net/ipv4/tcp_tw_reuse", "1"),
    ] {
        netns.set_sysctl(name, value)?;
    }
    Ok(netns)
}

/// `connections` of one client to one server, each a request and an answer of one byte, closed by the client.
pub(crate) fn ask(address: SocketAddr, connections: u32) -> Result<()> {
    let listener = listen(Family::V4, address, BACKLOG)?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| healthy::serve(&listener, connections));
        (0..connections)
            .try_for_each(|_| healthy::ask(Family::V4, address))
            .context("as the client")?;
        serving
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
            .context("as the server")
    })
}

/// What a load was, and what it took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Done {
    pub(crate) units: u64,
    pub(crate) spent: Spent,
}

/// `connections` of one thread to itself, closed by FIN. Nothing but the kernel and the standard library, which
/// is compiled for speed whatever this program is.
pub(crate) fn connect(meter: Meter<'_>, address: SocketAddr, connections: u32) -> Result<Done> {
    let listener = TcpListener::from(listen(Family::V4, address, BACKLOG)?);
    let begun = meter.begin()?;
    for _ in 0..connections {
        let client = TcpStream::connect(address).context("connecting")?;
        let (mut server, _) = listener.accept().context("accepting")?;
        drop(client);
        let rest = server.read(&mut [0]).context("reading the end")?;
        ensure!(rest == 0, "data that nobody sent");
    }
    Ok(Done {
        units: connections.into(),
        spent: meter.end(begun)?,
    })
}

/// `attempts` at a listener whose accept queue is full, each given up at once.
pub(crate) fn overflow(meter: Meter<'_>, address: SocketAddr, attempts: u32) -> Result<Done> {
    let _listener = listen(Family::V4, address, SHORT_BACKLOG)?;
    let _queued = (0..SHORT_QUEUE)
        .map(|_| TcpStream::connect(address).context("filling a queue"))
        .collect::<Result<Vec<_>>>()?;
    let to = SockAddr::from(address);
    let counted = Counters::read()?;
    let begun = meter.begin()?;
    for _ in 0..attempts {
        let client = Socket::new(Family::V4.domain(), Type::STREAM.nonblocking(), None)
            .context("making a socket")?;
        match client.connect(&to) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            outcome => bail!("an attempt to be dropped came to {outcome:?}"),
        }
    }
    let spent = meter.end(begun)?;
    // Where the CPU was wanted by somebody else, ksoftirqd has the last ones yet to do.
    let overflows = wait::until("the last attempts to be dropped", SOON, || {
        let overflows = (Counters::read()? - counted).listen_overflows;
        Ok((overflows >= attempts.into()).then_some(overflows))
    })?;
    ensure!(
        overflows == u64::from(attempts),
        "{overflows} overflows of {attempts} attempts"
    );
    Ok(Done {
        units: overflows,
        spent,
    })
}

/// `connections` that lose [`LOST`] segments each, once, and retransmit them as the ACKs of [`BEHIND`] more
/// tell. A socket's packets carry its mark, by which the other end's filter lets the lost ones vanish.
pub(crate) fn retransmit(meter: Meter<'_>, address: SocketAddr, connections: u32) -> Result<Done> {
    let listener = listen(Family::V4, address, BACKLOG)?;
    // Those that it accepts inherit it.
    listener
        .set_recv_buffer_size(BUFFER)
        .context("setting SO_RCVBUF")?;
    let mut done = Done::default();
    for _ in 0..connections {
        let lossy = Lossy::open(&listener, address)?;
        let counted = Counters::read()?;
        let begun = meter.begin()?;
        lossy.lose()?;
        done.spent += meter.end(begun)?;
        let retransmitted = (Counters::read()? - counted).retrans_segs;
        ensure!(
            retransmitted == u64::from(LOST),
            "{retransmitted} segments of {LOST} lost ones were retransmitted"
        );
        done.units += retransmitted;
        lossy.close()?;
    }
    Ok(done)
}

/// A connection whose congestion window is open.
struct Lossy {
    client: Socket,
    server: Socket,
    /// A segment's payload.
    segment: Vec<u8>,
}

impl Lossy {
    fn open(listener: &Socket, address: SocketAddr) -> Result<Self> {
        let client = tcp(Family::V4)?;
        // Slow start doubles the window, and nothing ends it before a loss.
        client
            .set_tcp_congestion(b"reno")
            .context("setting TCP_CONGESTION")?;
        client
            .set_send_buffer_size(BUFFER)
            .context("setting SO_SNDBUF")?;
        client.set_tcp_mss(MSS).context("setting TCP_MAXSEG")?;
        client
            .set_tcp_nodelay(true)
            .context("setting TCP_NODELAY")?;
        client
            .connect(&address.into())
            .with_context(|| format!("connecting to {address}"))?;
        let (server, _) = listener.accept().context("accepting")?;
        for socket in [&client, &server] {
            socket.set_nonblocking(true).context("setting O_NONBLOCK")?;
        }
        let chunk = vec![0; CHUNK];
        let mut chunks = 0;
        let info = loop {
            let info = tcp_info(&client)?;
            if info.tcpi_snd_cwnd >= WINDOW {
                break info;
            }
            ensure!(
                chunks < MAX_CHUNKS,
                "{MAX_CHUNKS} chunks open the congestion window to {} segments only",
                info.tcpi_snd_cwnd
            );
            chunks += 1;
            (&client).write_all(&chunk).context("opening the window")?;
            drain(&server)?;
        };
        server
            .attach_filter(&[
                SockFilter::new(BPF_LD_W_ABS, 0, 0, MARK_OF_PACKET),
                SockFilter::new(BPF_JMP_JEQ_K, 0, 1, TO_LOSE),
                SockFilter::new(BPF_RET_K, 0, 0, 0),
                SockFilter::new(BPF_RET_K, 0, 0, u32::MAX),
            ])
            .context("attaching a filter that drops what is marked")?;
        Ok(Self {
            client,
            server,
            segment: vec![0; usize::try_from(info.tcpi_snd_mss)?],
        })
    }

    /// Loses segments and has them repaired. Over loopback every packet is answered within the call that sent it,
    /// but for the last, whose ACK may be delayed, and for those that are left to ksoftirqd.
    fn lose(&self) -> Result<()> {
        self.client
            .set_mark(TO_LOSE)
            .context("setting SO_MARK; this needs CAP_NET_ADMIN")?;
        self.send(LOST)?;
        self.client.set_mark(0).context("setting SO_MARK")?;
        self.send(BEHIND)?;
        let wanted = (LOST + BEHIND) as usize * self.segment.len();
        let mut arrived = drain(&self.server)?;
        while arrived < wanted {
            wait_readable(&self.server)?;
            arrived += drain(&self.server)?;
        }
        ensure!(arrived == wanted, "{arrived} of {wanted} bytes arrived");
        Ok(())
    }

    fn send(&self, segments: u32) -> Result<()> {
        (0..segments)
            .try_for_each(|_| (&self.client).write_all(&self.segment))
            .context("sending a segment")
    }

    fn close(self) -> Result<()> {
        drop(self.client);
        wait_readable(&self.server)?;
        let rest = (&self.server).read(&mut [0]).context("reading the end")?;
        ensure!(rest == 0, "more data than was sent");
        Ok(())
    }
}

/// Reads what is there, and says how many bytes that were.
fn drain(mut socket: &Socket) -> Result<usize> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => bail!("the end of a connection that goes on"),
            Ok(read) => bytes += read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(bytes),
            Err(error) => return Err(error).context("reading"),
        }
    }
}
