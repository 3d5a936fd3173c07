//! What is said of attempts to connect that failed.

use std::borrow::Cow;

use conntracer_common::record::failure_how;

use super::attempts::{AttemptKey, Attempts, Cause};
use crate::{
    detect::{
        errno,
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
        spec,
        cause: key.cause.name(),
        stage: None,
        doubt: doubt(spec, attempts, cx),
        subject: Subject::Peer {
            netns: key.netns,
            remote: key.remote,
        },
        owner: attempts.latest.owner,
        sample: None,
        since: attempts.since,
        last: attempts.last,
        count: attempts.count,
        summary: summary(key, attempts),
        evidence: facts(attempts),
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
    cx.doubt(spec)
}

/// Who or what told of the failure.
fn told_by(attempts: &Attempts) -> &'static str {
    if has(attempts, failure_how::RESET) {
        "rst"
    } else if has(attempts, failure_how::AT_ONCE) {
        "connect"
    } else {
        match attempts.latest.errno {
            0 => "application",
            errno::ETIMEDOUT => "timer",
            errno::ECONNABORTED => "administrator",
            _ => "icmp",
        }
    }
}

fn facts(attempts: &Attempts) -> Facts {
    let latest = &attempts.latest;
    let mut facts = Facts::default();
    if latest.errno != 0 {
        facts = match errno::name(latest.errno) {
            Some(name) => facts.text("error", name),
            None => facts.count("error", latest.errno),
        };
    }
    facts = facts.text("told_by", told_by(attempts));
    if !has(attempts, failure_how::AT_ONCE) {
        facts = facts
            .count("last_syns_sent", latest.syns)
            .seconds("longest_wait_s", attempts.longest);
    }
    facts.text("last_local", latest.socket.local.to_string())
}

fn summary(key: &AttemptKey, attempts: &Attempts) -> String {
    let tries = plural(attempts.count, "connection attempt");
    let to = if key.remote.port() == 0 {
        "several remote ends".to_owned()
    } else {
        key.remote.to_string()
    };
    let waited = said_seconds(attempts.longest);
    let at_once = has(attempts, failure_how::AT_ONCE);
    match key.cause {
        Cause::Refused if has(attempts, failure_how::RESET) => {
            format!("{tries} to {to} refused with a RST")
        }
        Cause::Refused => format!("{tries} to {to} refused by an ICMP message"),
        Cause::TimedOut => {
            format!("{tries} to {to} timed out: no SYN was answered, the longest took {waited}")
        }
        Cause::Unreachable if at_once => {
            format!("{tries} to {to} failed at once: this host has no usable route")
        }
        Cause::Unreachable => {
            format!("{tries} to {to} failed: ICMP says that it cannot be reached")
        }
        Cause::Reset => format!("{tries} to {to} ended by a RST during the handshake"),
        Cause::Cancelled => format!(
            "{tries} to {to} given up by the application, the longest after {waited} without an answer"
        ),
        Cause::NoPort => {
            format!("{tries} to {to} failed at once: no local port or address was free")
        }
        Cause::Denied if at_once => format!("{tries} to {to} not permitted by this host"),
        Cause::Denied => format!("{tries} to {to} rejected by a firewall on the way (ICMP)"),
        Cause::Other => format!("{tries} to {to} failed"),
    }
}

fn advice(key: &AttemptKey, attempts: &Attempts, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let (peer, port) = (key.remote.ip(), key.remote.port());
    let owner = who(attempts.latest.owner.as_ref());
    let at_once = has(attempts, failure_how::AT_ONCE);
    match key.cause {
        Cause::Refused => vec![
            format!("see on {peer} whether anything listens: 'ss -ltn sport = :{port}'").into(),
            format!("if it does, look for a firewall that rejects, and at the address {owner} is given")
                .into(),
        ],
        Cause::TimedOut | Cause::Cancelled => vec![
            format!("try the path: 'mtr --tcp --port {port} {peer}'; a firewall that drops says nothing")
                .into(),
            format!(
                "see on {peer} whether SYNs arrive and its listener drops them: its accept queue may be \
                 full"
            )
            .into(),
            format!(
                "{} bounds the wait; a connect timeout of {owner} bounds it better",
                cx.said_sysctl("net.ipv4.tcp_syn_retries", key.netns)
            )
            .into(),
        ],
        Cause::Unreachable if at_once => vec![
            format!("see 'ip route get {peer}' in namespace {}, and 'ip -br link'", key.netns).into(),
        ],
        Cause::Unreachable => vec![
            format!("see 'ip route get {peer}' and 'ip neigh': FAILED is the next hop, or {peer} itself")
                .into(),
            format!("'mtr --tcp --port {port} {peer}' shows which router says so").into(),
        ],
        Cause::Reset => vec![
            format!(
                "see whether {peer} is to connect to this host while this host connects to it \
                 (simultaneous open); a RST from between the two is a middlebox's"
            )
            .into(),
        ],
        Cause::NoPort => vec![
            format!(
                "count what holds the ports: 'ss -tan dst {peer} | wc -l' against {}",
                cx.said_sysctl("net.ipv4.ip_local_port_range", key.netns)
            )
            .into(),
            format!(
                "let {owner} keep connections open and use them again; net.ipv4.tcp_tw_reuse 1 helps where \
                 they are in TIME-WAIT"
            )
            .into(),
        ],
        Cause::Denied if at_once => vec![
            format!("look for a prohibit rule or route: 'ip rule', 'ip route get {peer}'").into(),
            "look for a program that denies it: 'bpftool cgroup tree', and the LSM's audit log".into(),
        ],
        Cause::Denied => {
            vec![format!("have the firewall before {peer} allow port {port} for this host").into()]
        }
        Cause::Other => {
            vec!["the error in the evidence names what to look at: 'errno -l', connect(2)".into()]
        }
    }
}
