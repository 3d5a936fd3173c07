//! Interfaces: the loopback, and pairs of veth between two namespaces, set up over netlink.
//!
//! Nothing on a pair is left to chance or time: fixed hardware addresses, permanent neighbour
//! entries on both sides (no ARP, no neighbour discovery), no duplicate address detection, and both
//! ends are known to be up before the first packet.

use std::{
    net::{IpAddr, Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags},
    link::{InfoData, InfoVeth, LinkAttribute, State},
    neighbour::{NeighbourAddress, NeighbourAttribute},
    route::RouteType,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::{
    family::Family,
    netlink::{find, set_up, with_handle},
    netns::NetNs,
    socket::{Connection, connect_without_waiting, listen, tcp},
    wait::{self, SOON},
};

/// Name of the server's interface.
pub const SERVER: &str = "ct-server";
/// And of the client's.
pub const CLIENT: &str = "ct-client";

/// Locally administered, and different from each other; the last belongs to no interface.
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GHOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 99];

/// Two namespaces joined by a veth pair, with the addresses of both families.
#[derive(Clone, Debug)]
pub struct Pair {
    pub server: NetNs,
    pub client: NetNs,
}

impl Pair {
    pub fn new() -> Result<Self> {
        let server = NetNs::new()?;
        let client = NetNs::new()?;
        let client_fd = client.fd().as_raw_fd();
        server.run(|| {
            with_handle(async |handle: &Handle| {
                let peer = LinkMessageBuilder::<LinkUnspec>::new()
                    .name(CLIENT)
                    .address(CLIENT_MAC.to_vec())
                    .setns_by_fd(client_fd)
                    .build();
                let pair = LinkMessageBuilder::<LinkVeth>::new(SERVER, CLIENT)
                    .address(SERVER_MAC.to_vec())
                    .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
                    .build();
                handle
                    .link()
                    .add(pair)
                    .execute()
                    .await
                    .context("making a veth pair")
            })
        })?;
        server.run(|| set_up(SERVER))?;
        client.run(|| set_up(CLIENT))?;
        server.run(|| wait_up(SERVER))?;
        client.run(|| wait_up(CLIENT))?;
        for family in [Family::V4, Family::V6] {
            server.run(|| {
                address(SERVER, family.server(), family.prefix_len())?;
                neighbour(SERVER, family.client(), CLIENT_MAC)?;
                neighbour(SERVER, family.ghost(), GHOST_MAC)
            })?;
            client.run(|| {
                address(CLIENT, family.client(), family.prefix_len())?;
                neighbour(CLIENT, family.server(), SERVER_MAC)
            })?;
        }
        for family in [Family::V4, Family::V6] {
            wait_passable((&client, family.client()), (&server, family.server()))?;
            wait_passable((&server, family.server()), (&client, family.client()))?;
        }
        Ok(Self { server, client })
    }
}

impl Pair {
    /// Routes an IPv4 network from the server to the client, who is not in it: what the server sends
    /// there vanishes without a word.
    pub fn route_to_nowhere(&self, network: Ipv4Addr, prefix_len: u8) -> Result<()> {
        let IpAddr::V4(gateway) = Family::V4.client() else {
            unreachable!("an address of IPv4");
        };
        self.server.run(|| {
            with_handle(async |handle: &Handle| {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(network, prefix_len)
                    .gateway(gateway)
                    .build();
                handle
                    .route()
                    .add(route)
                    .execute()
                    .await
                    .with_context(|| format!("adding a route to {network}/{prefix_len}"))
            })
        })
    }

    /// Gives the client one more address, to which the server finds its way.
    pub fn lend(&self, lent: IpAddr) -> Result<()> {
        let family = Family::of(lent);
        self.client
            .run(|| address(CLIENT, lent, family.host_len()))?;
        self.route(lent, RouteType::Unicast)?;
        wait_passable((&self.client, lent), (&self.server, family.server()))?;
        wait_passable((&self.server, family.server()), (&self.client, lent))
    }

    /// Takes it from the client again, who says by ICMP that there is no way to it.
    pub fn withdraw(&self, lent: IpAddr) -> Result<()> {
        self.client.set_sysctl("net/ipv4/ip_forward", "1")?;
        self.client
            .set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        self.client.run(|| {
            with_handle(async |handle: &Handle| {
                let message = handle
                    .address()
                    .get()
                    .set_address_filter(lent)
                    .execute()
                    .try_next()
                    .await
                    .with_context(|| format!("asking for {lent}"))?
                    .with_context(|| format!("no address {lent}"))?;
                handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .with_context(|| format!("removing {lent}"))
            })
        })
    }

    /// Forbids the server to send to an address.
    pub fn prohibit(&self, address: IpAddr) -> Result<()> {
        self.route(address, RouteType::Prohibit)
    }

    fn route(&self, to: IpAddr, kind: RouteType) -> Result<()> {
        let family = Family::of(to);
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(to, family.host_len())
            .with_context(|| format!("a route to {to}"))?
            .kind(kind);
        let route = if kind == RouteType::Unicast {
            route
                .gateway(family.client())
                .with_context(|| format!("a route to {to} by the client"))?
        } else {
            route
        };
        self.server.run(|| {
            with_handle(async |handle: &Handle| {
                handle
                    .route()
                    .add(route.build())
                    .execute()
                    .await
                    .with_context(|| format!("adding a route to {to}"))
            })
        })
    }

    /// Takes the server's way to a [lent](Self::lend) address away.
    pub fn forget_way(&self, lent: IpAddr) -> Result<()> {
        let family = Family::of(lent);
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(lent, family.host_len())
            .with_context(|| format!("a route to {lent}"))?
            .gateway(family.client())
            .with_context(|| format!("a route to {lent} by the client"))?;
        self.server.run(|| {
            with_handle(async |handle: &Handle| {
                handle
                    .route()
                    .del(route.build())
                    .execute()
                    .await
                    .with_context(|| format!("removing the route to {lent}"))
            })
        })
    }

    /// A connection from the client to a listener of the server, which is closed by then.
    pub fn connect(&self, family: Family) -> Result<Connection> {
        let address = family.veth_listener();
        let listener = self.server.run(|| listen(family, address, 1))?;
        let client = self.client.run(|| {
            let client = tcp(family)?;
            connect_without_waiting(&client, address)?;
            Ok(client)
        })?;
        self.server.run(|| Connection::accept(&listener, client))
    }

    /// Takes the server's interface away, with its addresses and routes, and the client's with it.
    pub fn unplug(&self) -> Result<()> {
        self.server.run(|| {
            with_handle(async |handle: &Handle| {
                let index = find(handle, SERVER).await?.header.index;
                handle
                    .link()
                    .del(index)
                    .execute()
                    .await
                    .with_context(|| format!("removing {SERVER}"))
            })
        })
    }

    /// Makes the client one that does not answer when the server asks for its hardware address, which it has to from now
    /// on: an IPv4 neighbour that is gone.
    pub fn forget_neighbour(&self) -> Result<()> {
        /// To no question.
        const NEVER: &str = "8";
        self.client
            .set_sysctl(&format!("net/ipv4/conf/{CLIENT}/arp_ignore"), NEVER)?;
        self.server.run(|| {
            with_handle(async |handle: &Handle| {
                let client = Family::V4.client();
                let mut known = handle.neighbours().get().execute();
                while let Some(message) =
                    known.try_next().await.context("asking for neighbours")?
                {
                    let is_client = message.attributes.iter().any(|attribute| {
                        matches!(attribute, NeighbourAttribute::Destination(NeighbourAddress::Inet(address))
                            if *address == client)
                    });
                    if is_client {
                        return handle
                            .neighbours()
                            .del(message)
                            .execute()
                            .await
                            .with_context(|| format!("forgetting {client}"));
                    }
                }
                bail!("no neighbour {client}");
            })
        })
    }

    /// Takes the client's end down: the server's loses its carrier.
    pub fn cut(&self) -> Result<()> {
        self.client.run(|| {
            with_handle(async |handle: &Handle| {
                let index = find(handle, CLIENT).await?.header.index;
                let message = LinkUnspec::new_with_index(index).down().build();
                handle
                    .link()
                    .set(message)
                    .execute()
                    .await
                    .with_context(|| format!("setting {CLIENT} down"))
            })
        })
    }

    /// Ends [`Pair::cut`]. The neighbours that the client knew are gone, and so is its address of IPv6.
    pub fn mend(&self) -> Result<()> {
        self.client.run(|| set_up(CLIENT))?;
        self.client.run(|| wait_up(CLIENT))?;
        let family = Family::V6;
        self.client
            .run(|| address(CLIENT, family.client(), family.prefix_len()))?;
        for family in [Family::V4, Family::V6] {
            self.client
                .run(|| neighbour(CLIENT, family.server(), SERVER_MAC))?;
        }
        Ok(())
    }

    /// Waits until what the calling CPU sent from the client before has arrived at the server: packets
    /// of one CPU do not overtake each other on a veth pair. `netns.run` on a pinned thread.
    pub fn wait_drained(&self) -> Result<()> {
        wait_passable(
            (&self.client, Family::V4.client()),
            (&self.server, Family::V4.server()),
        )
    }
}

/// Sends datagrams until one arrives: the local route of an IPv6 address is made by a kernel worker
/// (`addrconf_dad_work`, even without duplicate address detection), and until then what comes for
/// it is dropped.
fn wait_passable(from: (&NetNs, IpAddr), to: (&NetNs, IpAddr)) -> Result<()> {
    let bind = |(netns, address): (&NetNs, IpAddr)| {
        netns.run(|| {
            UdpSocket::bind((address, 0)).with_context(|| format!("binding a socket to {address}"))
        })
    };
    let (sender, receiver) = (bind(from)?, bind(to)?);
    receiver
        .set_nonblocking(true)
        .context("setting O_NONBLOCK")?;
    let destination = receiver
        .local_addr()
        .context("reading a socket's address")?;
    wait::until("a datagram to cross the veth pair", SOON, || {
        // Refused as long as there is no route.
        let is_sent = sender.send_to(&[0], destination).is_ok();
        Ok((is_sent && receiver.recv(&mut [0]).is_ok()).then_some(()))
    })
}

/// Until then packets meet the noop queue discipline and vanish: `dev_activate` runs in a kernel
/// worker once both ends have carrier, together with the change of operational state.
fn wait_up(name: &str) -> Result<()> {
    wait::until(&format!("{name} to have carrier"), SOON, || {
        let link = with_handle(async |handle: &Handle| find(handle, name).await)?;
        let is_up = link
            .attributes
            .iter()
            .any(|attribute| matches!(attribute, LinkAttribute::OperState(State::Up)));
        Ok(is_up.then_some(()))
    })
}

fn address(name: &str, address: IpAddr, prefix_len: u8) -> Result<()> {
    with_handle(async |handle: &Handle| {
        let index = find(handle, name).await?.header.index;
        let mut request = handle.address().add(index, address, prefix_len);
        if address.is_ipv6() {
            let message = request.message_mut();
            message.header.flags |= AddressHeaderFlags::Nodad;
            message
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request
            .execute()
            .await
            .with_context(|| format!("adding {address} to {name}"))
    })
}

fn neighbour(name: &str, address: IpAddr, mac: [u8; 6]) -> Result<()> {
    with_handle(async |handle: &Handle| {
        let index = find(handle, name).await?.header.index;
        handle
            .neighbours()
            .add(index, address)
            .link_layer_address(&mac)
            // Some kernels keep permanent ones of an interface that went down.
            .replace()
            .execute()
            .await
            .with_context(|| format!("adding neighbour {address} to {name}"))
    })
}
