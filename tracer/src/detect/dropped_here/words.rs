//! What is said of segments that this host drops.

use std::borrow::Cow;

use conntracer_common::{record::drop_layer, stats::hook};

use super::here::{CAUSE, Here};
use crate::{
    count::plural,
    detect::{
        context::{Context, Draft},
        facts::Facts,
    },
    event::{DropRule, Dropped, Owner},
};

/// The drops are the cause: they come first, and of what the finding said what is seen of it stays.
pub(super) fn explained(draft: Draft, here: &Here, cx: &Context<'_>) -> Draft {
    let Draft {
        cause,
        subject,
        summary,
        evidence,
        ..
    } = draft;
    let seen = summary.split(": ").next().unwrap_or_default();
    let seen = seen.split("; ").next().unwrap_or_default();
    let summary = format!("{}; {seen}", sentence(here, cx));
    let netns = subject.netns();
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    for place in &here.places {
        let line = advise(place, netns, draft.owner.as_ref(), cx);
        if !advice.contains(&line) {
            advice.push(line);
        }
    }
    Draft {
        cause: CAUSE,
        doubt: cx.doubt_by_losses(&[hook::DROP], netns),
        subject,
        summary,
        evidence: facts(evidence.text("symptom", cause), here, cx),
        advice,
        here: None,
        ..draft
    }
}

/// Some of what is lost is lost here: evidence, and no cause.
pub(super) fn beside(draft: Draft, here: &Here, cx: &Context<'_>) -> Draft {
    Draft {
        evidence: facts(draft.evidence, here, cx),
        here: None,
        ..draft
    }
}

fn sentence(here: &Here, cx: &Context<'_>) -> String {
    let of = match here.connections {
        0 | 1 => String::new(),
        connections => format!(" of {connections} connections"),
    };
    let segments = match here.places.as_slice() {
        [one] if one.fins == one.count => plural(one.count, "FIN"),
        _ => plural(here.count(), "segment"),
    };
    let was = if here.count() == 1 { "was" } else { "were" };
    let places: Vec<String> = match here.places.as_slice() {
        [one] => vec![said(one, cx)],
        several => several
            .iter()
            .map(|place| format!("{} {}", place.count, said(place, cx)))
            .collect(),
    };
    let [first, ..] = here.places.as_slice() else {
        return String::new();
    };
    let ends = match here.connections {
        0 | 1 if here.places.iter().all(|place| place.to == first.to) => {
            format!(" from {} to {}", first.from, first.to)
        }
        0 | 1 => format!(" between {} and {}", first.from, first.to),
        _ => of,
    };
    format!(
        "{segments}{ends} {was} dropped on this host, {}",
        places.join(", ")
    )
}

/// Where, for a sentence.
fn said(place: &Dropped, cx: &Context<'_>) -> String {
    let netns = match place.netns {
        0 => String::new(),
        netns => format!(" of namespace {netns}"),
    };
    let device = place
        .device
        .map_or_else(String::new, |device| format!(" at {}", device.to_text()));
    match place.layer.number() {
        drop_layer::NETFILTER => {
            let at = place
                .hook
                .map_or_else(String::new, |hook| format!(" at {hook}"));
            format!("by netfilter{at}{netns}{}", rule(place))
        }
        drop_layer::TC_INGRESS => format!("by a tc filter at the ingress{}{netns}", of(&device)),
        drop_layer::TC_EGRESS => format!("by a tc filter at the egress{}{netns}", of(&device)),
        drop_layer::QDISC => format!("by the queue (qdisc){}{netns}", of(&device)),
        drop_layer::CPU_BACKLOG => format!("by the backlog queue of a CPU{netns}"),
        drop_layer::XDP => format!("by an XDP program{device}{netns}"),
        drop_layer::BPF => format!("by a BPF program of the control group{netns}"),
        drop_layer::ROUTE => format!("for want of a route, or by the reverse path filter{netns}"),
        drop_layer::NEIGHBOUR => format!("for want of the neighbour's address{device}{netns}"),
        drop_layer::CHECKSUM => format!("for a wrong checksum{device}{netns}"),
        drop_layer::AUTH => format!("for a signature that is missing or wrong{netns}"),
        drop_layer::RECEIVE_BUFFER => {
            format!("for want of room in the socket's receive buffer or of TCP's memory{netns}")
        }
        drop_layer::SOCKET_BACKLOG => format!("by the socket's backlog queue{netns}"),
        _ => {
            let reason = place
                .reason
                .and_then(|reason| cx.host.drop_reasons.get(&reason));
            let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            format!("by a device or its driver{device}{netns}{reason}")
        }
    }
}

fn of(device: &str) -> String {
    device.replacen(" at ", " of ", 1)
}

/// NFPROTO_* as nft calls the families.
const fn family(number: u8) -> &'static str {
    match number {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

fn rule(place: &Dropped) -> String {
    let (Some(table), Some(chain)) = (place.table, place.chain) else {
        return String::new();
    };
    let which = match place.rule {
        DropRule::Rule(handle) => format!(", rule handle {handle}"),
        DropRule::Policy => ", its policy".to_owned(),
        DropRule::Unknown => String::new(),
    };
    format!(
        " (table {} {}, chain {}{which})",
        family(place.table_family),
        plain(&table.to_text()),
        plain(&chain.to_text())
    )
}

/// Names are chosen by whoever makes the rule: marks that end a clause are not taken over.
fn plain(name: &str) -> String {
    name.replace([':', ';'], "_")
}

fn facts(facts: Facts, here: &Here, cx: &Context<'_>) -> Facts {
    let mut facts = facts.count(CAUSE, here.count());
    if here.connections > 1 {
        facts = facts.count("dropped_here_connections", here.connections);
    }
    let Some(first) = here.places.first() else {
        return facts;
    };
    facts = facts.text("drop_layer", first.layer.name());
    if let Some(reason) = first.reason {
        facts = match cx.host.drop_reasons.get(&reason) {
            Some(name) => facts.text("drop_reason", name.clone()),
            None => facts.count("drop_reason_number", reason),
        };
    }
    if let Some(hook) = first.hook {
        facts = facts.text("drop_hook", hook);
    }
    if first.netns != 0 {
        facts = facts.count("drop_netns", first.netns);
    }
    if let Some(device) = first.device {
        facts = facts.text("drop_device", device.to_text().into_owned());
    }
    if let (Some(table), Some(chain)) = (first.table, first.chain) {
        facts = facts
            .text("nft_family", family(first.table_family))
            .text("nft_table", table.to_text())
            .text("nft_chain", chain.to_text());
    }
    facts = match first.rule {
        DropRule::Rule(handle) => facts.count("nft_rule_handle", handle),
        DropRule::Policy => facts.text("nft_rule", "policy"),
        DropRule::Unknown if first.layer.number() == drop_layer::NETFILTER => {
            facts.text("nft_rule", "not known")
        }
        DropRule::Unknown => facts,
    };
    if here.places.len() > 1 {
        let places: Vec<String> = here
            .places
            .iter()
            .map(|place| format!("{} {}", place.count, said(place, cx)))
            .collect();
        facts = facts.text("dropped_by", places.join(", "));
    }
    facts
}

/// How a command comes to run in the namespace of the drop.
fn within(place: &Dropped, netns: Option<u32>, owner: Option<&Owner>, cx: &Context<'_>) -> String {
    if place.netns == 0 || cx.host.netns == Some(place.netns) {
        return String::new();
    }
    match owner.filter(|_| netns == Some(place.netns)) {
        Some(owner) => format!("nsenter -t {} -n ", owner.pid),
        None => "nsenter -t PID -n ".to_owned(),
    }
}

/// Which process leads there, where none is known.
fn leads(within: &str, place: &Dropped) -> String {
    if within.contains("PID") {
        format!(
            " (PID is a process in namespace {}, as lsns -t net shows)",
            place.netns
        )
    } else {
        String::new()
    }
}

fn advise(
    place: &Dropped,
    netns: Option<u32>,
    owner: Option<&Owner>,
    cx: &Context<'_>,
) -> Cow<'static, str> {
    let within = within(place, netns, owner, cx);
    let leads = leads(&within, place);
    let device = place
        .device
        .map_or_else(|| "DEVICE".to_owned(), |device| plain(&device.to_text()));
    match place.layer.number() {
        drop_layer::NETFILTER => netfilter(place, &within, &leads),
        drop_layer::TC_INGRESS => {
            format!("look for the filter ({within}tc -s filter show dev {device} ingress){leads}").into()
        }
        drop_layer::TC_EGRESS => {
            format!("look for the filter ({within}tc -s filter show dev {device} egress){leads}").into()
        }
        drop_layer::QDISC => format!(
            "look at the queue's limit and rate ({within}tc -s qdisc show dev {device}){leads}"
        )
        .into(),
        drop_layer::CPU_BACKLOG => {
            "raise net.core.netdev_max_backlog, or spread the packets over more CPUs (RPS), as \
             /proc/net/softnet_stat shows drops in its second column"
                .into()
        }
        drop_layer::XDP => format!("look at the XDP program ({within}ip link show dev {device}){leads}").into(),
        drop_layer::BPF => {
            "look at the programs of the control group (bpftool cgroup tree)".into()
        }
        drop_layer::ROUTE => format!(
            "look at the routes and at the reverse path filter ({within}ip route, {within}sysctl -a -r rp_filter){leads}"
        )
        .into(),
        drop_layer::NEIGHBOUR => {
            format!("look at the neighbour entries ({within}ip -s neigh){leads}").into()
        }
        drop_layer::CHECKSUM => format!(
            "look for what changes packets or leaves their checksums undone, such as offloads ({within}ethtool -k \
             {device}){leads}"
        )
        .into(),
        drop_layer::AUTH => {
            "compare the keys of both ends (TCP MD5 or AO, IPsec policies)".into()
        }
        drop_layer::RECEIVE_BUFFER => format!(
            "let the receiving process read faster, or raise its receive buffer ({within}sysctl net.ipv4.tcp_rmem) or \
             TCP's memory (sysctl net.ipv4.tcp_mem){leads}"
        )
        .into(),
        drop_layer::SOCKET_BACKLOG => format!(
            "let the receiving process hold the socket for shorter, or raise its receive buffer ({within}sysctl \
             net.ipv4.tcp_rmem){leads}"
        )
        .into(),
        _ => format!("look at the device's drops ({within}ip -s link show dev {device}){leads}").into(),
    }
}

/// Of what netfilter drops: the command that shows the rule, or all of them.
fn netfilter(place: &Dropped, within: &str, leads: &str) -> Cow<'static, str> {
    let (Some(table), Some(chain)) = (place.table, place.chain) else {
        let hook = place.hook.unwrap_or("any");
        return format!(
            "look for the rule or the policy that drops at hook {hook} ({within}nft -a list ruleset){leads}, and at what \
             conntrack drops where none does ({within}conntrack -S)"
        )
        .into();
    };
    let which = match place.rule {
        DropRule::Rule(handle) => format!("rule {handle}"),
        DropRule::Policy => "the policy".to_owned(),
        DropRule::Unknown => "the rules".to_owned(),
    };
    format!(
        "mend {which} of the chain ({within}nft -a list chain {} '{}' '{}'){leads}",
        family(place.table_family),
        plain(&table.to_text()),
        plain(&chain.to_text())
    )
    .into()
}
