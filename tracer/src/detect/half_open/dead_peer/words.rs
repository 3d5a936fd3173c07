//! What is said of a silent connection: sentences, evidence, advice.

use std::{borrow::Cow, time::Duration};

use conntracer_common::stats::hook;

use super::{
    patience::{ORPHAN_RETRIES, RETRIES2, limit},
    silence::Silence,
    stage::Stage,
};
use crate::{
    detect::{
        errno,
        room::{Context, Draft, Facts, Spec, plural, said_seconds},
    },
    event::Tcp,
    finding::Severity,
    table::dropped::Whose,
};

pub(super) fn draft(spec: &'static Spec, silence: &Silence, cx: &Context<'_>) -> Draft {
    let stage = silence.stage;
    let connection = &silence.connection;
    let tcp = &connection.tcp;
    let limit = limit(connection, cx);
    let mut facts = Facts::default()
        .count("unacked_bytes", tcp.unacked_data_bytes())
        .count("consecutive_timeouts", silence.timeouts)
        .count("probes_unanswered", silence.unanswered_probes())
        .count("backoff", tcp.backoff);
    if tcp.fin_waits() {
        facts = facts.text("fin_acknowledged", "no");
    }
    facts = match silence.since_when() {
        Some(since) => facts.seconds("silent_s", cx.now.since(since)),
        None => facts.text("silent_since", "not known"),
    };
    if let Some(heard) = silence.heard {
        facts = facts.seconds("peer_last_heard_s", cx.now.since(heard));
    }
    let unsent = silence.unsent(cx.traces_failures());
    facts = facts
        .number("srtt_ms", tcp.srtt.as_secs_f64() * 1e3)
        .count("segments_not_sent", unsent);
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
    if let Some(looks_like) = looks_like(silence) {
        facts = silence
            .narrow
            .sizes
            .facts(facts.text("looks_like", looks_like));
    }
    if silence.peer.asked.is_some() {
        facts = facts
            .count("other_connections", silence.peer.others)
            .count("other_connections_answered", silence.answered());
    }
    if let Some(errno) = stage.errno() {
        facts = facts.text("error", errno::name(errno).unwrap_or("another error"));
    }
    // What a hook of the other sort lost changes nothing: of probes nothing is sent again, and of data nothing probes.
    let needed: &[u32] = if silence.timeouts > 0 {
        &[hook::RETRANSMIT, hook::RTO, hook::STATE, hook::SEED]
    } else {
        &[hook::PROBE, hook::STATE, hook::SEED]
    };
    let doubt = cx
        .doubt_of(spec, needed, Some(connection.netns))
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
    let since = silence.since_when().unwrap_or(silence.since);
    Draft {
        here: Some(cx.dropped_of(&Whose::of(connection), since)),
        spec,
        cause: "dead_peer",
        stage: Some(stage.name()),
        doubt,
        subject: connection.subject(),
        owner: connection.owner,
        severity: matches!(stage, Stage::Recovered).then_some(Severity::Notice),
        sample: None,
        since,
        last: silence.last,
        count: silence.count(),
        summary: summary(silence, cx),
        evidence: facts,
        advice: advice(silence, limit, cx),
    }
}

fn summary(silence: &Silence, cx: &Context<'_>) -> String {
    let remote = silence.connection.remote;
    let unacked = unacked(&silence.connection.tcp);
    let tried = tried(silence, cx);
    let orphan = if silence.connection.tcp.orphan {
        "; the application has closed the connection and is not told"
    } else {
        ""
    };
    let icmp = silence.narrow.sizes.icmp();
    let unsent = silence.unsent(cx.traces_failures());
    let is_local = silence.is_local(cx.traces_failures());
    // Of what did leave some may be acknowledged no more; of what did not, nothing can be.
    let partly = if unsent > 0 && !is_local {
        format!(
            "; {unsent} of its {} never left this host",
            plural(
                u64::from(unsent).saturating_add(silence.sent.into()),
                again(silence)
            )
        )
    } else {
        String::new()
    };
    match silence.stage {
        Stage::Confirmed(errno) => {
            let what = if is_local {
                format!("no {} to {remote} left this host", again(silence))
            } else if silence.is_narrow() {
                format!("full-sized segments do not reach {remote}, which talks{icmp}")
            } else {
                unheard(silence)
            };
            let with = errno.map_or_else(String::new, |errno| {
                format!(" with {}", errno::name(errno).unwrap_or("another error"))
            });
            let beside = if is_local || silence.is_narrow() {
                String::new()
            } else {
                beside(silence)
            };
            format!("{what}: the kernel gave up{with} after {tried}{partly}{orphan}{beside}")
        }
        Stage::Recovered => format!("{remote} answers again after {tried}{partly}"),
        Stage::Reset => format!("a reset came from the address of {remote} after {tried}{partly}"),
        Stage::Closed => format!("the connection to {remote} was closed after {tried}{partly}"),
        Stage::Forgotten if silence.connection.key.is_untracked() => {
            format!("no longer watched, it shows nothing more; {remote} had {tried}{partly}")
        }
        Stage::Forgotten => {
            format!("no longer watched, the table is full; {remote} had {tried}{partly}")
        }
        Stage::Suspected if is_local => format!(
            "no {} to {remote} leaves this host: {tried}{}",
            again(silence),
            waiting(&silence.connection.tcp)
        ),
        Stage::Suspected if silence.is_narrow() => format!(
            "full-sized segments do not reach {remote}, which talks{icmp}: {tried}{unacked}{orphan}"
        ),
        Stage::Suspected => format!(
            "{}: {tried}{unacked}{partly}{orphan}{}",
            unheard(silence),
            beside(silence)
        ),
    }
}

/// What is sent where nothing is acknowledged.
const fn again(silence: &Silence) -> &'static str {
    if silence.timeouts > 0 {
        "retransmission"
    } else {
        "probe"
    }
}

/// What else is known of the peer: of full-sized segments alone, the candidates.
fn beside(silence: &Silence) -> String {
    let answered = silence.answered();
    let others = plural(answered.into(), "other connection");
    match (silence.may_be_narrow(), silence.peer.narrow, answered) {
        (true, Some(_), _) => "; all that fails are full-sized segments, and those of another connection to it do not \
                               reach it either while it talks: the path is too narrow for them"
            .to_owned(),
        (true, None, 0) => "; all that fails are full-sized segments: the path may be too narrow for them, or the peer \
                            is gone"
            .to_owned(),
        (true, None, _) => format!(
            "; all that fails are full-sized segments, and it answers {others} of this host meanwhile: the path may be \
             too narrow for them, or something forgot this connection"
        ),
        (false, _, 0) => String::new(),
        (false, _, _) => format!("; it answers {others} of this host meanwhile"),
    }
}

/// What full-sized segments alone look like.
fn looks_like(silence: &Silence) -> Option<&'static str> {
    if silence.is_narrow() {
        return Some("path_mtu");
    }
    silence.may_be_narrow().then(|| {
        if silence.peer.narrow.is_some() {
            "path_mtu"
        } else if silence.answered() > 0 {
            "path_mtu_or_forgotten"
        } else {
            "path_mtu_or_dead_peer"
        }
    })
}

/// What does not come, as this host's TCP sees it: who keeps it back is not known.
fn unheard(silence: &Silence) -> String {
    let remote = silence.connection.remote;
    if silence.narrow.talks {
        format!("{remote} sends, and no acknowledgement of it comes through")
    } else if silence.timeouts > 0 {
        format!("no acknowledgement from {remote} comes through")
    } else {
        format!("no answer from {remote} comes through")
    }
}

/// What was tried, and in which time.
fn tried(silence: &Silence, cx: &Context<'_>) -> String {
    let count = silence.count();
    let tried = if silence.timeouts > 0 {
        format!("{} in a row", plural(count, "retransmission timeout"))
    } else if silence.keepalive {
        plural(count, "unanswered keepalive probe")
    } else {
        plural(count, "unanswered window probe")
    };
    match silence.since_when() {
        Some(since) => format!("{tried} in {}", said_seconds(cx.now.since(since))),
        None => format!("{tried}, since when is not known: it began before conntracer"),
    }
}

/// What is in flight, for the end of a sentence.
fn unacked(tcp: &Tcp) -> String {
    amount(
        tcp.unacked_data_bytes(),
        tcp.fin_waits() && tcp.snd_nxt == tcp.write_seq,
    )
    .map_or_else(String::new, |amount| format!(", {amount} unacknowledged"))
}

/// What the application has written and nobody has acknowledged.
fn waiting(tcp: &Tcp) -> String {
    amount(tcp.waiting_data_bytes(), tcp.fin_waits())
        .map_or_else(String::new, |amount| format!(", {amount} not delivered"))
}

/// Bytes, and a FIN, which is none.
fn amount(bytes: u32, fin: bool) -> Option<String> {
    match (bytes, fin) {
        (0, false) => None,
        (0, true) => Some("the FIN".to_owned()),
        (bytes, false) => Some(plural(bytes.into(), "byte")),
        (bytes, true) => Some(format!("{} and the FIN", plural(bytes.into(), "byte"))),
    }
}

/// Of what does not leave this host.
const LOCAL: &str = "look at this host's output firewall, its qdisc (tc -s qdisc), the link and the neighbour \
                     entry of the next hop (ip neigh)";

fn advice(silence: &Silence, limit: Option<Duration>, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let tcp = &silence.connection.tcp;
    let netns = silence.connection.netns;
    if silence.is_local(cx.traces_failures())
        && matches!(silence.stage, Stage::Suspected | Stage::Confirmed(_))
    {
        return vec![LOCAL.into()];
    }
    match silence.stage {
        Stage::Recovered | Stage::Closed | Stage::Forgotten => return Vec::new(),
        Stage::Reset => {
            return vec![
                "let the application reconnect: who sent the reset does not know the connection, or ended it \
                 (connection_drop tells more)"
                    .into(),
            ];
        }
        _ if silence.is_narrow() => return silence.narrow.sizes.advice(Some(netns), cx),
        Stage::Suspected | Stage::Confirmed(_) => {}
    }
    let mut advice: Vec<Cow<'static, str>> = Vec::new();
    if silence.unsent(cx.traces_failures()) > 0 {
        advice.push(LOCAL.into());
    }
    let remote = silence.connection.remote;
    if silence.may_be_narrow() {
        if let Some(bytes) = silence.narrow.sizes.echo_bytes() {
            advice.push(
                format!(
                    "send it one packet as large that nobody may fragment, and a small one (ping -c3 -M do -s {bytes} {}; \
                     ping -c3 -s 56 {}): where only the small one is answered, the path is too narrow",
                    remote.ip(),
                    remote.ip(),
                )
                .into(),
            );
        }
        if silence.peer.narrow.is_some() {
            advice.extend(silence.narrow.sizes.advice(Some(netns), cx));
            return advice;
        }
    }
    let down = if silence.answered() > 0 {
        ""
    } else {
        "the peer is down, "
    };
    advice.push(
        format!(
            "look for its packets here (tcpdump -ni any 'src host {} and tcp src port {}'): where they arrive, this \
             host drops them (nft list ruleset, nstat -az); where none do, {down}the way to it or back is broken, or a \
             firewall or NAT on it forgot the connection",
            remote.ip(),
            remote.port(),
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
