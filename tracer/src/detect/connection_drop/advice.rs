//! What to do about connections that died. Where the cause is not known, the candidates, this host's first, and the
//! check that decides.

use std::borrow::Cow;

use super::{
    deaths::DeathKey,
    ends::By,
    group::{Deaths, Pattern, Whose},
    how::{How, Met},
    phrase::{is_forbidden, is_held_back, is_refused, lacks_source, signal_name},
    thresholds::Thresholds,
};
use crate::{
    detect::room::{Context, said_seconds, who},
    event::{Exit, TcpState},
};

type Advice = Vec<Cow<'static, str>>;

pub(super) fn advice(
    key: &DeathKey,
    deaths: &Deaths,
    pattern: Option<Pattern>,
    rules: &Thresholds,
    cx: &Context<'_>,
) -> Advice {
    let mut advice = of_how(key, deaths, rules);
    if let Some(pattern) = pattern {
        advice.extend(of_pattern(key, deaths, pattern, cx));
    }
    advice
}

/// Adds to what is right without it.
fn of_pattern(key: &DeathKey, deaths: &Deaths, pattern: Pattern, cx: &Context<'_>) -> Advice {
    let owner = who(deaths.latest.owner.as_ref());
    let pause = said_seconds(pattern.pause);
    let keepalive = || -> Cow<'static, str> {
        format!(
            "let {owner} send keepalives more often than every {pause} (SO_KEEPALIVE with TCP_KEEPIDLE, in the \
             place of {}), or close idle connections sooner itself",
            cx.said_sysctl("net.ipv4.tcp_keepalive_time", key.netns)
        )
        .into()
    };
    match pattern.whose {
        Whose::Own => vec![
            format!(
                "look in the configuration of {owner} for an idle timeout of {pause}: let it end such \
                 connections by a FIN"
            )
            .into(),
        ],
        Whose::OtherEnd => vec![
            format!("look in the configuration of the other end for an idle timeout of {pause}").into(),
            keepalive(),
        ],
        // The pause is this side's own: how often it sends. That the peers ended one by one looks alike.
        Whose::AtMost if key.how != How::ResetReceived => vec![
            keepalive(),
            "where the peers are up, look for that timeout on load balancers, NATs and firewalls between".into(),
        ],
        Whose::Sender | Whose::AtMost => vec![
            keepalive(),
            "look for that timeout on the peer, and on load balancers, NATs and firewalls between".into(),
        ],
    }
}

fn of_how(key: &DeathKey, deaths: &Deaths, rules: &Thresholds) -> Advice {
    let owner = who(deaths.latest.owner.as_ref());
    let netns = key.netns;
    match key.how {
        How::ResetReceived => of_reset(key, deaths, rules),
        // What mends it is in the finding that explains this one.
        How::GaveUp if deaths.delay.is_some() => Vec::new(),
        How::GaveUp => vec![
            format!(
                "find out why {owner} did not accept them in time: stopped or throttled, out of descriptors, or \
                 slower than they come ('ss -ltn' shows how many wait; accept() that fails shows in its log)"
            )
            .into(),
        ],
        How::ProcessEnded(exit) => of_exit(exit, &owner),
        How::ClosedBefore => vec![
            format!(
                "see whether TcpExtTCPAbortOnData grows in namespace {netns} (nstat -az): then data came after \
                 {owner} had closed; let it read until the end first. Otherwise the peer sent the RST"
            )
            .into(),
        ],
        How::Unread => vec![
            format!("let {owner} read until the end before close(): the RST also destroys what it had sent \
                     and the peer has not read")
                .into(),
        ],
        How::Linger => vec![
            format!("let {owner} leave SO_LINGER alone, unless a RST is what it means").into(),
        ],
        How::NotAccepted => vec![
            "stop taking connections before the listener is closed: let the balancer drain, accept what \
             waits, then close"
                .into(),
        ],
        How::Disconnect => {
            vec![format!("see what {owner} does with the connection at that moment").into()]
        }
        How::Subflow => vec![
            "the MPTCP connection may go on by another path, or was closed by its application: \
             'nstat -az' shows it in MPTcpExtMP*, 'ss -M' what is left"
                .into(),
        ],
        How::Data
        | How::Fin
        | How::Timeout
        | How::UserTimeout
        | How::OrphanTimeout
        | How::Icmp
        | How::NoRoute
        | How::Unreachable
        | How::Unsent
        | How::Keepalive
        | How::WindowProbe => of_timeout(key, deaths),
        How::Killed => vec!["ask who ran 'ss -K', or which agent destroys sockets".into()],
        How::Orphan => vec![
            "see 'nstat -az TcpExtTCPAbortOnMemory TcpExtTCPAbortOnLinger', net.ipv4.tcp_max_orphans and \
             net.ipv4.tcp_mem"
                .into(),
        ],
        How::Aborted => vec!["kernel_reason in the evidence names what to look at".into()],
        How::Error => vec!["the error in the evidence names what to look at".into()],
    }
}

/// Nothing came back.
fn of_timeout(key: &DeathKey, deaths: &Deaths) -> Advice {
    let remote = deaths.latest.socket.remote.ip();
    let netns = key.netns;
    match key.how {
        How::Icmp if is_refused(&deaths.latest) => vec![
            format!(
                "look for a firewall that rejects ('nft list ruleset', 'iptables-save | grep REJECT'), on this host, on \
                 the way, and on {remote}: 'tcpdump icmp or icmp6' shows who said so"
            )
            .into(),
        ],
        How::Icmp => vec![
            format!(
                "see who said so: 'ip neigh show {remote}' (FAILED: this host itself, which got no answer from its \
                 neighbour), otherwise a router: 'tcpdump icmp or icmp6' shows which"
            )
            .into(),
            format!("check that {remote} is up, the routes on the way to it, and firewalls that reject").into(),
        ],
        How::NoRoute if lacks_source(&deaths.latest) => {
            let local = deaths.latest.socket.local.ip();
            vec![
                format!(
                    "see in namespace {netns} whether it still has the address ('ip address show to {local}') or has \
                     a route that discards ('ip route get {remote} from {local}')"
                )
                .into(),
            ]
        }
        How::NoRoute if is_forbidden(&deaths.latest) => vec![
            format!(
                "look for the route or rule of the kind 'prohibit' in namespace {netns}: 'ip rule', 'ip route show table \
                 all type prohibit'"
            )
            .into(),
        ],
        How::NoRoute => vec![
            format!(
                "see what became of the route, the address or the device in namespace {netns}: 'ip route get \
                 {remote}', 'ip -br address'"
            )
            .into(),
        ],
        How::Unreachable => vec![
            format!(
                "see in namespace {netns} which it is: 'ip route get {remote}' fails for want of a route, or names the \
                 gateway; 'ip neigh show' says FAILED or INCOMPLETE where that, or {remote} itself, does not answer; \
                 otherwise a router said so by ICMP (nstat -az IcmpInDestUnreachs)"
            )
            .into(),
            format!("check that {remote} is up, and the routes on the way to it").into(),
        ],
        How::Unsent => vec![
            format!(
                "see what kept this host from sending in namespace {netns}: 'ip route get {remote}', a rule that \
                 drops its output ('nft list ruleset'), its device and queue ('tc -s qdisc')"
            )
            .into(),
        ],
        How::Keepalive => vec![
            format!(
                "check that {remote} is up; if it is, candidates are a firewall or NAT that forgot the idle \
                 connection, this host's own among them: send keepalives more often"
            )
            .into(),
        ],
        How::WindowProbe => vec![
            format!(
                "check that {remote} is up; if it is, candidates are a firewall on the way, this host's own among \
                 them, that forgot the connection while the window was shut"
            )
            .into(),
        ],
        _ => {
            let mut advice: Advice = Vec::new();
            if is_held_back(&deaths.latest) {
                advice.push(
                    format!(
                        "see first why this host could not send all of it again: TcpExtTCPRetransFail in \
                         namespace {netns} (nstat -az), its route and its device"
                    )
                    .into(),
                );
            }
            advice.push(
                format!("check that {remote} is up, and that no firewall on the way forgot the connection")
                    .into(),
            );
            advice
        }
    }
}

fn of_exit(exit: Exit, owner: &str) -> Advice {
    const KILL: u8 = 9;
    let first = match exit {
        Exit::Signal(KILL) => format!(
            "find out who killed {owner}: the kernel for want of memory ('journalctl -k | grep -i killed'), a \
             container or service manager whose time to stop was over, or somebody's kill -9"
        ),
        Exit::Signal(signal @ (3..=8 | 11 | 31)) => format!(
            "find out why {owner} crashed ({}): its log, or its core dump (coredumpctl list)",
            signal_name(signal)
        ),
        Exit::Signal(_) | Exit::Status(0) => format!(
            "let {owner} drain when it is told to end: accept what waits, answer what was asked, read until the \
             end, then close"
        ),
        Exit::Status(_) => format!("find out in the log of {owner} why it ended"),
    };
    vec![first.into()]
}

fn of_reset(key: &DeathKey, deaths: &Deaths, rules: &Thresholds) -> Advice {
    let remote = deaths.latest.socket.remote;
    let owner = who(deaths.latest.owner.as_ref());
    let other = deaths.other.map_or_else(
        || "the process at the other end, on this host,".to_owned(),
        |owner| who(Some(&owner)),
    );
    match key.by {
        By::Socket(Some(How::Unread)) => {
            vec![format!("let {other} read until the end before close()").into()]
        }
        By::Socket(Some(How::Linger)) => {
            vec![format!("let {other} leave SO_LINGER alone, unless a RST is what it means").into()]
        }
        By::Socket(Some(How::NotAccepted)) => vec![
            format!("let {other} accept what waits before it closes its listener").into(),
        ],
        By::Socket(Some(How::ProcessEnded(exit))) => of_exit(exit, &other),
        By::Socket(Some(How::Killed)) => {
            vec!["ask who ran 'ss -K', or which agent destroys sockets".into()]
        }
        By::Socket(_) => {
            vec![format!("see what {other} does at that moment: it, or its kernel for it, sent the RST").into()]
        }
        By::Answer(TcpState::Listen) => vec![
            format!(
                "{remote} listens on this host, and holds no established connection for what was sent: it ended \
                 there before, or was never complete (net.ipv4.tcp_abort_on_overflow, with a full accept queue)"
            )
            .into(),
        ],
        By::Answer(TcpState::Established | TcpState::NewSynRecv | TcpState::SynRecv) => vec![
            "reset_sent_reason in the evidence names what the kernel refused, where it tells".into(),
        ],
        By::Answer(_) => vec![
            format!(
                "let {owner} stop writing when the other end has closed, and let the other end read until the \
                 end before it closes"
            )
            .into(),
        ],
        By::NoSocket { .. } => vec![
            format!(
                "candidates: the other end had ended before ('ss -tn' there), or what was sent to {remote} is \
                 translated (REDIRECT, DNAT, NAT) and one segment was not: 'conntrack -S' counts it as invalid, \
                 and a rule that drops 'ct state invalid' before keeps the kernel from answering it"
            )
            .into(),
        ],
        By::Unseen | By::NotKnown | By::NotAsked => of_sender(key, deaths, rules),
    }
}

/// Nobody on this host is known to have sent the RST.
fn of_sender(key: &DeathKey, deaths: &Deaths, rules: &Thresholds) -> Advice {
    let remote = deaths.latest.socket.remote.ip();
    let owner = who(deaths.latest.owner.as_ref());
    let met: Cow<'static, str> = match key.met {
        Some(Met::Unused) => format!(
            "nothing had passed: candidates at {remote} are a listener that closed or was full \
             (net.ipv4.tcp_abort_on_overflow), and a process that closes at once"
        )
        .into(),
        Some(Met::AfterFin) => format!(
            "let {owner} stop writing when read() returns 0: what comes to {remote} after it has closed is \
             answered with a RST"
        )
        .into(),
        Some(Met::Keepalive | Met::Idle | Met::AfterPause) => {
            let pause = deaths.idle.map_or_else(
                || said_seconds(rules.idle()),
                |(least, _)| said_seconds(least),
            );
            format!(
                "candidates: an idle timeout of at most {pause} at {remote} or of something between (a firewall, \
                 NAT or load balancer), or {remote} restarted in the pause: its log tells"
            )
            .into()
        }
        Some(Met::InUse) | None => format!(
            "look in the log of {remote} for that moment: candidates are a process there that ended, or that \
             closed with data unread"
        )
        .into(),
    };
    let this_host: Cow<'static, str> = match key.by {
        By::Unseen => format!(
            "no TCP of this host was seen to send the RST: if {remote} is an address of this host, a packet filter did \
             ('nft list ruleset': reject with tcp reset), or a program with a raw socket; otherwise {remote} or \
             something between: compare the TTL in a capture"
        )
        .into(),
        _ => format!(
            "candidates for who sent the RST are this host (if {remote} is one of its addresses, or by a packet \
             filter: nft 'reject with tcp reset'), {remote}, and something between: compare the TTL in a capture"
        )
        .into(),
    };
    vec![this_host, met]
}
