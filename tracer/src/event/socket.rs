//! Which socket an event is about.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use conntracer_common::{
    record::{self, role, socket_flag},
    tcp::{AF_INET, state},
};
use serde::Serialize;

use crate::{id::SocketId, time::Ktime};

/// `TCP_*` states of include/net/tcp_states.h, spelled as OpenTelemetry's `network.connection.state`
/// when serialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpState {
    Established,
    SynSent,
    #[serde(rename = "syn_received")]
    SynRecv,
    #[serde(rename = "fin_wait_1")]
    FinWait1,
    #[serde(rename = "fin_wait_2")]
    FinWait2,
    TimeWait,
    #[serde(rename = "closed")]
    Close,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// A request socket before its third ACK; the kernel shows it as SYN_RECV.
    NewSynRecv,
    /// No socket, or a number no supported kernel uses.
    Unknown,
}

impl From<u8> for TcpState {
    fn from(number: u8) -> Self {
        Self::of(number)
    }
}

impl TcpState {
    pub(super) const fn of(number: u8) -> Self {
        match number {
            state::ESTABLISHED => Self::Established,
            state::SYN_SENT => Self::SynSent,
            state::SYN_RECV => Self::SynRecv,
            state::FIN_WAIT1 => Self::FinWait1,
            state::FIN_WAIT2 => Self::FinWait2,
            state::TIME_WAIT => Self::TimeWait,
            state::CLOSE => Self::Close,
            state::CLOSE_WAIT => Self::CloseWait,
            state::LAST_ACK => Self::LastAck,
            state::LISTEN => Self::Listen,
            state::CLOSING => Self::Closing,
            state::NEW_SYN_RECV => Self::NewSynRecv,
            _ => Self::Unknown,
        }
    }

    /// As the kernel's headers write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Established => "ESTABLISHED",
            Self::SynSent => "SYN_SENT",
            Self::SynRecv | Self::NewSynRecv => "SYN_RECV",
            Self::FinWait1 => "FIN_WAIT1",
            Self::FinWait2 => "FIN_WAIT2",
            Self::TimeWait => "TIME_WAIT",
            Self::Close => "CLOSE",
            Self::CloseWait => "CLOSE_WAIT",
            Self::LastAck => "LAST_ACK",
            Self::Listen => "LISTEN",
            Self::Closing => "CLOSING",
            Self::Unknown => "an unknown state",
        }
    }
}

/// Which side opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Unknown,
    Active,
    Passive,
    Listener,
}

/// Which socket, and where it stands. A remote end that is not known is the any-address with port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub id: SocketId,
    pub netns: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub state: TcpState,
    pub role: Role,
    /// Its birth was not seen: it is older than conntracer.
    pub older: bool,
}

impl Socket {
    pub(super) fn decode(raw: &record::Socket) -> Self {
        let addr = |words: &[u32; 4], port| SocketAddr::new(address(words, raw.family), port);
        Self {
            id: SocketId {
                sk: raw.sk,
                born: Ktime(raw.born_ns),
            },
            netns: raw.netns,
            local: addr(&raw.local_addr, raw.local_port),
            remote: addr(&raw.remote_addr, raw.remote_port),
            state: raw.state.into(),
            role: match raw.role {
                role::ACTIVE => Role::Active,
                role::PASSIVE => Role::Passive,
                role::LISTENER => Role::Listener,
                _ => Role::Unknown,
            },
            older: raw.flags & socket_flag::OLDER != 0,
        }
    }
}

/// An address as its packets carry it: v4-mapped is IPv4 whatever the socket's family, and an
/// unset address takes the family's any-address.
pub(super) fn address(words: &[u32; 4], family: u16) -> IpAddr {
    let mut octets = [0; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(words) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let v6 = Ipv6Addr::from(octets);
    match v6.to_ipv4_mapped() {
        Some(v4) => v4.into(),
        None if family == AF_INET && v6.is_unspecified() => Ipv4Addr::UNSPECIFIED.into(),
        None => v6.into(),
    }
}

#[cfg(test)]
mod tests {
    use conntracer_common::tcp::AF_INET6;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::v4([0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, 1])], AF_INET, "10.0.0.1")]
    #[case::v4_on_a_dual_stack_socket(
        [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, 0, 1])], AF_INET6, "10.0.0.1"
    )]
    #[case::v6([0xfd00_0000_u32.to_be(), 0, 0, 1_u32.to_be()], AF_INET6, "fd00::1")]
    #[case::any_v4([0; 4], AF_INET, "0.0.0.0")]
    #[case::any_v6([0; 4], AF_INET6, "::")]
    fn addresses_are_what_packets_carry(
        #[case] words: [u32; 4],
        #[case] family: u16,
        #[case] expected: &str,
    ) {
        assert_eq!(address(&words, family).to_string(), expected);
    }
}
