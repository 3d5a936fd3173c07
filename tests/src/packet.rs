//! TCP segments made by hand, from addresses that belong to nobody.
//!
//! Sent through a raw socket that includes the IP header, so that no connection of this host stands
//! behind them and nobody answers the SYN-ACK, not even with a RST.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, bail};
use socket2::{Protocol, Socket, Type};

use crate::family::Family;

/// Flags of the TCP header.
pub mod flag {
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;
}

/// A TCP segment, as far as a peer looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// Bits of [`flag`].
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    /// Bytes of data; what is sent from here has none.
    pub bytes: u32,
    /// What the timestamps option says of its time (RFC 7323); what is sent from here has its options apart.
    pub timestamp: Option<u32>,
}

const TCP_HEADER: u16 = 20;
/// Offset of the checksum in the TCP header.
const CHECKSUM_AT: usize = 16;
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
    let segment = bare(source, destination, flag::ACK, sequence(source), number);
    send_segment(family, &segment, &[])
}

/// Sends the RST with which the client of a [`send_syn`] takes it back.
pub fn send_rst(family: Family, source: SocketAddr, destination: SocketAddr) -> Result<()> {
    let next = sequence(source) + 1;
    send_segment(family, &bare(source, destination, flag::RST, next, 0), &[])
}

/// Sends one segment without data, with TCP options of a whole number of words.
pub fn send_segment(family: Family, segment: &Segment, options: &[u8]) -> Result<()> {
    send(family, &packet(segment, options)?, segment.destination)
}

/// Says by ICMP of a segment that it was too large for the path, which carries packets of `mtu` bytes at most
/// (RFC 1191, RFC 8201), in the name of its destination.
pub fn send_too_big(family: Family, about: &Segment, mtu: u16) -> Result<()> {
    let (protocol, kind) = match family {
        Family::V4 => (ICMP, [3, 4]),
        Family::V6 => (ICMP_V6, [2, 0]),
    };
    send_icmp(family, about, protocol, kind, mtu.into())
}

/// Says by ICMP of a segment of IPv4 that there is no way to its destination, in the name of that.
pub fn send_unreachable(about: &Segment) -> Result<()> {
    const HOST_UNREACHABLE: [u8; 2] = [3, 1];
    send_icmp(Family::V4, about, ICMP, HOST_UNREACHABLE, 0)
}

fn send_icmp(
    family: Family,
    about: &Segment,
    protocol: u8,
    kind: [u8; 2],
    rest: u32,
) -> Result<()> {
    let mut body = kind.to_vec();
    body.extend([0; 2]);
    body.extend(rest.to_be_bytes());
    body.extend(packet(about, &[])?);
    let (from, to) = (about.destination, about.source);
    let packet = enclose(from.ip(), to.ip(), protocol, body, 2)?;
    send(family, &packet, to)
}

/// Sends one SYN from each of `sources`, as fast as batches of [`BATCH`] go. The kernel may drop some
/// on the way: its counters tell how many came.
pub fn flood(sources: impl Iterator<Item = SocketAddrV4>, destination: SocketAddrV4) -> Result<()> {
    let raw = raw(Family::V4)?;
    raw.connect(&SocketAddr::from(SocketAddrV4::new(*destination.ip(), 0)).into())
        .context("connecting a raw socket")?;
    let mut sources = sources.peekable();
    while sources.peek().is_some() {
        let packets = sources
            .by_ref()
            .take(BATCH)
            .map(|source| syn(source.into(), destination.into()))
            .collect::<Result<Vec<_>>>()?;
        send_batch(&raw, &packets)?;
    }
    Ok(())
}

/// Packets per system call.
const BATCH: usize = 64;

fn send_batch(raw: &Socket, packets: &[Vec<u8>]) -> Result<()> {
    let mut parts: Vec<libc::iovec> = packets
        .iter()
        .map(|packet| libc::iovec {
            iov_base: packet.as_ptr().cast_mut().cast(),
            iov_len: packet.len(),
        })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = parts
        .iter_mut()
        .map(|part| {
            // SAFETY: all zero is a valid mmsghdr: null pointers with no lengths.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let mut sent = 0;
    while let Some(rest) = messages.get_mut(sent..).filter(|rest| !rest.is_empty()) {
        let count = libc::c_uint::try_from(rest.len()).context("a batch of a few packets")?;
        // SAFETY: `rest` is `count` messages, whose parts and packets outlive the call.
        let done = unsafe { libc::sendmmsg(raw.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
        if let Ok(done) = usize::try_from(done) {
            sent += done;
        } else {
            let error = std::io::Error::last_os_error();
            // The queue of the interface is full: this one is lost, as on a real wire.
            if error.raw_os_error() != Some(libc::ENOBUFS) {
                return Err(error).context("sending SYNs");
            }
            sent += 1;
        }
    }
    Ok(())
}

fn raw(family: Family) -> Result<Socket> {
    Socket::new(
        family.domain(),
        Type::RAW,
        Some(Protocol::from(libc::IPPROTO_RAW)),
    )
    .context("making a raw socket; this needs CAP_NET_RAW")
}

fn send(family: Family, packet: &[u8], destination: SocketAddr) -> Result<()> {
    // A raw IPv6 socket takes no port; a raw IPv4 one ignores it.
    let to = SocketAddr::new(destination.ip(), 0);
    raw(family)?
        .send_to(packet, &to.into())
        .with_context(|| format!("sending a segment to {destination}"))?;
    Ok(())
}

/// Any initial sequence number will do; one per port tells the SYNs apart in a capture.
fn sequence(source: SocketAddr) -> u32 {
    u32::from(source.port())
}

fn syn(source: SocketAddr, destination: SocketAddr) -> Result<Vec<u8>> {
    packet(
        &bare(source, destination, flag::SYN, sequence(source), 0),
        &[],
    )
}

const fn bare(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    seq: u32,
    ack: u32,
) -> Segment {
    Segment {
        source,
        destination,
        flags,
        seq,
        ack,
        bytes: 0,
        timestamp: None,
    }
}

fn packet(segment: &Segment, options: &[u8]) -> Result<Vec<u8>> {
    let Segment {
        source,
        destination,
        ..
    } = *segment;
    let length = TCP_HEADER + u16::try_from(options.len()).context("options of a few words")?;
    let mut tcp = Vec::with_capacity(usize::from(length));
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(destination.port().to_be_bytes());
    tcp.extend(segment.seq.to_be_bytes());
    tcp.extend(segment.ack.to_be_bytes());
    // Header length in 32-bit words, in the upper half of the byte.
    let words = u8::try_from(length / 4).context("a TCP header of at most 60 bytes")?;
    tcp.extend([words << 4, segment.flags]);
    tcp.extend(WINDOW.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(options);

    enclose(source.ip(), destination.ip(), TCP, tcp, CHECKSUM_AT)
}

/// What IP carries, as its header numbers it.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMP_V6: u8 = 58;

/// Puts an IP header before `body`, and into `body` its checksum.
fn enclose(
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    mut body: Vec<u8>,
    checksum_at: usize,
) -> Result<Vec<u8>> {
    let length = u16::try_from(body.len()).context("a packet of at most 64 kB")?;
    let (mut ip, pseudo) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + length).to_be_bytes());
            ip.extend([0, 0, 0, 0, TTL, protocol, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend([0, protocol]);
            pseudo.extend(length.to_be_bytes());
            // ICMP stands for itself.
            (ip, if protocol == ICMP { Vec::new() } else { pseudo })
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend(length.to_be_bytes());
            ip.extend([protocol, TTL]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let mut pseudo = [from.octets(), to.octets()].concat();
            pseudo.extend(u32::from(length).to_be_bytes());
            pseudo.extend([0, 0, 0, protocol]);
            (ip, pseudo)
        }
        _ => bail!("{from} and {to} are of different families"),
    };
    let sum = checksum(&[pseudo, body.clone()].concat());
    body[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    ip.extend(body);
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
        let v4 = syn(
            "10.0.0.9:1".parse().unwrap(),
            "10.0.0.1:80".parse().unwrap(),
        )
        .unwrap();
        let v6 = syn(
            "[fd00::9]:1".parse().unwrap(),
            "[fd00::1]:80".parse().unwrap(),
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
            syn(
                "10.0.0.9:1".parse().unwrap(),
                "[fd00::1]:80".parse().unwrap()
            )
            .is_err()
        );
    }
}
