//! Values of filter flags: addresses, listeners, names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use conntracer_common::filter::{ListenerEnd, Network};

use crate::filter::words;

/// Bytes of a process's name that the kernel keeps (`TASK_COMM_LEN` less the NUL).
pub(super) const COMM_BYTES: usize = 15;

/// Where something listens; `None` for any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listening {
    pub address: Option<IpAddr>,
    pub port: u16,
}

/// An address and the bits of it that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub prefix_bits: u8,
}

/// Parses `ADDRESS` or `ADDRESS/BITS`.
pub(super) fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (text, None),
    };
    let address: IpAddr = address
        .parse()
        .map_err(|_| "write an address such as 10.1.2.3, 10.0.0.0/8 or 2001:db8::/32".to_owned())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix_bits = match bits {
        None => most,
        Some(bits) => bits
            .parse()
            .ok()
            .filter(|bits| *bits <= most)
            .ok_or_else(|| format!("the prefix length must be 0 to {most}"))?,
    };
    Ok(Cidr {
        address,
        prefix_bits,
    })
}

/// Parses `PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`; `*` is any address.
pub(super) fn parse_listener(text: &str) -> Result<Listening, String> {
    let wrong =
        || "write a port such as 443, or 10.1.2.3:443, [2001:db8::1]:443 or 0.0.0.0:443".to_owned();
    let end = match text.rsplit_once(':') {
        None | Some(("*", _)) => Listening {
            address: None,
            port: text.trim_start_matches("*:").parse().map_err(|_| wrong())?,
        },
        Some(_) => {
            let end: SocketAddr = text.parse().map_err(|_| wrong())?;
            Listening {
                address: Some(end.ip()),
                port: end.port(),
            }
        }
    };
    if end.port == 0 {
        return Err("nothing listens at port 0: write one of 1 to 65535".to_owned());
    }
    Ok(end)
}

/// Parses the name of a process.
pub(super) fn parse_comm(text: &str) -> Result<String, String> {
    match text.len() {
        0 => Err("write the name of a process, as `ps -o comm` shows it".to_owned()),
        1..=COMM_BYTES => Ok(text.to_owned()),
        _ => {
            let mut kept = text;
            while kept.len() > COMM_BYTES {
                kept = &kept[..kept.char_indices().next_back().map_or(0, |(at, _)| at)];
            }
            Err(format!(
                "the kernel keeps {COMM_BYTES} bytes of a name: write {kept}"
            ))
        }
    }
}

/// Parses the first characters of a container's id or name.
pub(super) fn parse_container(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['/', ' ']) {
        return Err(
            "write the first characters of a container's id, as `docker ps` shows it, or of the name of \
             one of `machinectl`"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

impl Cidr {
    /// As records carry addresses: network order words, IPv4 mapped into IPv6.
    pub(super) fn network(self) -> Network {
        let (address, bits) = match self.address {
            IpAddr::V4(v4) => (v4.to_ipv6_mapped(), u32::from(self.prefix_bits) + 96),
            IpAddr::V6(v6) => (v6, self.prefix_bits.into()),
        };
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        Network {
            addr: words(Ipv6Addr::from_bits(address.to_bits() & mask).into()),
            mask: words(Ipv6Addr::from_bits(mask).into()),
        }
    }
}

impl Listening {
    /// The same for where something listens.
    pub(super) fn end(self) -> ListenerEnd {
        ListenerEnd {
            addr: self.address.map_or([0; 4], words),
            port: self.port,
            has_addr: self.address.is_some().into(),
        }
    }
}

/// Reads a word as each of the values.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(word: &str) {
    let _comm = parse_comm(word);
    let _container = parse_container(word);
    if let Ok(cidr) = parse_cidr(word) {
        let _network = cidr.network();
    }
    if let Ok(listening) = parse_listener(word) {
        let _end = listening.end();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("10.0.0.0/33")]
    #[case("2001:db8::/129")]
    #[case("10.0.0")]
    #[case("10.0.0.0/")]
    #[case("")]
    fn wrong_cidr_is_refused(#[case] cidr: &str) {
        assert!(parse_cidr(cidr).is_err());
    }

    #[rstest]
    #[case("443", None, 443)]
    #[case("*:443", None, 443)]
    #[case("10.0.0.1:443", Some("10.0.0.1"), 443)]
    #[case("0.0.0.0:443", Some("0.0.0.0"), 443)]
    #[case("[::]:443", Some("::"), 443)]
    #[case("[2001:db8::1]:1", Some("2001:db8::1"), 1)]
    fn listeners_are_written_as_ss_shows_them(
        #[case] text: &str,
        #[case] address: Option<&str>,
        #[case] port: u16,
    ) {
        let address = address.map(|address| address.parse().unwrap());
        assert_eq!(parse_listener(text), Ok(Listening { address, port }));
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        let end = |text| parse_listener(text).unwrap().end();
        assert_eq!(end("[::ffff:10.0.0.1]:80"), end("10.0.0.1:80"));
        assert_ne!(end("0.0.0.0:80"), end("[::]:80"));
        assert_ne!(end("[::]:80"), end("80"));
        let network = |text| parse_cidr(text).unwrap().network();
        assert_eq!(network("::ffff:10.0.0.0/104"), network("10.0.0.0/8"));
    }

    #[rstest]
    #[case("")]
    #[case("0")]
    #[case("65536")]
    #[case("10.0.0.1")]
    #[case("10.0.0.1:")]
    #[case("2001:db8::1:80")]
    #[case("host:80")]
    fn wrong_listeners_are_refused(#[case] text: &str) {
        assert!(parse_listener(text).is_err());
    }

    #[test]
    fn a_name_longer_than_the_kernel_keeps_is_refused_with_what_it_keeps() {
        assert_eq!(
            parse_comm("fifteen-bytes-x"),
            Ok("fifteen-bytes-x".to_owned())
        );
        let refused = parse_comm("sixteen-bytes-xy").unwrap_err();
        assert!(refused.ends_with("write sixteen-bytes-x"), "{refused}");
        assert!(
            parse_comm("fourteen-byteséé")
                .unwrap_err()
                .ends_with("write fourteen-bytes")
        );
        assert!(parse_comm("").is_err());
    }
}
