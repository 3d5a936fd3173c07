//! What a storm can be about, from narrow to wide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::thresholds::Thresholds;
use crate::{
    event::{Comm, Owner, Role, Socket},
    finding::Subject,
    table::connection::ConnectionKey,
};

/// Bits of the network that an address belongs to, as far as routes and owners go: the same as
/// [`conntracer_common::sketch::prefix`].
const V4_PREFIX: u8 = 24;
const V6_PREFIX: u8 = 48;

/// A scope that holds more than one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Wider {
    Remote {
        netns: u32,
        remote: IpAddr,
    },
    Prefix {
        netns: u32,
        prefix: IpAddr,
        length: u8,
    },
    Listener {
        netns: u32,
        local: SocketAddr,
    },
    Process {
        netns: u32,
        pid: u32,
        comm: Comm,
    },
    Netns {
        netns: u32,
    },
    Host,
}

/// Any scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    Connection(ConnectionKey),
    Wider(Wider),
}

/// Scopes wider than a connection that one segment can be in.
pub(super) const LEVELS: usize = 6;

/// What a connection's segments belong to beside it, from narrow to wide. A client has no listener, and not
/// every process is known.
pub(super) fn levels(socket: &Socket, owner: Option<&Owner>) -> [Option<Wider>; LEVELS] {
    let netns = socket.netns;
    let remote = socket.remote.ip();
    let (prefix, length) = network(remote);
    let listens = matches!(socket.role, Role::Passive | Role::Listener);
    [
        Some(Wider::Remote { netns, remote }),
        Some(Wider::Prefix {
            netns,
            prefix,
            length,
        }),
        listens.then_some(Wider::Listener {
            netns,
            local: socket.local,
        }),
        owner.map(|owner| Wider::Process {
            netns,
            pid: owner.pid,
            comm: owner.comm,
        }),
        Some(Wider::Netns { netns }),
        Some(Wider::Host),
    ]
}

fn network(address: IpAddr) -> (IpAddr, u8) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            (Ipv4Addr::new(a, b, c, 0).into(), V4_PREFIX)
        }
        IpAddr::V6(v6) => {
            let [a, b, c, ..] = v6.segments();
            (Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).into(), V6_PREFIX)
        }
    }
}

impl Scope {
    /// Segments a second from which on it storms.
    pub(super) const fn floor(&self, storm: &Thresholds) -> f64 {
        match self {
            Self::Connection(_) => storm.connection_per_s,
            Self::Wider(Wider::Remote { .. }) => storm.remote_per_s,
            Self::Wider(_) => storm.host_per_s,
        }
    }

    /// Whether all of it is one owner's.
    pub(super) const fn is_owned(&self) -> bool {
        matches!(
            self,
            Self::Connection(_) | Self::Wider(Wider::Listener { .. } | Wider::Process { .. })
        )
    }
}

impl Wider {
    pub(super) fn subject(&self) -> Subject {
        match *self {
            Self::Remote { netns, remote } => Subject::Remote { netns, remote },
            Self::Prefix {
                netns,
                prefix,
                length,
            } => Subject::Prefix {
                netns,
                prefix,
                length,
            },
            Self::Listener { netns, local } => Subject::Listener { netns, local },
            Self::Process { netns, pid, comm } => Subject::Process {
                netns,
                pid,
                comm: comm.to_text().into_owned(),
            },
            Self::Netns { netns } => Subject::Netns { netns },
            Self::Host => Subject::Host,
        }
    }

    /// Where its segments go, for a sentence. A process by its number: its name may hold anything.
    pub(super) fn said(&self) -> String {
        match self {
            Self::Remote { remote, .. } => remote.to_string(),
            Self::Prefix { prefix, length, .. } => format!("{prefix}/{length}"),
            Self::Listener { local, .. } => format!("clients of {local}"),
            Self::Process { pid, .. } => format!("many remotes by process {pid}"),
            Self::Netns { netns } => format!("many remotes from netns {netns}"),
            Self::Host => "many remotes".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_of_the_network_that_routes_know() {
        let of = |address: &str| {
            let (prefix, length) = network(address.parse().unwrap());
            format!("{prefix}/{length}")
        };
        assert_eq!(of("192.0.2.77"), "192.0.2.0/24");
        assert_eq!(of("2001:db8:7:8::9"), "2001:db8:7::/48");
    }
}
