//! What is said of connections that died. Each sentence is a claim; what to do about it is in `advice`.

use std::borrow::Cow;

use conntracer_common::record::close_flag;

use super::{
    advice::advice,
    deaths::{DeathKey, Place},
    ends::By,
    group::{Deaths, Pattern, Range, Whose},
    how::{How, Met},
    phrase::{ended, is_forbidden, is_held_back, is_refused, lacks_source, signal_name},
    thresholds::Thresholds,
};
use crate::{
    detect::{
        errno,
        room::{Context, Draft, Facts, Spec, plural, said_seconds, who},
    },
    event::{Close, Exit, TcpState},
    finding::Subject,
};

pub(super) fn draft(
    spec: &'static Spec,
    key: &DeathKey,
    deaths: &Deaths,
    rules: &Thresholds,
    cx: &Context<'_>,
) -> Draft {
    let pattern = deaths.pattern(key, rules);
    Draft {
        here: deaths.here(),
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
        severity: None,
        sample: None,
        since: deaths.since,
        last: deaths.last,
        count: deaths.count,
        summary: summary(key, deaths, pattern, rules),
        evidence: facts(key, deaths, cx),
        advice: advice(key, deaths, pattern, rules, cx),
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
        How::ResetReceived | How::GaveUp => !latest.has(close_flag::RST_RECEIVED),
        How::Orphan | How::Disconnect => latest.reason.is_none(),
        How::ClosedBefore | How::Unreachable | How::Timeout | How::Unsent | How::Aborted => true,
        How::Unread
        | How::Linger
        | How::NotAccepted
        | How::ProcessEnded(_)
        | How::OrphanTimeout
        | How::Subflow
        | How::Error => false,
        How::Data
        | How::Fin
        | How::Keepalive
        | How::WindowProbe
        | How::UserTimeout
        | How::Icmp
        | How::NoRoute
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
    if cx.now.0 < cx.host.attached_ns {
        return Some("the connection ended before every hook was attached".into());
    }
    cx.doubt(spec)
}

fn facts(key: &DeathKey, deaths: &Deaths, cx: &Context<'_>) -> Facts {
    let latest = &deaths.latest;
    let mut facts = Facts::default().text("how", key.how.name());
    if let Some(met) = key.met {
        facts = facts.text("reset_met", met.name());
    }
    if let Some(by) = key.by.name() {
        facts = facts.text("reset_sent_by", by);
    }
    if key.by != By::NotAsked
        && let Some(sender) = latest.sender
    {
        facts = facts.count("reset_sent_in_netns", sender.netns);
        facts = match sender.reason {
            Some(reason) => reason_fact(facts, "reset_sent_reason", reason, cx),
            None => facts,
        };
    }
    if let How::ProcessEnded(exit) = key.how {
        facts = match exit {
            Exit::Signal(signal) => facts.text("signal", signal_name(signal)),
            Exit::Status(status) => facts.count("exit_status", status),
        };
        if deaths.queued > 0 {
            facts = facts.count("not_accepted", deaths.queued);
        }
    }
    facts = match errno::name(latest.errno) {
        Some(name) => facts.text("error", name),
        None if latest.errno != 0 => facts.count("error_number", latest.errno),
        None => facts,
    };
    if let Some(reason) = latest.reason {
        facts = reason_fact(facts, "kernel_reason", reason, cx);
    }
    if let Some((shortest, longest)) = deaths.idle {
        facts = facts
            .seconds("idle_least_s", shortest)
            .seconds("idle_most_s", longest);
    }
    if key.how == How::GaveUp
        && let Some((least, most)) = deaths.age
    {
        facts = facts
            .seconds("waited_least_s", least)
            .seconds("waited_most_s", most);
    }
    facts = facts
        .text("last_local", latest.socket.local.to_string())
        .text("last_remote", latest.socket.remote.to_string())
        .text("last_closed_first", latest.closed_first().name());
    if let Some(age) = latest.age {
        facts = facts.seconds("last_age_s", age);
    }
    if let Some(unanswered) = latest.unanswered {
        facts = facts.seconds("last_unanswered_s", unanswered);
    }
    facts
        .count("last_bytes_sent", latest.bytes_sent())
        .count("last_bytes_received", latest.bytes_received())
        .count("last_unacked_bytes", latest.unacked_data())
        .count("last_unread_bytes", latest.unread_bytes)
        .count("last_segments_retransmitted", latest.tcp.total_retrans)
        .count("last_consecutive_timeouts", latest.tcp.retransmits)
        .count("last_probes_unanswered", latest.tcp.probes_out)
}

fn reason_fact(facts: Facts, name: &'static str, reason: u32, cx: &Context<'_>) -> Facts {
    match cx.host.reset_reasons.get(&reason) {
        Some(named) => facts.text(name, named.clone()),
        None => facts.count(name, reason),
    }
}

fn summary(
    key: &DeathKey,
    deaths: &Deaths,
    pattern: Option<Pattern>,
    rules: &Thresholds,
) -> String {
    let noun = if key.subflow {
        "TCP connection of MPTCP"
    } else {
        "connection"
    };
    let count = if key.subflow && deaths.count != 1 {
        format!("{} TCP connections of MPTCP", deaths.count)
    } else {
        plural(deaths.count, noun)
    };
    let whose = match key.place {
        Place::Service(remote) => format!("{count} to {remote}"),
        Place::Listener(local) => format!("{count} of {local}"),
        Place::Remote(remote) => format!("{count} with {remote}"),
    };
    let owner = who(deaths.latest.owner.as_ref());
    let died = match key.how {
        How::GaveUp => return gave_up(key, deaths),
        How::ResetReceived => received(key, deaths),
        How::ProcessEnded(exit) => {
            let queued = match deaths.queued {
                0 => String::new(),
                queued if queued == deaths.count => "; nobody had accepted them".to_owned(),
                queued => format!("; {queued} of them were not accepted yet"),
            };
            format!("died with {owner}, which {}{queued}", ended(exit))
        }
        How::ClosedBefore => format!(
            "ended by a RST after {owner} had closed: the peer's, or this host's own for data that came \
             then"
        ),
        How::Unread => format!(
            "reset by this host: {owner} closed with data unread ({} bytes at the last one)",
            deaths.latest.unread_bytes
        ),
        How::Linger => format!("reset by this host: {owner} closed with SO_LINGER 0"),
        How::NotAccepted => {
            format!("reset by this host: {owner} closed the listener before they were accepted")
        }
        How::Disconnect => format!(
            "ended without a FIN by {owner} (connect() to AF_UNSPEC, or a protocol above)"
        ),
        How::Subflow => "ended by MPTCP on this host".to_owned(),
        How::Data => "timed out: data was not acknowledged".to_owned(),
        How::Fin => "timed out: the FIN was not acknowledged".to_owned(),
        How::Timeout => "timed out".to_owned(),
        How::Keepalive => "timed out: keepalive probes were not answered".to_owned(),
        How::WindowProbe => "timed out: probes of a closed window were not answered".to_owned(),
        How::Unsent => "timed out: data waited that this host could not send".to_owned(),
        How::UserTimeout => "timed out: nothing was acknowledged within TCP_USER_TIMEOUT".to_owned(),
        How::OrphanTimeout => format!(
            "timed out after {owner} had closed: its last data or FIN was not acknowledged"
        ),
        How::Icmp if is_refused(&deaths.latest) => {
            "timed out, and ICMP said that the peer's port cannot be reached".to_owned()
        }
        How::Icmp => "timed out, and ICMP said that the peer cannot be reached".to_owned(),
        How::NoRoute if lacks_source(&deaths.latest) => format!(
            "timed out: this host finds no route from {} to the peer any more",
            deaths.latest.socket.local.ip()
        ),
        How::NoRoute if is_forbidden(&deaths.latest) => {
            "timed out: a route or a rule of this host forbids to send to the peer".to_owned()
        }
        How::NoRoute if deaths.latest.routed == Some(true) => {
            "timed out: this host had no route to the peer for a time".to_owned()
        }
        How::NoRoute => "timed out: this host has no route to the peer any more".to_owned(),
        How::Unreachable if is_held_back(&deaths.latest) => {
            "timed out: the peer cannot be reached, and not all that was to be sent again left this host; candidates \
             are its neighbour entry, its route, and an ICMP message"
                .to_owned()
        }
        How::Unreachable => {
            "timed out: the peer cannot be reached; candidates are its route, its neighbour entry, and an ICMP message"
                .to_owned()
        }
        How::Killed => "killed by an administrator's command (ss -K, or a BPF program)".to_owned(),
        How::Orphan => {
            "given up after the application had closed: too many orphans, too little memory, or a negative \
             TCP_LINGER2"
                .to_owned()
        }
        How::Aborted => "reset by this host: kernel_reason says for what".to_owned(),
        How::Error => "ended with an error".to_owned(),
    };
    match pattern {
        Some(pattern) => format!("{whose} {died}, {}", paused(pattern, key, &owner)),
        None => format!("{whose} {died}{}", after_pause(key, deaths, rules)),
    }
}

fn gave_up(key: &DeathKey, deaths: &Deaths) -> String {
    let at = match key.place {
        Place::Listener(local) => local.to_string(),
        Place::Service(remote) => remote.to_string(),
        Place::Remote(remote) => remote.to_string(),
    };
    let waited = deaths
        .age
        .map_or_else(String::new, |range| format!(", {}", between(range)));
    let never = deaths.latest.owner.as_ref().map_or_else(
        || "no process had these connections".to_owned(),
        |owner| format!("{} never had these connections", who(Some(owner))),
    );
    format!(
        "{} gave up while they waited for accept() at {at}{waited}: {never}",
        plural(deaths.count, "client")
    )
}

fn between((least, most): Range) -> String {
    let (least, most) = (said_seconds(least), said_seconds(most));
    if least == most {
        format!("after {least}")
    } else {
        format!("after {least} to {most}")
    }
}

fn received(key: &DeathKey, deaths: &Deaths) -> String {
    let by = match key.place {
        Place::Service(remote) => remote.to_string(),
        Place::Listener(_) => "the client".to_owned(),
        Place::Remote(remote) => remote.to_string(),
    };
    let other = || match deaths.other {
        Some(owner) => format!("{}, at the other end on this host,", who(Some(&owner))),
        None => "the other end, on this host,".to_owned(),
    };
    match key.by {
        By::Socket(Some(How::Unread)) => {
            format!("reset: {} closed with data unread", other())
        }
        By::Socket(Some(How::Linger)) => format!("reset: {} closed with SO_LINGER 0", other()),
        By::Socket(Some(How::NotAccepted)) => format!(
            "reset: {} closed its listener before they were accepted",
            other()
        ),
        By::Socket(Some(How::ProcessEnded(exit))) => {
            format!("reset: {} {}", other(), ended(exit))
        }
        By::Socket(Some(How::Killed)) => {
            "reset: the other end, on this host, was killed by an administrator's command"
                .to_owned()
        }
        By::Socket(Some(how)) if how.cause() == "timed_out" => {
            "reset: the other end, on this host, timed out first".to_owned()
        }
        By::Socket(_) => format!("ended by a RST that the socket at {by}, on this host, sent"),
        By::Answer(
            TcpState::Close
            | TcpState::FinWait1
            | TcpState::FinWait2
            | TcpState::Closing
            | TcpState::LastAck
            | TcpState::TimeWait,
        ) => {
            "reset: the other end, on this host, had closed and answered what came then".to_owned()
        }
        By::Answer(_) => {
            format!("ended by a RST that the kernel at {by}, on this host, answered a segment with")
        }
        By::NoSocket { .. } => format!(
            "ended by a RST of this host's own kernel (namespace {}), which has no socket for what was sent \
             to {}",
            deaths.latest.sender.map_or(0, |sender| sender.netns),
            deaths.latest.socket.remote
        ),
        By::Unseen | By::NotKnown | By::NotAsked => match key.met {
            Some(Met::AfterFin) => {
                format!("ended by a RST from {by}, whose FIN had come before")
            }
            Some(Met::Keepalive) => {
                format!("ended by a RST from {by}, after a keepalive probe")
            }
            _ => format!("ended by a RST from {by}"),
        },
    }
}

/// What is said of pauses that are no pattern.
fn after_pause(key: &DeathKey, deaths: &Deaths, rules: &Thresholds) -> String {
    let Some(range) = deaths.idle.filter(|(least, _)| *least >= rules.idle()) else {
        return String::new();
    };
    let (least, most) = (said_seconds(range.0), said_seconds(range.1));
    let span = if least == most {
        least
    } else {
        format!("{least} to {most}")
    };
    match (key.how, key.met) {
        (How::ResetReceived, Some(Met::AfterPause)) => {
            format!(", in answer to the first segment after a pause of {span}")
        }
        (How::ResetReceived, Some(Met::Idle)) | (How::Unread | How::Linger, _) => {
            format!(", after a pause of {span}")
        }
        (How::Data | How::UserTimeout | How::OrphanTimeout, _) => {
            format!(
                "; nothing had passed for {span} before the first segment that was not answered"
            )
        }
        _ => String::new(),
    }
}

fn paused(pattern: Pattern, key: &DeathKey, owner: &str) -> String {
    let pause = said_seconds(pattern.pause);
    match (pattern.whose, key.met) {
        (Whose::Own, _) => {
            format!("each after a pause of {pause}: an idle timeout of {owner} itself")
        }
        (Whose::OtherEnd, _) => {
            format!("each after a pause of {pause}: its idle timeout")
        }
        (Whose::Sender, _) => format!(
            "each after a pause of {pause}: an idle timeout, of the peer or of something between"
        ),
        (Whose::AtMost, Some(Met::AfterPause)) => format!(
            "each in answer to the first segment after a pause of {pause}: as by an idle timeout of at most \
             that, of the peer or of something between"
        ),
        (Whose::AtMost, _) => format!(
            "each with a pause of {pause} before the first segment that was not answered: the peers were gone by \
             then, or were forgotten, as by an idle timeout of at most that, of something between"
        ),
    }
}
