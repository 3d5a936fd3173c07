//! `syn_drop` before a listener decides: nobody listens, or something on the way dropped the SYN.
//!
//! **Rule.** Opens when one address and port lost `refused_syns` SYNs for one cause
//! without a pause of `quiet_s`, and resolves after such a pause. From
//! `scan_ports` addresses and ports on whose SYNs no finding tells yet, they are one
//! finding of the namespace: a scan. In the midst of one a port still gets its own finding where somebody
//! listened before, or when it lost more than its share. Judged at each tick, so that a scan is known for
//! one before its first ports become findings. The count is the eBPF side's own total, so that
//! rate-limited records lose nothing.
//!
//! Where somebody listened before, and another begins to listen within [`PATIENCE`], nobody was there for the time of a
//! restart: no finding.
//!
//! **Causes.** `no_listener`, `filtered` (netfilter, XDP or traffic control), `reverse_path`, `auth` (TCP
//! MD5 or AO), `bad_checksum`, `socket_filter`, `no_memory`, `other` (the kernel's reason is evidence).
//! They are the running kernel's drop reasons by name; where it gives none, they are concluded from its
//! counters and from the function that dropped the SYN, and the finding says so.
//!
//! **False positives.** A scanner that tries one port again and again: the last remote and the number
//! of remotes tell. Not judged: SYNs freed without a reason at a listener (a retransmitted SYN of a request
//! that is waiting), within a connection (answered with an ACK), and on their way through this host
//! unless netfilter dropped them.

mod cause;
#[cfg(test)]
pub(crate) mod claims;
mod drops;
mod elsewhere;
mod netfilter;
#[cfg(test)]
mod tests;
mod words;

use std::{mem, net::SocketAddr, time::Duration};

use conntracer_common::stats::hook;

use self::{
    cause::why,
    drops::{Drops, NetnsKey, Scan, SpotKey},
};
use super::{
    connect_failure::{Here, Route},
    restart::PATIENCE,
    room::{Case, Cases, Context, Draft, Limits, Open, Room, Saying, Spec},
    syn_drop::{self, thresholds::Thresholds},
};
use crate::{
    count::Grow,
    event::{EarlyDrop as Event, Path},
    finding::Severity,
    table::Bounded,
    time::Ktime,
};

pub(super) static SPEC: Spec = Spec {
    detector: "syn_drop.early_drop",
    kind: syn_drop::KIND,
    causes: &[
        ("no_listener", Severity::Warning),
        ("filtered", Severity::Warning),
        ("reverse_path", Severity::Warning),
        ("auth", Severity::Warning),
        ("bad_checksum", Severity::Warning),
        ("no_memory", Severity::Critical),
        ("socket_filter", Severity::Warning),
        ("other", Severity::Warning),
    ],
    hooks: &[hook::DROP],
    losses: &[],
    section: Thresholds::SECTION,
    explain: include_str!("explain.md"),
};

/// Which of the eBPF side's counts: an entry that was removed for being idle and came again is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct EntryKey {
    netns: u32,
    local: SocketAddr,
    first: Ktime,
    location: u64,
    reason: Option<u32>,
    path: Option<Path>,
    hints: u8,
}

impl EntryKey {
    const fn of(early_drop: &Event) -> Self {
        Self {
            netns: early_drop.socket.netns,
            local: early_drop.socket.local,
            first: early_drop.first,
            location: early_drop.location,
            reason: early_drop.reason,
            path: early_drop.path,
            hints: early_drop.hints,
        }
    }
}

impl Case for Drops {
    type Key = SpotKey;
    type Rules = Thresholds;

    fn draft(&self, key: &SpotKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::spot(&SPEC, key, self, at.cx))
    }

    fn news(&self) -> u64 {
        self.count
    }

    fn has_other_news(&self) -> bool {
        self.found != self.said_found
    }

    fn told(&mut self) {
        self.said_found = self.found;
    }

    fn is_over(&mut self, key: &SpotKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        self.found = words::found(key, self, cx);
        cx.now.since(self.last) >= rules.quiet()
    }
}

impl Case for Scan {
    type Key = NetnsKey;
    type Rules = Thresholds;

    fn draft(&self, key: &NetnsKey, at: &Saying<'_, '_, Self>) -> Option<Draft> {
        Some(words::scan(&SPEC, *key, self, at.cx))
    }

    fn news(&self) -> u64 {
        self.drops.count
    }

    fn is_over(&mut self, _: &NetnsKey, rules: &Thresholds, cx: &Context<'_>) -> bool {
        cx.now.since(self.drops.last) >= rules.quiet()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct EarlyDrop {
    totals: Bounded<EntryKey, u64>,
    spots: Cases<Drops>,
    scans: Cases<Scan>,
    /// To be judged at the next tick, in the order they came.
    touched_spots: Vec<SpotKey>,
    touched_scans: Vec<NetnsKey>,
}

impl EarlyDrop {
    pub(crate) fn new(limits: &Limits, thresholds: Thresholds) -> Self {
        let limit = limits.early_drops;
        Self {
            totals: Bounded::new(limit),
            spots: Cases::new(limit, thresholds.clone()),
            scans: Cases::new(limit, thresholds),
            touched_spots: Vec::new(),
            touched_scans: Vec::new(),
        }
    }

    /// The open finding of SYNs that this host dropped, those of an attempt among them.
    pub(super) fn dropped(&self, attempt: &Route) -> Option<Here> {
        let (key, entry) = self.spots.open().find(|(spot, drops)| {
            spot.local == attempt.to && drops.recent.met(attempt, spot.netns)
        })?;
        Some(Here {
            netns: key.netns,
            finding: entry.id()?,
            cause: key.cause.name(),
        })
    }

    pub(crate) fn early_drop(&mut self, early_drop: &Event, cx: &mut Context<'_>) {
        let Some(why) = why(early_drop, cx.host) else {
            return;
        };
        let cause = why.cause;
        let more = self
            .totals
            .gained(EntryKey::of(early_drop), early_drop.count);
        if more == 0 {
            return;
        }
        // A first record may come late, and tell of SYNs since it was counted first.
        let since = if more == early_drop.count {
            early_drop.first
        } else {
            early_drop.last
        };
        let (netns, local) = (early_drop.socket.netns, early_drop.socket.local);
        let quiet = self.spots.rules.quiet();
        let refused_syns = self.spots.rules.refused_syns;
        let scan_ports = self.spots.rules.scan_ports;
        let new = || Drops::new(*early_drop, since);
        let mut is_new = false;
        if local.port() != 0 {
            let key = SpotKey {
                netns,
                local,
                cause,
            };
            is_new = self.spots.get(&key).is_none();
            let Some(spot) = self.spots.begin(key, cx, new) else {
                return;
            };
            if !is_new && !spot.is_open() && since.since(spot.last) >= quiet {
                **spot = new();
                is_new = true;
            }
            spot.add(more, early_drop, &why);
            if spot.is_open() {
                self.spots.judge(&key, false, cx);
                return;
            }
            if spot.count >= refused_syns {
                push(&mut self.touched_spots, key);
            }
        }
        let key = NetnsKey { netns, cause };
        let new = || Scan {
            drops: new(),
            spots: 0,
            address: (local.port() != 0).then(|| local.ip()),
            has_more: false,
        };
        let Some(scan) = self.scans.begin(key, cx, new) else {
            return;
        };
        if !scan.is_open() && since.since(scan.drops.last) >= quiet {
            **scan = new();
            is_new = local.port() != 0;
        }
        scan.spots.grow(u64::from(is_new));
        if local.port() != 0 {
            let is_first = scan.spots == u64::from(is_new);
            scan.address = match scan.address {
                None if is_first => Some(local.ip()),
                known => known.filter(|address| *address == local.ip()),
            };
        } else {
            scan.has_more = true;
        }
        scan.drops.add(more, early_drop, &why);
        if scan.is_many(scan_ports) {
            push(&mut self.touched_scans, key);
        }
    }
}

impl EarlyDrop {
    /// Opens what has become worth a finding: a scan before the spots that it is not.
    fn raise_worth(&mut self, patience: Duration, cx: &mut Context<'_>) {
        let refused_syns = self.spots.rules.refused_syns;
        let scan_ports = self.spots.rules.scan_ports;
        for key in mem::take(&mut self.touched_scans) {
            if self
                .scans
                .get(&key)
                .is_some_and(|scan| scan.is_many(scan_ports) && scan.drops.count >= refused_syns)
            {
                self.scans.raise(&key, cx);
            }
        }
        for key in mem::take(&mut self.touched_spots) {
            let Some(spot) = self.spots.get(&key).filter(|spot| !spot.is_open()) else {
                continue;
            };
            let is_service = key.before(cx.listeners, spot.since).is_some();
            let has_begun = key.has_begun(cx.listeners, spot.since);
            if is_service && !has_begun && cx.now.since(spot.since) < patience {
                self.touched_spots.push(key);
                continue;
            }
            let of = NetnsKey {
                netns: key.netns,
                cause: key.cause,
            };
            if let Some(scan) = self.scans.get_mut(&of) {
                if scan.is_open()
                    && !is_service
                    && !has_begun
                    && !scan.is_outdone_by(spot, scan_ports)
                {
                    continue;
                }
                // What gets its own finding is no part of a scan, and what was a restart is none of both.
                scan.drops.count = scan.drops.count.saturating_sub(spot.count);
                scan.spots = scan.spots.saturating_sub(1);
            }
            if has_begun {
                self.spots.take(&key);
                continue;
            }
            if let Some(spot) = self.spots.get_mut(&key) {
                spot.found = words::found(&key, spot, cx);
            }
            self.spots.raise(&key, cx);
        }
    }
}

impl Room for EarlyDrop {
    fn cases(&mut self) -> Vec<&mut dyn Open> {
        vec![&mut self.spots, &mut self.scans]
    }

    fn judge(&mut self, cx: &mut Context<'_>) {
        self.raise_worth(PATIENCE, cx);
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        self.raise_worth(Duration::ZERO, cx);
    }

    fn forget_netns(&mut self, netns: u32) {
        self.touched_spots.retain(|key| key.netns != netns);
    }

    fn evicted(&self) -> (&'static str, u64) {
        let evicted = self.totals.evicted().saturating_add(self.spots.evicted());
        (
            "early_drops_evicted",
            evicted.saturating_add(self.scans.evicted()),
        )
    }
}

/// Once: a flood of one spot is one entry. Only the last few are compared, which is what a burst repeats;
/// judging twice does no harm.
fn push<K: PartialEq>(touched: &mut Vec<K>, key: K) {
    if !touched.iter().rev().take(8).any(|known| *known == key) {
        touched.push(key);
    }
}
