//! ICMP messages in words: who may send which.

use std::net::IpAddr;

use crate::event::Icmp;

/// Who answers a SYN with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// A firewall that rejects: a rule says so.
    Firewall,
    /// The same, or a route of the type `prohibit` (`ip_error`, `ip6_pkt_prohibit`).
    FirewallOrRoute,
    /// This host: nobody answers for the next hop (`arp_error_report`), or a rule rejects so.
    Own,
    /// A router, or the host itself.
    Router,
}

/// The name of a message, as RFC 792, RFC 1812 and RFC 4443 have it.
pub(super) const fn name(icmp: &Icmp) -> &'static str {
    match (icmp.from, icmp.kind, icmp.code) {
        (IpAddr::V4(_), 3, 0) => "net unreachable",
        (IpAddr::V4(_), 3, 1) => "host unreachable",
        (IpAddr::V4(_), 3, 2) => "protocol unreachable",
        (IpAddr::V4(_), 3, 3) | (IpAddr::V6(_), 1, 4) => "port unreachable",
        (IpAddr::V4(_), 3, 9) => "net prohibited",
        (IpAddr::V4(_), 3, 10) => "host prohibited",
        (IpAddr::V4(_), 3, 13) | (IpAddr::V6(_), 1, 1) => "administratively prohibited",
        (IpAddr::V6(_), 1, 0) => "no route",
        (IpAddr::V6(_), 1, 3) => "address unreachable",
        (IpAddr::V6(_), 1, 5) => "policy fail",
        (IpAddr::V6(_), 1, 6) => "reject route",
        (IpAddr::V4(_), 11, _) | (IpAddr::V6(_), 3, _) => "time exceeded",
        _ => "error",
    }
}

/// Who sent it, to a host with this address. TCP answers for a closed port with a RST: "port unreachable" is a rule's.
pub(super) fn sender(icmp: &Icmp, local: IpAddr) -> Sender {
    match (icmp.from, icmp.kind, icmp.code) {
        (IpAddr::V4(_), 3, 3 | 9 | 10) | (IpAddr::V6(_), 1, 4 | 5) => Sender::Firewall,
        (IpAddr::V4(_), 3, 13) | (IpAddr::V6(_), 1, 1) => Sender::FirewallOrRoute,
        (from, ..) if from == local => Sender::Own,
        _ => Sender::Router,
    }
}

/// "ICMP host prohibited (type 3, code 10) from 10.9.0.1".
pub(super) fn said(icmp: &Icmp) -> String {
    let protocol = if icmp.from.is_ipv4() {
        "ICMP"
    } else {
        "ICMPv6"
    };
    let Icmp { kind, code, from } = icmp;
    format!(
        "{protocol} {} (type {kind}, code {code}) from {from}",
        name(icmp)
    )
}
