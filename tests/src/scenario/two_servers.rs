//! Two servers of two processes in one network namespace, each with clients of its own: both serve a few and
//! then stop to accept, so that the rest find the queue full.

use std::{
    ffi::CStr,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    ptr,
};

use anyhow::{Context, Result};
use socket2::{SockAddr, Socket};

use crate::{
    family::{Family, SERVER_PORT},
    forked::{self, Forked},
    netns::NetNs,
    socket::tcp,
};

/// Connections of each process that are accepted, and those that are not.
pub const SERVED: usize = 3;
pub const LEFT: usize = 20;
/// Connections of each process.
pub const CONNECTS: usize = SERVED + LEFT;
/// Of those that are not accepted, two wait in the queue of a backlog of 1.
pub const DROPPED: u64 = LEFT as u64 - 2;

/// Name of the second process.
pub const OTHER: &CStr = c"ct-other";

/// See the module.
#[derive(Debug)]
pub struct TwoServers {
    pub netns: NetNs,
    own: Ends,
    /// Where the second process listens; what it uses is its own.
    other: SocketAddr,
    forked: Forked,
    talk: UnixStream,
    accepted: Vec<OwnedFd>,
}

/// What one process uses.
#[derive(Debug)]
struct Ends {
    address: SocketAddr,
    listener: Socket,
    served: Vec<Socket>,
    left: Vec<Socket>,
}

/// The same for a process that may not allocate.
#[derive(Clone, Copy)]
struct Raw {
    listener: RawFd,
    served: [RawFd; SERVED],
    left: [RawFd; LEFT],
}

impl Raw {
    fn all(&self) -> impl Iterator<Item = RawFd> {
        let Self {
            listener,
            served,
            left,
        } = *self;
        [listener].into_iter().chain(served).chain(left)
    }
}

impl TwoServers {
    /// The second process waits for [`TwoServers::provoke`].
    pub fn new() -> Result<Self> {
        let netns = NetNs::new()?;
        let (own, other) = netns.run(|| {
            Ok((
                Ends::new(Family::V4, SERVER_PORT)?,
                Ends::new(Family::V6, SERVER_PORT + 1)?,
            ))
        })?;
        let (talk, its) = UnixStream::pair().context("making a pair of sockets")?;
        let (raw, address, its_fd) = (other.raw(), SockAddr::from(other.address), its.as_raw_fd());
        let kept: Vec<RawFd> = raw.all().chain([its_fd]).collect();
        let forked = Forked::run(OTHER, &kept, move || {
            let mut byte = 1_u8;
            let at = (&raw mut byte).cast();
            // SAFETY: descriptors that live, and room for a byte.
            let served = unsafe {
                libc::read(its_fd, at, 1) == 1
                    && act(&raw, &address).is_some()
                    && libc::write(its_fd, at, 1) == 1
                    && libc::read(its_fd, at, 1) == 1
                    && raw.left.iter().all(|fd| libc::close(*fd) == 0)
                    && libc::write(its_fd, at, 1) == 1
            };
            if served { forked::pause() } else { 1 }
        })?;
        Ok(Self {
            netns,
            own,
            other: other.address,
            forked,
            talk,
            accepted: Vec::new(),
        })
    }

    /// Pid of the second process.
    #[must_use]
    pub fn other(&self) -> u32 {
        self.forked.pid()
    }

    /// Where this process listens, and where the second one does.
    #[must_use]
    pub const fn addresses(&self) -> [SocketAddr; 2] {
        [self.own.address, self.other]
    }

    /// Both serve and stop to.
    pub fn provoke(&mut self) -> Result<()> {
        let address = SockAddr::from(self.own.address);
        let accepted = act(&self.own.raw(), &address).context("serving")?;
        // SAFETY: accept(2) made them, and nobody else knows them.
        let owned = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
        self.accepted.extend(accepted.map(owned));
        self.tell()
    }

    /// Clients stop to repeat their SYNs.
    pub fn quiet(&mut self) -> Result<()> {
        self.own.left.clear();
        self.tell()
    }

    /// Lets the second process go on, and waits until it has.
    fn tell(&mut self) -> Result<()> {
        self.talk.write_all(&[1]).context("letting the other go")?;
        let mut done = [0];
        self.talk
            .read_exact(&mut done)
            .context("waiting for the other")
    }
}

impl Ends {
    fn new(family: Family, port: u16) -> Result<Self> {
        let address = SocketAddr::new(family.loopback(), port);
        let listener = tcp(family)?;
        listener
            .bind(&address.into())
            .with_context(|| format!("binding {address}"))?;
        let clients = |count| (0..count).map(|_| tcp(family)).collect::<Result<Vec<_>>>();
        let left = clients(LEFT)?;
        for client in &left {
            client.set_nonblocking(true).context("setting O_NONBLOCK")?;
        }
        Ok(Self {
            address,
            listener,
            served: clients(SERVED)?,
            left,
        })
    }

    fn raw(&self) -> Raw {
        Raw {
            listener: self.listener.as_raw_fd(),
            served: std::array::from_fn(|at| self.served[at].as_raw_fd()),
            left: std::array::from_fn(|at| self.left[at].as_raw_fd()),
        }
    }
}

/// Listens, serves, and no longer serves: by system calls alone. The accepted connections; `None` when one
/// of the calls failed.
fn act(ends: &Raw, address: &SockAddr) -> Option<[RawFd; SERVED]> {
    let mut accepted = [-1; SERVED];
    // SAFETY: descriptors and addresses that live as long as the calls, and room for what they write.
    unsafe {
        let connect = |client| libc::connect(client, address.as_ptr().cast(), address.len());
        if libc::listen(ends.listener, 1) != 0 {
            return None;
        }
        for (client, accepted) in ends.served.iter().zip(&mut accepted) {
            let mut byte = 0_u8;
            if connect(*client) != 0 || libc::send(*client, (&raw const byte).cast(), 1, 0) != 1 {
                return None;
            }
            *accepted = libc::accept(ends.listener, ptr::null_mut(), ptr::null_mut());
            if libc::recv(*accepted, (&raw mut byte).cast(), 1, 0) != 1 {
                return None;
            }
        }
        for client in ends.left {
            // Under way, whatever it says of that.
            let _in_progress = connect(client);
        }
    }
    Some(accepted)
}
