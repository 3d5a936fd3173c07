//! The words of `syn_drop` and `syn_cookies`: evidence, summary and advice.

use std::borrow::Cow;

use conntracer_common::record::{netns_fact, syn_outcome};

use super::{drops::Cause, scene::Scene, why::Why};
use crate::{
    detect::room::{Context, Draft, Facts, Spec, plural, said_seconds, who},
    event::Syn,
    finding::Subject,
    plan::HookType,
    table::listener::{AcceptCoverage, Acceptor, takes},
};

/// Shares of the drops that are told one by one.
const SHARES_TOLD: usize = 8;

pub(super) fn draft(
    spec: &'static Spec,
    scene: &Scene<'_>,
    cause: Cause,
    cx: &Context<'_>,
) -> Draft {
    let drops = scene.drops;
    let doubt = cx
        .doubt_by(spec, cause.hooks())
        .or_else(|| {
            (drops.by_fields && cause != Cause::Cookies)
                .then(|| "the cause was concluded from the listener's queue lengths".into())
        })
        .or_else(|| {
            (cause == Cause::NoMemory).then(|| {
                "the kernel counts that it made no socket, and not why: a route that went meanwhile \
                 does the same"
                    .into()
            })
        });
    Draft {
        here: None,
        spec,
        cause: cause.name(),
        stage: None,
        doubt,
        subject: Subject::Listener {
            netns: scene.key.netns,
            local: scene.key.local,
        },
        owner: scene.owner,
        severity: None,
        sample: None,
        since: drops.since,
        last: drops.last,
        count: drops.count,
        summary: match drops.flood {
            Some(flood) => format!(
                "{}; finding {flood} says that it looks like a flood",
                summary(scene, cause, cx)
            ),
            None => summary(scene, cause, cx),
        },
        evidence: cx.reconciled(evidence(scene, cause), scene.key.netns, cause.counters()),
        advice: advice(scene, cause, cx),
    }
}

fn evidence(scene: &Scene<'_>, cause: Cause) -> Facts {
    let (syn, service) = (scene.worst, scene.service);
    let mut facts = Facts::default()
        .count("ack_backlog", syn.ack_backlog)
        .count("peak_ack_backlog", peak(syn))
        .count("max_ack_backlog", syn.max_ack_backlog);
    if is_capped(syn) {
        facts = facts.text("backlog_capped_by_somaxconn", "yes");
    }
    facts = facts
        .count("syn_qlen", syn.syn_qlen)
        .count("peak_syn_qlen", syn.peak_syn_qlen)
        .count("max_syn_backlog", syn.max_syn_backlog)
        .count("syn_arrivals", service.arrivals())
        .count("syn_added", service.totals[syn_outcome::ADDED])
        .count("syn_cookies_sent", service.totals[syn_outcome::COOKIE])
        .count_if_known("syncookies", syn.syncookies.map(u64::from))
        .count_if_known("somaxconn", syn.somaxconn.map(u64::from));
    if cause.is_of_ack() {
        facts = facts
            .count("third_acks_refused", scene.drops.acks)
            .count_if_known("abort_on_overflow", syn.abort_on_overflow.map(u64::from));
    }
    facts = members(facts, scene);
    facts = accepts(facts, &scene.acceptor);
    if cause.is_of_accept_queue() {
        facts = processes(facts, scene.drops.why.as_ref());
    }
    if let Some(families) = takes(scene.key.local, syn.v6_only) {
        facts = facts.text("takes", families);
    }
    let remote = service.latest.socket.remote;
    if remote.port() != 0 {
        facts = facts.text("last_remote", remote.to_string());
    }
    match scene.drops.flood {
        Some(flood) => facts
            .text("looks_like", "flood")
            .count("flood_finding", flood),
        None => facts,
    }
}

/// How many sockets share the address, and how the drops split.
fn members(facts: Facts, scene: &Scene<'_>) -> Facts {
    let members = scene.service.members.len();
    let shares = &scene.drops.shares;
    if members < 2 && shares.len() < 2 {
        return facts;
    }
    let mut counts: Vec<u64> = shares.values().copied().collect();
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let mut split = counts
        .iter()
        .take(SHARES_TOLD)
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if counts.len() > SHARES_TOLD {
        split.push_str(", …");
    }
    facts
        .count("members", members as u64)
        .count("members_dropping", shares.len() as u64)
        .count("worst_member_drops", scene.worst_drops)
        .text("drops_by_member", split)
}

fn accepts(facts: Facts, acceptor: &Acceptor) -> Facts {
    let facts = match acceptor.coverage {
        AcceptCoverage::Seen => facts.count("accepted", acceptor.accepted),
        AcceptCoverage::Inferred => facts
            .count("accepted", acceptor.accepted)
            .text("accepts_known_by", "the length of the queue"),
        AcceptCoverage::Unknown => facts.text("accepts_known_by", "nothing on this hook type"),
    };
    let facts = match acceptor.per_s {
        Some(rate) => facts.number("accepts_per_s", rate),
        None => facts,
    };
    match acceptor.idle {
        Some(idle) => facts.seconds("since_last_accept_s", idle),
        None => facts,
    }
}

/// How those stood who may accept.
pub(in crate::detect) fn processes(mut facts: Facts, why: Option<&Why>) -> Facts {
    let Some(why) = why else {
        return facts;
    };
    if let Some(name) = why.name() {
        facts = facts.text("acceptor_hindered_by", name);
    }
    let looked: Vec<_> = why.processes().collect();
    facts = facts.count("acceptors_looked_at", looked.len() as u64);
    let Some(first) = looked.first() else {
        return facts;
    };
    facts = facts.count("acceptor_pid", first.pid).text(
        "acceptor_state",
        char::from(first.state).escape_default().to_string(),
    );
    if let Some((open, most)) = first.descriptors.zip(first.descriptor_limit) {
        facts = facts
            .count("acceptor_descriptors", open)
            .count("acceptor_descriptor_limit", most);
    }
    if let Some((kind, count)) = first.descriptors_mostly {
        facts = facts
            .text("acceptor_descriptors_mostly", kind)
            .count("acceptor_descriptors_of_kind", count);
    }
    facts
}

/// Longest accept queue seen.
fn peak(syn: &Syn) -> u32 {
    syn.peak_ack_backlog.max(syn.ack_backlog)
}

/// `listen()` cuts what it is asked for to `somaxconn` (`__sys_listen`), and does not keep the former.
fn is_capped(syn: &Syn) -> bool {
    syn.somaxconn == Some(syn.max_ack_backlog)
}

/// What is known of the acceptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// It took nothing for a second or more.
    Stalled,
    /// It takes some, and more come.
    Slow,
    /// It took one a moment ago: whether it goes on is not known yet.
    Recent,
    /// Neither is known.
    Unknown,
}

fn pace(acceptor: &Acceptor) -> Pace {
    match (acceptor.idle, acceptor.per_s) {
        (Some(idle), _) if idle.as_secs() >= 1 => Pace::Stalled,
        (Some(_), Some(_)) => Pace::Slow,
        (Some(_), None) => Pace::Recent,
        (None, _) => Pace::Unknown,
    }
}

/// What is known of the acceptor, and of the processes that may accept, for a sentence.
fn said_accepts(scene: &Scene<'_>) -> String {
    if let Some(delay) = scene.drops.delay {
        return format!("finding {delay} says why nobody takes them");
    }
    let accepts = said_pace(&scene.acceptor);
    let why = scene.drops.why.as_ref();
    let takes = matches!(pace(&scene.acceptor), Pace::Slow | Pace::Recent);
    if let Some(hindered) = why.and_then(Why::said) {
        // How fast it was before it was hindered is beside the point.
        return match pace(&scene.acceptor) {
            Pace::Stalled => format!("{hindered}; {accepts}"),
            Pace::Slow | Pace::Recent | Pace::Unknown => hindered,
        };
    }
    match why.filter(|_| !takes).and_then(Why::said_unhindered) {
        Some(doing) => format!("{doing}; {accepts}"),
        None => accepts,
    }
}

fn said_pace(acceptor: &Acceptor) -> String {
    let inferred = match acceptor.coverage {
        AcceptCoverage::Seen => "",
        AcceptCoverage::Inferred => ", by the length of its queue",
        AcceptCoverage::Unknown => {
            return "how fast it accepts is not known on this hook type".to_owned();
        }
    };
    match (acceptor.idle, acceptor.per_s) {
        (Some(idle), _) if idle.as_secs() >= 1 => {
            format!("nothing was accepted for {}{inferred}", said_seconds(idle))
        }
        (Some(_), Some(rate)) => format!("accepts {rate:.1}/s{inferred}"),
        (Some(idle), None) => format!(
            "the last accept() was {} before{inferred}: more came at once than it takes, or accepting has stopped \
             just now",
            said_seconds(idle)
        ),
        (None, _) if acceptor.coverage == AcceptCoverage::Seen => {
            "no accept() was seen yet".to_owned()
        }
        (None, _) => "its queue was not seen to shrink yet".to_owned(),
    }
}

/// Whether an ICMP message may have ended a request: the kernel counts it as it does a socket that was not made, and the
/// tracepoints go by its counters. None was received where the namespace counts none.
fn may_be_icmp(scene: &Scene<'_>, cx: &Context<'_>) -> bool {
    let none = |figure| {
        let facts = cx.netns_facts(scene.key.netns);
        facts.is_some_and(|known| known.now(figure) == Some(0))
    };
    let is_v6 = scene.key.local.is_ipv6();
    let received =
        !none(netns_fact::ICMP_IN_UNREACHABLE) || is_v6 && !none(netns_fact::ICMP6_IN_UNREACHABLE);
    received && cx.host.plan.hook_type("ack") == HookType::Tracepoint
}

fn summary(scene: &Scene<'_>, cause: Cause, cx: &Context<'_>) -> String {
    let syn = scene.worst;
    let local = scene.key.local;
    let count = scene.drops.count;
    let accepts = || said_accepts(scene);
    let peak = peak(syn);
    let limit = syn.max_ack_backlog;
    let which = if scene.service.is_group() {
        format!(" at the worst of {} sockets", scene.service.members.len())
    } else {
        String::new()
    };
    match cause {
        Cause::AcceptQueueFull => format!(
            "{local} dropped {}: its accept queue is full ({peak} waiting{which}, limit {limit}); {}",
            plural(count, "SYN"),
            accepts(),
        ),
        Cause::AckOverflow => format!(
            "{local} discarded the third ACK of {}: its accept queue is full ({peak} waiting{which}, \
             limit {limit}), and the clients believe they are connected; {}",
            plural(count, "client"),
            accepts(),
        ),
        Cause::AbortOnOverflow => format!(
            "{local} reset {} at the end of the handshake: its accept queue is full ({peak} \
             waiting{which}, limit {limit}) and tcp_abort_on_overflow is 1; {}",
            plural(count, "client"),
            accepts(),
        ),
        Cause::SynQueueFull => format!(
            "{local} dropped {}: its SYN queue is full ({} requests{which}, limit {limit}) and SYN \
             cookies are off",
            plural(count, "SYN"),
            syn.peak_syn_qlen.max(syn.syn_qlen),
        ),
        Cause::SynQueuePressure => format!(
            "{local} dropped {}: less than a quarter of tcp_max_syn_backlog ({}) was left and the \
             clients were unknown to this host",
            plural(count, "SYN"),
            syn.max_syn_backlog,
        ),
        Cause::NoRoute => format!(
            "{local} dropped {}: this host has no route back to the client",
            plural(count, "SYN"),
        ),
        Cause::NoMemory if may_be_icmp(scene, cx) => format!(
            "{local} lost {}, though its accept queue had room: the kernel made no socket of a third ACK, as it \
             does for want of memory, or an ICMP message ended the request",
            plural(count, "request"),
        ),
        Cause::NoMemory => format!(
            "{local} refused {}, though its accept queue had room: the kernel made no socket, as it does \
             for want of memory or of a route, and the clients believe they are connected",
            plural(count, "third ACK"),
        ),
        Cause::Other => format!(
            "{local} dropped {} though both its queues had room: candidates are a security module that refuses, and \
             want of memory for a request",
            plural(count, "SYN"),
        ),
        Cause::Cookies => format!(
            "{local} answered {} with cookies: its SYN queue is full ({} requests{which}, limit \
             {limit})",
            plural(count, "SYN"),
            syn.peak_syn_qlen.max(syn.syn_qlen),
        ),
    }
}

fn advice(scene: &Scene<'_>, cause: Cause, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let syn = scene.worst;
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    match cause {
        Cause::AcceptQueueFull | Cause::AckOverflow | Cause::AbortOnOverflow => {
            advice.extend(accept_advice(scene));
            if syn.abort_on_overflow == Some(true) {
                advice.push(
                    "set net.ipv4.tcp_abort_on_overflow to 0 (now 1): a full queue resets clients \
                     that would have been served a second later"
                        .into(),
                );
            }
        }
        Cause::SynQueueFull => {
            let now = syn
                .syncookies
                .map_or_else(String::new, |mode| format!(" (now {mode})"));
            advice.push(
                format!("set net.ipv4.tcp_syncookies to 1{now}: a full queue then costs no client")
                    .into(),
            );
            advice.push(backlog(syn));
        }
        Cause::SynQueuePressure => {
            advice.push(
                "set net.ipv4.tcp_syncookies to 1 (now 0): strangers are then as welcome as known clients"
                    .into(),
            );
            advice.push(
                format!(
                    "or raise net.ipv4.tcp_max_syn_backlog (now {}) together with the backlog of \
                     listen() (now {}), whose limit comes next",
                    syn.max_syn_backlog, syn.max_ack_backlog
                )
                .into(),
            );
        }
        Cause::NoRoute => advice.push(
            format!(
                "add a route to {}: 'ip route get' in the listener's namespace says what is missing",
                scene.service.latest.socket.remote.ip()
            )
            .into(),
        ),
        Cause::NoMemory if may_be_icmp(scene, cx) => advice.push(
            "tell them apart by 'nstat -az IcmpInDestUnreachs TcpExtTCPMemoryPressures' in the listener's namespace: \
             the one that grows with these"
                .into(),
        ),
        Cause::NoMemory => advice.push(
            "look for who holds this host's memory: failed allocations in dmesg, TCP's share in \
             /proc/net/sockstat, memory.events of the owner's cgroup"
                .into(),
        ),
        Cause::Other => {
            advice.push(
                "look for a denial first: ausearch -m avc, dmesg, and BPF LSM programs (bpftool prog)"
                    .into(),
            );
            advice.push(
                "without one, look for failed allocations in dmesg: a request is taken from memory that \
                 must be free at once"
                    .into(),
            );
        }
        Cause::Cookies => {
            advice.push(backlog(syn));
            advice.push(
                "if the SYNs are a flood of forged addresses, leave it: cookies are the defence"
                    .into(),
            );
        }
    }
    advice
}

/// What makes somebody accept. A longer queue is no remedy where nobody does.
fn accept_advice(scene: &Scene<'_>) -> Vec<Cow<'static, str>> {
    // What mends it is in the finding that explains this one.
    if scene.drops.delay.is_some() {
        return Vec::new();
    }
    let owner = who(scene.owner.as_ref());
    let why = scene.drops.why.as_ref();
    let mut advice = why.map(Why::advice).unwrap_or_default();
    let is_hindered = !advice.is_empty();
    let pace = pace(&scene.acceptor);
    if !is_hindered {
        match pace {
            Pace::Slow => advice.push(
                format!("let {owner} accept faster: more workers, or accept() until EAGAIN").into(),
            ),
            Pace::Recent => {
                advice.push(backlog(scene.worst));
                advice.push(
                    format!(
                        "that helps against bursts; where this line is said again, it says how fast {owner} accepts"
                    )
                    .into(),
                );
            }
            Pace::Stalled | Pace::Unknown => {
                let pid = scene
                    .owner
                    .map_or_else(|| "PID".to_owned(), |owner| owner.pid.to_string());
                advice.push(
                    format!(
                        "why nobody accepts is not known: find out what {owner} does instead, with 'cat \
                         /proc/{pid}/stack' or 'gdb -p {pid}'; candidates are one long request, a lock, a \
                         slow disk or name look-up, no free worker, or accept() that fails ('ls /proc/{pid}/fd \
                         | wc -l' against 'Max open files' in /proc/{pid}/limits)"
                    )
                    .into(),
                );
            }
        }
    }
    if scene.service.is_group() && scene.drops.shares.len() < scene.service.members.len() {
        advice.push(
            "look at one socket of the group, not at all: the kernel spreads clients by hash, also to a \
             worker that is stuck"
                .into(),
        );
    }
    if !is_hindered && pace == Pace::Slow {
        advice.push(backlog(scene.worst));
    }
    advice
}

/// Both queues are bounded by the backlog of `listen()`, cut to `somaxconn`
/// (`inet_csk_reqsk_queue_is_full`, `sk_acceptq_is_full`).
fn backlog(syn: &Syn) -> Cow<'static, str> {
    let now = syn.max_ack_backlog;
    match syn.somaxconn {
        Some(most) if now >= most => format!(
            "raise net.core.somaxconn (now {most}), and the backlog passed to listen() with it"
        ),
        Some(most) => format!(
            "raise the backlog passed to listen() (now {now}; net.core.somaxconn allows {most})"
        ),
        None => format!("raise the backlog passed to listen() (now {now}) and net.core.somaxconn"),
    }
    .into()
}
