//! `half_open` / `dead_peer`: this host holds a connection whose other end does not answer.
//!
//! **Rule.** `suspected` after [`HalfOpen::timeouts`](crate::detect::HalfOpen::timeouts) consecutive
//! retransmission timeouts, or [`HalfOpen::probes`](crate::detect::HalfOpen::probes) unanswered
//! keepalive or window probes. `confirmed` when the kernel gives up (ETIMEDOUT and its kin),
//! `recovered` when anything is acknowledged, `reset` when the peer answers that it knows nothing of
//! the connection, `closed` when the socket went for another reason. The last four resolve.
//!
//! **Count.** Consecutive timeouts, with the one at which the kernel gave up: what `TcpExt
//! TCPTimeouts` counts for the connection since it went silent. Of a connection that only probes, the
//! unanswered probes.
//!
//! **False positives.** A peer that is rebooted or roams for a few seconds; it is resolved as
//! `recovered` or `reset`. A peer with a closed window answers probes and opens nothing. An idle
//! connection without keepalive shows nothing and cannot be seen.

use std::{borrow::Cow, collections::BTreeMap, time::Duration};

use crate::{
    detect::{Context, Draft, Facts, Life, hooks, plural, said_seconds},
    event::{Body, Event, Probe, Reset, Retransmit, Snapshot, State, Tcp, TcpState},
    finding::{FindingKind, Ktime},
    source::SocketId,
    table::{
        Bounded,
        connection::{Change, Connection, ConnectionKey},
    },
};

/// errno.h, the same on every architecture Linux's BPF runs on but MIPS and SPARC.
mod errno {
    pub(super) const EPIPE: u32 = 32;
    pub(super) const ENETUNREACH: u32 = 101;
    pub(super) const ECONNRESET: u32 = 104;
    pub(super) const ETIMEDOUT: u32 = 110;
    pub(super) const EHOSTDOWN: u32 = 112;
    pub(super) const EHOSTUNREACH: u32 = 113;

    pub(super) const fn name(errno: u32) -> &'static str {
        match errno {
            ENETUNREACH => "ENETUNREACH",
            ETIMEDOUT => "ETIMEDOUT",
            EHOSTDOWN => "EHOSTDOWN",
            EHOSTUNREACH => "EHOSTUNREACH",
            _ => "another error",
        }
    }
}

/// The silence of one connection.
#[derive(Clone, Copy, Debug)]
struct Silence {
    life: Option<Life>,
    connection: Connection,
    timeouts: u8,
    probes: u8,
    /// The kernel's last timeout, which it does not add to `timeouts`.
    fatal: bool,
    keepalive: bool,
    /// Retransmissions and probes that left the host, and those that did not.
    sent: u32,
    not_sent: u32,
    since: Ktime,
    last: Ktime,
    /// Polls since the socket was found gone.
    gone: Option<u8>,
}

impl Silence {
    fn new(connection: Connection, now: Ktime) -> Self {
        Self {
            life: None,
            connection,
            timeouts: 0,
            probes: 0,
            fatal: false,
            keepalive: false,
            sent: 0,
            not_sent: 0,
            since: now,
            last: now,
            gone: None,
        }
    }

    fn count(&self) -> u64 {
        if self.timeouts > 0 {
            u64::from(self.timeouts) + u64::from(self.fatal)
        } else {
            self.probes.into()
        }
    }

    fn is_silent(&self) -> bool {
        self.timeouts > 0 || self.probes > 0
    }

    /// Nothing of the connection left this host: it says nothing about the peer.
    const fn is_local(&self) -> bool {
        self.not_sent > 0 && self.sent == 0
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct DeadPeer {
    table: Bounded<ConnectionKey, Silence>,
    open: BTreeMap<u64, ConnectionKey>,
}

impl DeadPeer {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            table: Bounded::new(limit),
            open: BTreeMap::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    /// Connections whose next change no record may tell, the longest silent last; at most `limit`, and
    /// how many more there are.
    pub(crate) fn watched(&self, limit: usize) -> (Vec<SocketId>, u64) {
        let mut more = 0;
        let mut watched = Vec::new();
        for (key, silence) in self.table.iter() {
            // Without a birth the kernel half cannot tell the socket from a later one.
            if !silence.is_silent() || silence.gone.is_some() || key.id.born == Ktime(0) {
                continue;
            }
            if watched.len() < limit {
                watched.push(key.id);
            } else {
                more += 1;
            }
        }
        (watched, more)
    }

    pub(crate) fn change(&mut self, event: &Event, change: &Change<'_>, cx: &mut Context<'_>) {
        match &event.body {
            Body::Retransmit(body) => self.retransmit(event.time, body, change, cx),
            Body::Probe(body) => self.probe(event.time, body, change, cx),
            Body::Snapshot(body) => self.snapshot(event.time, body, change, cx),
            _ => {}
        }
    }

    fn retransmit(
        &mut self,
        at: Ktime,
        body: &Retransmit,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) {
        // A connect() that is not answered never was a connection.
        if matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv) {
            return;
        }
        let Some(silence) = self.observe(at, &body.tcp, change, cx) else {
            return;
        };
        if body.errno == 0 {
            silence.sent += 1;
        } else {
            silence.not_sent += 1;
        }
        self.judge(change.connection.key, cx);
    }

    fn probe(&mut self, at: Ktime, body: &Probe, change: &Change<'_>, cx: &mut Context<'_>) {
        let Some(silence) = self.observe(at, &body.tcp, change, cx) else {
            return;
        };
        silence.keepalive = body.keepalive;
        if body.result < 0 {
            silence.not_sent += 1;
        } else {
            silence.sent += 1;
        }
        self.judge(change.connection.key, cx);
    }

    fn snapshot(&mut self, at: Ktime, body: &Snapshot, change: &Change<'_>, cx: &mut Context<'_>) {
        if body.socket.state == TcpState::Close {
            self.gone(change.connection.key);
        } else if !matches!(body.socket.state, TcpState::SynSent | TcpState::SynRecv)
            && self.observe(at, &body.tcp, change, cx).is_some()
        {
            self.judge(change.connection.key, cx);
        }
    }

    /// The socket was not found. Why it went may still wait in a ring, behind the poll's answer.
    fn gone(&mut self, key: ConnectionKey) {
        if let Some(silence) = self.table.get_mut(&key) {
            silence.gone.get_or_insert(0);
        }
    }

    /// Folds the counters in. The kernel sets both to 0 at every ACK (`tcp_ack`), so that a smaller
    /// number means that the peer was heard in between.
    fn observe(
        &mut self,
        at: Ktime,
        tcp: &Tcp,
        change: &Change<'_>,
        cx: &mut Context<'_>,
    ) -> Option<&mut Silence> {
        let key = change.connection.key;
        if let Some(silence) = self.table.get_mut(&key) {
            if at < silence.last {
                return None;
            }
            let heard = change.progress
                || tcp.retransmits < silence.timeouts
                || tcp.probes_out < silence.probes;
            if heard && let Some(mut silence) = self.table.remove(&key) {
                silence.connection = *change.connection;
                self.resolve(silence, "recovered", None, cx);
            }
        }
        if tcp.retransmits == 0 && tcp.probes_out == 0 {
            self.table.remove(&key);
            return None;
        }
        if self.table.touch(&key).is_none()
            && let Some((_, silence)) = self
                .table
                .insert(key, Silence::new(*change.connection, cx.now))
        {
            self.resolve(silence, "forgotten", None, cx);
        }
        let silence = self.table.get_mut(&key)?;
        silence.connection = *change.connection;
        silence.timeouts = tcp.retransmits;
        silence.probes = tcp.probes_out;
        silence.last = at;
        Some(silence)
    }

    /// Opens or updates.
    fn judge(&mut self, key: ConnectionKey, cx: &mut Context<'_>) {
        let Some(silence) = self.table.get_mut(&key) else {
            return;
        };
        let thresholds = &cx.thresholds.half_open;
        match silence.life {
            None if silence.timeouts >= thresholds.timeouts
                || (silence.timeouts == 0 && silence.probes >= thresholds.probes) =>
            {
                let life = cx.open(draft(silence, "suspected", None, cx));
                silence.life = Some(life);
                self.open.insert(life.id, key);
            }
            Some(mut life) if life.due(cx.now, silence.count()) => {
                cx.update(&mut life, draft(silence, "suspected", None, cx));
                silence.life = Some(life);
            }
            _ => {}
        }
    }

    /// The end of a socket, whether or not it was in any table.
    pub(crate) fn state(&mut self, body: &State, cx: &mut Context<'_>) {
        if body.new != TcpState::Close
            || matches!(
                body.old,
                TcpState::SynSent | TcpState::SynRecv | TcpState::Listen
            )
        {
            return;
        }
        let known = self.table.remove(&ConnectionKey::of(&body.socket));
        let gave_up = matches!(
            body.errno,
            errno::ETIMEDOUT | errno::EHOSTUNREACH | errno::ENETUNREACH | errno::EHOSTDOWN
        );
        if !gave_up {
            if let Some(silence) = known {
                let reset = matches!(body.errno, errno::ECONNRESET | errno::EPIPE);
                self.resolve(silence, if reset { "reset" } else { "closed" }, None, cx);
            }
            return;
        }
        if known.is_none() && body.retransmits == 0 && body.probes_out == 0 {
            return;
        }
        let mut silence = known.unwrap_or_else(|| {
            let connection = Connection::seen(&body.socket, body.owner, Tcp::default(), cx.now);
            Silence::new(connection, cx.now)
        });
        silence.connection.owner = body.owner.or(silence.connection.owner);
        silence.timeouts = silence.timeouts.max(body.retransmits);
        silence.probes = silence.probes.max(body.probes_out);
        silence.fatal = silence.timeouts > 0;
        silence.last = cx.now;
        if silence.life.is_none() {
            // The kernel gave up before anybody could suspect: a short user timeout, or few retries.
            silence.life = Some(cx.open(draft(&silence, "confirmed", Some(body.errno), cx)));
        }
        self.resolve(silence, "confirmed", Some(body.errno), cx);
    }

    /// A reset from the peer ends the doubt: it is there, and knows nothing of the connection.
    pub(crate) fn reset(&mut self, body: &Reset, cx: &mut Context<'_>) {
        if body.received
            && let Some(mut silence) = self.table.remove(&ConnectionKey::of(&body.socket))
        {
            silence.last = cx.now;
            self.resolve(silence, "reset", None, cx);
        }
    }

    fn resolve(
        &mut self,
        silence: Silence,
        stage: &'static str,
        errno: Option<u32>,
        cx: &mut Context<'_>,
    ) {
        if let Some(life) = silence.life {
            self.open.remove(&life.id);
            cx.resolve(life, draft(&silence, stage, errno, cx));
        }
    }

    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        let table = &mut self.table;
        self.open.retain(|_, key| {
            let Some(silence) = table.get_mut(key) else {
                return false;
            };
            let Some(mut life) = silence.life else {
                return false;
            };
            match &mut silence.gone {
                // The tick of the poll that missed it: the rings are read once more.
                Some(polls @ 0) => *polls = 1,
                Some(_) => {
                    cx.resolve(life, draft(silence, "closed", None, cx));
                    table.remove(key);
                    return false;
                }
                None => {}
            }
            if life.due(cx.now, silence.count()) {
                cx.update(&mut life, draft(silence, "suspected", None, cx));
                silence.life = Some(life);
            }
            true
        });
        // Never worth a finding, and no record for as long as the longest RTO twice over.
        while let Some((_, silence)) = self.table.oldest()
            && silence.life.is_none()
            && (silence.gone.is_some() || cx.now.since(silence.last) > 2 * RTO_MAX)
        {
            self.table.pop_oldest();
        }
    }

    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        for key in self.open.values() {
            let Some(silence) = self.table.get_mut(key) else {
                continue;
            };
            let Some(mut life) = silence.life else {
                continue;
            };
            if life.stale(silence.count()) {
                cx.update(&mut life, draft(silence, "suspected", None, cx));
                silence.life = Some(life);
            }
        }
    }
}

/// `TCP_RTO_MIN` and `TCP_RTO_MAX` (include/net/tcp.h).
const RTO_MIN: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_secs(120);

/// How long the kernel tries at least: `tcp_model_timeout` (net/ipv4/tcp_timer.c) for
/// `tcp_retries2`; 924.6 s for its default of 15.
fn gives_up_after(retries: u32) -> Duration {
    // ilog2(RTO_MAX / RTO_MIN): doublings until the timeout stays at its maximum.
    const DOUBLINGS: u32 = 9;
    let doubled = RTO_MIN * ((2 << retries.min(DOUBLINGS)) - 1);
    doubled + RTO_MAX.saturating_mul(retries.saturating_sub(DOUBLINGS))
}

fn draft(silence: &Silence, stage: &'static str, errno: Option<u32>, cx: &Context<'_>) -> Draft {
    let connection = &silence.connection;
    let tcp = &connection.tcp;
    let silent = cx.now.since(silence.since);
    let retries2 = cx
        .sysctl_number("net.ipv4.tcp_retries2")
        .and_then(|n| u32::try_from(n).ok());
    let limit = tcp.user_timeout.or_else(|| retries2.map(gives_up_after));
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
    if let Some(keepalive) = tcp.keepalive {
        facts = facts.text("keepalive", if keepalive { "on" } else { "off" });
    }
    if let Some(errno) = errno {
        facts = facts.text("error", errno::name(errno));
    }
    let doubt = cx
        .doubt("half_open.dead_peer", &hooks::DEAD_PEER)
        .or_else(|| {
            (stage == "suspected").then(|| {
                "the kernel has not given up: the peer may be slow or unreachable for a while"
                    .into()
            })
        });
    Draft {
        kind: FindingKind::HalfOpen,
        cause: "dead_peer",
        stage: Some(stage),
        doubt,
        subject: connection.subject(),
        owner: connection.owner,
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
    match stage {
        "confirmed" => format!(
            "{remote} is gone: the kernel gave up with {} after {tried} in {silent}",
            errno::name(errno.unwrap_or_default()),
        ),
        "recovered" => format!("{remote} answers again after {tried} in {silent}"),
        "reset" => format!(
            "{remote} answered with a reset after {tried} in {silent}: it had lost the connection"
        ),
        "closed" => format!("the connection to {remote} was closed after {tried} in {silent}"),
        "forgotten" => {
            format!("no longer watched, the table is full; {remote} had {tried} in {silent}")
        }
        _ if silence.is_local() => format!(
            "nothing sent to {remote} leaves this host: {tried} in {silent}, {unacked} bytes wait"
        ),
        _ => format!("{remote} is silent: {tried} in {silent}, {unacked} bytes unacknowledged"),
    }
}

fn advice(
    silence: &Silence,
    stage: &'static str,
    limit: Option<Duration>,
    cx: &Context<'_>,
) -> Vec<Cow<'static, str>> {
    let tcp = &silence.connection.tcp;
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
    if stage == "suspected" {
        if tcp.user_timeout.is_none() && silence.timeouts > 0 {
            let retries2 = cx.sysctl("net.ipv4.tcp_retries2").unwrap_or("unknown");
            let after = limit.map_or_else(String::new, |limit| {
                format!(", gives up only after {}", said_seconds(limit))
            });
            advice.push(
                format!(
                    "to notice sooner, set TCP_USER_TIMEOUT on the socket (now unset), or lower \
                     net.ipv4.tcp_retries2 (now {retries2}{after})"
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
