//! A listener, its clients, and what a process forked to serve them does: by system calls alone.

use std::{
    io::Read as _,
    net::SocketAddr,
    os::fd::{AsRawFd as _, RawFd},
};

use anyhow::{Context as _, Result};
use socket2::Socket;

use crate::{
    family::Family,
    netns::NetNs,
    socket::{listen, tcp},
};

/// A listener that this process holds, and clients of it.
#[derive(Debug)]
pub struct Served {
    pub netns: NetNs,
    pub address: SocketAddr,
    listener: Socket,
}

impl Served {
    pub fn new() -> Result<Self> {
        let netns = NetNs::new()?;
        let address = Family::V4.loopback_listener();
        let listener = netns.run(|| listen(Family::V4, address, 16))?;
        Ok(Self {
            netns,
            address,
            listener,
        })
    }

    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Connects, and hears from whom it is served.
    pub fn client(&self) -> Result<(Socket, u32)> {
        let mut client = self.netns.run(|| tcp(Family::V4))?;
        client.set_nonblocking(false)?;
        client.connect(&self.address.into())?;
        let mut pid = [0; 4];
        client.read_exact(&mut pid).context("who serves")?;
        Ok((client, u32::from_ne_bytes(pid)))
    }
}

/// What a server says that hears anything: less than a segment, and nobody acknowledges it.
const ANSWER: [u8; 100] = [0x5a; 100];

/// Says who serves. What fails here shows as a client that hears nothing.
#[must_use]
pub fn say_who(fd: RawFd) -> bool {
    // SAFETY: system calls with a number and a buffer that lives.
    unsafe {
        let pid = libc::getpid().to_ne_bytes();
        libc::write(fd, pid.as_ptr().cast(), pid.len()) == 4
    }
}

/// Waits for a byte; `None` when none will come.
#[must_use]
pub fn hear(fd: RawFd) -> Option<u8> {
    let mut byte = [0_u8; 1];
    // SAFETY: as above.
    let heard = unsafe { libc::read(fd, byte.as_mut_ptr().cast(), 1) };
    (heard == 1).then_some(byte[0])
}

/// Says what nobody will acknowledge.
#[must_use]
pub fn answer(fd: RawFd) -> bool {
    // SAFETY: as above.
    unsafe { libc::write(fd, ANSWER.as_ptr().cast(), ANSWER.len()) == 100 }
}

/// With flags of accept4(2).
#[must_use]
pub fn accept(listener: RawFd, flags: i32) -> RawFd {
    // SAFETY: a number, and no address asked for.
    unsafe { libc::accept4(listener, std::ptr::null_mut(), std::ptr::null_mut(), flags) }
}

/// Whether it listens from here on.
#[must_use]
pub fn listens(bound: RawFd, backlog: i32) -> bool {
    // SAFETY: numbers.
    unsafe { libc::listen(bound, backlog) == 0 }
}

pub fn close(fd: RawFd) {
    // SAFETY: a number.
    unsafe { libc::close(fd) };
}
