//! What is said of a silent connection: sentences, evidence, advice.

use std::{borrow::Cow, time::Duration};

use super::{
    patience::{ORPHAN_RETRIES, RETRIES2, limit},
    silence::Silence,
    stage::Stage,
};
use crate::detect::{
    errno,
    room::{Context, Draft, Facts, Spec, plural, said_seconds},
};

pub(super) fn draft(spec: &'static Spec, silence: &Silence, cx: &Context<'_>) -> Draft {
    let stage = silence.stage;
    let connection = &silence.connection;
    let tcp = &connection.tcp;
    let silent = cx.now.since(silence.since);
    let limit = limit(connection, cx);
    let mut facts = Facts::default()
        .count("unacked_bytes", tcp.unacked_bytes())
        .count("consecutive_timeouts", silence.timeouts)
        .count("probes_unanswered", silence.probes)
        .count("backoff", tcp.backoff)
        .seconds("silent_s", silent)
        .number("srtt_ms", tcp.srtt.as_secs_f64() * 1e3)
        .count("segments_not_sent", silence.not_sent);
    if silence.timeouts > 0
        && let Some(limit) = limit
    {
        facts = facts.seconds("kernel_gives_up_after_s", limit);
    }
    if tcp.orphan {
        facts = facts.text("orphan", "yes");
    } else if let Some(keepalive) = tcp.keepalive {
        facts = facts.text("keepalive", if keepalive { "on" } else { "off" });
    }
    if connection.older {
        // What the kernel still knows of its life before.
        facts = facts
            .count("bytes_acked", tcp.bytes_acked)
            .count("segments_retransmitted", tcp.total_retrans);
    }
    if silence.is_narrow() {
        facts = silence
            .narrow
            .sizes
            .facts(facts.text("looks_like", "path_mtu"));
    }
    if let Some(errno) = stage.errno() {
        facts = facts.text("error", errno::name(errno).unwrap_or("another error"));
    }
    let doubt = cx
        .doubt(spec)
        .or_else(|| {
            silence.is_narrow().then(|| {
                "that the path is too narrow was concluded from the sizes of the segments".into()
            })
        })
        .or_else(|| match stage {
            Stage::Suspected => Some(
                "the kernel has not given up: the peer may be slow or unreachable for a while"
                    .into(),
            ),
            Stage::Confirmed(None) => Some(
                "nothing told how the connection ended: it was silent for as long as the kernel tries"
                    .into(),
            ),
            _ => None,
        });
    Draft {
        spec,
        cause: "dead_peer",
        stage: Some(stage.name()),
        doubt,
        subject: connection.subject(),
        owner: connection.owner,
        sample: None,
        since: silence.since,
        last: silence.last,
        count: silence.count(),
        summary: summary(silence, silent),
        evidence: facts,
        advice: advice(silence, limit, cx),
    }
}

fn summary(silence: &Silence, silent: Duration) -> String {
    let remote = silence.connection.remote;
    let unacked = silence.connection.tcp.unacked_bytes();
    let tried = if silence.timeouts > 0 {
        format!(
            "{} in a row",
            plural(silence.count(), "retransmission timeout")
        )
    } else if silence.keepalive {
        plural(silence.count(), "unanswered keepalive probe")
    } else {
        plural(silence.count(), "unanswered window probe")
    };
    let silent = said_seconds(silent);
    let orphan = if silence.connection.tcp.orphan {
        "; the application has closed the connection and is not told"
    } else {
        ""
    };
    let icmp = silence.narrow.sizes.icmp();
    match silence.stage {
        Stage::Confirmed(errno) => {
            let is_gone = if silence.is_narrow() {
                format!("full-sized segments do not reach {remote}, which talks{icmp}")
            } else {
                format!("{remote} is gone")
            };
            let with = errno.map_or_else(String::new, |errno| {
                format!(" with {}", errno::name(errno).unwrap_or("another error"))
            });
            format!("{is_gone}: the kernel gave up{with} after {tried} in {silent}{orphan}")
        }
        Stage::Recovered => format!("{remote} answers again after {tried} in {silent}"),
        Stage::Reset => format!(
            "{remote} answered with a reset after {tried} in {silent}: it had lost the connection"
        ),
        Stage::Closed => format!("the connection to {remote} was closed after {tried} in {silent}"),
        Stage::Forgotten if silence.connection.key.is_untracked() => {
            format!("no longer watched, it shows nothing more; {remote} had {tried} in {silent}")
        }
        Stage::Forgotten => {
            format!("no longer watched, the table is full; {remote} had {tried} in {silent}")
        }
        Stage::Suspected if silence.is_local() => format!(
            "nothing sent to {remote} leaves this host: {tried} in {silent}, {unacked} bytes wait"
        ),
        Stage::Suspected if silence.is_narrow() => format!(
            "full-sized segments do not reach {remote}, which talks{icmp}: {tried} in {silent}, {unacked} bytes \
             unacknowledged{orphan}"
        ),
        Stage::Suspected => format!(
            "{remote} is silent: {tried} in {silent}, {unacked} bytes unacknowledged{orphan}"
        ),
    }
}

fn advice(silence: &Silence, limit: Option<Duration>, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let tcp = &silence.connection.tcp;
    let netns = silence.connection.netns;
    if silence.is_local() {
        return vec![
            "look at this host's output firewall, its qdisc (tc -s qdisc), the link and the neighbour \
             entry of the next hop (ip neigh)"
                .into(),
        ];
    }
    match silence.stage {
        Stage::Recovered | Stage::Closed | Stage::Forgotten => return Vec::new(),
        Stage::Reset => {
            return vec![
                "the peer restarted or dropped its state: let the application reconnect".into(),
            ];
        }
        _ if silence.is_narrow() => return silence.narrow.sizes.advice(Some(netns), cx),
        Stage::Suspected | Stage::Confirmed(_) => {}
    }
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    advice.push(
        format!(
            "check that {} is up, and that no firewall on the way forgot the connection",
            silence.connection.remote.ip(),
        )
        .into(),
    );
    if tcp.orphan {
        advice.push(
            "let the application see its last data arrive before it closes: shutdown(), then read until the \
             peer's end"
                .into(),
        );
        advice.push(
            format!(
                "{}, whose 0 stands for 8, bounds how long the kernel keeps what was closed",
                cx.said_sysctl(ORPHAN_RETRIES, netns)
            )
            .into(),
        );
    } else if silence.stage == Stage::Suspected {
        if tcp.user_timeout.is_none() && silence.timeouts > 0 {
            let after = limit.map_or_else(String::new, |limit| {
                format!(" and gives up only after {}", said_seconds(limit))
            });
            advice.push(
                format!(
                    "to notice sooner, set TCP_USER_TIMEOUT on the socket (now unset); leave {}, which is for \
                     every connection{after}",
                    cx.said_sysctl(RETRIES2, netns)
                )
                .into(),
            );
        }
        if tcp.keepalive == Some(false) {
            advice.push(
                "set SO_KEEPALIVE on the socket (now off), so that idle ones notice too".into(),
            );
        }
    }
    advice
}
