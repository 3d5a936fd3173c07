//! What `explain` says of `early_drop` and its causes: the texts, and nothing else.

use crate::detect::spec::Word;

pub(super) const WORDS: &[Word] = &[
    Word {
        word: "no_listener",
        text: "\
A SYN came for a port on which nothing listens. This host answered with a RST, and the client got
\"connection refused\" at once.

Mostly a server that is down, restarting or crashed, or that listens on another address than clients use:
on 127.0.0.1 only, on IPv4 only, in another network namespace or container.

  ss -ltnp 'sport = :PORT'                    who listens, and on which address
  ip netns exec NAME ss -ltn                  in the others
  systemctl status UNIT; journalctl -u UNIT   whether it died, and when

Start the server, or bind it to the address that clients use; let a socket unit hold the port where
restarts must not be seen. Many ports from one address are a scan, and want no change here. Do not drop such
SYNs in the firewall instead: clients then wait for minutes for what a RST tells them at once.",
    },
    Word {
        word: "filtered",
        text: "\
The firewall of this host (nftables, iptables), a BPF program at the device or an IPsec policy dropped the
SYN. No counter of TCP moves; the client repeats its SYN and times out after about two minutes, or gets
an error at once where the rule says reject.

  nft list ruleset                            look for drop with a counter, and for policy drop
  iptables -nvL; ip6tables -nvL               packets beside DROP
  tc filter show dev DEV ingress; ip link     BPF programs and XDP at the device
  ip xfrm policy

Let the port in, above the rule that drops; in clouds and containers look for who writes the rules (an
agent, kube-proxy, docker), or yours will be gone at its next turn. Do not flush the rule set to see whether
it helps: with policy drop it locks you out.",
    },
    Word {
        word: "reverse_path",
        text: "\
The SYN came in through one interface, and the route back to its sender leads out of another: the reverse
path filter dropped it. The client times out; others, whose route fits, are served.

  nstat -az TcpExtIPReversePathFilter
  ip route get CLIENT                         the way back, and the interface
  sysctl net.ipv4.conf.{all,DEV}.rp_filter    the higher one counts

Where asymmetric routes are meant (two uplinks, a VPN, a load balancer that leaves the client's address),
set rp_filter to 2 (loose) on that interface, or add the route or rule that is missing. Where they are not, the route is at fault, or the address is forged. Do not set 0 everywhere: it is what stops
forged addresses.",
    },
    Word {
        word: "auth",
        text: "\
The listener wants signed segments (TCP MD5 for BGP, or TCP-AO), and the SYN had no signature or a wrong
one; or it was signed and no key is set for its sender. The SYN is dropped without an answer.

  nstat -az 'TcpExtTCPMD5*' 'TcpExtTCPAO*'    NotFound, Unexpected or Failure
  perf trace -e 'tcp:tcp_hash_*'              names the peer, from Linux 6.11 on
  dmesg | grep -i 'tcp.*hash'                 the same before

Compare key, key id and the peer's address on both ends: a peer that comes from another of its addresses,
or through a NAT, has no key here. Do not take the key off the listener to see whether it works: one
end without it refuses the other, and routing sessions in order go down with it.",
    },
    Word {
        word: "bad_checksum",
        text: "\
The SYN's checksum is wrong: something on the way changed it, or a device computes it badly. The client
repeats it; where one packet in many is hit, connections merely open late now and then.

  nstat -az TcpInCsumErrors UdpInCsumErrors
  ethtool -S DEV | grep -i csum; ethtool -k DEV | grep checksum

Only from one peer: its side, or a box on its path (a NAT or tunnel that rewrites addresses). From all:
this host's device or driver; try ethtool -K DEV rx off, and a newer firmware. Virtual machines that talk
to each other: offload between the two ends, ethtool -K DEV tx off at the sender tells. Note that a
capture at the sender shows wrong checksums for every packet that the device is to complete: no evidence.",
    },
    Word {
        word: "socket_filter",
        text: "\
A filter on the listener itself dropped the SYN: a classic or eBPF program attached with SO_ATTACH_FILTER
or SO_ATTACH_BPF, or a program at its cgroup's ingress. The client times out.

  ss -ltnb                                    the classic filter of the socket (as root)
  bpftool cgroup tree                         cgroup_inet_ingress programs
  systemctl show UNIT -p IPAddressAllow -p IPAddressDeny

Ask who attached it: the application, systemd, or a container network. Allow the client there. Do not look
in the firewall's counters: it has passed that already.",
    },
];
