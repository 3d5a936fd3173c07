//! `bind_failure`: a process does not get the address or port that it wants to listen on, or to connect from.
//!
//! **Rule.** Opens when [`Thresholds::patience_s`] after a call of bind() or listen() failed the same program has neither
//! got what it asked for nor, in a search for a free port, another one. Over when it gets it (`bound`, `bound_elsewhere`),
//! or has not failed for [`Thresholds::quiet_s`] (`quiet`). A program that is started again and again is one finding: its
//! processes are told apart by no more than their number.
//!
//! **Causes.** `in_use` (EADDRINUSE; who holds the port is looked up at the next poll), `no_port` (the same for port 0: the
//! range is exhausted), `not_local` (EADDRNOTAVAIL), `denied` (EACCES, EPERM), `other`.
//!
//! **False positives.** Not told: a process that binds to all addresses of IPv4 after it did so of IPv6 with the same port,
//! which serves both. A program that tries whether a port is free, and ends, is told.

#[cfg(test)]
pub(crate) mod claims;
mod failures;
#[cfg(test)]
mod tests;
mod thresholds;
mod words;

use std::{net::SocketAddr, time::Duration};

use conntracer_common::stats::hook;

use self::failures::{Cause, FailureKey, Failures, Stage, is_search, program};
pub(super) use self::thresholds::Thresholds;
use super::room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec};
use crate::{
    event::{Bind, BindCall, BindHolders},
    finding::{FindingKind, Severity},
    table::Bounded,
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "bind_failure",
    kind: FindingKind::new(11, "bind_failure"),
    causes: &[
        (Cause::InUse.name(), Severity::Warning),
        (Cause::NoPort.name(), Severity::Critical),
        (Cause::NotLocal.name(), Severity::Warning),
        (Cause::Denied.name(), Severity::Warning),
        (Cause::Other.name(), Severity::Warning),
    ],
    hooks: &[hook::BIND],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// Further time that is given to the look at who holds the port, where it has not come.
const LOOK: Duration = Duration::from_secs(3);

/// Which of the eBPF side's counts: an entry that was removed for being idle and came again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct EntryKey {
    netns: u32,
    pid: u32,
    local: SocketAddr,
    first: Ktime,
    errno: u32,
    call: BindCall,
}

/// A process, and its namespace.
type ProcessKey = (u32, u32);

fn process(bind: &Bind) -> ProcessKey {
    (bind.socket.netns, bind.owner.map_or(0, |owner| owner.pid))
}

/// The last call of a process that succeeded.
#[derive(Clone, Copy, Debug)]
struct Success {
    at: Ktime,
    local: SocketAddr,
    inode: Option<u32>,
}

impl Success {
    fn of(bind: &Bind) -> Self {
        Self {
            at: bind.last,
            local: bind.socket.local,
            inode: bind.inode,
        }
    }

    /// Whether it is the end of a search of which a call that failed was part.
    fn ends_search(&self, failed: &Bind) -> bool {
        let (got, asked) = (self.local, failed.socket.local);
        failed.call == BindCall::Bind
            && self.at >= failed.last
            && (self.inode.is_some() && self.inode == failed.inode && got != asked
                || got.ip() == asked.ip() && is_search(asked.port(), got.port()))
    }
}

impl Case for Failures {
    type Key = FailureKey;
    type Rules = Thresholds;

    fn draft(&self, key: &FailureKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::draft(&SPEC, key, self, at.status, at.cx))
    }

    fn news(&self) -> u64 {
        self.count.wrapping_shl(1) | u64::from(self.held.is_some())
    }

    fn is_over(&mut self, _: &FailureKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        let is_over = cx.now.since(self.last) >= rules.quiet();
        if is_over {
            self.stage = Stage::Quiet;
        }
        is_over
    }

    fn is_idle(&self, rules: &Thresholds, now: Ktime) -> bool {
        now.since(self.last) >= rules.quiet()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct BindFailure {
    totals: Bounded<EntryKey, u64>,
    failures: Cases<Failures>,
    /// The case that a process's search for a free port began with.
    searches: Bounded<ProcessKey, FailureKey>,
    /// What each process got last.
    got: Bounded<ProcessKey, Success>,
    /// Who held a port at the last look.
    held: Bounded<(u32, SocketAddr), BindHolders>,
}

impl BindFailure {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        Self {
            totals: Bounded::new(limits.failures),
            failures: Cases::new(limits.failures, thresholds),
            searches: Bounded::new(limits.processes),
            got: Bounded::new(limits.processes),
            held: Bounded::new(limits.failures),
        }
    }

    pub(crate) fn bind(&mut self, bind: &Bind, cx: &mut Context<'_>) {
        if bind.errno == 0 {
            self.succeeded(bind, cx);
            return;
        }
        let entry = EntryKey {
            netns: bind.socket.netns,
            pid: process(bind).1,
            local: bind.socket.local,
            first: bind.first,
            errno: bind.errno,
            call: bind.call,
        };
        let more = self.totals.gained(entry, bind.count);
        let got = self.got.get_mut(&process(bind));
        if more == 0 || got.is_some_and(|got| got.ends_search(bind)) {
            return;
        }
        // A first record may come late, and tell of calls since the first was counted.
        let is_first = more == bind.count;
        let since = if is_first { bind.first } else { bind.last };
        let key = self.key_of(bind);
        let new = || Failures::new(*bind, since);
        let quiet = self.failures.rules.quiet();
        let Some(failures) = self.failures.begin(key, cx, new) else {
            return;
        };
        if !failures.is_open() && since.since(failures.last) >= quiet {
            **failures = new();
        }
        let port = bind.socket.local.port();
        if is_first && key != FailureKey::of(bind) {
            let tried = if bind.is_several { more } else { 1 };
            failures.ports = failures.ports.saturating_add(tried);
            failures.last_port = if port == 0 { failures.last_port } else { port };
        }
        failures.add(more, bind);
    }

    /// The case that a failure belongs to: that of the search for a free port that it is part of, or its own.
    fn key_of(&mut self, bind: &Bind) -> FailureKey {
        let own = FailureKey::of(bind);
        let process = process(bind);
        if let Some(first) = self.searches.get_mut(&process).copied()
            && first != own
            && (FailureKey {
                local: own.local,
                ..first
            }) == own
            && (bind.is_several || first.local.ip() == own.local.ip())
            && let Some(search) = self.failures.get(&first)
        {
            let (port, searched) = (own.local.port(), first.local.port());
            if bind.is_several || is_search(searched, port) || is_search(search.last_port, port) {
                return first;
            }
        }
        if own.cause == Cause::InUse && self.searches.touch(&process).is_none() {
            self.searches.insert(process, own);
        }
        own
    }

    /// A call that succeeded ends what is told of the same address, and a search.
    fn succeeded(&mut self, bind: &Bind, cx: &mut Context<'_>) {
        let success = Success::of(bind);
        let process = process(bind);
        if bind.call == BindCall::Bind {
            self.got.insert(process, success);
            self.searches.remove(&process);
        }
        let program = program(bind);
        let ended = self.failures.iter().filter_map(|(key, failures)| {
            let is_its =
                key.netns == process.0 && key.program == program && failures.last <= success.at;
            let is_call = key.call == bind.call || key.call == BindCall::Security;
            if !is_its || !is_call {
                return None;
            }
            let is_same = key.local == success.local
                || key.cause == Cause::NoPort && key.local.ip() == success.local.ip();
            if is_same {
                return Some((*key, Stage::Bound));
            }
            let is_process = self::process(&failures.latest) == process;
            (is_process && success.ends_search(&failures.latest))
                .then_some((*key, Stage::Elsewhere(success.local.port())))
        });
        let ended: Vec<_> = ended.collect();
        for (key, stage) in ended {
            if let Some(mut failures) = self.failures.take(&key) {
                failures.stage = stage;
                self.failures.close(&key, failures, cx);
            }
        }
    }

    pub(crate) fn holders(&mut self, held: &BindHolders) {
        self.held.insert((held.netns, held.asked), *held);
    }

    /// Tells of what failed so long ago, and was not mended since.
    fn tell(&mut self, patience: Duration, cx: &mut Context<'_>) {
        let now = cx.now;
        let all: Vec<FailureKey> = self.failures.iter().map(|(key, _)| *key).collect();
        for key in all {
            let Some(failures) = self.failures.get_mut(&key) else {
                continue;
            };
            let asked = (key.netns, failures.latest.socket.local);
            let looked = self.held.get(&asked);
            if let Some(held) = looked
                && held.named().next().is_some()
            {
                failures.held = Some(*held);
            }
            let is_looked_up = matches!(key.cause, Cause::InUse | Cause::NoPort);
            let is_awaited = is_looked_up && looked.is_none() && !patience.is_zero();
            if failures.is_open() {
                continue;
            }
            if failures.is_served() {
                self.failures.take(&key);
                continue;
            }
            // A search that goes on tries each port once.
            let is_repeated = failures.count > failures.ports;
            let is_quiet = now.since(failures.last) >= patience;
            let lasts = now.since(failures.since);
            let is_due = lasts >= patience && (is_repeated || is_quiet);
            if is_due && (!is_awaited || lasts >= patience.saturating_add(LOOK)) {
                self.failures.raise(&key, cx);
            }
        }
    }
}

impl Room for BindFailure {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.failures]
    }

    fn judge(&mut self, cx: &mut Context<'_>) {
        self.tell(self.failures.rules.patience(), cx);
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        self.tell(Duration::ZERO, cx);
    }

    fn forget_netns(&mut self, netns: u32) {
        let of_it = self
            .failures
            .iter()
            .filter(|(key, failures)| key.netns == netns && !failures.is_open());
        let of_it: Vec<FailureKey> = of_it.map(|(key, _)| *key).collect();
        for key in of_it {
            self.failures.take(&key);
        }
    }

    fn evicted(&self) -> (&'static str, u64) {
        let evicted = self.totals.evicted();
        (
            "failures_evicted",
            evicted.saturating_add(self.failures.evicted()),
        )
    }
}
