//! What is said of calls that failed.

use std::{borrow::Cow, net::IpAddr};

use super::failures::{Cause, FailureKey, Failures, Holder, Stage};
use crate::{
    detect::{
        errno,
        room::{Context, Draft, Facts, Spec, plural, who},
    },
    event::{BindCall, BindHolder, Owner, TcpState},
    finding::{Status, Subject},
};

const RANGE: &str = "net.ipv4.ip_local_port_range";

pub(super) fn draft(
    spec: &'static Spec,
    key: &FailureKey,
    failures: &Failures,
    status: Status,
    cx: &Context<'_>,
) -> Draft {
    Draft {
        here: None,
        spec,
        cause: key.cause.name(),
        stage: Some(failures.stage.name()),
        doubt: cx.doubt_in(spec, key.netns),
        subject: Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        owner: failures.latest.owner,
        severity: None,
        sample: None,
        since: failures.since,
        last: failures.last,
        count: failures.count,
        summary: summary(key, failures, status),
        evidence: facts(failures),
        advice: advice(key, failures, cx),
    }
}

const fn call(of: BindCall) -> &'static str {
    match of {
        BindCall::Bind | BindCall::Security => "bind()",
        BindCall::Listen => "listen()",
    }
}

/// The process that holds a socket, beside the one that wants it.
fn holder_named(holder: &BindHolder, failures: &Failures) -> String {
    match holder.owner {
        Some(owner) if is_itself(&owner, failures) => format!("process {} itself", owner.pid),
        Some(owner) => format!("process {} ({})", owner.pid, owner.comm.to_text()),
        None => "a process that is not known".to_owned(),
    }
}

fn is_itself(owner: &Owner, failures: &Failures) -> bool {
    let asker = failures.latest.owner;
    asker.is_some_and(|asker| (asker.pid, asker.started_ms) == (owner.pid, owner.started_ms))
}

fn summary(key: &FailureKey, failures: &Failures, status: Status) -> String {
    let who = who(failures.latest.owner.as_ref());
    let mut text = format!("{} of {who} to {}", call(key.call), key.local);
    if failures.ports > 1 {
        let others = plural(failures.ports.saturating_sub(1), "other port");
        text = format!("{text} and {others}");
    }
    let times = match failures.count {
        1 => "failed".to_owned(),
        count => format!("failed {count} times"),
    };
    text = format!("{text} {times}");
    if failures.processes > 1 {
        text = format!(
            "{text}, by {} processes one after the other",
            failures.processes
        );
    }
    text = format!("{text}: {}", why(key, failures));
    match failures.stage {
        _ if status != Status::Resolved => text,
        Stage::Bound => format!("{text}; the program has it now"),
        Stage::Elsewhere(port) => format!("{text}; the process has got port {port} instead"),
        Stage::Quiet | Stage::Failing => format!("{text}; it was not tried again"),
    }
}

fn why(key: &FailureKey, failures: &Failures) -> String {
    let latest = &failures.latest;
    match key.cause {
        Cause::InUse => in_use(key, failures),
        Cause::NoPort => no_port(failures),
        Cause::NotLocal if is_link_local(key.local.ip()) => format!(
            "no interface of this namespace has the address {} as one that is usable",
            key.local.ip()
        ),
        Cause::NotLocal => format!("{} is no address of this namespace that is usable", key.local.ip()),
        Cause::Denied => match denied_by(failures) {
            Denied::Security => "a security module of this host denies it".to_owned(),
            Denied::Unprivileged(start) => format!(
                "a port below {start} takes CAP_NET_BIND_SERVICE, which the process does not have"
            ),
            Denied::Elsewhere => {
                "it has CAP_NET_BIND_SERVICE, and the kernel denies a port below the limit all the same".to_owned()
            }
            Denied::Program => "the kernel denies it, and not for want of a privilege for the port".to_owned(),
            Denied::Unknown => "the kernel denies it".to_owned(),
        },
        Cause::Other => match errno::name(latest.errno) {
            Some(name) => format!("the kernel refuses it with {name}"),
            None => format!("the kernel refuses it with error {}", latest.errno),
        },
    }
}

const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    }
}

/// Who holds the port, and why it is not shared.
fn in_use(key: &FailureKey, failures: &Failures) -> String {
    let port = failures.latest.socket.local.port();
    let place = if failures.ports > 1 {
        format!("the last of them, {port}, is held by")
    } else {
        "the port is held by".to_owned()
    };
    match failures.holder() {
        Holder::Listener(holder) => {
            let who = holder_named(holder, failures);
            let mut text = format!("{place} {who}, which listens on {}", holder.local);
            let asked = failures.latest.socket.local;
            if holder.local.is_ipv4() && asked.is_ipv6() && asked.ip().is_unspecified() {
                text = format!("{text}, and the socket is for IPv4, too (no IPV6_V6ONLY)");
            } else if holder.local.is_ipv6() && asked.is_ipv4() {
                text = format!("{text} for IPv4, too (no IPV6_V6ONLY)");
            }
            let (theirs, ours) = (
                holder.sharing.reuse_port,
                failures.latest.sharing.reuse_port,
            );
            let users = holder.owner.zip(failures.latest.owner);
            let users = users.map(|(theirs, ours)| (theirs.uid, ours.uid));
            match users {
                Some((their_uid, our_uid)) if theirs && ours && their_uid != our_uid => format!(
                    "{text}; both have SO_REUSEPORT, and their users differ ({their_uid} and {our_uid})"
                ),
                _ if theirs && !ours => {
                    format!("{text} with SO_REUSEPORT, which the socket does not have")
                }
                _ => text,
            }
        }
        Holder::Bound(holder) => format!(
            "{place} {}, which has a socket bound to {} and does not listen there",
            holder_named(holder, failures),
            holder.local
        ),
        Holder::Connection(holder, _) if holder.is_connected_to_itself() => format!(
            "{place} {}, whose socket is connected to itself: it connected to {} from the same port, while nobody \
             listened there",
            holder_named(holder, failures),
            holder.remote
        ),
        Holder::Connection(holder, count) => {
            let who = match holder.owner {
                Some(_) => holder_named(holder, failures),
                None => "nobody yet (it waits for accept())".to_owned(),
            };
            let connections = match count {
                1 => "a connection".to_owned(),
                count => format!("{count} connections, one"),
            };
            format!(
                "{place} {connections} of {who}, from {} to {}{}",
                holder.local,
                holder.remote,
                not_shared(failures)
            )
        }
        Holder::Closing(holder, count) => format!(
            "{place} {} that the process has closed and the peer has not ({} to {}){}",
            plural(u64::from(count), "connection"),
            holder.local,
            holder.remote,
            not_shared(failures)
        ),
        Holder::TimeWait(count) => format!(
            "{place} {} in TIME_WAIT{}",
            plural(u64::from(count), "connection"),
            not_shared(failures)
        ),
        Holder::Unknown if key.call == BindCall::Listen => {
            "another socket listens at the port, and who has it is not known".to_owned()
        }
        Holder::Unknown => "the port is taken, and who holds it is not known".to_owned(),
    }
}

/// Which of both sockets keeps them from sharing the port.
const fn not_shared(failures: &Failures) -> &'static str {
    if failures.latest.sharing.reuse_addr {
        "; the socket has SO_REUSEADDR, and what holds the port has not"
    } else {
        "; the socket has no SO_REUSEADDR"
    }
}

fn no_port(failures: &Failures) -> String {
    let range = failures.latest.range;
    let of_range = range.map_or_else(
        || "no port of the range is free".to_owned(),
        |(low, high)| format!("no port of the range {low} to {high} is free"),
    );
    let Some(held) = &failures.held else {
        return format!("{of_range}, and who holds them is not known");
    };
    match held.named().next() {
        Some(most) => format!(
            "{of_range}; {} holds {} of the {} that are taken",
            holder_named(most, failures),
            most.ports,
            held.ports
        ),
        None => format!("{of_range}, and no process holds them"),
    }
}

/// Who denied it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Denied {
    Security,
    /// The port is below this one, and the process is not privileged.
    Unprivileged(u16),
    /// The same, and it has the privilege in its own user namespace.
    Elsewhere,
    /// A BPF program of its control group: the port needs no privilege, or the error is not that of a port that does.
    Program,
    /// The kernel does not tell from which port on none is needed.
    Unknown,
}

fn denied_by(failures: &Failures) -> Denied {
    let latest = &failures.latest;
    if latest.call == BindCall::Security {
        return Denied::Security;
    }
    match latest.unprivileged_start {
        None if latest.errno == errno::EACCES => Denied::Unknown,
        Some(start) if latest.errno == errno::EACCES && latest.socket.local.port() < start => {
            if latest.is_capable {
                Denied::Elsewhere
            } else {
                Denied::Unprivileged(start)
            }
        }
        _ => Denied::Program,
    }
}

fn facts(failures: &Failures) -> Facts {
    let latest = &failures.latest;
    let mut facts = match errno::name(latest.errno) {
        Some(name) => Facts::default().text("error", name),
        None => Facts::default().count("error", latest.errno),
    };
    facts = facts
        .text("call", call(latest.call))
        .text("last_local", latest.socket.local.to_string())
        .text("reuse_addr", yes(latest.sharing.reuse_addr))
        .text("reuse_port", yes(latest.sharing.reuse_port));
    if latest.socket.local.is_ipv6() {
        facts = facts.text("v6_only", yes(latest.sharing.v6_only));
    }
    if failures.processes > 1 {
        facts = facts.count("processes", failures.processes);
    }
    if failures.ports > 1 {
        facts = facts.count("ports_tried", failures.ports);
    }
    let Some(held) = &failures.held else {
        return facts;
    };
    for (name, count) in [
        ("held_by_listeners", held.listeners),
        ("held_by_bound_sockets", held.bound),
        ("held_by_connections", held.connected),
        ("held_by_closing", held.closing),
        ("held_by_time_wait", held.time_wait),
        ("range_ports_held", held.ports),
    ] {
        if count > 0 {
            facts = facts.count(name, count);
        }
    }
    if let Some(first) = held.named().next() {
        if let Some(owner) = first.owner {
            facts = facts
                .count("holder_pid", owner.pid)
                .count("holder_uid", owner.uid);
        }
        if held.asked.port() != 0 {
            facts = facts.text("holder_local", first.local.to_string());
        } else {
            facts = facts.count("holder_ports", first.ports);
        }
    }
    facts
}

const fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

fn advice(key: &FailureKey, failures: &Failures, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let asked = failures.latest.socket.local;
    let (ip, port, netns) = (asked.ip(), asked.port(), key.netns);
    let who = who(failures.latest.owner.as_ref());
    match key.cause {
        Cause::InUse => in_use_advice(failures, cx, port, &who, netns),
        Cause::NoPort => {
            let mut advice: Vec<Cow<'static, str>> = vec![
                format!(
                    "widen the range, {}, where all who hold ports need them",
                    cx.said_sysctl(RANGE, netns)
                )
                .into(),
            ];
            let most = failures.held.as_ref().and_then(|held| held.named().next());
            if let Some(owner) = most.and_then(|most| most.owner) {
                advice.insert(
                    0,
                    format!(
                        "see what process {} does with them: 'ss -tanp | grep pid={},' in namespace {netns}; a process that \
                         binds before connect() needs one port a connection, unless it sets IP_BIND_ADDRESS_NO_PORT",
                        owner.pid, owner.pid
                    )
                    .into(),
                );
            }
            advice
        }
        Cause::NotLocal => {
            let mut advice: Vec<Cow<'static, str>> = vec![
                format!(
                    "see whether {ip} is there ('ip address show to {ip}' in namespace {netns}); it may come later (DHCP, a \
                     virtual address of keepalived), and then {who} is to start after it"
                )
                .into(),
            ];
            let family = if asked.is_ipv6() { 6 } else { 4 };
            if asked.is_ipv6() {
                advice.push(
                    "an address that is 'tentative' or 'dadfailed' there is not usable: duplicate address detection has not \
                     ended, or has found another host with it"
                        .into(),
                );
            }
            advice.push(
                format!(
                    "to bind to it before it is there, set net.ipv{family}.ip_nonlocal_bind 1, or IP_FREEBIND at the socket"
                )
                .into(),
            );
            advice
        }
        Cause::Denied => match denied_by(failures) {
            Denied::Unprivileged(start) => vec![
                format!(
                    "give {who} the capability (AmbientCapabilities=CAP_NET_BIND_SERVICE of its unit, or 'setcap \
                     cap_net_bind_service+ep' of its program), or a port from {start} on"
                )
                .into(),
                format!("or lower net.ipv4.ip_unprivileged_port_start of namespace {netns} to {port}").into(),
            ],
            Denied::Security => vec![
                format!(
                    "see its log: 'ausearch -m avc -ts recent' (SELinux, 'semanage port -l | grep -w {port}' shows whose the \
                     port is), 'journalctl -k -g apparmor', or Landlock of the process itself"
                )
                .into(),
            ],
            Denied::Elsewhere => vec![
                "the capability counts in the user namespace that owns the network namespace: a rootless container has it in \
                 its own alone"
                    .into(),
                "otherwise a BPF program of its control group denies it: 'bpftool cgroup tree' (bind4, bind6)".into(),
            ],
            Denied::Program | Denied::Unknown => {
                vec!["look for a BPF program of its control group: 'bpftool cgroup tree' (bind4, bind6)".into()]
            }
        },
        Cause::Other => {
            vec!["the error in the evidence names what to look at: 'errno -l', bind(2), listen(2)".into()]
        }
    }
}

fn in_use_advice(
    failures: &Failures,
    cx: &Context<'_>,
    port: u16,
    who: &str,
    netns: u32,
) -> Vec<Cow<'static, str>> {
    let reuse_addr = || {
        format!(
            "let {who} set SO_REUSEADDR before bind(): connections that are closed, or those of its predecessor, hold no \
             port then"
        )
        .into()
    };
    let by_hand =
        || format!("'ss -Htanp \"sport = :{port}\"' in namespace {netns} shows who has it").into();
    match failures.holder() {
        Holder::Listener(holder) | Holder::Bound(holder) => {
            let mut advice: Vec<Cow<'static, str>> = Vec::new();
            match holder.owner {
                Some(owner) if is_itself(&owner, failures) => advice.push(
                    format!("{who} asks twice for one port: look for a second entry for port {port} in its configuration")
                        .into(),
                ),
                Some(owner) => advice.push(
                    format!(
                        "stop process {}, or give one of both another port or address ('systemctl status {}' names its unit)",
                        owner.pid, owner.pid
                    )
                    .into(),
                ),
                None => advice.push(by_hand()),
            }
            let asked = failures.latest.socket.local;
            if holder.local.is_ipv4() != asked.is_ipv4() {
                advice.push(
                    "where one is for IPv4 and the other for IPv6, set IPV6_V6ONLY at the socket for IPv6".into(),
                );
            }
            if holder.sharing.reuse_port && holder.state == TcpState::Listen {
                advice.push(
                    "to share the port, all its sockets need SO_REUSEPORT, and one user".into(),
                );
            }
            advice
        }
        Holder::Connection(holder, _) => {
            let mut advice: Vec<Cow<'static, str>> = Vec::new();
            if holder.is_connected_to_itself() {
                let whose = holder.owner.map_or_else(
                    || "the process that holds it".to_owned(),
                    |owner| format!("process {}", owner.pid),
                );
                advice.push(
                    format!(
                        "end that connection ('ss -K \"sport = :{port}\"' in namespace {netns}), and let {whose} close a socket \
                         whose getsockname() and getpeername() are the same"
                    )
                    .into(),
                );
            }
            let is_ephemeral = failures
                .latest
                .range
                .is_some_and(|(low, high)| (low..=high).contains(&port));
            if is_ephemeral {
                advice.push(
                    format!(
                        "keep the port from connections: net.ipv4.ip_local_reserved_ports {port}, for it is within {}",
                        cx.said_sysctl(RANGE, netns)
                    )
                    .into(),
                );
            }
            if !failures.latest.sharing.reuse_addr {
                advice.push(reuse_addr());
            }
            advice.push(by_hand());
            advice
        }
        Holder::Closing(..) | Holder::TimeWait(_) if !failures.latest.sharing.reuse_addr => {
            vec![reuse_addr()]
        }
        Holder::Closing(..) | Holder::TimeWait(_) => vec![
            format!(
                "they are connections from the port, of a process that set no SO_REUSEADDR: a client that uses port {port}, or \
                 a server that set it after bind(); TIME_WAIT lasts for 60 s"
            )
            .into(),
        ],
        Holder::Unknown => vec![
            by_hand(),
            format!(
                "candidates: a listener, a connection from the port, a socket that is bound and no more ('ss -Htanp \
                 --bound-inactive \"sport = :{port}\"'), one in TIME_WAIT"
            )
            .into(),
        ],
    }
}
