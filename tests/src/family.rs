//! The two address families, and the addresses every scenario uses.
//!
//! The addresses are the same in all of them: each scenario has network namespaces of its own, so
//! nothing can collide.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::Domain;

/// Port of the only listener. Fixed, because a namespace of its own has no other user of it.
pub const SERVER_PORT: u16 = 8080;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    #[must_use]
    pub const fn domain(self) -> Domain {
        match self {
            Self::V4 => Domain::IPV4,
            Self::V6 => Domain::IPV6,
        }
    }

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Bits of an address.
    #[must_use]
    pub const fn host_len(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    #[must_use]
    pub const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    /// The server's end of a veth pair.
    #[must_use]
    pub const fn server(self) -> IpAddr {
        self.host(1)
    }

    /// The client's end of a veth pair.
    #[must_use]
    pub const fn client(self) -> IpAddr {
        self.host(2)
    }

    /// An address on the link that nobody has: what is sent there is heard by nobody.
    #[must_use]
    pub const fn ghost(self) -> IpAddr {
        self.host(99)
    }

    /// An address of another network, to which a veth pair has no route (RFC 5737, RFC 3849).
    #[must_use]
    pub const fn stranger(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
        }
    }

    /// An address of a third network, for the client to have for a while.
    #[must_use]
    pub const fn lent(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 5)),
        }
    }

    /// An address that a route forbids to send to.
    #[must_use]
    pub const fn forbidden(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 66)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 66)),
        }
    }

    /// Bits of the link's prefix.
    #[must_use]
    pub const fn prefix_len(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    /// The listener's address on the loopback interface.
    #[must_use]
    pub const fn loopback_listener(self) -> SocketAddr {
        SocketAddr::new(self.loopback(), SERVER_PORT)
    }

    /// The listener's address on a veth pair.
    #[must_use]
    pub const fn veth_listener(self) -> SocketAddr {
        self.veth_listener_on(SERVER_PORT)
    }

    /// The same for one listener of several.
    #[must_use]
    pub const fn veth_listener_on(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server(), port)
    }

    const fn host(self, number: u8) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::new(10, 77, 0, number)),
            Self::V6 => IpAddr::V6(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number as u16)),
        }
    }
}
