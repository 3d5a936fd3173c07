//! `half_open` / `handshake`: our SYN-ACKs go unanswered, or their answers are thrown away.
//!
//! **Rule.** Every retransmitted SYN-ACK counts. Opens at the second of one request, or when several
//! requests of one listener need one within 4 s; also when a listener's SYN queue overflows and it
//! looks like a flood. Resolves once none came for twice the time in which the last request was
//! due for one, and the queue did not overflow for `syn_drop.quiet_s`. The count is the
//! number of retransmissions, from the eBPF side's own totals: the SYN-ACK part of `TcpExt TCPSynRetrans`.
//!
//! **Reading** (`looks_like`). Where most requests are marked `acked`, the third ACK did arrive and this
//! host discarded it: `overflow_victims`, or `deferred` (`TCP_DEFER_ACCEPT`) where neither the listener's totals
//! nor its queue tell of an accept queue without room. Otherwise it never came, from
//! - `one_client`: a single address;
//! - `flood`: at least [`Thresholds::flood_sources`] addresses of which next to none completes
//!   ([`Thresholds::flood_completed`]), in several networks or with an overflowing queue;
//! - `one_prefix`: several addresses of one network (/24, /48), whose path is broken;
//! - `several_clients`: anything else.
//!
//! Addresses and networks are estimated (`crowd`); a request is told by its own totals as completed
//! late, expired, reset by its client, or ended by this host.
//!
//! **False positives.** A server for the open internet has clients that vanish in mid-handshake at any
//! time; raise `synack_repeats` there if single ones are not of interest. A listener none of whose
//! SYN-ACKs reach anybody looks flooded, if it is busy enough.

#[cfg(test)]
pub(crate) mod claims;
mod crowd;
#[cfg(test)]
mod tests;
mod waiting;
mod words;

use std::time::Duration;

use conntracer_common::{
    record::{SynTotals, syn_outcome},
    stats::hook,
};

use self::waiting::{Arrivals, LOOKBACK, Looks, Stretches, Waiting, overflowed};
use super::{KIND, thresholds::Thresholds};
use crate::{
    detect::room::{Case, Cases, Context, Draft, Entry, Limits, Open, Room, Saying, Spec},
    event::{Sources, Syn, SynAck},
    finding::Severity,
    id::SocketId,
    table::listener::{Applied, ListenerKey},
    time::Ktime,
};

pub(crate) static SPEC: Spec = Spec {
    detector: "half_open.handshake",
    kind: KIND,
    causes: &[("handshake", Severity::Warning)],
    hooks: &[hook::SYNACK, hook::REQUEST, hook::SEED],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// One listener address.
#[derive(Debug, Default)]
struct Listener {
    /// Arrivals in this and in the last stretch of [`LOOKBACK`].
    arrivals: Stretches<Arrivals>,
    /// Most retransmissions of one request, as its totals last told.
    most_repeats: u8,
    waiting: Option<Box<Waiting>>,
    /// No socket listens there any more.
    is_over: bool,
}

impl Listener {
    fn arrived(&mut self, gained: &SynTotals, now: Ktime) {
        self.arrivals.turn(now, LOOKBACK);
        self.arrivals.this.add(Arrivals::of(gained));
    }

    /// The trouble it is in.
    fn trouble(&mut self, now: Ktime) -> &mut Waiting {
        let mut arrivals = self.arrivals.last;
        arrivals.add(self.arrivals.this);
        self.waiting
            .get_or_insert_with(|| Box::new(Waiting::new(arrivals, now)))
    }
}

/// What it judges by: its own table, and when a listener that drops nothing has recovered.
#[derive(Debug)]
pub(crate) struct Rules {
    half_open: Thresholds,
    quiet: Duration,
}

impl Case for Listener {
    type Key = ListenerKey;
    type Rules = Rules;

    fn draft(&self, key: &ListenerKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        let waiting = self.waiting.as_ref()?;
        Some(words::draft(
            &SPEC,
            key,
            waiting,
            &at.rules.half_open,
            at.cx,
        ))
    }

    fn news(&self) -> u64 {
        self.waiting.as_ref().map_or(0, |waiting| waiting.moved())
    }

    fn has_other_news(&self) -> bool {
        let waiting = self.waiting.as_ref();
        waiting.is_some_and(|waiting| waiting.reading != waiting.said_reading)
    }

    fn told(&mut self) {
        if let Some(waiting) = &mut self.waiting {
            waiting.said_reading = waiting.reading;
        }
    }

    fn is_over(&mut self, key: &ListenerKey, rules: &Rules, cx: &Context<'_>) -> bool {
        if let Some(waiting) = &mut self.waiting {
            waiting.look(key, &rules.half_open, cx);
        }
        self.waiting
            .as_ref()
            .is_none_or(|waiting| cx.now >= waiting.quiet_from)
    }

    fn begins_anew(&mut self, _: Ktime) -> bool {
        self.waiting = None;
        true
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Handshake {
    listeners: Cases<Listener>,
}

impl Handshake {
    pub(crate) fn new(limits: &Limits, half_open: Thresholds, quiet: Duration) -> Self {
        Self {
            listeners: Cases::new(limits.listeners, Rules { half_open, quiet }),
        }
    }

    pub(crate) fn syn_ack(&mut self, body: &SynAck, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        let now = cx.now;
        if let Some(listener) = self.listener(key, cx) {
            listener.trouble(now).retransmitted(body, now);
        }
        self.listeners.meet(&key, cx);
        self.judge(&key, cx);
    }

    /// A listener's totals, and what they gained since its last record.
    pub(crate) fn syn(&mut self, body: &Syn, applied: &Applied, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        let gained = &applied.gained;
        let (now, quiet) = (cx.now, self.listeners.rules.quiet);
        let Some(listener) = self.listener(key, cx) else {
            return;
        };
        let begins = gained[syn_outcome::REPEATED] > 0 || overflowed(gained) > 0;
        if listener.waiting.is_some() || begins {
            let most_repeats =
                (body.most_repeats > listener.most_repeats).then_some(body.most_repeats);
            let waiting = listener.trouble(now);
            waiting.most_repeats = waiting.most_repeats.max(most_repeats.unwrap_or_default());
            waiting.gained(body, gained, quiet, now);
        }
        listener.is_over = !applied.is_listening;
        listener.most_repeats = listener.most_repeats.max(body.most_repeats);
        listener.arrived(gained, now);
        self.judge(&key, cx);
    }

    /// Who a listener's trouble comes from. Of one that is in none any more, nothing is asked.
    pub(crate) fn sources(&mut self, body: &Sources, cx: &mut Context<'_>) {
        let key = ListenerKey::of(&body.socket);
        if let Some(listener) = self.listeners.get_mut(&key)
            && let Some(waiting) = &mut listener.waiting
        {
            waiting.crowd.join(body);
            self.judge(&key, cx);
        }
    }

    /// The open finding that says a listener is flooded.
    pub(crate) fn flood(&self, key: &ListenerKey) -> Option<u64> {
        let listener = self.listeners.get(key)?;
        let looks = listener
            .waiting
            .as_ref()?
            .looks(&self.listeners.rules.half_open);
        listener.id().filter(|_| looks == Looks::Flood)
    }

    /// Listening sockets whose queues the next poll is to tell.
    pub(crate) fn watched(&self) -> Vec<SocketId> {
        self.listeners
            .open()
            .filter_map(|(_, listener)| listener.waiting.as_ref())
            .flat_map(|waiting| waiting.queues.keys().copied())
            .collect()
    }

    /// The listener, without a trouble that was never worth a finding and is over.
    fn listener(&mut self, key: ListenerKey, cx: &mut Context<'_>) -> Option<&mut Entry<Listener>> {
        let is_spare = |listener: &Listener| listener.is_over && listener.waiting.is_none();
        let now = cx.now;
        let listener = self
            .listeners
            .begin_over(key, cx, Listener::default, is_spare)?;
        if !listener.is_open() {
            listener
                .waiting
                .take_if(|waiting| now >= waiting.quiet_from);
        }
        Some(listener)
    }

    fn judge(&mut self, key: &ListenerKey, cx: &mut Context<'_>) {
        let rules = &self.listeners.rules.half_open;
        let waiting = self
            .listeners
            .get(key)
            .and_then(|listener| listener.waiting.as_ref());
        let is_worth = waiting.is_some_and(|waiting| waiting.opens(rules));
        self.listeners.judge(key, is_worth, cx);
    }
}

impl Room for Handshake {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.listeners]
    }

    fn evicted(&self) -> (&'static str, u64) {
        ("listeners_evicted", self.listeners.evicted())
    }
}
