//! The kernel's own list of TCP sockets: /proc/net/tcp and /proc/net/tcp6, and the descriptors of
//! processes. What ss(8) shows, without it.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result};

/// One line. Addresses are as packets carry them: IPv4 where they are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Socket {
    pub local: SocketAddr,
    /// Port 0 where there is none.
    pub remote: SocketAddr,
    /// As in include/net/tcp_states.h; a request is SYN_RECV.
    pub state: u8,
    /// 0 when no process ever held it, or none does any more.
    pub inode: u64,
}

/// The sockets of the calling thread's network namespace.
pub fn sockets() -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for path in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        for line in text.lines().skip(1) {
            sockets.push(parse(line).with_context(|| format!("a line of {path}: {line}"))?);
        }
    }
    Ok(sockets)
}

/// The inodes of the sockets that a process holds.
pub fn held(pid: u32) -> Result<BTreeSet<u64>> {
    let path = format!("/proc/{pid}/fd");
    let reading = || format!("reading {path}");
    let mut held = BTreeSet::new();
    for entry in fs::read_dir(&path).with_context(reading)? {
        // Another thread may close one between the two.
        let Ok(target) = fs::read_link(entry.with_context(reading)?.path()) else {
            continue;
        };
        let target = target.to_string_lossy();
        let inode = target
            .strip_prefix("socket:[")
            .and_then(|rest| rest.strip_suffix(']'));
        if let Some(inode) = inode {
            held.insert(inode.parse().context("a socket's inode")?);
        }
    }
    Ok(held)
}

fn parse(line: &str) -> Option<Socket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    let state = u8::from_str_radix(words.next()?, 16).ok()?;
    let inode = words.nth(5)?.parse().ok()?;
    Some(Socket {
        local,
        remote,
        state,
        inode,
    })
}

/// Words of the address in the host's byte order, the port in network order, both in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut octets = Vec::new();
    for word in words.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        octets.extend(word.to_ne_bytes());
    }
    let ip = match octets.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(octets).ok()?),
        _ => Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).to_canonical(),
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_family() {
        let v4 = "   0: 0100007F:1F90 0200007F:C350 08 00000000:00000001 00:00000000 00000000  \
                  0        0 4711 1 0000000000000000 20 4 0 10 -1";
        let socket = parse(v4).unwrap();
        assert_eq!(socket.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(socket.remote, "127.0.0.2:50000".parse().unwrap());
        assert_eq!((socket.state, socket.inode), (8, 4711));
        let v6 = "   1: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 \
                  0A 00000000:00000000 00:00000000 00000000     0        0 12 1 0 100 0 0 10 0";
        let socket = parse(v6).unwrap();
        assert_eq!(socket.local, "[::1]:8080".parse().unwrap());
        assert_eq!((socket.state, socket.remote.port()), (10, 0));
        let mapped = address("0000000000000000FFFF00000100007F:1F90").unwrap();
        assert_eq!(mapped, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(parse("nonsense"), None);
    }
}
