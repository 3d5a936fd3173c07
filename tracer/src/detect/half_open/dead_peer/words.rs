//! What is said of a silent connection: how long the kernel will try, sentences, evidence, advice.

use std::{borrow::Cow, time::Duration};

use super::Silence;
use crate::{
    detect::{Context, Draft, Facts, errno, hooks, plural, said_seconds},
    finding::FindingKind,
    table::connection::Connection,
    time::Ktime,
};

/// `TCP_RTO_MIN` and `TCP_RTO_MAX` (include/net/tcp.h).
const RTO_MIN: Duration = Duration::from_millis(200);
pub(super) const RTO_MAX: Duration = Duration::from_mins(2);

/// How long the kernel tries at least: `tcp_model_timeout` (net/ipv4/tcp_timer.c) for
/// `tcp_retries2`; 924.6 s for its default of 15.
fn gives_up_after(retries: u32) -> Duration {
    // ilog2(RTO_MAX / RTO_MIN): doublings until the timeout stays at its maximum.
    const DOUBLINGS: u32 = 9;
    let doubled = RTO_MIN.saturating_mul((2_u32 << retries.min(DOUBLINGS)).saturating_sub(1));
    doubled.saturating_add(RTO_MAX.saturating_mul(retries.saturating_sub(DOUBLINGS)))
}

/// How often the kernel tries: `tcp_retries2`, and without an application that waits `tcp_orphan_retries`, whose 0
/// stands for 8 (net/ipv4/tcp_timer.c, `tcp_orphan_retries`).
fn retries(connection: &Connection, cx: &Context<'_>) -> Option<u32> {
    const OF_ZERO: u64 = 8;
    let retries = if connection.tcp.orphan {
        let retries = cx.sysctl_number(ORPHAN_RETRIES, connection.netns)?;
        if retries == 0 { OF_ZERO } else { retries }
    } else {
        cx.sysctl_number(RETRIES2, connection.netns)?
    };
    u32::try_from(retries).ok()
}

const RETRIES2: &str = "net.ipv4.tcp_retries2";
const ORPHAN_RETRIES: &str = "net.ipv4.tcp_orphan_retries";

/// How long the kernel bears the silence, where timeouts tell; `None` where that is not known.
fn limit(connection: &Connection, cx: &Context<'_>) -> Option<Duration> {
    let user_timeout = connection.tcp.user_timeout;
    user_timeout.or_else(|| retries(connection, cx).map(gives_up_after))
}

/// Whether the silence was as long as the kernel bears at `end`. It counts from the first transmission, a timeout
/// before the first that is seen.
pub(super) fn is_outlasted(silence: &Silence, end: Ktime, cx: &Context<'_>) -> bool {
    silence.timeouts > 0
        && limit(&silence.connection, cx)
            .is_some_and(|limit| end.since(silence.since).saturating_add(RTO_MIN) >= limit)
}

pub(super) fn draft(
    silence: &Silence,
    stage: &'static str,
    errno: Option<u32>,
    cx: &Context<'_>,
) -> Draft {
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
    if let Some(errno) = errno {
        facts = facts.text("error", errno::name(errno).unwrap_or("another error"));
    }
    let doubt = cx
        .doubt("half_open.dead_peer", &hooks::DEAD_PEER)
        .or_else(|| {
            silence.is_narrow().then(|| {
                "that the path is too narrow was concluded from the sizes of the segments".into()
            })
        })
        .or_else(|| match (stage, errno) {
            ("suspected", _) => Some(
                "the kernel has not given up: the peer may be slow or unreachable for a while"
                    .into(),
            ),
            ("confirmed", None) => Some(
                "nothing told how the connection ended: it was silent for as long as the kernel tries"
                    .into(),
            ),
            _ => None,
        });
    Draft {
        kind: FindingKind::HalfOpen,
        cause: "dead_peer",
        stage: Some(stage),
        doubt,
        subject: connection.subject(),
        owner: connection.owner,
        sample: None,
        since: silence.since,
        last: silence.last,
        count: silence.count(),
        summary: summary(silence, stage, errno, silent),
        evidence: facts,
        advice: advice(silence, stage, limit, cx),
    }
}

fn summary(silence: &Silence, stage: &'static str, errno: Option<u32>, silent: Duration) -> String {
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
    match stage {
        "confirmed" => {
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
        "recovered" => format!("{remote} answers again after {tried} in {silent}"),
        "reset" => format!(
            "{remote} answered with a reset after {tried} in {silent}: it had lost the connection"
        ),
        "closed" => format!("the connection to {remote} was closed after {tried} in {silent}"),
        "forgotten" if silence.connection.key.is_untracked() => {
            format!("no longer watched, it shows nothing more; {remote} had {tried} in {silent}")
        }
        "forgotten" => {
            format!("no longer watched, the table is full; {remote} had {tried} in {silent}")
        }
        _ if silence.is_local() => format!(
            "nothing sent to {remote} leaves this host: {tried} in {silent}, {unacked} bytes wait"
        ),
        _ if silence.is_narrow() => format!(
            "full-sized segments do not reach {remote}, which talks{icmp}: {tried} in {silent}, {unacked} bytes \
             unacknowledged{orphan}"
        ),
        _ => format!(
            "{remote} is silent: {tried} in {silent}, {unacked} bytes unacknowledged{orphan}"
        ),
    }
}

fn advice(
    silence: &Silence,
    stage: &'static str,
    limit: Option<Duration>,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let tcp = &silence.connection.tcp;
    let netns = silence.connection.netns;
    if silence.is_local() {
        return vec![
            "look at this host's output firewall, its qdisc (tc -s qdisc), the link and the neighbour \
             entry of the next hop (ip neigh)"
                .into(),
        ];
    }
    match stage {
        "recovered" | "closed" | "forgotten" => return Vec::new(),
        "reset" => {
            return vec![
                "the peer restarted or dropped its state: let the application reconnect".into(),
            ];
        }
        _ if silence.is_narrow() => return silence.narrow.sizes.advice(Some(netns), cx),
        _ => {}
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
    } else if stage == "suspected" {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_gives_up_after_what_its_documentation_says() {
        assert_eq!(gives_up_after(15), Duration::from_millis(924_600));
        assert_eq!(gives_up_after(8), Duration::from_millis(102_200));
        assert_eq!(gives_up_after(0), Duration::from_millis(200));
        assert_eq!(
            gives_up_after(u32::MAX).as_secs(),
            120 * (u64::from(u32::MAX) - 9) + 204
        );
    }
}
