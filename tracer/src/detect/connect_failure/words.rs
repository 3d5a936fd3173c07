//! What is said of attempts to connect that failed.

use std::{borrow::Cow, time::Duration};

use conntracer_common::{record::failure_how, stats::hook};

use super::{
    attempts::{AttemptKey, Attempts, Cause},
    icmp::{self, Sender},
};
use crate::{
    detect::{
        errno, phrase,
        room::{Context, Draft, Facts, Spec, plural, said_seconds, who},
    },
    finding::Subject,
};

pub(super) fn draft(
    spec: &'static Spec,
    key: &AttemptKey,
    attempts: &Attempts,
    cx: &Context<'_>,
) -> Draft {
    Draft {
        here: None,
        spec,
        cause: key.cause.name(),
        stage: None,
        doubt: doubt(spec, attempts, cx),
        subject: Subject::Peer {
            netns: key.netns,
            remote: key.remote,
        },
        owner: attempts.latest.owner,
        severity: None,
        sample: None,
        since: attempts.since,
        last: attempts.last,
        count: attempts.count,
        summary: summary(key, attempts, cx),
        evidence: facts(attempts, cx),
        advice: advice(key, attempts, cx),
    }
}

fn has(attempts: &Attempts, how: u8) -> bool {
    attempts.latest.how & how != 0
}

fn doubt(spec: &Spec, attempts: &Attempts, cx: &Context<'_>) -> Option<Cow<'static, str>> {
    if has(attempts, failure_how::CONCLUDED) {
        return Some(
            "what connect() returned was not seen: the cause is concluded from the port that was not \
             found"
                .into(),
        );
    }
    let netns = Some(attempts.latest.socket.netns);
    match ToldBy::of(attempts) {
        // What connect() returns at once, and ICMP, are other hooks' to tell: they could not have changed these.
        ToldBy::Rst => cx.doubt_by_losses(&[hook::STATE, hook::RESET_RECEIVED], netns),
        ToldBy::Timer | ToldBy::Application | ToldBy::Exit | ToldBy::Signal => {
            cx.doubt_by_losses(&[hook::STATE], netns)
        }
        ToldBy::RstOrIcmp => cx
            .doubt(spec)
            .or_else(|| Some("no hook could tell whether a RST came".into())),
        _ => cx.doubt(spec),
    }
}

/// From which wait on this host's own neighbour discovery may have given up: three probes, a second apart.
const NEIGHBOUR_GIVES_UP: Duration = Duration::from_millis(2900);

/// Who or what told of the failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ToldBy {
    Rst,
    /// connect() itself: no SYN was sent.
    Connect,
    Icmp,
    /// One of both, which was not seen.
    RstOrIcmp,
    IcmpOrRoute,
    Timer,
    Application,
    /// The process ended, by itself or by a signal.
    Exit,
    Signal,
    Administrator,
}

impl ToldBy {
    fn of(attempts: &Attempts) -> Self {
        let latest = &attempts.latest;
        if has(attempts, failure_how::RESET) {
            return Self::Rst;
        }
        if has(attempts, failure_how::AT_ONCE) {
            return Self::Connect;
        }
        match latest.errno {
            0 if latest.icmp.is_some() => Self::Icmp,
            0 if latest.signal.is_some() => Self::Signal,
            0 if has(attempts, failure_how::EXITING) => Self::Exit,
            0 => Self::Application,
            errno::ETIMEDOUT => Self::Timer,
            errno::ECONNABORTED => Self::Administrator,
            _ if latest.icmp.is_some() => Self::Icmp,
            errno::ECONNREFUSED if attempts.resets_seen => Self::Icmp,
            errno::ECONNREFUSED => Self::RstOrIcmp,
            // An ICMP message ends an attempt at once. The timer, and an application that gives up, report what was
            // noted before: also that this host found no route for a retransmitted SYN.
            _ if !has(attempts, failure_how::SOFT) && !ended_by_timer(attempts) => Self::Icmp,
            _ => Self::IcmpOrRoute,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Rst => "rst",
            Self::Connect => "connect",
            Self::Icmp => "icmp",
            Self::RstOrIcmp => "rst_or_icmp",
            Self::IcmpOrRoute => "icmp_or_route",
            Self::Timer => "timer",
            Self::Application => "application",
            Self::Exit => "exit",
            Self::Signal => "signal",
            Self::Administrator => "administrator",
        }
    }
}

/// Whether the kernel's timer may have ended the last attempt: each SYN waits for a second at least. How many it sends
/// is the socket's own to say (`TCP_SYNCNT`).
fn ended_by_timer(attempts: &Attempts) -> bool {
    const LEAST: Duration = Duration::from_millis(950);
    let syns = attempts.latest.syns;
    syns > 1 && attempts.longest >= LEAST.saturating_mul(syns)
}

/// Whether no retransmitted SYN left this host.
fn never_left(attempts: &Attempts, cx: &Context<'_>) -> bool {
    let lost = cx.lost.get(hook::RETRANSMIT as usize).copied();
    let latest = &attempts.latest;
    // What was sent before every hook was attached nobody saw.
    let began = latest.last.before(attempts.longest);
    let is_whole = latest.longest > Duration::ZERO && began.0 >= cx.host.attached_ns;
    let may_be_lost = lost != Some(0) || !is_whole || attempts.syns_forgotten;
    let mut syns = attempts.syns;
    syns.failures_traced |= cx.traces_failures();
    !has(attempts, failure_how::ANSWERED) && syns.all_failed(latest.syns, may_be_lost)
}

fn facts(attempts: &Attempts, cx: &Context<'_>) -> Facts {
    let latest = &attempts.latest;
    let mut facts = Facts::default();
    if latest.errno != 0 {
        facts = match errno::name(latest.errno) {
            Some(name) => facts.text("error", name),
            None => facts.count("error", latest.errno),
        };
    }
    facts = facts.text("told_by", ToldBy::of(attempts).name());
    if let Some(icmp) = &latest.icmp {
        facts = facts
            .count("icmp_type", icmp.kind)
            .count("icmp_code", icmp.code)
            .text("icmp_from", icmp.from.to_string());
    }
    if let Some(signal) = latest.signal {
        facts = facts.count("signal", signal);
    }
    if has(attempts, failure_how::ANSWERED) {
        facts = facts.text("answered_by", "segment_that_does_not_fit");
    }
    if !has(attempts, failure_how::AT_ONCE) {
        facts = facts
            .count("last_syns_sent", latest.syns)
            .seconds("longest_wait_s", attempts.longest);
    }
    if never_left(attempts, cx) {
        facts = facts.count("syns_not_sent", latest.syns.saturating_sub(1));
    }
    if let Some(here) = attempts.here {
        facts = facts
            .count("dropped_here_netns", here.netns)
            .text("dropped_here_cause", here.cause)
            .count("dropped_here_finding", here.finding);
    }
    facts.text("last_local", latest.socket.local.to_string())
}

fn summary(key: &AttemptKey, attempts: &Attempts, cx: &Context<'_>) -> String {
    let tries = plural(attempts.count, "connection attempt");
    let to = if key.remote.port() == 0 {
        "several remote ends".to_owned()
    } else {
        key.remote.to_string()
    };
    let told_by = ToldBy::of(attempts);
    let what = match key.cause {
        Cause::TimedOut | Cause::Cancelled => silence(key.cause, attempts, cx),
        Cause::NoPort if key.remote.is_ipv6() => {
            "failed at once: no local port was free for it, or no address of this namespace reaches it".to_owned()
        }
        Cause::NoPort => {
            "failed at once: no local port was free for it, or the one that the socket is bound to is taken"
                .to_owned()
        }
        Cause::Unreachable if told_by == ToldBy::Connect => {
            "failed at once: this host has no usable route".to_owned()
        }
        Cause::Denied if told_by == ToldBy::Connect => "not permitted by this host".to_owned(),
        Cause::Reset if told_by == ToldBy::Rst => "ended by a RST during the handshake".to_owned(),
        Cause::Refused if told_by == ToldBy::Rst => "refused with a RST".to_owned(),
        Cause::Refused if told_by == ToldBy::RstOrIcmp => {
            "refused: by a RST or by an ICMP message, which was not seen".to_owned()
        }
        Cause::Other if attempts.latest.icmp.is_none() => match told_by {
            ToldBy::Administrator => "ended by an administrator of this host (ss -K, or a BPF program)".to_owned(),
            _ => "failed".to_owned(),
        },
        _ => by_icmp(attempts, told_by),
    };
    let gave_up = attempts.latest.errno == 0 && attempts.latest.icmp.is_some();
    let soft = if has(attempts, failure_how::SOFT) || gave_up {
        let ended = if has(attempts, failure_how::EXITING) {
            "its process ended"
        } else {
            "the application gave up"
        };
        format!("; {ended} after {}", said_seconds(attempts.longest))
    } else {
        String::new()
    };
    let here = attempts.here.map_or_else(String::new, |here| {
        format!(
            "; finding {} says what this host did with such SYNs in namespace {} ({})",
            here.finding, here.netns, here.cause
        )
    });
    format!("{tries} to {to} {what}{soft}{here}")
}

/// What an ICMP message, seen or not, says of an attempt.
fn by_icmp(attempts: &Attempts, told_by: ToldBy) -> String {
    let latest = &attempts.latest;
    let local = latest.socket.local.ip();
    if let Some(icmp) = &latest.icmp {
        let message = icmp::said(icmp);
        return match icmp::sender(icmp, local) {
            Sender::Firewall => format!("rejected by a firewall: {message}"),
            Sender::FirewallOrRoute => {
                format!("rejected by a firewall, or by a route that prohibits it: {message}")
            }
            Sender::Own => format!(
                "failed: {message}, this host itself: nobody answers for the next hop, or a rule of this host rejects"
            ),
            Sender::Router => format!("failed: {message}"),
        };
    }
    let error = errno::name(latest.errno).unwrap_or("an error");
    if told_by == ToldBy::IcmpOrRoute && attempts.longest >= NEIGHBOUR_GIVES_UP {
        return format!(
            "failed with {error}: nobody answers for the next hop of this host, a router or a firewall says so by ICMP, \
             or this host had no route for a SYN"
        );
    }
    if told_by == ToldBy::IcmpOrRoute {
        return format!(
            "failed with {error}: an ICMP message told of it, or this host had no route for a SYN"
        );
    }
    match latest.errno {
        errno::ECONNREFUSED => {
            "refused by an ICMP message (port unreachable), as a firewall's rule sends it".to_owned()
        }
        errno::EHOSTUNREACH if attempts.longest >= NEIGHBOUR_GIVES_UP => format!(
            "failed with {error} by an ICMP message: nobody answers for the next hop of this host, or a router or \
             a firewall says so"
        ),
        errno::EHOSTUNREACH | errno::ENETUNREACH => format!(
            "failed with {error} by an ICMP message: a firewall rejects, a router knows no way, or nobody answers for the \
             next hop of this host"
        ),
        errno::EACCES | errno::EPERM => {
            "rejected by an ICMP message (administratively prohibited), as a firewall or a route that prohibits sends it"
                .to_owned()
        }
        _ => format!("failed with {error} by an ICMP message"),
    }
}

/// Attempts without an answer, and who ended them.
fn silence(cause: Cause, attempts: &Attempts, cx: &Context<'_>) -> String {
    let latest = &attempts.latest;
    let waited = said_seconds(attempts.longest);
    let repeats = latest.syns.saturating_sub(1);
    let answer = if has(attempts, failure_how::ANSWERED) {
        "an answer came that does not fit (an ACK of another connection), and none that opens it"
            .to_owned()
    } else if never_left(attempts, cx) {
        format!("no SYN is known to have left this host, all {repeats} retransmissions failed here")
    } else {
        "no answer to a SYN came through".to_owned()
    };
    if cause == Cause::TimedOut {
        return format!("timed out: {answer}, the longest took {waited}");
    }
    // A process that was killed, or has exited, gave nothing up; which of both is not always known.
    match (latest.signal, has(attempts, failure_how::EXITING)) {
        (Some(signal), _) => format!(
            "ended with their process, which signal {signal}{} ended, the longest after {waited}: {answer}",
            phrase::signal_name(signal).map_or_else(String::new, |name| format!(" ({name})"))
        ),
        (None, true) => {
            format!("ended with their process, the longest after {waited}: {answer}")
        }
        (None, false) => {
            format!("given up by the application, the longest after {waited}: {answer}")
        }
    }
}

fn advice(key: &AttemptKey, attempts: &Attempts, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let (peer, port) = (key.remote.ip(), key.remote.port());
    let owner = who(attempts.latest.owner.as_ref());
    let told_by = ToldBy::of(attempts);
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    if let Some(here) = attempts.here {
        advice.push(
            format!(
                "begin with finding {}: it is the other end of these",
                here.finding
            )
            .into(),
        );
    }
    match key.cause {
        Cause::Refused if told_by == ToldBy::Rst => advice.extend([
            format!("see on {peer} whether anything listens: 'ss -ltn sport = :{port}'").into(),
            format!("if it does, look for a firewall that rejects, and at the address {owner} is given").into(),
        ]),
        Cause::Refused if told_by == ToldBy::RstOrIcmp => advice.extend([
            format!(
                "see on {peer} whether anything listens ('ss -ltn sport = :{port}'); if it does, a firewall rejects"
            )
            .into(),
        ]),
        Cause::TimedOut | Cause::Cancelled => advice.extend(silence_advice(key, attempts, cx)),
        Cause::Unreachable if told_by == ToldBy::Connect => advice.push(
            format!("see 'ip route get {peer}' in namespace {}, and 'ip -br link'", key.netns).into(),
        ),
        Cause::Reset => advice.push(
            format!(
                "see whether {peer} is to connect to this host while this host connects to it (simultaneous \
                 open); a RST from between the two is a middlebox's"
            )
            .into(),
        ),
        Cause::NoPort => advice.extend([
            if key.remote.is_ipv6() {
                format!(
                    "see whether namespace {} has an address for it: 'ip -6 route get {peer}', 'ip -6 address' \
                     (net.ipv6.conf.all.disable_ipv6)",
                    key.netns
                )
            } else {
                format!(
                    "see whether {owner} binds its socket before connect(): then one port alone would do ('ss -tanp dst \
                     {peer}' shows who has it)"
                )
            }
            .into(),
            format!(
                "count what holds the ports: 'ss -tan dst {peer} | wc -l' against {}",
                cx.said_sysctl("net.ipv4.ip_local_port_range", key.netns)
            )
            .into(),
            format!(
                "let {owner} keep connections open and use them again; net.ipv4.tcp_tw_reuse 1 helps where they \
                 are in TIME-WAIT"
            )
            .into(),
        ]),
        Cause::Denied if told_by == ToldBy::Connect => advice.extend([
            format!("look for a prohibit rule or route: 'ip rule', 'ip route get {peer}'").into(),
            "look for a program that denies it: 'bpftool cgroup tree', and the LSM's audit log".into(),
        ]),
        Cause::Other if attempts.latest.icmp.is_none() => {
            advice.push("the error in the evidence names what to look at: 'errno -l', connect(2)".into());
        }
        _ => advice.extend(icmp_advice(key, attempts)),
    }
    advice
}

fn icmp_advice(key: &AttemptKey, attempts: &Attempts) -> Vec<Cow<'static, str>> {
    let (peer, port) = (key.remote.ip(), key.remote.port());
    let latest = &attempts.latest;
    let neighbour = || {
        format!(
            "see 'ip neigh show' in namespace {}: FAILED is the next hop of 'ip route get {peer}'",
            key.netns
        )
        .into()
    };
    match latest.icmp.as_ref().map(|icmp| (icmp, icmp::sender(icmp, latest.socket.local.ip()))) {
        Some((icmp, Sender::Firewall)) if icmp.from == peer => vec![
            format!("have the firewall of {peer} allow port {port} for this host: 'nft list ruleset' there").into(),
        ],
        Some((icmp, Sender::Firewall)) => vec![
            format!("have the firewall at {} allow port {port} of {peer} for this host", icmp.from).into(),
        ],
        Some((icmp, Sender::FirewallOrRoute)) => vec![
            format!(
                "see on {} which it is: 'ip route get {peer}' there names a route that prohibits; otherwise have its \
                 firewall allow port {port} of {peer} for this host",
                icmp.from
            )
            .into(),
        ],
        Some((_, Sender::Own)) => {
            let rule = format!(
                "look for a rule that rejects in 'nft list ruleset' of namespace {} ('iptables-save -c' counts)",
                key.netns
            );
            let mut advice = vec![neighbour(), rule.into()];
            if attempts.longest < NEIGHBOUR_GIVES_UP {
                advice.reverse();
            }
            advice
        }
        Some((icmp, Sender::Router)) => vec![
            format!(
                "see on {} why it said so: 'ip route get {peer}', 'ip neigh' and the firewall's rules there",
                icmp.from
            )
            .into(),
        ],
        None => {
            let tells = format!(
                "'tcpdump -nvi any icmp or icmp6' in namespace {} names the message and its sender",
                key.netns
            );
            let mut advice = vec![tells.into()];
            if latest.errno != errno::ECONNREFUSED && latest.errno != errno::EACCES {
                advice.push(neighbour());
            }
            if attempts.longest >= NEIGHBOUR_GIVES_UP {
                advice.reverse();
            }
            advice
        }
    }
}

fn silence_advice(
    key: &AttemptKey,
    attempts: &Attempts,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let (peer, port) = (key.remote.ip(), key.remote.port());
    let latest = &attempts.latest;
    if never_left(attempts, cx) {
        return vec![
            format!(
                "look for what drops on the way out in namespace {}: the output and postrouting chains of 'nft list \
                 ruleset' ('iptables-save -c' counts), 'bpftool cgroup tree' (egress), 'tc -s qdisc'",
                key.netns
            )
            .into(),
            "'nstat -az TcpExtTCPRetransFail' counts what this host could not send".into(),
        ];
    }
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    if has(attempts, failure_how::ANSWERED) {
        advice.push(
            format!(
                "see on {peer} what is left of an earlier connection: 'ss -tan sport = :{port} dst {}'; a \
                 translation that uses a port again too soon does the same",
                latest.socket.local.ip()
            )
            .into(),
        );
    } else if attempts.here.is_none() {
        advice.push(
            format!(
                "see whether answers come ('tcpdump -ni any src host {peer} and tcp src port {port}' in namespace {}): \
                 where they do, this host drops them ('nft list ruleset', rp_filter)",
                key.netns
            )
            .into(),
        );
        advice.push(
            format!(
                "find out where SYNs end: 'mtr --tcp --port {port} {peer}', and on {peer} 'tcpdump -ni any tcp port \
                 {port}'; a firewall that drops, a host that is down and a listener that drops look alike from here"
            )
            .into(),
        );
        advice.push(
            format!(
                "if they arrive, see there whether the listener turns them away: Recv-Q above Send-Q in 'ss -ltn \
                 sport = :{port}', and 'nstat -az TcpExtListenDrops'"
            )
            .into(),
        );
    }
    if key.cause == Cause::TimedOut {
        advice.push(bound(key, attempts, cx).into());
    }
    advice
}

const SYN_RETRIES: &str = "net.ipv4.tcp_syn_retries";
const LINEAR_TIMEOUTS: &str = "net.ipv4.tcp_syn_linear_timeouts";

/// How many SYNs the kernel retransmits in a namespace before it gives up, and after which time at least it does, where
/// that is known: from 6.5 on those after a second each come on top (`tcp_write_timeout`), and the others double.
fn syn_retries(netns: u32, cx: &Context<'_>) -> Option<(u64, Duration)> {
    let retries = cx.sysctl_number(SYN_RETRIES, netns)?;
    let linear = cx.sysctl_number(LINEAR_TIMEOUTS, netns).unwrap_or(0);
    let doubling = (2_u64 << retries.min(6)).saturating_sub(1);
    let least = Duration::from_millis(950)
        .saturating_mul(u32::try_from(linear.saturating_add(doubling)).unwrap_or(u32::MAX));
    Some((retries.saturating_add(linear), least))
}

/// What bounded the wait of an attempt that the kernel gave up: the number of SYNs that it sent tells.
fn bound(key: &AttemptKey, attempts: &Attempts, cx: &Context<'_>) -> String {
    let owner = who(attempts.latest.owner.as_ref());
    if let Some(limit) = attempts.syns.user_timeout
        && attempts.latest.longest >= limit
    {
        return format!(
            "TCP_USER_TIMEOUT of {owner} ({}) bounds the wait; a connect timeout bounds it better",
            said_seconds(limit)
        );
    }
    // A SYN that was seen to be sent again shows that the socket has none, or a longer one.
    let option = if attempts.syns.any() {
        "a TCP_SYNCNT"
    } else {
        "a TCP_SYNCNT or TCP_USER_TIMEOUT"
    };
    let repeats = attempts.latest.syns.saturating_sub(1);
    let sysctl = cx.said_sysctl(SYN_RETRIES, key.netns);
    match syn_retries(key.netns, cx) {
        Some((retries, least)) if retries == u64::from(repeats) && attempts.longest >= least => {
            format!("{sysctl} bounds the wait; a connect timeout of {owner} bounds it better")
        }
        Some(_) => format!(
            "{option} of {owner} bounded the wait, or some could not be sent: {} in {} are not what {sysctl} asks for",
            plural(attempts.latest.syns.into(), "SYN"),
            said_seconds(attempts.longest)
        ),
        None => format!(
            "{sysctl} bounds the wait, or {option} of {owner}; a connect timeout of its own bounds it better"
        ),
    }
}
