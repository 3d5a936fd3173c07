//! bind() and listen() that fail, and who holds the port.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Header, Owner, Socket};

/// Values of [`Bind::call`]: which call it was, and who refused it.
pub mod bind_call {
    pub const BIND: u8 = 1;
    pub const LISTEN: u8 = 2;
    /// bind(), refused by a security module before TCP saw it.
    pub const SECURITY: u8 = 3;
}

/// Bits of [`Bind::flags`] and [`BindHolder::flags`]: options of the socket.
pub mod bind_flag {
    pub const REUSEADDR: u8 = 1;
    pub const REUSEPORT: u8 = 2;
    pub const V6_ONLY: u8 = 4;
    /// Of [`Bind::flags`]: stands for all that found the map full, whatever their address.
    pub const SEVERAL: u8 = 8;
    /// Of [`BindHolder::flags`]: no process holds the socket any more.
    pub const ORPHAN: u8 = 16;
    /// Of [`Bind::flags`]: the caller has CAP_NET_BIND_SERVICE, in its own user namespace.
    pub const CAPABLE: u8 = 32;
}

/// Calls that failed, cumulative by process, address and error: emitted and polled as a
/// [`Failure`](super::Failure) is. With error 0 a call that succeeded, of a process or at a port with a failure before.
///
/// The local end of `socket` is what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Bind {
    pub header: Header,
    pub socket: Socket,
    pub owner: Owner,
    /// Calls since `first_ns`, which tells this count from an earlier one of the same key.
    pub count: u64,
    pub first_ns: u64,
    pub last_ns: u64,
    /// Errno (positive); 0 where it succeeded.
    pub error: u32,
    /// `net.ipv4.ip_unprivileged_port_start` of the namespace; `u16::MAX` where the kernel does not tell.
    pub unprivileged_start: u16,
    /// Lowest and highest of the ports that port 0 asks for one of; 0 where the kernel does not tell.
    pub range: [u16; 2],
    /// One of [`bind_call`].
    pub call: u8,
    /// Bits of [`bind_flag`].
    pub flags: u8,
    /// The socket's, by which it is told from one that has its address later; 0 where not known.
    pub inode: u32,
}

/// Sockets that a [`BindHolders`] names.
pub const MAX_BIND_HOLDERS: usize = 3;

/// A socket that holds a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct BindHolder {
    /// Unknown of an orphan.
    pub owner: Owner,
    pub local_addr: [u32; 4],
    pub remote_addr: [u32; 4],
    pub local_port: u16,
    pub remote_port: u16,
    pub family: u16,
    /// `skc_state`; CLOSE of one that is bound and no more.
    pub state: u8,
    /// Bits of [`bind_flag`].
    pub flags: u8,
    /// Of a range: distinct ports that this process holds.
    pub ports: u32,
    pub pad: [u8; 4],
}

/// Who holds a port that a call did not get, as userspace found: sockets whose address is in the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct BindHolders {
    pub header: Header,
    /// Whom they are in the way of.
    pub local_addr: [u32; 4],
    pub netns: u32,
    /// 0: of the range, of which `ports` distinct ones are held.
    pub port: u16,
    pub family: u16,
    pub ports: u32,
    /// Sockets that listen, are bound and no more, are connected, have been closed and wait for their peer, and are in
    /// TIME_WAIT.
    pub listeners: u32,
    pub bound: u32,
    pub connected: u32,
    pub closing: u32,
    pub time_wait: u32,
    /// How many of `holders` are. The first of them: those that listen first. Of a range, the processes that hold most.
    pub named: u32,
    /// 1 where sockets without a process could not be looked at.
    pub incomplete: u32,
    pub holders: [BindHolder; MAX_BIND_HOLDERS],
}
