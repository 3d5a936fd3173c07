//! `half_open` / `handshake`: our SYN-ACKs go unanswered, or their answers are thrown away.
//!
//! **Rule.** Every repeated SYN-ACK counts. Opens at the second repeat of one request, or when several
//! requests of one listener need a repeat within 4 s; resolves once no repeat came for twice the time
//! in which the last request was due for one. The count is the number of repeats: the SYN-ACK part of
//! `TcpExt TCPSynRetrans`.
//!
//! **Reading.** Where the request is marked `acked`, the third ACK did arrive and this host discarded
//! it (accept queue full, or `TCP_DEFER_ACCEPT`); otherwise it never came. Many distinct sources read
//! like a flood of forged addresses, one source like one broken client or path.
//!
//! **False positives.** A server for the open internet has clients that vanish in mid-handshake at any
//! time; raise `synack_repeats` there if single ones are not of interest.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    time::Duration,
};

use foldhash::quality::RandomState;

use crate::{
    detect::{Context, Draft, Facts, Life, hooks, plural, who},
    event::{Owner, SynAck},
    finding::{FindingKind, Ktime, Subject},
    table::{Bounded, listener::ListenerKey},
};

/// Distinct sources remembered per listener: enough to tell a flood, little enough for many listeners.
const SOURCES: usize = 256;

/// How long first repeats count together: one request repeats at 1 and 3 s, so that 4 s hold both.
const TOGETHER: Duration = Duration::from_secs(4);

/// `TCP_TIMEOUT_INIT`, from which SYN-ACK timeouts double, and `TCP_RTO_MAX` (include/net/tcp.h).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_mins(2);

#[derive(Debug)]
struct Waiting {
    owner: Option<Owner>,
    latest: SynAck,
    life: Option<Life>,
    repeats: u64,
    /// Repeats of requests whose third ACK was discarded.
    discarded: u64,
    requests: u64,
    sources: HashSet<IpAddr, RandomState>,
    /// First repeats in this and in the last stretch of [`TOGETHER`].
    together: [u64; 2],
    together_from: Ktime,
    most_repeats: u8,
    since: Ktime,
    last: Ktime,
    quiet_from: Ktime,
}

impl Waiting {
    fn new(body: &SynAck, now: Ktime) -> Self {
        Self {
            owner: body.owner,
            latest: *body,
            life: None,
            repeats: 0,
            discarded: 0,
            requests: 0,
            sources: HashSet::default(),
            together: [0; 2],
            together_from: now,
            most_repeats: 0,
            since: now,
            last: now,
            quiet_from: now,
        }
    }

    fn repeated(&mut self, body: &SynAck, now: Ktime) {
        self.owner = body.owner.or(self.owner);
        self.latest = *body;
        self.last = now;
        self.repeats += 1;
        self.discarded += u64::from(body.acked);
        let repeats = body.num_retrans.saturating_add(1);
        self.most_repeats = self.most_repeats.max(repeats);
        if now.since(self.together_from) >= TOGETHER {
            let adjacent = now.since(self.together_from) < 2 * TOGETHER;
            self.together = [0, if adjacent { self.together[0] } else { 0 }];
            self.together_from = now;
        }
        if body.num_retrans == 0 {
            self.requests += 1;
            self.together[0] += 1;
        }
        if self.sources.len() < SOURCES {
            self.sources.insert(body.socket.remote.ip());
        }
        let next = FIRST_TIMEOUT
            .saturating_mul(1_u32.checked_shl(repeats.into()).unwrap_or(u32::MAX))
            .min(LONGEST_TIMEOUT);
        self.quiet_from = self.quiet_from.max(now.after(2 * next));
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Handshake {
    listeners: Bounded<ListenerKey, Waiting>,
    open: BTreeMap<u64, ListenerKey>,
}

impl Handshake {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            listeners: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.listeners.evicted()
    }

    pub(crate) fn syn_ack(&mut self, body: &SynAck, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        let known = self.listeners.touch(&key).is_some_and(|waiting| {
            // What was never worth a finding and is over does not count for the next one.
            waiting.life.is_some() || cx.now < waiting.quiet_from
        });
        if !known
            && let Some((key, mut gone)) = self.listeners.insert(key, Waiting::new(body, cx.now))
            && let Some(life) = gone.life.take()
        {
            self.open.remove(&life.id);
            cx.resolve(life, draft(&key, &gone, cx));
        }
        let Some(waiting) = self.listeners.get_mut(&key) else {
            return;
        };
        waiting.repeated(body, cx.now);
        let thresholds = &cx.thresholds.half_open;
        match waiting.life {
            None if waiting.most_repeats >= thresholds.synack_repeats
                || waiting.together[0] + waiting.together[1] >= thresholds.synack_requests =>
            {
                let life = cx.open(draft(&key, waiting, cx));
                waiting.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(mut life) if life.due(cx.now, waiting.repeats) => {
                cx.update(&mut life, draft(&key, waiting, cx));
                waiting.life = Some(life);
            }
            _ => {}
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let listeners = &mut self.listeners;
        self.open.retain(|_, key| {
            let Some(waiting) = listeners.get_mut(key) else {
                return false;
            };
            let Some(mut life) = waiting.life else {
                return false;
            };
            if cx.now >= waiting.quiet_from {
                cx.resolve(life, draft(key, waiting, cx));
                listeners.remove(key);
                return false;
            }
            if life.due(cx.now, waiting.repeats) {
                cx.update(&mut life, draft(key, waiting, cx));
                waiting.life = Some(life);
            }
            true
        });
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for key in self.open.values() {
            let Some(waiting) = self.listeners.get_mut(key) else {
                continue;
            };
            let Some(mut life) = waiting.life else {
                continue;
            };
            if life.stale(waiting.repeats) {
                cx.update(&mut life, draft(key, waiting, cx));
                waiting.life = Some(life);
            }
        }
    }
}

/// What the sources look like.
enum Crowd {
    One,
    Some,
    Flood,
}

impl Crowd {
    fn of(waiting: &Waiting, cx: &Context<'_>) -> Self {
        let sources = waiting.sources.len() as u64;
        if sources <= 1 {
            Self::One
        } else if sources >= cx.thresholds.half_open.flood_sources.min(SOURCES as u64) {
            Self::Flood
        } else {
            Self::Some
        }
    }
}

fn draft(key: &ListenerKey, waiting: &Waiting, cx: &Context<'_>) -> Draft {
    let latest = &waiting.latest;
    let crowd = Crowd::of(waiting, cx);
    let unanswered = waiting.repeats - waiting.discarded;
    let facts = Facts::default()
        .count("requests", waiting.requests.max(1))
        .count("sources", waiting.sources.len() as u64)
        .count("repeats_unanswered", unanswered)
        .count("repeats_ack_discarded", waiting.discarded)
        .count("most_repeats_of_one_request", waiting.most_repeats)
        .count("syn_qlen", latest.syn_qlen)
        .count("ack_backlog", latest.ack_backlog)
        .count("max_ack_backlog", latest.max_ack_backlog)
        .text(
            "looks_like",
            match (waiting.discarded > unanswered, &crowd) {
                (true, _) => "overflow_victims",
                (false, Crowd::One) => "one_client",
                (false, Crowd::Some) => "several_clients",
                (false, Crowd::Flood) => "flood",
            },
        )
        .text("last_remote", latest.socket.remote.to_string());
    Draft {
        kind: FindingKind::HalfOpen,
        cause: "handshake",
        stage: None,
        doubt: cx.doubt("half_open.handshake", &hooks::HANDSHAKE),
        subject: Subject::Listener {
            netns: key.netns,
            local: key.local,
        },
        owner: waiting.owner,
        since: waiting.since,
        last: waiting.last,
        count: waiting.repeats,
        summary: summary(key, waiting, &crowd),
        evidence: facts,
        advice: advice(waiting, &crowd, cx),
    }
}

fn full(latest: &SynAck) -> bool {
    latest.ack_backlog > latest.max_ack_backlog
}

fn sources(waiting: &Waiting) -> String {
    let count = waiting.sources.len();
    match waiting.sources.iter().next() {
        Some(only) if count == 1 => only.to_string(),
        _ if count == SOURCES => format!("at least {count} addresses"),
        _ => format!("{count} addresses"),
    }
}

fn summary(key: &ListenerKey, waiting: &Waiting, crowd: &Crowd) -> String {
    let local = key.local;
    let repeats = plural(waiting.repeats, "SYN-ACK");
    let requests = plural(waiting.requests.max(1), "request");
    let from = sources(waiting);
    if waiting.discarded > waiting.repeats - waiting.discarded {
        let why = if full(&waiting.latest) {
            "the accept queue is full"
        } else {
            "the accept queue was full, or the listener defers accept until data comes"
        };
        return format!(
            "{local} repeated {repeats} for {requests} from {from} whose third ACK did arrive and was \
             discarded: {why}"
        );
    }
    let reading = match crowd {
        Crowd::One => "one client, or the path to it, is broken",
        Crowd::Some => "several clients, or the path back to them, are broken",
        Crowd::Flood => "it looks like a SYN flood from forged addresses",
    };
    format!(
        "{local} repeated {repeats} for {requests} from {from}, and no third ACK came: {reading}"
    )
}

fn advice(waiting: &Waiting, crowd: &Crowd, cx: &Context<'_>) -> Vec<Cow<'static, str>> {
    let retries = cx
        .sysctl("net.ipv4.tcp_synack_retries")
        .map_or_else(String::new, |value| format!(" (now {value})"));
    if waiting.discarded > waiting.repeats - waiting.discarded {
        return vec![
            format!(
                "find out why {} does not call accept(), or raise the backlog of listen() (now {})",
                who(waiting.owner.as_ref()),
                waiting.latest.max_ack_backlog,
            )
            .into(),
        ];
    }
    match crowd {
        Crowd::Flood => vec![
            "keep net.ipv4.tcp_syncookies at 1, so that forged requests cannot fill the SYN queue"
                .into(),
            format!("lower net.ipv4.tcp_synack_retries{retries}, so that they leave it sooner").into(),
        ],
        Crowd::One | Crowd::Some => vec![
            "look for a firewall or a route that loses the way back: SYN-ACKs leave this host, or the \
             client's ACKs do not reach it"
                .into(),
            format!(
                "on a return path over another interface, check net.ipv4.conf.*.rp_filter and \
                 stateful firewalls; requests expire after net.ipv4.tcp_synack_retries{retries} repeats"
            )
            .into(),
        ],
    }
}
