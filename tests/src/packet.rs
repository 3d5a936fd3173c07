//! TCP segments made by hand, from addresses that belong to nobody.
//!
//! Sent through a raw socket that includes the IP header, so that no connection of this host stands
//! behind them and nobody answers the SYN-ACK, not even with a RST.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use socket2::{Protocol, Socket, Type};

use crate::family::Family;

const TCP_HEADER: u16 = 20;
/// Offset of the checksum in the TCP header.
const CHECKSUM_AT: usize = 16;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
/// What a sender without window scaling may offer at most.
const WINDOW: u16 = u16::MAX;
const TTL: u8 = 64;

/// Sends one SYN from `source` to `destination`, in the calling thread's namespace.
pub fn send_syn(family: Family, source: SocketAddr, destination: SocketAddr) -> Result<()> {
    send(family, &syn(source, destination)?, destination)
}

/// Sends one SYN whose TCP checksum is wrong.
pub fn send_damaged_syn(family: Family, source: SocketAddr, destination: SocketAddr) -> Result<()> {
    let mut packet = syn(source, destination)?;
    let checksum = packet.len() - usize::from(TCP_HEADER) + CHECKSUM_AT;
    packet[checksum] ^= 0xff;
    send(family, &packet, destination)
}

/// Sends one bare ACK of `number` from `source` to `destination`, in the calling thread's namespace.
pub fn send_ack(
    family: Family,
    source: SocketAddr,
    destination: SocketAddr,
    number: u32,
) -> Result<()> {
    let packet = segment(source, destination, ACK, number)?;
    send(family, &packet, destination)
}

fn syn(source: SocketAddr, destination: SocketAddr) -> Result<Vec<u8>> {
    segment(source, destination, SYN, 0)
}

fn send(family: Family, packet: &[u8], destination: SocketAddr) -> Result<()> {
    let raw = Socket::new(
        family.domain(),
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )
    .context("making a raw socket; this needs CAP_NET_RAW")?;
    // A raw IPv6 socket takes no port; a raw IPv4 one ignores it.
    let to = SocketAddr::new(destination.ip(), 0);
    raw.send_to(packet, &to.into())
        .with_context(|| format!("sending a segment to {destination}"))?;
    Ok(())
}

fn segment(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    acknowledged: u32,
) -> Result<Vec<u8>> {
    let mut tcp = Vec::with_capacity(usize::from(TCP_HEADER));
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(destination.port().to_be_bytes());
    // Any initial sequence number will do; one per port tells the SYNs apart in a capture.
    tcp.extend(u32::from(source.port()).to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    // Header length in 32-bit words, in the upper half of the byte.
    tcp.extend([5 << 4, flags]);
    tcp.extend(WINDOW.to_be_bytes());
    tcp.extend([0; 4]);

    let (mut ip, pseudo) = match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + TCP_HEADER).to_be_bytes());
            ip.extend([0, 0, 0, 0, TTL, 6, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend([0, 6]);
            pseudo.extend(TCP_HEADER.to_be_bytes());
            (ip, pseudo)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend(TCP_HEADER.to_be_bytes());
            ip.extend([6, TTL]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend(u32::from(TCP_HEADER).to_be_bytes());
            pseudo.extend([0, 0, 0, 6]);
            (ip, pseudo)
        }
        _ => bail!("{source} and {destination} are of different families"),
    };
    let sum = checksum(&[pseudo, tcp.clone()].concat());
    tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
    ip.extend(tcp);
    Ok(ip)
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks_exact(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits above")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of RFC 1071, section 3: the sum is ddf2.
    #[test]
    fn checksum_of_the_rfc_example() {
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            !0xddf2
        );
    }

    #[test]
    fn a_syn_is_as_long_as_its_headers() {
        let v4 = segment(
            "10.0.0.9:1".parse().unwrap(),
            "10.0.0.1:80".parse().unwrap(),
            SYN,
            0,
        )
        .unwrap();
        let v6 = segment(
            "[fd00::9]:1".parse().unwrap(),
            "[fd00::1]:80".parse().unwrap(),
            SYN,
            0,
        )
        .unwrap();
        assert_eq!((v4.len(), v6.len()), (40, 60));
        assert_eq!(
            checksum(&v4[..20]),
            0,
            "a header that holds its checksum sums to zero"
        );
    }

    #[test]
    fn mixed_families_are_refused() {
        assert!(
            segment(
                "10.0.0.9:1".parse().unwrap(),
                "[fd00::1]:80".parse().unwrap(),
                SYN,
                0
            )
            .is_err()
        );
    }
}
