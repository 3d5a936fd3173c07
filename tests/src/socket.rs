//! Sockets with the options scenarios need, and the filters with which a peer goes deaf.
//!
//! A classic BPF filter on the receiving socket drops packets before TCP sees them, on every
//! kernel, without a firewall or a queue discipline: to the sender it is a dead peer or a lossy
//! path.

use std::{
    io::{ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr},
    os::fd::AsRawFd,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Protocol, SockFilter, Socket, Type};

use crate::{
    family::Family,
    wait::{self, EVENTUALLY, SOON},
};

/// Opcodes and the offset of the random extension: linux/bpf_common.h and linux/filter.h.
const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JMP_JGE_K: u16 = 0x35;
const BPF_RET_K: u16 = 0x06;
const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM).cast_unsigned();

const DROP: SockFilter = SockFilter::new(BPF_RET_K, 0, 0, 0);
const PASS: SockFilter = SockFilter::new(BPF_RET_K, 0, 0, u32::MAX);

/// A TCP socket of `family`.
///
/// Its accept() and read(), and those of what it accepts, fail where nothing comes: a thread that waited for ever
/// would hide why.
pub fn tcp(family: Family) -> Result<Socket> {
    let socket = Socket::new(family.domain(), Type::STREAM, Some(Protocol::TCP))
        .context("making a TCP socket")?;
    socket
        .set_read_timeout(Some(EVENTUALLY))
        .context("setting SO_RCVTIMEO")?;
    Ok(socket)
}

/// An MPTCP socket of `family` (RFC 8684); `None` where the kernel has none or does not allow it.
pub fn mptcp(family: Family) -> Result<Option<Socket>> {
    match Socket::new(family.domain(), Type::STREAM, Some(Protocol::MPTCP)) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EPROTONOSUPPORT | libc::ENOPROTOOPT | libc::EINVAL)
            ) =>
        {
            Ok(None)
        }
        made => made.map(Some).context("making an MPTCP socket"),
    }
}

/// A listener on `address`.
pub fn listen(family: Family, address: SocketAddr, backlog: i32) -> Result<Socket> {
    listen_on(tcp(family)?, address, backlog)
}

/// Makes `socket` a listener on `address`.
pub fn listen_on(socket: Socket, address: SocketAddr, backlog: i32) -> Result<Socket> {
    socket
        .set_reuse_address(true)
        .context("setting SO_REUSEADDR")?;
    // A process that another test forks holds a copy of an earlier listener for a moment, which is in use until then.
    wait::until("the address to be free", SOON, || {
        match socket.bind(&address.into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
            bound => bound
                .map(Some)
                .with_context(|| format!("binding {address}")),
        }
    })?;
    socket
        .listen(backlog)
        .with_context(|| format!("listening on {address}"))?;
    Ok(socket)
}

/// Starts a connection and does not wait for it.
pub fn connect_without_waiting(socket: &Socket, address: SocketAddr) -> Result<()> {
    socket.set_nonblocking(true).context("setting O_NONBLOCK")?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            Err(error).with_context(|| format!("connecting to {address}"))
        }
        _ => Ok(()),
    }
}

/// Makes every later packet to `socket` vanish.
pub fn deafen(socket: &Socket) -> Result<()> {
    socket
        .attach_filter(&[DROP])
        .context("attaching a filter that drops everything")
}

/// Makes `percent` of the later packets to `socket` vanish, at random.
pub fn make_lossy(socket: &Socket, percent: u8) -> Result<()> {
    let threshold = u32::MAX / 100 * u32::from(percent);
    let filter = [
        SockFilter::new(BPF_LD_W_ABS, 0, 0, RANDOM),
        SockFilter::new(BPF_JMP_JGE_K, 1, 0, threshold),
        DROP,
        PASS,
    ];
    socket
        .attach_filter(&filter)
        .context("attaching a filter that drops at random")
}

/// Ends [`deafen`] or [`make_lossy`].
pub fn hear_again(socket: &Socket) -> Result<()> {
    socket.detach_filter().context("detaching the filter")
}

/// Makes the last close of `socket` send a RST and forget it, instead of a FIN that may have to be
/// repeated: after it nothing of this socket moves a counter.
pub fn abort_on_close(socket: &Socket) -> Result<()> {
    socket
        .set_linger(Some(Duration::ZERO))
        .context("setting SO_LINGER")
}

/// Lets a listener take data with the SYN (RFC 7413), for so many requests at a time.
pub fn take_fast_opens(listener: &Socket, requests: i32) -> Result<()> {
    set_tcp_option(listener, libc::TCP_FASTOPEN, requests).context("setting TCP_FASTOPEN")
}

/// Lets a listener wait so many seconds for data before it takes a client.
pub fn defer_accept(listener: &Socket, seconds: i32) -> Result<()> {
    set_tcp_option(listener, libc::TCP_DEFER_ACCEPT, seconds).context("setting TCP_DEFER_ACCEPT")
}

/// Makes connect() wait for the first data, and send it with the SYN.
pub fn connect_with_data(socket: &Socket) -> Result<()> {
    set_tcp_option(socket, libc::TCP_FASTOPEN_CONNECT, 1).context("setting TCP_FASTOPEN_CONNECT")
}

/// Makes connect() give up after so many repeats of its SYN.
pub fn repeat_syns(socket: &Socket, repeats: i32) -> Result<()> {
    set_tcp_option(socket, libc::TCP_SYNCNT, repeats).context("setting TCP_SYNCNT")
}

fn set_tcp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    let size = libc::socklen_t::try_from(size_of_val(&value)).expect("an int is small");
    // SAFETY: the kernel reads `size` bytes of `value`.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size,
        )
    };
    if status == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error())
    }
}

/// include/uapi/linux/tcp.h.
const TCP_REPAIR: libc::c_int = 19;

/// The next number that a connection sends, and the next that it expects.
pub fn sequence_numbers(socket: &Socket) -> Result<(u32, u32)> {
    const TCP_REPAIR_QUEUE: libc::c_int = 20;
    const TCP_QUEUE_SEQ: libc::c_int = 21;
    const RECEIVED: libc::c_int = 1;
    const SENT: libc::c_int = 2;
    /// Without a probe to the peer.
    const OFF: libc::c_int = -1;
    set_tcp_option(socket, TCP_REPAIR, 1).context("setting TCP_REPAIR")?;
    let number = |queue| -> Result<u32> {
        set_tcp_option(socket, TCP_REPAIR_QUEUE, queue).context("setting TCP_REPAIR_QUEUE")?;
        let mut number = 0_u32;
        let mut size = libc::socklen_t::try_from(size_of_val(&number))?;
        // SAFETY: the kernel writes at most `size` bytes to `number`, which is that large.
        let status = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                TCP_QUEUE_SEQ,
                (&raw mut number).cast(),
                &raw mut size,
            )
        };
        if status != 0 {
            return Err(std::io::Error::last_os_error()).context("reading TCP_QUEUE_SEQ");
        }
        Ok(number)
    };
    let numbers = (number(SENT)?, number(RECEIVED)?);
    set_tcp_option(socket, TCP_REPAIR, OFF).context("ending TCP_REPAIR")?;
    Ok(numbers)
}

/// Closes a socket without a word to the peer, as a checkpoint does.
pub fn vanish(socket: Socket) -> Result<()> {
    set_tcp_option(&socket, TCP_REPAIR, 1).context("setting TCP_REPAIR")?;
    drop(socket);
    Ok(())
}

/// The kernel's view of a connection.
pub fn tcp_info(socket: &Socket) -> Result<libc::tcp_info> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>())?;
    // SAFETY: the kernel writes at most `size` bytes to `info`, which is that large.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut size,
        )
    };
    if status != 0 {
        return Err(std::io::Error::last_os_error()).context("reading TCP_INFO");
    }
    // SAFETY: zeroed before, and any bytes are a valid `tcp_info`: it is made of integers.
    Ok(unsafe { info.assume_init() })
}

/// Waits until everything written to `socket` is acknowledged.
pub fn wait_acknowledged(socket: &Socket, limit: Duration) -> Result<()> {
    wait::until("all data to be acknowledged", limit, || {
        let info = tcp_info(socket)?;
        Ok((info.tcpi_unacked == 0 && info.tcpi_notsent_bytes == 0).then_some(()))
    })
}

/// Waits until the kernel gives the connection up, and returns the error it gives.
pub fn wait_error(socket: &Socket, limit: Duration) -> Result<std::io::Error> {
    let mut polled = [PollFd::new(socket, PollFlags::empty())];
    let timeout = Timespec::try_from(limit).context("a limit that fits a timespec")?;
    if rustix::event::poll(&mut polled, Some(&timeout)).context("polling a socket")? == 0 {
        bail!(
            "waited {} s for the kernel to give a connection up",
            limit.as_secs()
        );
    }
    socket
        .take_error()
        .context("reading SO_ERROR")?
        .context("polled as failed, without an error")
}

/// Writes `bytes` zeros to `writer` and reads them from `reader`, both sides at their own pace.
pub fn transfer(writer: &Socket, reader: &Socket, bytes: u64) -> Result<()> {
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> Result<()> {
            std::io::copy(&mut std::io::repeat(0).take(bytes), &mut { writer })
                .context("writing to a connection")?;
            Ok(())
        });
        let read = std::io::copy(&mut { reader }.take(bytes), &mut std::io::sink())
            .context("reading from a connection")?;
        writing
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))?;
        if read != bytes {
            bail!("read {read} of {bytes} bytes");
        }
        Ok(())
    })
}

/// Writes as much as the send buffer takes, without blocking; returns how much.
pub fn fill(socket: &Socket) -> Result<u64> {
    let chunk = [0; 16 * 1024];
    let mut written = 0;
    socket.set_nonblocking(true).context("setting O_NONBLOCK")?;
    loop {
        match (&mut { socket }).write(&chunk) {
            Ok(bytes) => written += bytes as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("writing to a connection"),
        }
    }
    Ok(written)
}

/// An established connection: the accepting side and the connecting side.
#[derive(Debug)]
pub struct Connection {
    pub accepted: Socket,
    pub connected: Socket,
}

impl Connection {
    /// Takes the connection that `connected` asked `listener` for.
    pub fn accept(listener: &Socket, connected: Socket) -> Result<Self> {
        wait_readable(listener)?;
        let (accepted, _) = listener.accept().context("accepting")?;
        connected
            .set_nonblocking(false)
            .context("clearing O_NONBLOCK")?;
        Ok(Self {
            accepted,
            connected,
        })
    }

    /// Local and remote address of the accepting side.
    pub fn endpoints(&self) -> Result<(SocketAddr, SocketAddr)> {
        let local = self.accepted.local_addr()?;
        let remote = self.accepted.peer_addr()?;
        Ok((
            local.as_socket().context("not an IP address")?,
            remote.as_socket().context("not an IP address")?,
        ))
    }

    /// Closes both ends so that nothing is sent afterwards.
    pub fn abort(self) -> Result<()> {
        abort_on_close(&self.accepted)?;
        abort_on_close(&self.connected)
    }
}

/// A server that waits in accept(): it is let go, whatever becomes of the test.
#[derive(Debug)]
pub struct Waiting<'a>(pub &'a Socket);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // What waits is told that it waits for nothing; nobody is left to be told when that fails.
        let _gone = self.0.shutdown(Shutdown::Both);
    }
}

/// Waits for a connection to accept, or for data or the end of a connection.
pub fn wait_readable(socket: &Socket) -> Result<()> {
    let mut polled = [PollFd::new(socket, PollFlags::IN)];
    let timeout = Timespec::try_from(SOON).context("a limit that fits a timespec")?;
    if rustix::event::poll(&mut polled, Some(&timeout)).context("polling a socket")? == 0 {
        bail!(
            "waited {} s for something to read or accept",
            SOON.as_secs()
        );
    }
    Ok(())
}

/// `TCP_AO_ADD_KEY` and its argument, `struct tcp_ao_add` (include/uapi/linux/tcp.h).
const TCP_AO_ADD_KEY: libc::c_int = 38;

#[repr(C, align(8))]
struct AuthenticationKey {
    address: libc::sockaddr_storage,
    algorithm: [u8; 64],
    ifindex: i32,
    flags: u32,
    reserved: u16,
    prefix_len: u8,
    send_id: u8,
    receive_id: u8,
    mac_len: u8,
    key_flags: u8,
    key_len: u8,
    key: [u8; 80],
}

/// Makes `listener` want segments from `peer` authenticated (RFC 5925); false where the kernel cannot.
pub fn want_authentication(listener: &Socket, peer: std::net::IpAddr) -> Result<bool> {
    const ALGORITHM: &[u8] = b"hmac(sha1)";
    // SAFETY: made of integers, for which zero is a value.
    let mut key: AuthenticationKey = unsafe { MaybeUninit::zeroed().assume_init() };
    put_address(&mut key.address, peer);
    key.algorithm[..ALGORITHM.len()].copy_from_slice(ALGORITHM);
    key.prefix_len = if peer.is_ipv4() { 32 } else { 128 };
    (key.send_id, key.receive_id) = (100, 100);
    key.key_len = u8::try_from(KEY.len())?;
    key.key[..KEY.len()].copy_from_slice(KEY);
    take_key(listener, TCP_AO_ADD_KEY, &key).context("setting TCP_AO_ADD_KEY")
}

/// What nobody who is to be refused knows.
const KEY: &[u8] = b"secret";

/// `TCP_MD5SIG` and its argument (include/uapi/linux/tcp.h).
const TCP_MD5SIG: libc::c_int = 14;

#[repr(C)]
struct Md5Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_len: u8,
    key_len: u16,
    ifindex: u32,
    key: [u8; 80],
}

/// Makes `listener` want segments from `peer` signed (RFC 2385); false where the kernel cannot.
pub fn want_md5(listener: &Socket, peer: std::net::IpAddr) -> Result<bool> {
    // SAFETY: made of integers, for which zero is a value.
    let mut signature: Md5Signature = unsafe { MaybeUninit::zeroed().assume_init() };
    put_address(&mut signature.address, peer);
    signature.key_len = u16::try_from(KEY.len())?;
    signature.key[..KEY.len()].copy_from_slice(KEY);
    take_key(listener, TCP_MD5SIG, &signature).context("setting TCP_MD5SIG")
}

fn put_address(place: &mut libc::sockaddr_storage, address: std::net::IpAddr) {
    let address = socket2::SockAddr::from(SocketAddr::new(address, 0));
    // SAFETY: a socket address fits a `sockaddr_storage`, which is what `as_ptr` points into.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            core::ptr::from_mut(place).cast::<u8>(),
            address.len() as usize,
        );
    }
}

/// Sets an option that is a key; false where the kernel cannot.
fn take_key<T>(listener: &Socket, option: libc::c_int, key: &T) -> Result<bool> {
    // SAFETY: the argument lives through the call, and its size is given.
    let status = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            core::ptr::from_ref(key).cast(),
            libc::socklen_t::try_from(size_of::<T>())?,
        )
    };
    if status == 0 {
        return Ok(true);
    }
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        // Not built in, not allowed (FIPS), or no such hash in the kernel.
        Some(libc::ENOPROTOOPT | libc::EINVAL | libc::ENOENT | libc::ENOMEM) => Ok(false),
        _ => Err(error.into()),
    }
}
