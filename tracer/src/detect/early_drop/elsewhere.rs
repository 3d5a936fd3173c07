//! Who listens on the port after all, and why a SYN was not for it: another address, another family, another device.

use std::net::{IpAddr, SocketAddr};

use crate::{
    detect::room::Context,
    event::Owner,
    table::listener::{ListenerKey, Service},
    time::Ktime,
};

/// Why a listener did not take a SYN to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// It listens on another address.
    Address,
    /// It takes the other family alone.
    Family,
    /// It takes what comes by one device alone.
    Device,
    /// It would take it: it listens since.
    None,
}

/// Of a listener at the port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Elsewhere {
    pub(super) local: SocketAddr,
    pub(super) owner: Option<Owner>,
    pub(super) mismatch: Mismatch,
}

/// The listener at the port of an address that comes nearest, where a record told of one since the first SYN.
pub(super) fn nearest(
    netns: u32,
    to: SocketAddr,
    since: Ktime,
    cx: &Context<'_>,
) -> Option<Elsewhere> {
    let found = cx.listeners.at_port((netns, to.port()), since);
    let mut found: Vec<Elsewhere> = found
        .into_iter()
        .map(|(key, service)| of(key, service, to))
        .collect();
    found.sort_by_key(|elsewhere| match elsewhere.mismatch {
        Mismatch::None => 0,
        Mismatch::Device => 1,
        Mismatch::Family => 2,
        Mismatch::Address => 3,
    });
    found.into_iter().next()
}

fn of(key: &ListenerKey, service: &Service, to: SocketAddr) -> Elsewhere {
    Elsewhere {
        local: key.local,
        owner: service.owner,
        mismatch: mismatch(key.local, to.ip(), &service.latest),
    }
}

fn mismatch(local: SocketAddr, to: IpAddr, latest: &crate::event::Syn) -> Mismatch {
    let bound = latest.bound_ifindex.is_some();
    let takes = match (local.ip(), to) {
        (IpAddr::V4(any), IpAddr::V6(_)) if any.is_unspecified() => Err(Mismatch::Family),
        (IpAddr::V6(any), IpAddr::V4(_)) if any.is_unspecified() => {
            if latest.v6_only {
                Err(Mismatch::Family)
            } else {
                Ok(())
            }
        }
        (any, _) if any.is_unspecified() => Ok(()),
        (local, to) if local == to => Ok(()),
        _ => Err(Mismatch::Address),
    };
    match takes {
        Err(mismatch) => mismatch,
        Ok(()) if bound => Mismatch::Device,
        Ok(()) => Mismatch::None,
    }
}

impl Elsewhere {
    /// What it listens for, for a sentence.
    pub(super) fn said(&self, interface: Option<&str>) -> String {
        let who = self.owner.map_or_else(
            || "a socket".to_owned(),
            |owner| format!("process {}", owner.pid),
        );
        let local = self.local;
        match self.mismatch {
            Mismatch::Address => format!("{who} listens on {local}, and not on that address"),
            Mismatch::Family if local.is_ipv4() => {
                format!("{who} listens on {local}, for IPv4 alone")
            }
            Mismatch::Family => format!("{who} listens on {local}, for IPv6 alone (IPV6_V6ONLY)"),
            Mismatch::Device => {
                let by = interface
                    .map_or_else(String::new, |name| format!(", and these came by {name}"));
                format!("{who} listens on {local}, for one device alone (SO_BINDTODEVICE){by}")
            }
            Mismatch::None => format!("nothing listened there; {who} listens on {local} by now"),
        }
    }

    pub(super) const fn name(&self) -> &'static str {
        match self.mismatch {
            Mismatch::Address => "other_address",
            Mismatch::Family => "other_family",
            Mismatch::Device => "other_device",
            Mismatch::None => "since",
        }
    }

    /// What makes it take them.
    pub(super) fn advice(&self, to: SocketAddr) -> String {
        let who = self.owner.map_or_else(
            || "the application".to_owned(),
            |owner| format!("process {}", owner.pid),
        );
        match self.mismatch {
            Mismatch::Address => format!(
                "have {who} listen on {} too, or on every address; or give its clients {}",
                to.ip(),
                self.local
            ),
            Mismatch::Family if self.local.is_ipv4() => {
                format!(
                    "have {who} listen on [::]:{} too, or give its clients an IPv4 address",
                    to.port()
                )
            }
            Mismatch::Family => format!(
                "have {who} listen on 0.0.0.0:{} too, or without IPV6_V6ONLY (net.ipv6.bindv6only is its default)",
                to.port()
            ),
            Mismatch::Device => format!(
                "have {who} listen without SO_BINDTODEVICE, or have its clients come by that device: 'ss -ltn' shows \
                 it behind the address ('%')"
            ),
            Mismatch::None => format!(
                "nothing is to be done if {who} was being started; 'ss -ltnp sport = :{}' shows it",
                to.port()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::testing::{Run, listener};

    #[rstest]
    #[case::loopback_alone("127.0.0.1:80", "10.9.0.1:80", false, false, Mismatch::Address)]
    #[case::v6_alone("[::]:80", "10.9.0.1:80", true, false, Mismatch::Family)]
    #[case::v4_alone("0.0.0.0:80", "[fd00::1]:80", false, false, Mismatch::Family)]
    #[case::a_device("0.0.0.0:80", "10.9.0.1:80", false, true, Mismatch::Device)]
    #[case::dual("[::]:80", "10.9.0.1:80", false, false, Mismatch::None)]
    #[case::any("0.0.0.0:80", "10.9.0.1:80", false, false, Mismatch::None)]
    #[case::same("10.9.0.1:80", "10.9.0.1:80", false, false, Mismatch::None)]
    #[case::other_address_of_a_device("10.9.0.2:80", "10.9.0.1:80", false, true, Mismatch::Address)]
    fn a_listener_takes_its_address_family_and_device(
        #[case] local: &str,
        #[case] to: &str,
        #[case] v6_only: bool,
        #[case] bound: bool,
        #[case] expected: Mismatch,
    ) {
        let mut run = Run::new();
        run.syn(
            listener(
                local,
                if local.starts_with('[') {
                    "[::]:0"
                } else {
                    "0.0.0.0:0"
                },
            ),
            |syn| {
                syn.flags = u8::from(v6_only);
                syn.bound_ifindex = u32::from(bound);
            },
        );
        let Ok(crate::event::Event {
            body: crate::event::Body::Syn(syn),
            ..
        }) = crate::decode::decode(&run.fed[0])
        else {
            panic!("a SYN record decodes");
        };
        let (local, to): (SocketAddr, SocketAddr) = (local.parse().unwrap(), to.parse().unwrap());
        assert_eq!(mismatch(local, to.ip(), &syn), expected);
    }
}
