//! `syn_drop` before a listener decides: nobody listens, or something on the way dropped the SYN.
//!
//! **Rule.** Opens when one address and port lost [`super::SynDrop::refused_syns`] SYNs for one cause
//! without a pause of [`super::SynDrop::quiet_s`], and resolves after such a pause. From
//! [`super::SynDrop::scan_ports`] addresses and ports on whose SYNs no finding tells yet, they are one
//! finding of the namespace: a scan. In the midst of one a port still gets its own finding where somebody
//! listened before, or when it lost more than its share. Judged at each tick, so that a scan is known for
//! one before its first ports become findings. The count is the eBPF side's own total, so that
//! rate-limited records lose nothing.
//!
//! **Causes.** `no_listener`, `filtered` (netfilter, XDP or traffic control), `reverse_path`, `auth` (TCP
//! MD5 or AO), `bad_checksum`, `socket_filter`, `no_memory`, `other` (the kernel's reason is evidence).
//! They are the running kernel's drop reasons by name; where it gives none, they are concluded from its
//! counters and from the function that dropped the SYN, and the finding says so.
//!
//! **False positives.** A scanner that tries one port again and again: the last remote and the number
//! of remotes tell. Not judged: SYNs freed without a reason at a listener (a repeated SYN of a request
//! that is waiting), within a connection (answered with an ACK), and on their way through this host
//! unless netfilter dropped them.

mod cause;
mod words;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use self::cause::{Because, Cause, Why, why};
use super::{Context, Life};
use crate::{
    count::Grow,
    event::{EarlyDrop as Event, Owner, Path, Syn},
    table::{Bounded, listener::ListenerKey},
    time::Ktime,
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

/// Where SYNs were to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct SpotKey {
    netns: u32,
    local: SocketAddr,
    cause: Cause,
}

/// All of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct NetnsKey {
    netns: u32,
    cause: Cause,
}

/// What was dropped, at one spot or at all that have no finding of their own.
#[derive(Clone, Copy, Debug)]
struct Drops {
    life: Option<Life>,
    count: u64,
    since: Ktime,
    last: Ktime,
    /// One bit by each remote address's hash.
    remotes: u64,
    because: Option<Because>,
    /// Filtered by netfilter, not by XDP or traffic control.
    by_netfilter: bool,
    latest: Event,
}

impl Drops {
    const fn new(latest: Event, since: Ktime) -> Self {
        Self {
            life: None,
            count: 0,
            since,
            last: since,
            remotes: 0,
            because: None,
            by_netfilter: false,
            latest,
        }
    }

    fn add(&mut self, more: u64, early_drop: &Event, why: &Why) {
        self.count = self.count.saturating_add(more);
        self.last = self.last.max(early_drop.last);
        self.remotes |= early_drop.remotes;
        self.because = why.because.or(self.because);
        self.by_netfilter = why.by_netfilter;
        let (remote, device) = (self.latest.socket.remote, self.latest.device);
        self.latest = *early_drop;
        if early_drop.socket.remote.port() == 0 {
            self.latest.socket.remote = remote;
        }
        self.latest.device = early_drop.device.or(device);
    }
}

/// The spots of a namespace that have no finding of their own, together.
#[derive(Clone, Copy, Debug)]
struct Scan {
    drops: Drops,
    spots: u64,
    /// The one address they share.
    address: Option<IpAddr>,
}

impl Scan {
    /// Whether a spot of it lost more than its share, because a scanner tries every port alike: as many SYNs as
    /// `scan_ports` others on average.
    const fn is_outdone_by(&self, spot: &Drops, scan_ports: u64) -> bool {
        let others = self.spots.saturating_sub(1);
        let theirs = self.drops.count.saturating_sub(spot.count);
        spot.count.saturating_mul(others) >= scan_ports.saturating_mul(theirs)
    }
}

/// A finding's place.
#[derive(Clone, Copy, Debug)]
enum Open {
    Spot(SpotKey),
    Scan(NetnsKey),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct EarlyDrop {
    totals: Bounded<EntryKey, u64>,
    spots: Bounded<SpotKey, Drops>,
    scans: Bounded<NetnsKey, Scan>,
    /// Who listened where, for when nobody does any more.
    owners: Bounded<ListenerKey, Owner>,
    /// Open findings by id.
    open: BTreeMap<u64, Open>,
    /// To be judged at the next tick, in the order they came.
    touched_spots: Vec<SpotKey>,
    touched_scans: Vec<NetnsKey>,
}

impl EarlyDrop {
    /// Remembers so many addresses and ports, and owners of so many listeners.
    pub(crate) fn new(limit: usize, listeners: usize) -> Self {
        Self {
            totals: Bounded::new(limit),
            spots: Bounded::new(limit),
            scans: Bounded::new(limit),
            owners: Bounded::new(listeners),
            open: BTreeMap::new(),
            touched_spots: Vec::new(),
            touched_scans: Vec::new(),
        }
    }

    pub(crate) const fn evicted(&self) -> u64 {
        self.totals
            .evicted()
            .saturating_add(self.spots.evicted())
            .saturating_add(self.scans.evicted())
            .saturating_add(self.owners.evicted())
    }

    /// A listener spoke: its owner is remembered.
    pub(crate) fn listening(&mut self, syn: &Syn) {
        let Some(owner) = syn.owner else { return };
        let key = ListenerKey::of(&syn.socket);
        match self.owners.touch(&key) {
            Some(known) => *known = owner,
            None => drop(self.owners.insert(key, owner)),
        }
    }

    /// Another namespace has this inode by now: who listened in the one before is nobody there.
    pub(crate) fn forget_netns(&mut self, inode: u32) {
        let gone: Vec<ListenerKey> = self
            .owners
            .iter()
            .map(|(key, _)| *key)
            .filter(|key| key.netns == inode)
            .collect();
        for key in gone {
            self.owners.remove(&key);
        }
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
        let quiet = cx.thresholds.syn_drop.quiet();
        let netns = early_drop.socket.netns;
        let mut is_new = false;
        if early_drop.socket.local.port() != 0 {
            let key = SpotKey {
                netns,
                local: early_drop.socket.local,
                cause,
            };
            is_new = self.spot(key, early_drop, since, cx);
            let Some(spot) = self.spots.get_mut(&key) else {
                return;
            };
            spot.add(more, early_drop, &why);
            if let Some(mut life) = spot.life {
                if life.due(cx.now, spot.count) {
                    let spot = *spot;
                    cx.update(&mut life, self.spot_draft(&key, &spot, cx));
                    if let Some(spot) = self.spots.get_mut(&key) {
                        spot.life = Some(life);
                    }
                }
                return;
            }
            if spot.count >= cx.thresholds.syn_drop.refused_syns {
                push(&mut self.touched_spots, key);
            }
        }
        let key = NetnsKey { netns, cause };
        if self.scans.touch(&key).is_none() {
            let scan = Scan {
                drops: Drops::new(*early_drop, since),
                spots: 0,
                address: Some(early_drop.socket.local.ip()),
            };
            if let Some((key, mut gone)) = self.scans.insert(key, scan)
                && let Some(life) = gone.drops.life.take()
            {
                self.open.remove(&life.id);
                cx.resolve(life, words::scan(key, &gone, cx));
            }
        }
        let Some(scan) = self.scans.get_mut(&key) else {
            return;
        };
        if scan.drops.life.is_none() && since.since(scan.drops.last) >= quiet {
            *scan = Scan {
                drops: Drops::new(*early_drop, since),
                spots: 0,
                address: Some(early_drop.socket.local.ip()),
            };
            is_new = early_drop.socket.local.port() != 0;
        }
        scan.spots.grow(u64::from(is_new));
        scan.address = scan
            .address
            .filter(|address| *address == early_drop.socket.local.ip());
        if early_drop.socket.local.port() == 0 {
            // As many as the eBPF side has room for, and more.
            scan.spots = scan.spots.max(cx.thresholds.syn_drop.scan_ports);
        }
        scan.drops.add(more, early_drop, &why);
        if scan.spots >= cx.thresholds.syn_drop.scan_ports {
            push(&mut self.touched_scans, key);
        }
    }

    /// Makes sure of a spot; true when it is new, or quiet for so long that it begins anew.
    fn spot(
        &mut self,
        key: SpotKey,
        early_drop: &Event,
        since: Ktime,
        cx: &mut Context<'_>,
    ) -> bool {
        let quiet = cx.thresholds.syn_drop.quiet();
        if let Some(spot) = self.spots.touch(&key) {
            if spot.life.is_some() || since.since(spot.last) < quiet {
                return false;
            }
            *spot = Drops::new(*early_drop, since);
            return true;
        }
        if let Some((key, mut gone)) = self.spots.insert(key, Drops::new(*early_drop, since))
            && let Some(life) = gone.life.take()
        {
            self.open.remove(&life.id);
            cx.resolve(life, self.spot_draft(&key, &gone, cx));
        }
        true
    }

    /// Who listened there before. Only where nobody does any more does it matter.
    fn before(&self, key: &SpotKey) -> Option<&Owner> {
        if key.cause != Cause::NoListener {
            return None;
        }
        let unspecified: IpAddr = match key.local {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        [key.local.ip(), unspecified, Ipv6Addr::UNSPECIFIED.into()]
            .into_iter()
            .find_map(|address| {
                self.owners.get(&ListenerKey {
                    netns: key.netns,
                    local: SocketAddr::new(address, key.local.port()),
                })
            })
    }

    fn spot_draft(&self, key: &SpotKey, spot: &Drops, cx: &Context<'_>) -> super::Draft {
        words::spot(key, spot, self.before(key), cx)
    }

    /// Opens what has become worth a finding.
    fn judge(&mut self, cx: &mut Context<'_>) {
        let scan_ports = cx.thresholds.syn_drop.scan_ports;
        for key in std::mem::take(&mut self.touched_scans) {
            let Some(scan) = self.scans.get_mut(&key) else {
                continue;
            };
            if scan.drops.life.is_none()
                && scan.spots >= scan_ports
                && scan.drops.count >= cx.thresholds.syn_drop.refused_syns
            {
                let life = cx.open(words::scan(key, scan, cx));
                scan.drops.life = Some(life);
                self.open.insert(life.id, Open::Scan(key));
            }
        }
        for key in std::mem::take(&mut self.touched_spots) {
            let of = NetnsKey {
                netns: key.netns,
                cause: key.cause,
            };
            let Some(spot) = self.spots.get(&key).copied() else {
                continue;
            };
            if spot.life.is_some() {
                continue;
            }
            let is_service = self.before(&key).is_some();
            if let Some(scan) = self.scans.get_mut(&of) {
                if scan.drops.life.is_some()
                    && !is_service
                    && !scan.is_outdone_by(&spot, scan_ports)
                {
                    continue;
                }
                // What gets its own finding is no part of a scan.
                scan.drops.count = scan.drops.count.saturating_sub(spot.count);
                scan.spots = scan.spots.saturating_sub(1);
            }
            let life = cx.open(self.spot_draft(&key, &spot, cx));
            if let Some(spot) = self.spots.get_mut(&key) {
                spot.life = Some(life);
            }
            self.open.insert(life.id, Open::Spot(key));
        }
    }

    /// Judges what came since the last tick, says what grew since a second or more, and resolves what
    /// is quiet.
    pub(crate) fn tick(&mut self, cx: &mut Context<'_>) {
        self.judge(cx);
        let quiet = cx.thresholds.syn_drop.quiet();
        self.each_open(cx, |drops, life, cx| {
            if cx.now.since(drops.last) >= quiet {
                Verdict::Resolve
            } else if life.due(cx.now, drops.count) {
                Verdict::Update
            } else {
                Verdict::Keep
            }
        });
    }

    /// The last word on what is still open.
    pub(crate) fn finish(&mut self, cx: &mut Context<'_>) {
        self.judge(cx);
        self.each_open(cx, |drops, life, cx| {
            if cx.owes(life, drops.count) {
                Verdict::Update
            } else {
                Verdict::Keep
            }
        });
    }

    fn each_open(
        &mut self,
        cx: &mut Context<'_>,
        judge: impl Fn(&Drops, &Life, &Context<'_>) -> Verdict,
    ) {
        let open: Vec<(u64, Open)> = self.open.iter().map(|(id, open)| (*id, *open)).collect();
        for (id, open) in open {
            let (drops, draft) = match open {
                Open::Spot(key) => {
                    let Some(spot) = self.spots.get(&key).copied() else {
                        continue;
                    };
                    (spot, self.spot_draft(&key, &spot, cx))
                }
                Open::Scan(key) => {
                    let Some(scan) = self.scans.get(&key) else {
                        continue;
                    };
                    (scan.drops, words::scan(key, scan, cx))
                }
            };
            let Some(mut life) = drops.life else { continue };
            let life = match judge(&drops, &life, cx) {
                Verdict::Keep => continue,
                Verdict::Update => {
                    cx.update(&mut life, draft);
                    Some(life)
                }
                Verdict::Resolve => {
                    cx.resolve(life, draft);
                    self.open.remove(&id);
                    None
                }
            };
            match open {
                Open::Spot(key) if life.is_none() => drop(self.spots.remove(&key)),
                Open::Scan(key) if life.is_none() => drop(self.scans.remove(&key)),
                Open::Spot(key) => {
                    if let Some(spot) = self.spots.get_mut(&key) {
                        spot.life = life;
                    }
                }
                Open::Scan(key) => {
                    if let Some(scan) = self.scans.get_mut(&key) {
                        scan.drops.life = life;
                    }
                }
            }
        }
    }
}

enum Verdict {
    Keep,
    Update,
    Resolve,
}

/// Once: a flood of one spot is one entry. Only the last few are compared, which is what a burst repeats;
/// judging twice does no harm.
fn push<K: PartialEq>(touched: &mut Vec<K>, key: K) {
    if !touched.iter().rev().take(8).any(|known| *known == key) {
        touched.push(key);
    }
}
