//! What is said of connections that wait.

use std::borrow::Cow;

use super::{
    delay::{Cause, Delay},
    queue::Queue,
};
use crate::{
    detect::{
        room::{Context, Draft, Facts, Spec, plural, said_seconds, who},
        syn_drop::{Why, processes},
    },
    finding::{Severity, Status, Subject},
    table::listener::ListenerKey,
};

/// `None` where no socket of the listener is left to tell of.
pub(super) fn draft(
    spec: &'static Spec,
    key: &ListenerKey,
    delay: &Delay,
    status: Status,
    cx: &Context<'_>,
) -> Option<Draft> {
    let (_, queue) = delay.worst()?;
    Some(Draft {
        here: None,
        spec,
        cause: delay.cause.name(),
        stage: None,
        // What is told is read from the queue itself.
        doubt: cx.doubt_by(spec, []),
        subject: Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        owner: delay.owner,
        // Clients fail where they gave up, and where no further one is let in.
        severity: (queue.latest.is_full() || delay.ended() != (0, 0)).then_some(Severity::Critical),
        sample: None,
        since: delay.since,
        last: delay.last,
        count: delay.peak.into(),
        summary: summary(key, delay, queue, status, cx),
        evidence: evidence(delay, queue, cx),
        advice: advice(key, delay, queue, cx),
    })
}

fn evidence(delay: &Delay, queue: &Queue, cx: &Context<'_>) -> Facts {
    let latest = &queue.latest;
    let (fins, resets) = delay.ended();
    let mut facts = Facts::default()
        .count("waiting", latest.ack_backlog)
        .count("most_waiting", delay.peak)
        .count("max_ack_backlog", latest.max_ack_backlog)
        .seconds("oldest_s", queue.oldest())
        .seconds("longest_s", delay.longest)
        .count_if_known("clients_closed", (fins > 0).then_some(fins))
        .count_if_known("clients_reset", (resets > 0).then_some(resets));
    if let Some(remote) = queue.oldest_remote() {
        facts = facts.text("oldest_remote", remote.to_string());
    }
    let members = delay.members(cx);
    if members > 1 {
        facts = facts
            .count("members", members as u64)
            .count("members_waiting", delay.late() as u64);
    }
    if let Some((taken, within)) = delay
        .taken(queue, cx)
        .filter(|(_, within)| !within.is_zero())
    {
        facts = facts
            .count("accepted_meanwhile", taken)
            .seconds("meanwhile_s", within);
    }
    let untouched = queue.untouched(delay.sees(cx));
    if !untouched.is_zero() {
        facts = facts.seconds("nothing_accepted_s", untouched);
    }
    processes(facts, delay.why.as_ref())
}

fn summary(
    key: &ListenerKey,
    delay: &Delay,
    queue: &Queue,
    status: Status,
    cx: &Context<'_>,
) -> String {
    let latest = &queue.latest;
    let local = key.local;
    let members = delay.members(cx);
    let which = if members > 1 {
        format!(", at the worst of {members} sockets")
    } else {
        String::new()
    };
    let waits = if status == Status::Resolved {
        let waited = plural(delay.peak.into(), "connection");
        format!(
            "{waited} waited for accept() at {local}{which}, for up to {}",
            said_seconds(delay.longest)
        )
    } else {
        let count = latest.ack_backlog;
        let verb = if count == 1 { "waits" } else { "wait" };
        format!(
            "{} {verb} for accept() at {local}{which}, the oldest for {}",
            plural(count.into(), "connection"),
            said_seconds(queue.oldest())
        )
    };
    let mut text = format!("{waits}: {}", why(delay, queue, cx));
    if let Some(ended) = ended(delay.ended()) {
        text = format!("{text}; {ended}");
    }
    if latest.is_full() && status != Status::Resolved {
        text = format!(
            "{text}; the queue is full ({} of {}), and further clients are turned away",
            latest.ack_backlog,
            // It takes one more than it is told (`sk_acceptq_is_full`).
            latest.max_ack_backlog.saturating_add(1)
        );
    }
    text
}

/// What clients did while they waited.
fn ended((fins, resets): (u64, u64)) -> Option<String> {
    let closed = format!("{} closed their side", plural(fins, "client"));
    let reset = format!("{} gave up with a RST", plural(resets, "client"));
    match (fins, resets) {
        (0, 0) => None,
        (_, 0) => Some(format!("{closed} while they waited")),
        (0, _) => Some(format!("{reset} while they waited")),
        _ => Some(format!("{closed} and {reset} while they waited")),
    }
}

fn why(delay: &Delay, queue: &Queue, cx: &Context<'_>) -> String {
    let why = delay.why.as_ref();
    let hindered = why.and_then(Why::said);
    match delay.cause {
        Cause::NoDescriptors | Cause::Stopped => {
            hindered.unwrap_or_else(|| not_accepted(delay, queue, cx))
        }
        Cause::NeverAccepts => {
            let never = format!(
                "nobody has accepted from it since it listens, {} so far",
                said_seconds(queue.listens_for())
            );
            match inherited(delay) {
                Some(inherited) => format!("{never}; {inherited}"),
                None => never,
            }
        }
        Cause::Slow => {
            let accepts = not_accepted(delay, queue, cx);
            let doing = hindered.or_else(|| why.and_then(Why::said_unhindered));
            match (doing, inherited(delay)) {
                (Some(doing), _) => format!("{doing}; {accepts}"),
                (None, Some(inherited)) => format!("{inherited}; {accepts}"),
                (None, None) => accepts,
            }
        }
    }
}

/// How much is accepted.
fn not_accepted(delay: &Delay, queue: &Queue, cx: &Context<'_>) -> String {
    let seen = delay.sees(cx);
    match delay.taken(queue, cx) {
        Some((taken, within)) if taken > 0 => {
            format!("accept() took {taken} in {}", said_seconds(within))
        }
        _ if delay.is_virgin(queue, cx) => format!(
            "nothing was accepted in the {} since listen()",
            said_seconds(queue.listens_for())
        ),
        _ if !queue.untouched(seen).is_zero() => format!(
            "nothing was accepted for {}",
            said_seconds(queue.untouched(seen))
        ),
        _ => "how fast it accepts is not known yet".to_owned(),
    }
}

/// Who holds it instead of the process that called listen().
fn inherited(delay: &Delay) -> Option<String> {
    let opener = delay.opener.filter(|_| delay.is_inherited())?;
    let mut holders = delay.why.as_ref()?.processes();
    let first = holders.next()?;
    let others = match holders.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    Some(format!(
        "{}{others} inherited the listener, and process {}, which called listen(), holds it no longer",
        first.name(),
        opener.pid
    ))
}

fn advice(
    key: &ListenerKey,
    delay: &Delay,
    queue: &Queue,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let why = delay.why.as_ref();
    let port = key.local.port();
    match delay.cause {
        Cause::NoDescriptors | Cause::Stopped => why.map(Why::advice).unwrap_or_default(),
        Cause::NeverAccepts if delay.is_inherited() => {
            let holder = why.and_then(|why| why.processes().next());
            let pid = holder.map_or(0, |process| process.pid);
            vec![
                format!(
                    "if process {pid} is not to serve port {port}, end it or let it close what it inherited (SOCK_CLOEXEC \
                     on the listener keeps it from children): 'ss -ltnp sport = :{port}' shows who holds it"
                )
                .into(),
                format!("if it is, find out what keeps it from its first accept(): 'cat /proc/{pid}/stack'").into(),
            ]
        }
        Cause::NeverAccepts => vec![
            format!(
                "candidates are a listener that its process has forgotten, and a process that is still starting: 'ss \
                 -ltnp sport = :{port}' shows who holds it"
            )
            .into(),
        ],
        Cause::Slow => slow(delay, queue, cx),
    }
}

fn slow(delay: &Delay, queue: &Queue, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let owner = who(delay.owner.as_ref());
    let takes = delay.taken(queue, cx).is_some_and(|(taken, _)| taken > 0);
    if takes {
        return vec![
            format!(
                "let {owner} accept faster: more workers, or accept() until EAGAIN, or a higher limit where it has one on \
                 its connections"
            )
            .into(),
        ];
    }
    let pid = delay
        .owner
        .map_or_else(|| "PID".to_owned(), |owner| owner.pid.to_string());
    vec![
        format!(
            "why nobody accepts is not known: find out what {owner} does instead, with 'cat /proc/{pid}/stack' or 'gdb -p \
             {pid}'; candidates are one long request, a lock, a slow disk or name look-up, no free worker, a limit of its \
             own on connections, and a listener that it has inherited or forgotten"
        )
        .into(),
    ]
}
