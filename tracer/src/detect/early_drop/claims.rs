//! What is said of SYNs that were dropped before a listener, and of what it must not be.

use std::time::Duration;

use conntracer_common::record::{netns_fact as fact, path};

use super::tests::{LOCAL, REMOTE};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, listener, socket},
};

fn dropped(run: &mut Run, reason: &str, through: u8) {
    run.early_drop(socket(LOCAL, REMOTE), 5, reason, |drop| drop.path = through);
    run.tick();
}

fn nobody(run: &mut Run) {
    dropped(run, "NO_SOCKET", path::INPUT);
}

/// Somebody listens on the port, as a poll finds out.
fn listens(run: &mut Run, local: &str, v6_only: bool, ifindex: u32) {
    run.early_drop(socket(LOCAL, REMOTE), 5, "NO_SOCKET", |_| {});
    run.skip(Duration::from_millis(1));
    let any = if local.starts_with('[') {
        "[::]:0"
    } else {
        "0.0.0.0:0"
    };
    run.syn(listener(local, any), |syn| {
        syn.flags = u8::from(v6_only);
        syn.bound_ifindex = ifindex;
    });
    run.tick();
}

fn on_loopback(run: &mut Run) {
    listens(run, "127.0.0.1:80", false, 0);
}

fn for_ipv6(run: &mut Run) {
    listens(run, "[::]:80", true, 0);
}

fn for_both_families(run: &mut Run) {
    listens(run, "[::]:80", false, 0);
}

fn for_a_device(run: &mut Run) {
    listens(run, "0.0.0.0:80", false, 7);
}

fn since(run: &mut Run) {
    listens(run, "0.0.0.0:80", false, 0);
}

fn for_ipv4(run: &mut Run) {
    run.early_drop(
        socket("[fd00::1]:80", "[fd00::2]:4000"),
        5,
        "NO_SOCKET",
        |_| {},
    );
    run.skip(Duration::from_millis(1));
    run.syn(listener("0.0.0.0:80", "0.0.0.0:0"), |_| {});
    run.tick();
}

fn listened_before(run: &mut Run) {
    run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
    run.skip(Duration::from_secs(1));
    nobody(run);
}

/// A look at the namespace, before and after.
fn looked_at(run: &mut Run, through: u8, first: &[(usize, u64)], last: &[(usize, u64)]) {
    run.early_drop(socket(LOCAL, REMOTE), 3, "NETFILTER_DROP", |drop| {
        drop.path = through;
    });
    run.netns_facts(|facts| {
        for (figure, value) in first {
            facts.figures[*figure] = *value;
        }
    });
    run.netns_facts(|facts| {
        for (figure, value) in first.iter().chain(last) {
            facts.figures[*figure] = *value;
        }
    });
    run.tick();
    run.early_drop(socket(LOCAL, REMOTE), 9, "NETFILTER_DROP", |drop| {
        drop.path = through;
    });
    run.pass(Duration::from_secs(2));
}

const NO_DROPS: &[(usize, u64)] = &[
    (fact::CONNTRACK_COUNT, 5),
    (fact::CONNTRACK_MAX, 100),
    (fact::CONNTRACK_DROP, 0),
    (fact::CONNTRACK_INSERT_FAILED, 0),
    (fact::ICMP_IN_UNREACHABLE, 0),
];

fn by_a_rule(run: &mut Run) {
    looked_at(run, path::INPUT, NO_DROPS, &[]);
}

fn by_a_rule_on_the_way(run: &mut Run) {
    looked_at(run, path::FORWARD, NO_DROPS, &[]);
}

fn table_full(run: &mut Run) {
    let full = [(fact::CONNTRACK_COUNT, 100), (fact::CONNTRACK_MAX, 100)];
    looked_at(run, path::PREROUTING, &full, &[]);
}

fn no_nat_port(run: &mut Run) {
    looked_at(
        run,
        path::FORWARD,
        NO_DROPS,
        &[(fact::CONNTRACK_INSERT_FAILED, 4)],
    );
}

/// It was full once, and nobody knows whether it was for these.
fn was_full_before(run: &mut Run) {
    let before = [
        (fact::CONNTRACK_COUNT, 9),
        (fact::CONNTRACK_MAX, 100),
        (fact::CONNTRACK_DROP, 7),
    ];
    looked_at(run, path::PREROUTING, &before, &[]);
}

fn inserts_failed_before(run: &mut Run) {
    let before = [
        (fact::CONNTRACK_COUNT, 5),
        (fact::CONNTRACK_MAX, 100),
        (fact::CONNTRACK_INSERT_FAILED, 2),
    ];
    looked_at(run, path::FORWARD, &before, &[]);
}

/// Without a look.
fn by_netfilter(run: &mut Run) {
    dropped(run, "NETFILTER_DROP", path::INPUT);
}

fn by_netfilter_anywhere(run: &mut Run) {
    dropped(run, "NETFILTER_DROP", 0);
}

fn by_xdp(run: &mut Run) {
    dropped(run, "XDP", path::PREROUTING);
}

fn by_reverse_path(run: &mut Run) {
    dropped(run, "IP_RPFILTER", path::PREROUTING);
}

fn without_signature(run: &mut Run) {
    dropped(run, "TCP_MD5NOTFOUND", path::INPUT);
}

fn bad_checksum(run: &mut Run) {
    dropped(run, "TCP_CSUM", path::INPUT);
}

fn by_socket_filter(run: &mut Run) {
    dropped(run, "SOCKET_FILTER", path::INPUT);
}

fn no_memory(run: &mut Run) {
    dropped(run, "NOMEM", path::INPUT);
}

fn other(run: &mut Run) {
    dropped(run, "TCP_MINTTL", path::INPUT);
}

fn ports(run: &mut Run, addresses: &[&str], remotes: &[u64], overflows: bool) {
    for port in 0..70_usize {
        let address = addresses[port % addresses.len()];
        let local = format!("{address}:{}", 1000 + port);
        run.early_drop(socket(&local, REMOTE), 1, "NO_SOCKET", |drop| {
            drop.remotes = remotes[port % remotes.len()];
        });
    }
    if overflows {
        run.early_drop(socket("0.0.0.0:0", REMOTE), 900, "NO_SOCKET", |drop| {
            drop.remotes = remotes[0];
        });
    }
    run.tick();
}

fn scan(run: &mut Run) {
    ports(run, &["10.0.0.1"], &[1], false);
}

fn scan_by_several(run: &mut Run) {
    ports(run, &["10.0.0.1"], &[1, 2, 4], false);
}

fn scan_of_several(run: &mut Run) {
    ports(run, &["10.0.0.1", "10.0.0.3"], &[1], false);
}

fn large_scan(run: &mut Run) {
    ports(run, &["10.0.0.1"], &[1], true);
}

fn all_untracked(run: &mut Run) {
    run.early_drop(socket("0.0.0.0:0", REMOTE), 900, "NO_SOCKET", |_| {});
    run.tick();
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "syn_drop, early_drop",
    kind: "syn_drop",
    run: alone,
    claims: &[
        Claim {
            words: "nothing listens there",
            said: &[nobody, listened_before],
            never: &[
                on_loopback,
                for_ipv6,
                for_ipv4,
                for_a_device,
                since,
                by_netfilter,
                by_reverse_path,
            ],
        },
        Claim {
            words: " SYNs to ",
            said: &[nobody, by_netfilter, scan],
            never: &[none_at_all],
        },
        Claim {
            words: "start what should listen on port",
            said: &[nobody],
            never: &[
                on_loopback,
                for_ipv6,
                for_a_device,
                listened_before,
                by_netfilter,
            ],
        },
        Claim {
            words: "'ss -ltn' shows who listens, and on which address",
            said: &[nobody],
            never: &[on_loopback, for_ipv6, for_a_device],
        },
        Claim {
            words: "does not listen on port",
            said: &[listened_before],
            never: &[nobody, on_loopback, since],
        },
        Claim {
            words: ", and not on that address",
            said: &[on_loopback],
            never: &[for_ipv6, for_a_device, nobody, since],
        },
        Claim {
            words: " too, or on every address; or give its clients",
            said: &[on_loopback],
            never: &[for_ipv6, for_a_device, nobody],
        },
        Claim {
            words: "for IPv6 alone (IPV6_V6ONLY)",
            said: &[for_ipv6],
            never: &[for_both_families, for_a_device, on_loopback],
        },
        Claim {
            words: "without IPV6_V6ONLY (net.ipv6.bindv6only is its default)",
            said: &[for_ipv6],
            never: &[for_both_families, on_loopback],
        },
        Claim {
            words: "for IPv4 alone",
            said: &[for_ipv4],
            never: &[for_ipv6, on_loopback, since],
        },
        Claim {
            words: "too, or give its clients an IPv4 address",
            said: &[for_ipv4],
            never: &[for_ipv6, on_loopback],
        },
        Claim {
            words: "for one device alone (SO_BINDTODEVICE), and these came by eth0",
            said: &[for_a_device],
            never: &[since, on_loopback, nobody],
        },
        Claim {
            words: "for one device alone (SO_BINDTODEVICE)",
            said: &[for_a_device],
            never: &[since, on_loopback],
        },
        Claim {
            words: "listen without SO_BINDTODEVICE, or have its clients come by that device",
            said: &[for_a_device],
            never: &[since, on_loopback],
        },
        Claim {
            words: ": nothing listened there; ",
            said: &[since, for_both_families],
            never: &[nobody, on_loopback, for_ipv6, for_a_device],
        },
        Claim {
            words: " by now",
            said: &[since],
            never: &[nobody, on_loopback, for_ipv6],
        },
        Claim {
            words: "nothing is to be done if",
            said: &[since],
            never: &[nobody, on_loopback],
        },
        Claim {
            words: "' shows it",
            said: &[since],
            never: &[nobody],
        },
        Claim {
            words: "dropped by a netfilter rule",
            said: &[by_a_rule, by_a_rule_on_the_way],
            never: &[
                table_full,
                no_nat_port,
                was_full_before,
                inserts_failed_before,
                by_netfilter,
                by_xdp,
            ],
        },
        Claim {
            words: " on the way through this host",
            said: &[by_a_rule_on_the_way, no_nat_port],
            never: &[by_a_rule, by_netfilter],
        },
        Claim {
            words: "the conntrack table of this namespace is full (100 of 100)",
            said: &[table_full],
            never: &[by_a_rule, was_full_before, no_nat_port, by_netfilter],
        },
        Claim {
            words: "the conntrack table of this namespace is full (",
            said: &[table_full],
            never: &[by_a_rule, was_full_before],
        },
        Claim {
            words: "while conntrack could not insert",
            said: &[no_nat_port],
            never: &[by_a_rule, inserts_failed_before, table_full],
        },
        Claim {
            words: "a translation (NAT) has no free port, or the connection's tuple is taken",
            said: &[no_nat_port],
            never: &[by_a_rule, inserts_failed_before],
        },
        Claim {
            words: "a rule, or conntrack, which drops where it cannot insert a connection",
            said: &[by_netfilter, inserts_failed_before],
            never: &[by_a_rule, was_full_before, table_full],
        },
        Claim {
            words: "a rule, or conntrack, which drops where its table is full",
            said: &[was_full_before, by_netfilter_anywhere],
            never: &[by_a_rule, by_netfilter, table_full],
        },
        Claim {
            words: "dropped by netfilter",
            said: &[by_netfilter, was_full_before, no_nat_port],
            never: &[by_a_rule, table_full, by_xdp, by_reverse_path],
        },
        Claim {
            words: "look for the rule in 'nft list ruleset'",
            said: &[by_a_rule, by_netfilter],
            never: &[table_full, no_nat_port, by_xdp],
        },
        Claim {
            words: "see what fills it: 'conntrack -L'",
            said: &[table_full],
            never: &[by_a_rule, was_full_before],
        },
        Claim {
            words: "many of one state are a timeout that is too long",
            said: &[table_full],
            never: &[by_a_rule],
        },
        Claim {
            words: "raise net.netfilter.nf_conntrack_max (now",
            said: &[table_full],
            never: &[by_a_rule, no_nat_port],
        },
        Claim {
            words: "in the initial namespace, it bounds each namespace's table",
            said: &[table_full],
            never: &[by_a_rule],
        },
        Claim {
            words: "see how many connections one address is translated to",
            said: &[no_nat_port],
            never: &[by_a_rule, table_full],
        },
        Claim {
            words: "give masquerading more addresses or ports",
            said: &[no_nat_port],
            never: &[by_a_rule, table_full],
        },
        Claim {
            words: "insert_failed of 'conntrack -S' counts them",
            said: &[no_nat_port],
            never: &[by_a_rule],
        },
        Claim {
            words: "a few under load are two packets at once",
            said: &[no_nat_port],
            never: &[by_a_rule],
        },
        Claim {
            words: "tell them apart in namespace",
            said: &[by_netfilter, was_full_before],
            never: &[by_a_rule, table_full, no_nat_port],
        },
        Claim {
            words: "dropped at the interface, by an XDP program or a tc filter",
            said: &[by_xdp],
            never: &[by_netfilter, by_a_rule, by_reverse_path],
        },
        Claim {
            words: "see which program it is",
            said: &[by_xdp],
            never: &[by_netfilter, by_a_rule],
        },
        Claim {
            words: " ingress'",
            said: &[by_xdp],
            never: &[by_netfilter, by_a_rule],
        },
        Claim {
            words: "dropped by reverse path filtering: the route back to the client leaves by another interface, or there is none",
            said: &[by_reverse_path],
            never: &[by_netfilter, by_xdp, other],
        },
        Claim {
            words: "see by which interface 'ip route get",
            said: &[by_reverse_path],
            never: &[by_netfilter, other],
        },
        Claim {
            words: "net.ipv4.conf.all.rp_filter counts",
            said: &[by_reverse_path],
            never: &[other],
        },
        Claim {
            words: "rp_filter to 2 (loose)",
            said: &[by_reverse_path],
            never: &[other],
        },
        Claim {
            words: "dropped: the TCP MD5 or AO signature is missing, unexpected or wrong",
            said: &[without_signature],
            never: &[bad_checksum, other],
        },
        Claim {
            words: "compare the keys of both ends",
            said: &[without_signature],
            never: &[bad_checksum],
        },
        Claim {
            words: "dropped: the checksum is wrong",
            said: &[bad_checksum],
            never: &[without_signature, other],
        },
        Claim {
            words: "look for what breaks packets on the way",
            said: &[bad_checksum],
            never: &[without_signature],
        },
        Claim {
            words: "by the listener's socket filter, or its cgroup's",
            said: &[by_socket_filter],
            never: &[by_netfilter, by_xdp],
        },
        Claim {
            words: "look at the filter that the listener's process attaches",
            said: &[by_socket_filter],
            never: &[by_netfilter],
        },
        Claim {
            words: "dropped for want of memory",
            said: &[no_memory],
            never: &[other, by_netfilter],
        },
        Claim {
            words: "look for memory pressure",
            said: &[no_memory],
            never: &[other],
        },
        Claim {
            words: "dropped before reaching a listener",
            said: &[other],
            never: &[no_memory, bad_checksum, nobody],
        },
        Claim {
            words: "the kernel's reason in the evidence names what to look at",
            said: &[other],
            never: &[no_memory, nobody],
        },
        Claim {
            words: "'conntracer --emit drop' shows each drop",
            said: &[other],
            never: &[no_memory],
        },
        Claim {
            words: "it reads like a scan by 10.0.0.2",
            said: &[scan, scan_of_several, large_scan],
            never: &[scan_by_several, nobody],
        },
        Claim {
            words: "it reads like a scan, from several addresses",
            said: &[scan_by_several],
            never: &[scan, nobody],
        },
        Claim {
            words: "it reads like a scan",
            said: &[scan],
            never: &[nobody, by_netfilter],
        },
        Claim {
            words: "70 ports of 10.0.0.1",
            said: &[scan, large_scan],
            never: &[scan_of_several, nobody],
        },
        Claim {
            words: "ports of several addresses",
            said: &[scan_of_several],
            never: &[scan, large_scan],
        },
        Claim {
            words: "and more that found no room in the table",
            said: &[large_scan],
            never: &[scan, scan_of_several],
        },
        Claim {
            words: "to many ports",
            said: &[all_untracked],
            never: &[scan, large_scan],
        },
    ],
};

/// A SYN that was retransmitted, and freed at its listener.
fn none_at_all(run: &mut Run) {
    dropped(run, "NOT_SPECIFIED", path::INPUT);
}
