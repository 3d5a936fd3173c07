//! Syslog: the local socket, UDP (RFC 5426), and TCP with octet counting or a line each (RFC 6587).
//!
//! A receiver that is away is connected to again, and a message that could not be sent is sent then. One that is slow
//! holds this process up, and with it the pipe: what the tracer's queue then has no room for is counted there, and is a
//! `gap` in the messages.

mod message;

use std::{
    io::{self, BufRead as _, Write as _},
    net::{TcpStream, ToSocketAddrs as _, UdpSocket},
    os::unix::net::UnixDatagram,
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use jiff::tz::TimeZone;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt,
    process::getppid,
    system::uname,
};

use self::message::{Form, Sender, message};
use super::lines::Message;

const LOCAL: &str = "/dev/log";
/// RFC 5426 and RFC 6587.
const PORT: u16 = 514;
/// Between two attempts to reach a receiver that is away.
const AGAIN: Duration = Duration::from_secs(1);
/// How long a receiver may acknowledge nothing before it is given up: it is gone, and others may listen at its address.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);

/// Where messages go.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Receiver {
    Local(String),
    Udp(String),
    Tcp { at: String, framing: Framing },
}

/// How a stream tells where a message ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    OctetCounting,
    Lines,
}

impl Receiver {
    fn parse(text: &str) -> anyhow::Result<Self> {
        if text.is_empty() {
            return Ok(Self::Local(LOCAL.to_owned()));
        }
        if text.starts_with('/') {
            return Ok(Self::Local(text.to_owned()));
        }
        let (transport, at) = text.split_once(':').unwrap_or((text, ""));
        if at.is_empty() {
            bail!(
                "syslog:{text} names no host: write syslog, syslog:udp:HOST:PORT, syslog:tcp:HOST:PORT or syslog:tcp-lines:HOST:PORT"
            );
        }
        let at = with_port(at);
        Ok(match transport {
            "udp" => Self::Udp(at),
            "tcp" => Self::Tcp {
                at,
                framing: Framing::OctetCounting,
            },
            "tcp-lines" => Self::Tcp {
                at,
                framing: Framing::Lines,
            },
            _ => bail!(
                "syslog:{text}: there are udp, tcp (octet counting) and tcp-lines (a line each)"
            ),
        })
    }

    const fn form(&self) -> Form {
        match self {
            Self::Local(_) => Form::Local,
            Self::Udp(_) | Self::Tcp { .. } => Form::Rfc5424,
        }
    }

    fn connect(&self) -> io::Result<Connected> {
        match self {
            Self::Local(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Connected::Local(socket))
            }
            Self::Udp(at) => each_address(at, |address| {
                let any: &str = if address.is_ipv4() {
                    "0.0.0.0:0"
                } else {
                    "[::]:0"
                };
                let socket = UdpSocket::bind(any)?;
                socket.connect(address)?;
                Ok(Connected::Udp(socket))
            }),
            Self::Tcp { at, framing } => each_address(at, |address| {
                let stream = TcpStream::connect_timeout(&address, CONNECT)?;
                let milliseconds = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
                sockopt::set_tcp_user_timeout(&stream, milliseconds)?;
                sockopt::set_socket_keepalive(&stream, true)?;
                Ok(Connected::Tcp(stream, *framing))
            }),
        }
    }
}

/// A host without a port has the usual one; an IPv6 address is in brackets.
fn with_port(at: &str) -> String {
    let behind = at.rsplit_once(']').map_or(at, |(_, behind)| behind);
    if behind.contains(':') {
        at.to_owned()
    } else {
        format!("{at}:{PORT}")
    }
}

/// The first address of a name that works.
fn each_address<T>(
    at: &str,
    connect: impl Fn(std::net::SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut last = io::Error::other("the name has no address");
    for address in at.to_socket_addrs()? {
        match connect(address) {
            Ok(connected) => return Ok(connected),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[derive(Debug)]
enum Connected {
    Local(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream, Framing),
}

impl Connected {
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Local(socket) => socket.send(message).map(drop),
            Self::Udp(socket) => socket.send(message).map(drop),
            Self::Tcp(stream, framing) => {
                let framed = match framing {
                    Framing::OctetCounting => {
                        let mut framed = format!("{} ", message.len()).into_bytes();
                        framed.extend_from_slice(message);
                        framed
                    }
                    Framing::Lines => {
                        let mut framed: Vec<u8> = message
                            .iter()
                            .map(|byte| if *byte == b'\n' { b' ' } else { *byte })
                            .collect();
                        framed.push(b'\n');
                        framed
                    }
                };
                if has_left(stream)? {
                    return Err(io::ErrorKind::BrokenPipe.into());
                }
                stream.write_all(&framed)
            }
        }
    }
}

/// Whether the receiver closed its end: what is written then is accepted here and read by nobody. One of syslog sends
/// nothing, so that there is nothing else to read.
fn has_left(stream: &TcpStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::IN | PollFlags::RDHUP)];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut fds, Some(&now))? > 0)
}

/// A receiver, about to be sent to.
#[derive(Debug)]
pub(super) struct Syslog {
    to: Receiver,
    connected: Option<Connected>,
    /// It was said that the receiver is away.
    said: bool,
}

impl Syslog {
    pub(super) fn new(text: &str) -> anyhow::Result<Self> {
        Ok(Self {
            to: Receiver::parse(text)?,
            connected: None,
            said: false,
        })
    }

    /// Sends what the lines of standard input say, until they end.
    pub(super) fn serve(mut self) -> anyhow::Result<()> {
        let pid = getppid().map_or(0, |pid| pid.as_raw_nonzero().get().unsigned_abs());
        let sender = Sender {
            hostname: uname().nodename().to_string_lossy().into_owned(),
            pid,
            zone: TimeZone::system(),
        };
        for line in io::stdin().lock().lines() {
            let line = line.context("reading the lines")?;
            match Message::parse(&line) {
                Ok(line) => self.send(&message(self.to.form(), &sender, &line)),
                Err(error) => log::warn!("a line that cannot be read: {error}"),
            }
        }
        Ok(())
    }

    /// Until it is sent.
    fn send(&mut self, message: &[u8]) {
        loop {
            let connected = match self.connected.take() {
                Some(connected) => Ok(connected),
                None => self.to.connect(),
            };
            let sent = connected.and_then(|mut connected| {
                connected.send(message)?;
                Ok(connected)
            });
            match sent {
                Ok(connected) => {
                    self.connected = Some(connected);
                    if std::mem::take(&mut self.said) {
                        log::warn!("syslog: the receiver is back");
                    }
                    return;
                }
                Err(error) => {
                    if !self.said {
                        log::warn!("syslog: {error}; messages wait for the receiver");
                        self.said = true;
                    }
                    thread::sleep(AGAIN);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_named_by_its_transport_host_and_port() {
        let parse = |text| Receiver::parse(text).unwrap();
        assert_eq!(parse("udp:logs"), Receiver::Udp("logs:514".to_owned()));
        assert_eq!(
            parse("tcp:[2001:db8::1]:601"),
            Receiver::Tcp {
                at: "[2001:db8::1]:601".to_owned(),
                framing: Framing::OctetCounting
            }
        );
        assert_eq!(
            parse("tcp-lines:[::1]"),
            Receiver::Tcp {
                at: "[::1]:514".to_owned(),
                framing: Framing::Lines
            }
        );
        for wrong in ["tcp", "tls:logs", "logs:514"] {
            let error = Receiver::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("udp"), "{error}");
        }
    }
}
