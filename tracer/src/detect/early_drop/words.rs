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
    let before = key.before(cx.listeners);
    let to = key.local.to_string();
    let mut draft = draft(spec, (key.netns, key.local, key.cause), &to, drops, cx);
    if let Some(listener) = drops.latest.listener {
        draft.evidence = draft.evidence.text("listener", listener.to_string());
    }
    if let Some(before) = before {
        draft.evidence = draft
            .evidence
            .count("was_listening_pid", before.pid)
            .text("was_listening_command", before.comm.to_text());
    }
    if key.cause == Cause::NoListener {
        draft.advice.insert(0, whose_job(key.local, before));
    }
    draft
}

/// Many of a namespace.
pub(super) fn scan(spec: &'static Spec, key: NetnsKey, scan: &Scan, cx: &Context<'_>) -> Draft {
    let drops = &scan.drops;
    let address = scan.address.unwrap_or(match drops.latest.socket.local {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    });
    let ports = plural(scan.spots, "port");
    let to = match scan.address {
        Some(address) => format!("{ports} of {address}"),
        None => format!("{ports} of several addresses"),
    };
    let by = if drops.remotes.is_power_of_two() {
        format!(" by {}", drops.latest.socket.remote.ip())
    } else {
        ", from several addresses".to_owned()
    };
    let local = SocketAddr::new(address, 0);
    let mut draft = draft(spec, (key.netns, local, key.cause), &to, drops, cx);
    draft.evidence = draft.evidence.count("ports", scan.spots);
    let advice = format!("it reads like a scan{by}: leave it, or have it blocked upstream");
    draft.advice.insert(0, advice.into());
    draft
}

fn draft(
    spec: &'static Spec,
    (netns, local, cause): (u32, SocketAddr, Cause),
    to: &str,
    drops: &Drops,
    cx: &Context<'_>,
) -> Draft {
    Draft {
        spec,
        cause: cause.name(),
        stage: None,
        doubt: drops.because.map(Cow::Borrowed).or_else(|| cx.doubt(spec)),
        subject: Subject::Listener { netns, local },
        owner: drops.latest.owner,
        sample: None,
        since: drops.since,
        last: drops.last,
        count: drops.count,
        summary: summary(cause, drops, to),
        evidence: facts(drops, cause, cx),
        advice: advice(cause, drops, netns),
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
