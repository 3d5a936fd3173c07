//! What is said of SYNs that were dropped before a listener.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    cause::Cause,
    drops::{Drops, NetnsKey, Scan, SpotKey},
};
use crate::{
    detect::room::{Context, Draft, Facts, Spec, plural},
    event::{Owner, Path},
    finding::Subject,
};

/// One address and port.
pub(super) fn spot(spec: &'static Spec, key: &SpotKey, drops: &Drops, cx: &Context<'_>) -> Draft {
    let latest = &drops.latest;
    let before = key.before(cx.listeners);
    let mut facts = facts(drops, key.cause, cx);
    if let Some(listener) = latest.listener {
        facts = facts.text("listener", listener.to_string());
    }
    if let Some(before) = before {
        facts = facts
            .count("was_listening_pid", before.pid)
            .text("was_listening_command", before.comm.to_text());
    }
    let mut advice = advice(key.cause, drops, key.netns);
    if key.cause == Cause::NoListener {
        advice.insert(0, whose_job(key.local, before));
    }
    draft(
        spec,
        key.cause,
        drops,
        Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        summary(key.cause, drops, &key.local.to_string()),
        facts,
        advice,
        cx,
    )
}

/// Many of a namespace.
pub(super) fn scan(spec: &'static Spec, key: NetnsKey, scan: &Scan, cx: &Context<'_>) -> Draft {
    let drops = &scan.drops;
    let address = scan.address.unwrap_or(match drops.latest.socket.local {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    });
    let where_to = match scan.address {
        Some(address) => format!("{} of {address}", plural(scan.spots, "port")),
        None => format!("{} of several addresses", plural(scan.spots, "port")),
    };
    let mut advice = advice(key.cause, drops, key.netns);
    advice.insert(
        0,
        if drops.remotes.is_power_of_two() {
            format!(
                "it reads like a scan by {}: leave it, or have it blocked upstream",
                drops.latest.socket.remote.ip()
            )
            .into()
        } else {
            "it reads like a scan, from several addresses: leave it, or have it blocked upstream"
                .into()
        },
    );
    draft(
        spec,
        key.cause,
        drops,
        Subject::Listener {
            netns: key.netns,
            local: SocketAddr::new(address, 0),
        },
        summary(key.cause, drops, &where_to),
        facts(drops, key.cause, cx).count("ports", scan.spots),
        advice,
        cx,
    )
}

#[expect(clippy::too_many_arguments, reason = "the parts of a draft")]
fn draft(
    spec: &'static Spec,
    cause: Cause,
    drops: &Drops,
    subject: Subject,
    summary: String,
    evidence: Facts,
    advice: Vec<Cow<'static, str>>,
    cx: &Context<'_>,
) -> Draft {
    Draft {
        spec,
        cause: cause.name(),
        stage: None,
        doubt: drops.because.map(Cow::Borrowed).or_else(|| cx.doubt(spec)),
        subject,
        owner: drops.latest.owner,
        sample: None,
        since: drops.since,
        last: drops.last,
        count: drops.count,
        summary,
        evidence,
        advice,
    }
}

fn facts(drops: &Drops, cause: Cause, cx: &Context<'_>) -> Facts {
    let latest = &drops.latest;
    let mut facts = Facts::default().count("remotes_at_least", drops.remotes.count_ones());
    if let Some(reason) = latest.reason {
        facts = match cx.host.drop_reasons.get(&reason) {
            Some(name) => facts.text("reason", name.clone()),
            None => facts.count("reason", reason),
        };
    }
    if cause == Cause::Filtered
        && drops.by_netfilter
        && let Some(path) = latest.path
    {
        facts = facts.text("netfilter_hook", path.name());
    }
    if let Some(device) = latest.device {
        facts = facts.text("interface", device.to_text());
    }
    if latest.socket.remote.port() != 0 {
        facts = facts.text("last_remote", latest.socket.remote.to_string());
    }
    facts
}

fn summary(cause: Cause, drops: &Drops, to: &str) -> String {
    let syns = plural(drops.count, "SYN");
    match cause {
        Cause::NoListener => format!("{syns} to {to}: nothing listens there"),
        Cause::Filtered => match (drops.by_netfilter, drops.latest.path) {
            (true, Some(Path::Forward)) => {
                format!("{syns} to {to} dropped by a netfilter rule on the way through this host")
            }
            (true, Some(path)) => {
                format!(
                    "{syns} to {to} dropped by a netfilter rule ({})",
                    path.name()
                )
            }
            (true, None) => format!("{syns} to {to} dropped by a netfilter rule"),
            (false, _) => format!("{syns} to {to} dropped by a program on the interface"),
        },
        Cause::ReversePath => format!(
            "{syns} to {to} dropped by reverse path filtering: the route back to the client leaves \
             by another interface"
        ),
        Cause::Auth => format!(
            "{syns} to {to} dropped: the TCP MD5 or AO signature is missing, unexpected or wrong"
        ),
        Cause::BadChecksum => format!("{syns} to {to} dropped: the checksum is wrong"),
        Cause::SocketFilter => {
            format!("{syns} to {to} dropped by the listener's socket filter, or its cgroup's")
        }
        Cause::NoMemory => format!("{syns} to {to} dropped for want of memory"),
        Cause::Other => format!("{syns} to {to} dropped before reaching a listener"),
    }
}

fn whose_job(local: SocketAddr, before: Option<&Owner>) -> Cow<'static, str> {
    match before {
        Some(before) => format!(
            "find out why process {} does not listen on port {} any more",
            before.pid,
            local.port()
        ),
        None => format!(
            "start what should listen on port {}, or correct the port in its clients; \
             'ss -ltn' shows who listens, and on which address",
            local.port()
        ),
    }
    .into()
}

fn advice(cause: Cause, drops: &Drops, netns: u32) -> Vec<Cow<'static, str>> {
    let latest = &drops.latest;
    let interface = latest
        .device
        .map_or_else(|| "IFACE".into(), crate::event::Device::to_text);
    let client = latest.socket.remote.ip();
    match cause {
        Cause::NoListener => Vec::new(),
        Cause::Filtered if drops.by_netfilter => vec![
            format!(
                "look for the rule in 'nft list ruleset' of namespace {netns} ('iptables-save -c' \
                 counts, too), and allow the port if its clients are welcome"
            )
            .into(),
        ],
        Cause::Filtered => vec![
            format!(
                "see which program it is: 'ip -d link show {interface}' (XDP) and 'tc filter show \
                 dev {interface} ingress'"
            )
            .into(),
        ],
        Cause::ReversePath => vec![
            format!(
                "see by which interface 'ip route get {client}' answers, and mend the route; or set \
                 net.ipv4.conf.{interface}.rp_filter to 2 (loose); the larger of it and \
                 net.ipv4.conf.all.rp_filter counts"
            )
            .into(),
        ],
        Cause::Auth => vec![
            "compare the keys of both ends: each peer's address needs its key on the listener \
             (TCP_MD5SIG, TCP_AO_ADD_KEY), and nobody else may sign"
                .into(),
        ],
        Cause::BadChecksum => vec![
            format!(
                "look for what breaks packets on the way: 'ethtool -k {interface}' (checksum \
                 offload, on the sender if it is a virtual machine), 'ethtool -S {interface}', cables"
            )
            .into(),
        ],
        Cause::SocketFilter => vec![
            "look at the filter that the listener's process attaches (SO_ATTACH_FILTER, \
             SO_ATTACH_BPF), and at 'bpftool cgroup tree'"
                .into(),
        ],
        Cause::NoMemory => vec![
            "look for memory pressure: net.ipv4.tcp_mem, the cgroup's memory.max, and the kernel log"
                .into(),
        ],
        Cause::Other => vec![
            "the kernel's reason in the evidence names what to look at; 'conntracer --emit drop' \
             shows each drop"
                .into(),
        ],
    }
}
