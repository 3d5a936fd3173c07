//! One thread's work between ring and sinks: a record is decoded, held against the filter, folded into the tables,
//! judged by the detectors, and what they find is told whose it is and handed on.
//!
//! Reads no clock, opens no file, and treats a live record and a recorded one alike. Called by the
//! run loop and by `replay`.

use std::{collections::BTreeMap, sync::Arc};

use conntracer_common::stats::HOOKS;
use serde::Serialize;

use crate::{
    alike::Alike,
    attribute::Attribution,
    count::Grow,
    decode::decode,
    detect::{self, Context, Detectors, Missed, Thresholds},
    event::{Body, Event, Side},
    filter::{EventFilter, LeftOut},
    finding::Finding,
    host::Host,
    incident::Incidents,
    reconcile::{Reconciler, Reconciliation},
    source::Watched,
    table::{
        acceptor::Acceptors,
        connection::Connections,
        dropped::DroppedHere,
        listener::{Listeners, Summary},
        netns_facts::NetnsTroubles,
        seed::Seeds,
    },
    time::Ktime,
};

/// What the pipeline hands on.
#[derive(Clone, Copy, Debug)]
pub enum Output<'a> {
    /// Every decoded record, before what it leads to.
    Event(&'a Event),
    Finding(&'a Finding),
    /// Records that were lost before they were decoded.
    Gap {
        at: Ktime,
        hook: &'static str,
        lost: u64,
    },
}

/// What userspace did with its records, and what its bounds cost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tallies {
    /// Records fed, and those that were none.
    pub records: u64,
    pub decode_errors: u64,
    /// Findings opened.
    pub findings: u64,
    /// Records lost before decode, as `gap` lines say.
    pub lost: u64,
    /// Entries that had to make room in a full table, by its name.
    #[serde(flatten)]
    pub evicted: BTreeMap<&'static str, u64>,
    pub connections_evicted: u64,
    pub names_evicted: u64,
    pub holders_evicted: u64,
    pub incidents_evicted: u64,
    pub alike_evicted: u64,
    /// Connections that should be watched and are not, at the last poll.
    pub unwatched: u64,
    /// Namespaces not compared with the kernel's counters, those forgotten after they were, and counts
    /// of namespaces that the eBPF side had no room for.
    pub netns_uncompared: u64,
    pub netns_evicted: u64,
    pub netns_counts_untracked: u64,
    #[serde(flatten)]
    pub seeds: Seeds,
    #[serde(flatten)]
    pub left_out: LeftOut,
}

/// See the module.
#[derive(Debug)]
pub struct Pipeline {
    host: Arc<Host>,
    filter: EventFilter,
    connections: Connections,
    listeners: Listeners,
    acceptors: Acceptors,
    netns_facts: NetnsTroubles,
    dropped: DroppedHere,
    reconciler: Reconciler,
    detectors: Detectors,
    half_closed_ns: u64,
    alike: Alike,
    attribution: Attribution,
    incidents: Incidents,
    now: Ktime,
    last_id: u64,
    lost: [u64; HOOKS.len()],
    missed: Missed,
    /// Whether the kernel tells of retransmissions that failed, as the last record of one says.
    failures_traced: Option<bool>,
    records: u64,
    decode_errors: u64,
    seeds: Seeds,
}

impl Pipeline {
    /// An empty pipeline that judges everything by `thresholds`, and names things as `host` does.
    #[must_use]
    pub fn new(thresholds: Thresholds, host: Arc<Host>) -> Self {
        Self::filtered(thresholds, host, EventFilter::all())
    }

    /// The same of what passes `filter`.
    #[must_use]
    pub fn filtered(thresholds: Thresholds, host: Arc<Host>, filter: EventFilter) -> Self {
        let limits = &thresholds.limits;
        Self {
            connections: Connections::new(limits.connections),
            listeners: Listeners::new(limits.listeners),
            acceptors: Acceptors::default(),
            netns_facts: NetnsTroubles::default(),
            dropped: DroppedHere::default(),
            reconciler: Reconciler::new(),
            half_closed_ns: thresholds.half_open.half_closed_ns(),
            detectors: Detectors::new(thresholds),
            alike: Alike::default(),
            attribution: Attribution::default(),
            incidents: Incidents::default(),
            host,
            filter,
            now: Ktime(0),
            last_id: 0,
            lost: [0; HOOKS.len()],
            missed: Missed::default(),
            failures_traced: None,
            records: 0,
            decode_errors: 0,
            seeds: Seeds::default(),
        }
    }

    /// Takes one record through to its findings; false of one that does not match the filter, which is neither
    /// judged nor to be kept. Bytes that are no record are counted, and kept.
    pub fn feed(&mut self, record: &[u8], out: &mut dyn FnMut(Output<'_>)) -> bool {
        match decode(record) {
            Ok(event) if self.filter.passes(&event) => self.event(&event, out),
            Ok(_) => return false,
            Err(_) => self.decode_errors.grow(1),
        }
        self.records.grow(1);
        true
    }

    fn event(&mut self, event: &Event, out: &mut dyn FnMut(Output<'_>)) {
        // Never backwards: rings of two CPUs may be a little out of order.
        self.now = self.now.max(event.time);
        self.account(&event.body, out);
        out(Output::Event(event));
        let incidents = &mut self.incidents;
        self.attribution.learn(event, self.now, &mut |finding| {
            incidents.pass(finding, &mut |finding| out(Output::Finding(finding)));
        });
        self.judge(Some(event), out);
        self.connections.forget_closed(&event.body);
        if let Body::Netns(netns) = &event.body
            && netns.gone
        {
            self.forget_netns(netns.id.inode);
        }
    }

    /// What is known by a namespace's inode is nobody's any more, or another's.
    fn forget_netns(&mut self, inode: u32) {
        self.attribution.forget_netns(inode);
        self.listeners.forget_netns(inode);
        self.netns_facts.forget(inode);
    }

    /// What a record tells of others: what was lost, what the kernel counts, what was there before.
    fn account(&mut self, body: &Body, out: &mut dyn FnMut(Output<'_>)) {
        match body {
            Body::Loss(loss) => {
                if let Some(lost) = self.lost.get_mut(loss.hook) {
                    lost.grow(loss.lost);
                }
                self.missed.told(loss, self.now);
                if loss.lost > 0 {
                    out(Output::Gap {
                        at: self.now,
                        hook: loss.hook_name(),
                        lost: loss.lost,
                    });
                }
            }
            Body::Netns(netns) => {
                let inherits = self.reconciler.netns(netns, self.now);
                if inherits {
                    self.forget_netns(netns.id.inode);
                }
            }
            Body::Retransmit(retransmit) => {
                self.failures_traced = Some(retransmit.failures_traced);
            }
            Body::Acceptor(acceptor) => self.acceptors.apply(acceptor, self.now),
            Body::NetnsFacts(facts) => self.netns_facts.apply(facts, self.now),
            Body::Dropped(dropped) => self.dropped.apply(dropped),
            Body::Seed(seed) => self.seeds.found(seed),
            Body::Seeded(seeded) => self.seeds.over(seeded),
            _ => {}
        }
    }

    /// Folds an event into the tables, and has the detectors judge it; without one they give the last figures of what
    /// is open. What they say goes out by way of those that are alike, of attribution, and of its incident.
    fn judge(&mut self, event: Option<&Event>, out: &mut dyn FnMut(Output<'_>)) {
        let change = event.and_then(|event| self.connections.apply(event));
        if let Some(change) = &change {
            self.dropped.meet(change.connection);
        }
        let applied = event.and_then(|event| self.listeners.event(&event.body, self.now));
        let (mut meetings, mut said) = (Vec::new(), Vec::new());
        let mut cx = Context {
            now: self.now,
            host: &self.host,
            listeners: &self.listeners,
            acceptors: &self.acceptors,
            netns_facts: &self.netns_facts,
            dropped: &self.dropped,
            lost: &self.lost,
            missed: &self.missed,
            failures_traced: self.failures_traced,
            reconciler: &self.reconciler,
            last_id: &mut self.last_id,
            met: event
                .and_then(|event| event.body.about().socket)
                .and_then(Side::of),
            meetings: &mut meetings,
            said: &mut said,
        };
        match event {
            Some(event) => {
                self.detectors
                    .event(event, change.as_ref(), applied.as_ref(), &mut cx);
            }
            None => self.detectors.finish(&mut cx),
        }
        let (now, body) = (self.now, event.map(|event| &event.body));
        let mut told = self.alike.fold(said, now);
        match body {
            Some(Body::Tick) => told.extend(self.alike.tick(now, false)),
            Some(Body::Checkpoint) | None => told.extend(self.alike.tick(now, true)),
            Some(_) => {}
        }
        let incidents = &mut self.incidents;
        for (id, met) in &meetings {
            incidents.met(self.alike.told_by(*id), met);
        }
        let mut named = Vec::with_capacity(told.len());
        for finding in told {
            self.attribution
                .pass(finding, &mut |finding| named.push(finding));
        }
        incidents.pass_all(named, &mut |finding| out(Output::Finding(finding)));
    }

    /// The end of input: the last figures of every finding that is still open.
    pub fn finish(&mut self, out: &mut dyn FnMut(Output<'_>)) {
        self.judge(None, out);
    }

    /// What the next poll is to show: silent and stalled connections, whose recovery no hook tells, and
    /// listeners with an open finding.
    pub fn watched(&mut self) -> Watched {
        self.detectors.watched(self.now)
    }

    /// Age from which the next poll is to list half-closed sockets.
    #[must_use]
    pub const fn half_closed_ns(&self) -> u64 {
        self.half_closed_ns
    }

    /// Time of the newest record.
    #[must_use]
    pub const fn now(&self) -> Ktime {
        self.now
    }

    #[must_use]
    pub const fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// The busiest listeners in numbers, and how many more there are.
    #[must_use]
    pub fn listeners(&self) -> (Vec<Summary>, u64) {
        let (mut summaries, left_out) = detect::summaries(&self.listeners, &self.host, self.now);
        for summary in &mut summaries {
            if let Some(owner) = &mut summary.owner {
                self.attribution.name(owner, summary.netns);
            }
        }
        (summaries, left_out)
    }

    #[must_use]
    pub fn tallies(&self) -> Tallies {
        let (netns_uncompared, netns_counts_untracked) = self.reconciler.unseen();
        let mut evicted = self.detectors.evicted();
        let listeners = evicted.entry("listeners_evicted").or_insert(0);
        listeners.grow(self.listeners.evicted());
        listeners.grow(self.acceptors.evicted());
        evicted.insert("drops_evicted", self.dropped.evicted());
        Tallies {
            records: self.records,
            decode_errors: self.decode_errors,
            findings: self.last_id,
            lost: self
                .lost
                .iter()
                .fold(0, |sum, lost| sum.saturating_add(*lost)),
            connections_evicted: self.connections.evicted(),
            evicted,
            names_evicted: self.attribution.names_evicted(),
            holders_evicted: self.attribution.holders_evicted(),
            incidents_evicted: self.incidents.evicted(),
            alike_evicted: self.alike.evicted(),
            unwatched: self.detectors.unwatched(),
            netns_uncompared,
            netns_evicted: self
                .reconciler
                .evicted()
                .saturating_add(self.netns_facts.evicted()),
            netns_counts_untracked,
            seeds: self.seeds,
            left_out: self.filter.left_out(),
        }
    }

    /// How the kernel's own counters compare with what was counted.
    #[must_use]
    pub fn reconciliation(&self) -> Reconciliation {
        self.reconciler.report(&self.host.plan, &self.lost)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use crate::{
        detect::Thresholds,
        finding::Status,
        pipeline::Output,
        testing::{Run, any_record},
    };

    proptest! {
        // Each case is a hundred records, twice through everything.
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Law 7: whatever a ring or a file holds, no panic, and the same again on replay.
        #[test]
        fn any_records_are_taken_through_to_the_end(
            records in prop::collection::vec(any_record(), 0..60),
        ) {
            crate::detect::claims::hears_random_records();
            let mut run = Run::new();
            for record in &records {
                // Twice: the second time every table knows the socket.
                run.feed(record);
                run.feed(record);
            }
            run.tick();
            let last = run.last_words().into_iter();
            let open = last.filter(|finding| finding.status != Status::Resolved);
            let open: BTreeSet<u64> = open.map(|finding| finding.id).collect();
            let before = run.findings.len();
            run.checkpoint();
            let told = run.findings[before..].iter();
            prop_assert_eq!(told.clone().count(), open.len(), "each open finding once");
            prop_assert_eq!(told.map(|finding| finding.id).collect::<BTreeSet<_>>(), open);
            run.finish();
            prop_assert_eq!(run.pipeline.tallies().records, 2 * records.len() as u64 + 2);
            run.assert_replays(Thresholds::default());
        }
    }

    #[test]
    fn a_loss_is_a_gap_and_bytes_that_are_no_record_are_counted() {
        let mut run = Run::new();
        run.feed(b"no record");
        let mut source = Run::new();
        source.loss(conntracer_common::stats::hook::RETRANSMIT, 7);
        let mut gaps = Vec::new();
        run.pipeline.feed(&source.fed[0], &mut |output| {
            if let Output::Gap { hook, lost, .. } = output {
                gaps.push((hook, lost));
            }
        });
        assert_eq!(gaps, [("retransmit", 7)]);
        assert_eq!(run.pipeline.tallies().decode_errors, 1);
        assert_eq!(run.pipeline.tallies().lost, 7);
    }
}
