//! What is said of a process that does not read.

use std::borrow::Cow;

use super::stall::{Cause, Stage, Stall};
use crate::{
    detect::{
        room::{Context, Draft, Facts, Spec, plural, said_seconds, who},
        syn_drop::Why,
    },
    finding::Status,
};

pub(super) fn draft(spec: &'static Spec, stall: &Stall, status: Status, cx: &Context<'_>) -> Draft {
    let cause = stall.cause();
    Draft {
        here: None,
        spec,
        cause: cause.name(),
        stage: Some(stall.stage.name()),
        // What is told is read from the socket itself.
        doubt: cx.doubt_by(spec, []),
        subject: stall.subject(),
        owner: stall.owner,
        severity: None,
        sample: None,
        since: stall.since,
        last: stall.last,
        count: u64::from(stall.latest.unread_bytes),
        summary: summary(stall, status),
        evidence: evidence(stall),
        advice: advice(stall, cause),
    }
}

fn summary(stall: &Stall, status: Status) -> String {
    let who = who(stall.owner.as_ref());
    let unread = plural(stall.latest.unread_bytes.into(), "byte");
    let (remote, unread_for) = (stall.remote, said_seconds(stall.unread_for()));
    if status == Status::Resolved {
        let text = format!(
            "{who} read nothing from {remote} for {unread_for}, while {unread} waited and the window was shut"
        );
        return match stall.stage {
            Stage::Resumed => format!("{text}; it reads again"),
            Stage::Over => format!("{text}; the connection has ended"),
            Stage::Stalled | Stage::Forgotten => text,
        };
    }
    let mut text = format!(
        "{who} has read nothing from {remote} for {unread_for}: {unread} wait to be read, and the window is shut, so that \
         the peer cannot send"
    );
    let doing = match stall.hindrance() {
        Some(why) => why.said(),
        None => stall.reader().and_then(Why::said_unhindered),
    };
    if let Some(doing) = doing {
        text = format!("{text}; {doing}");
    }
    text
}

fn evidence(stall: &Stall) -> Facts {
    let latest = &stall.latest;
    let mut facts = Facts::default()
        .count("unread_bytes", latest.unread_bytes)
        .count("window_bytes", latest.window_bytes)
        .count("receive_memory_bytes", latest.memory_bytes)
        .count("receive_memory_max_bytes", latest.memory_max_bytes)
        .seconds("nothing_read_s", stall.unread_for());
    if let Some(idle) = latest.data_idle {
        facts = facts.seconds("last_data_s", idle);
    }
    if let Some((hindrance, process)) = stall.hindrance().and_then(|why| why.hindrance) {
        facts = facts
            .text("reader_hindered_by", hindrance.name())
            .count("reader_pid", process.pid);
    }
    facts
}

fn advice(stall: &Stall, cause: Cause) -> Vec<Cow<'static, str>> {
    match (cause, stall.hindrance()) {
        (Cause::Stopped, Some(why)) => why.advice(),
        _ => vec![
            format!(
                "why it does not read is not known: find out what {} does instead, with 'cat /proc/{pid}/stack' or 'gdb \
                 -p {pid}'; candidates are a slow disk, database or other connection that it writes to, a lock, and a \
                 pause on purpose; a larger receive buffer only puts it off",
                who(stall.owner.as_ref()),
                pid = stall
                    .owner
                    .map_or_else(|| "PID".to_owned(), |owner| owner.pid.to_string()),
            )
            .into(),
        ],
    }
}
