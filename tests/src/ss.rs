//! What `ss -tanp` (iproute2) lists: the tool that people compare conntracer with.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{netns::NetNs, proc_net::Socket};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Without its inode.
    pub socket: Socket,
    /// The processes that hold it.
    pub pids: BTreeSet<u32>,
}

/// The program, as `CONNTRACER_SS` names it.
#[must_use]
pub fn program() -> Option<OsString> {
    env::var_os("CONNTRACER_SS")
}

/// The TCP sockets of a namespace.
pub fn list(program: &OsString, netns: &NetNs) -> Result<Vec<Listed>> {
    let mut command = Command::new(program);
    command.args(["-H", "-tanp"]);
    netns.adopt(&mut command);
    let output = command
        .output()
        .with_context(|| format!("running {}", program.display()))?;
    ensure!(output.status.success(), "ss: {output:?}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| parse(line).with_context(|| format!("a line of ss: {line}")))
        .collect()
}

/// State, two queues, both addresses, and the processes where there are any.
fn parse(line: &str) -> Option<Listed> {
    let mut words = line.split_ascii_whitespace();
    let state = number_of(words.next()?)?;
    let mut words = words.skip(2);
    let local = address(words.next()?)?;
    let remote = address(words.next()?)?;
    let pids = line
        .split("pid=")
        .skip(1)
        .map(|rest| rest.split(',').next()?.parse().ok())
        .collect::<Option<_>>()?;
    Some(Listed {
        socket: Socket {
            local,
            remote,
            state,
            inode: 0,
        },
        pids,
    })
}

/// include/net/tcp_states.h.
fn number_of(state: &str) -> Option<u8> {
    Some(match state {
        "ESTAB" => 1,
        "SYN-SENT" => 2,
        "SYN-RECV" => 3,
        "FIN-WAIT-1" => 4,
        "FIN-WAIT-2" => 5,
        "TIME-WAIT" => 6,
        "CLOSE-WAIT" => 8,
        "LAST-ACK" => 9,
        "LISTEN" => 10,
        "CLOSING" => 11,
        _ => return None,
    })
}

/// IPv6 in brackets; a port that is none is a star.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let ip = match ip.strip_prefix('[') {
        Some(ip) => ip
            .strip_suffix(']')?
            .parse::<Ipv6Addr>()
            .ok()?
            .to_canonical(),
        None => IpAddr::V4(ip.parse().ok()?),
    };
    let port = if port == "*" { 0 } else { port.parse().ok()? };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_family_and_whoever_holds_it() {
        let shared = r#"CLOSE-WAIT 1 0 127.0.0.1:8080 127.0.0.1:50000 users:(("a b",pid=12,fd=3),("c",pid=7,fd=4),("c",pid=7,fd=5))"#;
        let listed = parse(shared).unwrap();
        assert_eq!(listed.socket.local, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(listed.socket.remote, "127.0.0.1:50000".parse().unwrap());
        assert_eq!(listed.socket.state, 8);
        assert_eq!(listed.pids, BTreeSet::from([7, 12]));
        let listed = parse("LISTEN 0      64   [::1]:8080   [::]:*").unwrap();
        assert_eq!(listed.socket.local, "[::1]:8080".parse().unwrap());
        assert_eq!((listed.socket.state, listed.socket.remote.port()), (10, 0));
        assert_eq!(listed.pids, BTreeSet::new());
        assert_eq!(parse("State Recv-Q Send-Q Local Address:Port"), None);
    }
}
