//! What is said of connections that died.

use std::{borrow::Cow, time::Duration};

use conntracer_common::record::close_flag;

use super::{
    deaths::{DeathKey, Deaths, How, Place},
    thresholds::Thresholds,
};
use crate::{
    detect::{
        errno,
        room::{Context, Draft, Facts, Spec, plural, said_seconds, who},
    },
    event::Close,
    finding::Subject,
};

pub(super) fn draft(
    spec: &'static Spec,
    key: &DeathKey,
    deaths: &Deaths,
    thresholds: &Thresholds,
    cx: &Context<'_>,
) -> Draft {
    let pattern = deaths.pattern(thresholds);
    Draft {
        spec,
        cause: key.how.cause(),
        stage: None,
        doubt: doubt(spec, key, &deaths.latest, cx),
        subject: match key.place {
            Place::Service(remote) => Subject::Peer {
                netns: key.netns,
                remote,
            },
            Place::Listener(local) => Subject::Listener {
                netns: key.netns,
                local,
            },
            Place::Remote(remote) => Subject::Remote {
                netns: key.netns,
                remote,
            },
        },
        owner: deaths.latest.owner,
        sample: None,
        since: deaths.since,
        last: deaths.last,
        count: deaths.count,
        summary: summary(key, deaths, pattern),
        evidence: facts(key, deaths, cx),
        advice: advice(key, deaths, pattern, cx),
    }
}

/// The kernel names no cause for these: they are concluded from the fields that it judges by.
fn doubt(
    spec: &Spec,
    key: &DeathKey,
    latest: &Close,
    cx: &Context<'_>,
) -> Option<Cow<'static, str>> {
    let concluded = match key.how {
        How::ResetReceived => !latest.has(close_flag::RST_RECEIVED),
        How::Orphan | How::Disconnect => latest.reason.is_none(),
        How::Unread | How::Linger | How::NotAccepted | How::OrphanTimeout | How::Error => false,
        How::Data
        | How::Keepalive
        | How::WindowProbe
        | How::UserTimeout
        | How::Icmp
        | How::Killed => {
            if latest.errno == 0 {
                return Some(
                    "the application took the error before the connection ended: concluded from the \
                     socket's fields"
                        .into(),
                );
            }
            false
        }
    };
    if concluded {
        return Some("the kernel does not say why: concluded from the socket's fields".into());
    }
    cx.doubt(spec)
}

fn facts(key: &DeathKey, deaths: &Deaths, cx: &Context<'_>) -> Facts {
    let latest = &deaths.latest;
    let mut facts = Facts::default().text("how", key.how.name());
    if let Some(name) = errno::name(latest.errno) {
        facts = facts.text("error", name);
    }
    if let Some(reason) = latest.reason {
        facts = match cx.host.reset_reasons.get(&reason) {
            Some(name) => facts.text("kernel_reason", name.clone()),
            None => facts.count("kernel_reason", reason),
        };
    }
    if let Some((shortest, longest)) = deaths.idle {
        facts = facts
            .seconds("idle_least_s", shortest)
            .seconds("idle_most_s", longest);
    }
    facts = facts
        .text("last_local", latest.socket.local.to_string())
        .text("last_remote", latest.socket.remote.to_string())
        .text("last_closed_first", latest.closed_first().name());
    if let Some(age) = latest.age {
        facts = facts.seconds("last_age_s", age);
    }
    facts
        .count("last_bytes_sent", latest.bytes_sent())
        .count("last_bytes_received", latest.bytes_received())
        .count("last_unacked_bytes", latest.tcp.unacked_bytes())
        .count("last_unread_bytes", latest.unread_bytes)
        .count("last_segments_retransmitted", latest.tcp.total_retrans)
        .count("last_consecutive_timeouts", latest.tcp.retransmits)
        .count("last_probes_unanswered", latest.tcp.probes_out)
}

fn summary(key: &DeathKey, deaths: &Deaths, pattern: Option<Duration>) -> String {
    let count = plural(deaths.count, "connection");
    let (whose, by) = match key.place {
        Place::Service(remote) => (format!("{count} to {remote}"), remote.to_string()),
        Place::Listener(local) => (format!("{count} of {local}"), "the client".to_owned()),
        Place::Remote(remote) => (format!("{count} with {remote}"), remote.to_string()),
    };
    let owner = who(deaths.latest.owner.as_ref());
    let latest = &deaths.latest;
    let died = match key.how {
        How::ResetReceived => format!("reset by {by}"),
        How::Unread => format!(
            "reset by this host: {owner} closed with data unread ({} bytes at the last one)",
            latest.unread_bytes
        ),
        How::Linger => format!("reset by this host: {owner} closed with SO_LINGER 0"),
        How::NotAccepted => {
            "reset by this host: the listener was closed before they were accepted".to_owned()
        }
        How::Disconnect => format!("reset by this host: {owner} disconnected"),
        How::Data => "timed out: data was not acknowledged".to_owned(),
        How::Keepalive => "timed out: keepalive probes were not answered".to_owned(),
        How::WindowProbe => "timed out: probes of a closed window were not answered".to_owned(),
        How::UserTimeout => "timed out: nothing was acknowledged within TCP_USER_TIMEOUT".to_owned(),
        How::OrphanTimeout => format!(
            "timed out after {owner} had closed: its last data or FIN was not acknowledged"
        ),
        How::Icmp => "timed out, and ICMP said that the peer cannot be reached".to_owned(),
        How::Killed => "killed by an administrator's command (ss -K, or a BPF program)".to_owned(),
        How::Orphan => {
            "given up after the application had closed: too many orphans, too little memory, or a negative \
             TCP_LINGER2"
                .to_owned()
        }
        How::Error => "ended with an error".to_owned(),
    };
    match pattern {
        Some(idle) => format!(
            "{whose} {died}, each idle for {}: somebody's idle timeout",
            said_seconds(idle)
        ),
        None => format!("{whose} {died}"),
    }
}

fn advice(
    key: &DeathKey,
    deaths: &Deaths,
    pattern: Option<Duration>,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let owner = who(deaths.latest.owner.as_ref());
    let remote = deaths.latest.socket.remote.ip();
    if let Some(idle) = pattern {
        return vec![
            format!(
                "let {owner} send keepalives more often than every {} (SO_KEEPALIVE with TCP_KEEPIDLE, in the \
                 place of {}), or close idle connections sooner itself",
                said_seconds(idle),
                cx.said_sysctl("net.ipv4.tcp_keepalive_time", key.netns)
            )
            .into(),
            "look for that timeout on the peer, and on load balancers, NATs and firewalls between".into(),
        ];
    }
    match key.how {
        How::ResetReceived => vec![
            format!("look in the log of {remote} for that moment: it crashed, was restarted, or closed with \
                     data unread")
                .into(),
            "if it knows nothing of it, something between sent the RST: compare the TTL in a capture".into(),
        ],
        How::Unread => vec![
            format!("let {owner} read until the end before close(): the RST also destroys what it had sent \
                     and the peer has not read")
                .into(),
        ],
        How::Linger => vec![
            format!("let {owner} leave SO_LINGER alone, unless a RST is what it means")
                .into(),
        ],
        How::NotAccepted => vec![
            "stop taking connections before the listener is closed: let the balancer drain, accept what \
             waits, then close"
                .into(),
        ],
        How::Disconnect => {
            vec![format!("see what {owner} does with the connection at that moment").into()]
        }
        How::Data | How::UserTimeout | How::OrphanTimeout | How::Icmp => vec![
            format!("check that {remote} is up, and that no firewall on the way forgot the connection")
                .into(),
        ],
        How::Keepalive | How::WindowProbe => vec![
            format!("check that {remote} is up; if it is, a NAT or firewall forgot the idle connection: send \
                     keepalives more often")
                .into(),
        ],
        How::Killed => vec!["ask who ran 'ss -K', or which agent destroys sockets".into()],
        How::Orphan => vec![
            "see 'nstat -az TcpExtTCPAbortOnMemory TcpExtTCPAbortOnLinger', net.ipv4.tcp_max_orphans and \
             net.ipv4.tcp_mem"
                .into(),
        ],
        How::Error => vec!["the error in the evidence names what to look at".into()],
    }
}
