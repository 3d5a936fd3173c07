//! What is said of SYNs that were dropped before a listener.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::{
    cause::Cause,
    drops::{Drops, NetnsKey, Scan, SpotKey},
    elsewhere::{self, Elsewhere},
    netfilter::By,
};
use conntracer_common::record::netns_fact as fact;

use crate::{
    detect::room::{Context, Draft, Facts, Spec, plural},
    event::{Owner, Path},
    finding::Subject,
};

/// What a poll found out about SYNs to an address and port.
pub(super) fn found(key: &SpotKey, drops: &Drops, cx: &Context<'_>) -> Option<&'static str> {
    match key.cause {
        Cause::Filtered if drops.by_netfilter => {
            Some(By::of(cx.netns_facts(key.netns), drops.latest.path).name())
        }
        Cause::NoListener => elsewhere::nearest(key.netns, key.local, drops.since, cx)
            .map(|elsewhere| elsewhere.name()),
        _ => None,
    }
}

/// One address and port.
pub(super) fn spot(spec: &'static Spec, key: &SpotKey, drops: &Drops, cx: &Context<'_>) -> Draft {
    let before = key.before(cx.listeners, drops.since);
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
        let elsewhere = elsewhere::nearest(key.netns, key.local, drops.since, cx);
        if let Some(elsewhere) = &elsewhere {
            let interface = drops.latest.device.map(crate::event::Device::to_text);
            let syns = plural(drops.count, "SYN");
            let said = elsewhere.said(interface.as_deref());
            draft.summary = format!("{syns} to {to}: {said}");
            draft.evidence = listens(draft.evidence, elsewhere);
        }
        let job = match (elsewhere, before) {
            (Some(elsewhere), _) => elsewhere.advice(key.local).into(),
            (None, before) => whose_job(key.local, before),
        };
        draft.advice.insert(0, job);
    }
    draft
}

/// Who listens on the port, for others.
fn listens(facts: Facts, elsewhere: &Elsewhere) -> Facts {
    let facts = facts
        .text("listens", elsewhere.local.to_string())
        .text("listens_for", elsewhere.name());
    match elsewhere.owner {
        Some(owner) => facts
            .count("listening_pid", owner.pid)
            .text("listening_command", owner.comm.to_text()),
        None => facts,
    }
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
        None if scan.has_more && scan.spots <= 1 => "many ports".to_owned(),
        None => format!("{ports} of several addresses"),
    };
    let to = if scan.has_more {
        format!("{to} and more that found no room in the table")
    } else {
        to
    };
    let by = if drops.remotes.is_power_of_two() {
        format!(" by {}", drops.latest.socket.remote.ip())
    } else {
        ", from several addresses".to_owned()
    };
    let local = SocketAddr::new(address, 0);
    let mut draft = draft(spec, (key.netns, local, key.cause), &to, drops, cx);
    if scan.spots > 0 {
        draft.evidence = draft.evidence.count("ports", scan.spots);
    }
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
    let by = (cause == Cause::Filtered && drops.by_netfilter)
        .then(|| By::of(cx.netns_facts(netns), drops.latest.path));
    let undecided = || {
        let because = match by? {
            By::Rule => return None,
            By::Unknown => {
                "the kernel says that netfilter dropped them, and not whether a rule or conntrack did"
            }
            By::TableFull { .. } | By::InsertFailed(_) => {
                "the kernel says that netfilter dropped them; that conntrack did is concluded from its figures"
            }
        };
        Some(Cow::Borrowed(because))
    };
    Draft {
        here: None,
        spec,
        cause: cause.name(),
        stage: None,
        doubt: drops
            .because
            .map(Cow::Borrowed)
            .or_else(|| cx.doubt(spec))
            .or_else(undecided),
        subject: Subject::Listener { netns, local },
        owner: drops.latest.owner,
        severity: None,
        sample: None,
        since: drops.since,
        last: drops.last,
        count: drops.count,
        summary: summary(cause, drops, to, by),
        evidence: facts(drops, cause, by, cx),
        advice: advice(cause, drops, netns, by),
    }
}

fn facts(drops: &Drops, cause: Cause, by: Option<By>, cx: &Context<'_>) -> Facts {
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
    if let Some(by) = by {
        facts = conntrack(
            facts.text("filtered_by", by.name()),
            latest.socket.netns,
            cx,
        );
    }
    if let Some(device) = latest.device {
        facts = facts.text("interface", device.to_text());
    }
    if latest.socket.remote.port() != 0 {
        facts = facts.text("last_remote", latest.socket.remote.to_string());
    }
    facts
}

/// What conntrack counts in the namespace, where it is there.
fn conntrack(mut facts: Facts, netns: u32, cx: &Context<'_>) -> Facts {
    let Some(known) = cx.netns_facts(netns) else {
        return facts;
    };
    for (name, figure) in [
        ("conntrack_count", fact::CONNTRACK_COUNT),
        ("conntrack_max", fact::CONNTRACK_MAX),
    ] {
        facts = facts.count_if_known(name, known.now(figure));
    }
    for (name, figure) in [
        ("conntrack_drops", fact::CONNTRACK_DROP),
        ("conntrack_early_drops", fact::CONNTRACK_EARLY_DROP),
        ("conntrack_inserts_failed", fact::CONNTRACK_INSERT_FAILED),
        ("conntrack_invalid", fact::CONNTRACK_INVALID),
    ] {
        facts = facts.count_if_known(name, known.now(figure).filter(|count| *count > 0));
    }
    facts
}

fn summary(cause: Cause, drops: &Drops, to: &str, by: Option<By>) -> String {
    let syns = plural(drops.count, "SYN");
    match cause {
        Cause::NoListener => format!("{syns} to {to}: nothing listens there"),
        Cause::Filtered => {
            let at = match drops.latest.path {
                Some(Path::Forward) => " on the way through this host".to_owned(),
                Some(path) => format!(" ({})", path.name()),
                None => String::new(),
            };
            match by {
                Some(By::Rule) => format!("{syns} to {to} dropped by a netfilter rule{at}"),
                Some(By::TableFull { count, most }) => format!(
                    "{syns} to {to} dropped: the conntrack table of this namespace is full ({count} of {most})"
                ),
                Some(By::InsertFailed(failed)) => format!(
                    "{syns} to {to} dropped by netfilter{at} while conntrack could not insert {}: a translation \
                     (NAT) has no free port, or the connection's tuple is taken",
                    plural(failed, "connection")
                ),
                Some(By::Unknown) => {
                    let when = match drops.latest.path {
                        Some(Path::Input | Path::Forward) => "it cannot insert a connection",
                        Some(Path::Prerouting) => "its table is full",
                        None => "its table is full or it cannot insert a connection",
                    };
                    format!(
                        "{syns} to {to} dropped by netfilter{at}: a rule, or conntrack, which drops where {when}"
                    )
                }
                None => format!(
                    "{syns} to {to} dropped at the interface, by an XDP program or a tc filter"
                ),
            }
        }
        Cause::ReversePath => format!(
            "{syns} to {to} dropped by reverse path filtering: the route back to the client leaves \
             by another interface, or there is none"
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

fn advice(cause: Cause, drops: &Drops, netns: u32, by: Option<By>) -> Vec<Cow<'static, str>> {
    let latest = &drops.latest;
    let interface = latest
        .device
        .map_or_else(|| "IFACE".into(), crate::event::Device::to_text);
    let client = latest.socket.remote.ip();
    match cause {
        Cause::NoListener => Vec::new(),
        Cause::Filtered if let Some(by) = by => netfilter_advice(by, netns),
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

fn netfilter_advice(by: By, netns: u32) -> Vec<Cow<'static, str>> {
    let rule = || {
        format!(
            "look for the rule in 'nft list ruleset' of namespace {netns} ('iptables-save -c' counts, too), and allow \
             the port if its clients are welcome"
        )
        .into()
    };
    match by {
        By::Rule => vec![rule()],
        By::TableFull { most, .. } => vec![
            format!(
                "see what fills it: 'conntrack -L' in namespace {netns}; many of one state are a timeout that is too \
                 long (net.netfilter.nf_conntrack_tcp_timeout_*), many of one address are a flood"
            )
            .into(),
            format!(
                "raise net.netfilter.nf_conntrack_max (now {most}; in the initial namespace, it bounds each \
                 namespace's table), and nf_conntrack_buckets with it"
            )
            .into(),
        ],
        By::InsertFailed(_) => vec![
            format!(
                "see how many connections one address is translated to: 'conntrack -L -j | wc -l' in namespace \
                 {netns}; give masquerading more addresses or ports ('to-source A-B', 'masquerade to :1024-65535')"
            )
            .into(),
            "insert_failed of 'conntrack -S' counts them; a few under load are two packets at once".into(),
        ],
        By::Unknown => vec![
            format!(
                "tell them apart in namespace {netns}: 'conntrack -S' ('drop' grows where the table is full, \
                 'insert_failed' where there is no port), 'conntrack -C' against net.netfilter.nf_conntrack_max"
            )
            .into(),
            rule(),
        ],
    }
}
