//! A TCP peer that is a script: it hears what a socket of this host sends to an address that nobody has, and
//! answers with the segments that it is told to, so that every pattern of loss can be shown one by one.
//!
//! It hears through a packet socket behind a veth pair and answers through a raw one (see
//! [`crate::packet`]), so that the kernel it stands on takes no part.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    family::{Family, SERVER_PORT},
    link::Pair,
    netns::NetNs,
    packet::{self, Segment, flag},
    socket::{abort_on_close, connect_with_data, connect_without_waiting, listen, tcp},
    wait::SOON,
};

/// What the peer offers: ten segments are an initial window's (RFC 6928).
const MSS: u16 = 1000;
/// Bytes of the timestamps option with its padding.
const TIMESTAMPS_BYTES: u16 = 12;
/// Bytes of one segment of the script.
pub const SEGMENT: u32 = MSS as u32;
const ISN: u32 = 7_000_000;
/// More than the largest packet that segmentation is put off for.
const BUFFER: usize = 128 * 1024;

/// One line of a script. Numbers are bytes of the stream, from 0.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The application writes so many bytes.
    Write(u32),
    /// The peer waits for the next segment that holds this byte.
    Hear(u32),
    /// The peer acknowledges all before a byte, and what it has of the rest; a block before that byte
    /// tells what came twice (RFC 2883). Where it takes part in timestamps, it echoes the first segment heard
    /// since the last write: what came later says nothing.
    Ack(u32, &'static [(u32, u32)]),
    /// A router says of the segment that begins with a byte that the path carries packets of so many bytes.
    TooBig(u32, u16),
}

/// What a connection to the peer goes through.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a> {
    /// SYNs that are lost at first.
    pub lost_syns: u32,
    /// Whether the peer takes part in timestamps (RFC 7323).
    pub timestamps: bool,
    pub steps: &'a [Step],
}

/// See the module.
#[derive(Debug)]
pub struct Peer {
    family: Family,
    netns: NetNs,
    heard: Socket,
    address: SocketAddr,
}

impl Peer {
    /// A peer behind `pair`, at the address that nobody has.
    pub fn new(pair: &Pair, family: Family, port: u16) -> Result<Self> {
        let protocol = match family {
            Family::V4 => libc::ETH_P_IP,
            Family::V6 => libc::ETH_P_IPV6,
        };
        let protocol = u16::try_from(protocol)?.to_be();
        let heard = pair.client.run(|| {
            Socket::new(
                Domain::PACKET,
                Type::DGRAM,
                Some(Protocol::from(i32::from(protocol))),
            )
            .context("making a packet socket; this needs CAP_NET_RAW")
        })?;
        heard
            .set_read_timeout(Some(SOON))
            .context("setting SO_RCVTIMEO")?;
        Ok(Self {
            family,
            netns: pair.client.clone(),
            heard,
            address: SocketAddr::new(family.ghost(), port),
        })
    }

    /// Plays `script` on a new connection from the server of `pair`. Its end sends a RST at most.
    pub fn play(&self, pair: &Pair, script: &Script<'_>) -> Result<Socket> {
        let socket = pair.server.run(|| -> Result<Socket> {
            let socket = tcp(self.family)?;
            connect_without_waiting(&socket, self.address)?;
            Ok(socket)
        })?;
        abort_on_close(&socket)?;
        let is_syn = |segment: &Segment| segment.flags == flag::SYN;
        for _ in 0..script.lost_syns {
            self.hear(is_syn).context("hearing a SYN to lose")?;
        }
        let syn = self.hear(is_syn).context("hearing a SYN")?;
        let echo = syn.timestamp.filter(|_| script.timestamps);
        // A segment holds less by the option that comes with it.
        let mss = if echo.is_some() {
            MSS + TIMESTAMPS_BYTES
        } else {
            MSS
        };
        let offer = [
            &[2, 4][..],
            &mss.to_be_bytes(),
            &[1, 1, 4, 2],
            &timestamps(echo),
        ]
        .concat();
        self.say(&syn, flag::SYN | flag::ACK, ISN, syn.seq + 1, &offer)?;
        self.hear(|segment| segment.flags & flag::ACK != 0)
            .context("hearing the third ACK")?;
        let mut echoed = None;
        for step in script.steps {
            let heard = self
                .step(&socket, &syn, echoed, *step)
                .with_context(|| format!("{step:?} of {script:?}"))?;
            if let Step::Write(_) = step {
                echoed = None;
            } else if script.timestamps {
                echoed = echoed.or(heard);
            }
        }
        Ok(socket)
    }

    /// A connection from the server of `pair` that sends so many bytes with its SYN (RFC 7413), of which the peer
    /// acknowledges the SYN alone, and then what is sent again.
    pub fn take_the_syn_alone(&self, pair: &Pair, bytes: u16) -> Result<Socket> {
        // Client, and without a cookie.
        pair.server.set_sysctl("net/ipv4/tcp_fastopen", "5")?;
        let socket = pair.server.run(|| -> Result<Socket> {
            let socket = tcp(self.family)?;
            connect_with_data(&socket)?;
            connect_without_waiting(&socket, self.address)?;
            std::io::Write::write_all(&mut &socket, &vec![0; bytes.into()])
                .context("writing with the SYN")?;
            Ok(socket)
        })?;
        abort_on_close(&socket)?;
        let syn = self
            .hear(|segment| segment.flags & flag::SYN != 0 && segment.bytes > 0)
            .context("hearing a SYN with data")?;
        let offer = [&[2, 4][..], &MSS.to_be_bytes(), &[1, 1, 4, 2]].concat();
        self.say(&syn, flag::SYN | flag::ACK, ISN, syn.seq + 1, &offer)?;
        for step in [Step::Hear(0), Step::Ack(bytes.into(), &[])] {
            self.step(&socket, &syn, None, step)
                .with_context(|| format!("{step:?}"))?;
        }
        Ok(socket)
    }

    /// Does one step, and says the timestamp of what it heard.
    fn step(
        &self,
        mut socket: &Socket,
        syn: &Segment,
        echoed: Option<u32>,
        step: Step,
    ) -> Result<Option<u32>> {
        let first = syn.seq.wrapping_add(1);
        match step {
            Step::TooBig(byte, mtu) => {
                let about = Segment {
                    flags: flag::ACK,
                    seq: first.wrapping_add(byte),
                    ack: ISN + 1,
                    ..*syn
                };
                self.netns
                    .run(|| packet::send_too_big(self.family, &about, mtu))
                    .map(|()| None)
            }
            Step::Write(bytes) => std::io::Write::write_all(&mut socket, &vec![0; bytes as usize])
                .context("writing to a scripted peer")
                .map(|()| None),
            Step::Hear(byte) => {
                let wanted = first.wrapping_add(byte);
                self.hear(|segment| wanted.wrapping_sub(segment.seq) < segment.bytes)
                    .map(|heard| heard.timestamp)
            }
            Step::Ack(byte, blocks) => {
                let edge = |byte: &u32| first.wrapping_add(*byte).to_be_bytes();
                let mut options = timestamps(echoed);
                if !blocks.is_empty() {
                    options.extend([1, 1, 5, u8::try_from(2 + 8 * blocks.len())?]);
                    for (from, to) in blocks {
                        options.extend(edge(from));
                        options.extend(edge(to));
                    }
                }
                self.say(syn, flag::ACK, ISN + 1, first.wrapping_add(byte), &options)
                    .map(|()| None)
            }
        }
    }

    /// Asks a listener of the server of `pair` for a connection, loses its SYN-ACK once, and takes back what it
    /// asked for.
    pub fn lose_syn_ack(&self, pair: &Pair) -> Result<()> {
        let address = SocketAddr::new(self.family.server(), SERVER_PORT);
        let listener = pair.server.run(|| listen(self.family, address, 1))?;
        self.netns
            .run(|| packet::send_syn(self.family, self.address, address))?;
        for which in ["a SYN-ACK to lose", "its repeat"] {
            self.hear(|segment| segment.flags == flag::SYN | flag::ACK)
                .with_context(|| format!("hearing {which}"))?;
        }
        self.netns
            .run(|| packet::send_rst(self.family, self.address, address))?;
        drop(listener);
        Ok(())
    }

    /// Asks a listener of the server at `address` for a connection, is called unreachable by ICMP, which ends the request,
    /// and acknowledges the SYN-ACK then.
    pub fn acknowledge_too_late(&self, address: SocketAddr) -> Result<()> {
        self.netns
            .run(|| packet::send_syn(self.family, self.address, address))?;
        let syn_ack = self
            .hear(|segment| segment.flags == flag::SYN | flag::ACK)
            .context("hearing a SYN-ACK")?;
        self.netns.run(|| {
            packet::send_unreachable(&syn_ack)?;
            packet::send_segment(
                self.family,
                &Segment {
                    source: self.address,
                    destination: address,
                    flags: flag::ACK,
                    seq: syn_ack.ack,
                    ack: syn_ack.seq.wrapping_add(1),
                    bytes: 0,
                    timestamp: None,
                },
                &[],
            )
        })
    }

    /// The next segment to the peer that is wanted; the others are not missed.
    fn hear(&self, wanted: impl Fn(&Segment) -> bool) -> Result<Segment> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = (&self.heard)
                .read(&mut buffer)
                .context("waiting for a segment")?;
            if let Some(segment) = parse(&buffer[..length])?
                && segment.destination == self.address
                && wanted(&segment)
            {
                return Ok(segment);
            }
        }
    }

    fn say(&self, to: &Segment, flags: u8, seq: u32, ack: u32, options: &[u8]) -> Result<()> {
        self.netns.run(|| {
            packet::send_segment(
                self.family,
                &Segment {
                    source: self.address,
                    destination: to.source,
                    flags,
                    seq,
                    ack,
                    bytes: 0,
                    timestamp: None,
                },
                options,
            )
        })
    }
}

/// A timestamps option, aligned as everybody does (RFC 7323, appendix A): of a clock that stands still.
fn timestamps(echoed: Option<u32>) -> Vec<u8> {
    match echoed {
        Some(echoed) => [
            &[1, 1, 8, 10][..],
            &1_u32.to_be_bytes(),
            &echoed.to_be_bytes(),
        ]
        .concat(),
        None => Vec::new(),
    }
}

/// The time in the timestamps option of a header.
fn timestamp(mut options: &[u8]) -> Option<u32> {
    loop {
        options = match options {
            [1, rest @ ..] => rest,
            [8, 10, a, b, c, d, ..] => return Some(u32::from_be_bytes([*a, *b, *c, *d])),
            [] | [0, ..] | [_] => return None,
            [_, length, ..] => options.get(usize::from(*length).max(2)..)?,
        };
    }
}

/// A TCP segment in an IP packet; `None` for anything else.
fn parse(packet: &[u8]) -> Result<Option<Segment>> {
    let Some(version) = packet.first().map(|byte| byte >> 4) else {
        bail!("an empty packet");
    };
    let (header, protocol, length, source, destination): (usize, u8, usize, IpAddr, IpAddr) =
        if version == 4 {
            ensure!(packet.len() >= 20, "an IPv4 packet cut short");
            (
                usize::from(packet[0] & 0xf) * 4,
                packet[9],
                usize::from(u16::from_be_bytes([packet[2], packet[3]])),
                <[u8; 4]>::try_from(&packet[12..16])?.into(),
                <[u8; 4]>::try_from(&packet[16..20])?.into(),
            )
        } else {
            ensure!(packet.len() >= 40, "an IPv6 packet cut short");
            (
                40,
                packet[6],
                40 + usize::from(u16::from_be_bytes([packet[4], packet[5]])),
                <[u8; 16]>::try_from(&packet[8..24])?.into(),
                <[u8; 16]>::try_from(&packet[24..40])?.into(),
            )
        };
    if i32::from(protocol) != libc::IPPROTO_TCP {
        return Ok(None);
    }
    let tcp = packet.get(header..).unwrap_or_default();
    ensure!(tcp.len() >= 20, "a TCP segment cut short");
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let options_end = usize::from(tcp[12] >> 4) * 4;
    let headers = header + options_end;
    Ok(Some(Segment {
        source: SocketAddr::new(source, port(0)),
        destination: SocketAddr::new(destination, port(2)),
        flags: tcp[13],
        seq: number(4),
        ack: number(8),
        bytes: u32::try_from(length.saturating_sub(headers))?,
        timestamp: timestamp(tcp.get(20..options_end).unwrap_or_default()),
    }))
}
