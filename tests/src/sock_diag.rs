//! Ends a connection from outside, as `ss -K` does: `SOCK_DESTROY` over netlink.

use std::{
    io::Read as _,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::wait::SOON;

/// linux/sock_diag.h and linux/inet_diag.h.
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DESTROY: u16 = 21;
const NO_COOKIE: u32 = u32::MAX;
/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
const HEADER: usize = 16;
const REQUEST: usize = 56;

/// Destroys a connection of the calling thread's namespace; false where the kernel cannot
/// (`CONFIG_INET_DIAG_DESTROY`, and the module `tcp_diag`).
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> Result<bool> {
    let mut socket = Socket::new(
        Domain::from(libc::AF_NETLINK),
        Type::DGRAM,
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )
    .context("opening a sock_diag socket")?;
    socket
        .set_read_timeout(Some(SOON))
        .context("setting SO_RCVTIMEO")?;
    socket
        .send(&request(local, remote))
        .context("asking to destroy a socket")?;
    let mut answer = [0; 1024];
    let length = socket.read(&mut answer).context("reading the answer")?;
    ensure!(length >= HEADER + 4, "a netlink message cut short");
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if i32::from(kind) != libc::NLMSG_ERROR {
        bail!("sock_diag answered with a message of type {kind}");
    }
    let errno = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match -errno {
        0 => Ok(true),
        // Not built in; no module for the protocol.
        libc::EOPNOTSUPP | libc::EINVAL => Ok(false),
        errno => Err(std::io::Error::from_raw_os_error(errno)).context("destroying a socket"),
    }
}

fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let size = u32::try_from(HEADER + REQUEST).expect("a small message");
    let flags = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("16 bits");
    let family = if local.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let mut message = Vec::new();
    message.extend(size.to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.push(u8::try_from(family).expect("a small number"));
    message.push(u8::try_from(libc::IPPROTO_TCP).expect("a small number"));
    message.extend([0; 2]);
    // Of any state.
    message.extend(u32::MAX.to_ne_bytes());
    message.extend(local.port().to_be_bytes());
    message.extend(remote.port().to_be_bytes());
    message.extend(words(local.ip()));
    message.extend(words(remote.ip()));
    message.extend(0_u32.to_ne_bytes());
    message.extend([NO_COOKIE.to_ne_bytes(), NO_COOKIE.to_ne_bytes()].concat());
    message
}

/// An address in four words, IPv4 in the first.
fn words(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut words = [0; 16];
            words[..4].copy_from_slice(&address.octets());
            words
        }
        IpAddr::V6(address) => address.octets(),
    }
}
