//! Records in, lines out: the pipeline, what of its output is shown, and the accounts.
//!
//! Shared by the live run ([`crate::run`]) and the replay, so that both say the same of the same
//! records. Opens nothing and waits for nothing.

use std::{collections::BTreeMap, sync::Arc};

use conntracer_common::stats::HookCounters;
use serde::Serialize;

use crate::{
    count::Grow,
    detect::Thresholds,
    emit::Emits,
    event::Body,
    filter::EventFilter,
    finding::{Finding, FindingKind, Status},
    host::Host,
    pipeline::{Output, Pipeline, Tallies},
    sink::{Account, Line, SinkAccount},
    source::Watched,
    time::Ktime,
};

/// See the module.
#[derive(Debug)]
pub struct Watch {
    pipeline: Pipeline,
    shown: Shown,
}

/// What of the pipeline's output is shown, and how often that was.
#[derive(Debug)]
struct Shown {
    emits: Emits,
    findings: BTreeMap<FindingKind, u64>,
}

#[derive(Serialize)]
struct AllTallies {
    #[serde(flatten)]
    pipeline: Tallies,
    sink_events_lost: u64,
    sink_lines_lost: u64,
    polls_failed: u64,
}

impl Watch {
    #[must_use]
    pub fn new(thresholds: Thresholds, host: Arc<Host>, emits: Emits, filter: EventFilter) -> Self {
        Self {
            pipeline: Pipeline::filtered(thresholds, host, filter),
            shown: Shown {
                emits,
                findings: BTreeMap::new(),
            },
        }
    }

    /// Judges one record; false of one that does not match the filter, and is not to be kept.
    pub fn feed(&mut self, record: &[u8], lines: &mut dyn FnMut(Line)) -> bool {
        let shown = &mut self.shown;
        self.pipeline
            .feed(record, &mut |output| shown.take(output, lines))
    }

    /// The end of input: last figures of what is still open.
    pub fn finish(&mut self, lines: &mut dyn FnMut(Line)) {
        let shown = &mut self.shown;
        self.pipeline
            .finish(&mut |output| shown.take(output, lines));
    }

    /// What the next poll is to show.
    pub fn watched(&mut self) -> Watched {
        self.pipeline.watched()
    }

    #[must_use]
    pub const fn half_closed_ns(&self) -> u64 {
        self.pipeline.half_closed_ns()
    }

    /// Time of the newest record.
    #[must_use]
    pub const fn now(&self) -> Ktime {
        self.pipeline.now()
    }

    #[must_use]
    pub const fn emits(&self) -> Emits {
        self.shown.emits
    }

    /// Whether any finding was shown.
    #[must_use]
    pub fn found(&self) -> bool {
        !self.shown.findings.is_empty()
    }

    /// Everything that was counted. What nobody asked for does not grow with the number of namespaces.
    #[must_use]
    pub fn account(
        &self,
        hooks: Vec<(&'static str, HookCounters)>,
        sinks: Vec<SinkAccount>,
        polls_failed: u64,
        asked: bool,
    ) -> Account {
        let sum = |lost: fn(&SinkAccount) -> u64| {
            sinks
                .iter()
                .fold(0, |sum: u64, sink| sum.saturating_add(lost(sink)))
        };
        let tallies = AllTallies {
            pipeline: self.pipeline.tallies(),
            sink_events_lost: sum(|sink| sink.events_lost),
            sink_lines_lost: sum(|sink| sink.lines_lost),
            polls_failed,
        };
        let (listeners, listeners_left_out) = self.pipeline.listeners();
        let mut reconciliation = self.pipeline.reconciliation();
        if !asked {
            reconciliation.bound();
        }
        Account {
            time: self.pipeline.now(),
            listeners,
            listeners_left_out,
            hooks,
            findings: self.shown.findings.clone(),
            tallies: named(&tallies),
            reconciliation,
            // Of one the totals tell.
            sinks: if sinks.len() > 1 { sinks } else { Vec::new() },
        }
    }
}

impl Shown {
    fn take(&mut self, output: Output<'_>, lines: &mut dyn FnMut(Line)) {
        match output {
            Output::Event(event) => {
                if let Body::Clock(clock) = event.body {
                    lines(Line::Clock {
                        realtime_offset_ns: clock.realtime_offset_ns,
                    });
                }
                if self.emits.prints(&event.body) {
                    lines(Line::Event(*event));
                }
            }
            Output::Finding(finding) => {
                self.count(finding);
                lines(Line::Finding(Box::new(finding.clone())));
            }
            Output::Gap { at, hook, lost } => lines(Line::Gap {
                time: at,
                hook,
                lost,
            }),
        }
    }

    fn count(&mut self, finding: &Finding) {
        if finding.status == Status::Open {
            self.findings.entry(finding.kind).or_default().grow(1);
        }
    }
}

/// A flat struct of numbers by field name.
fn named(tallies: &impl Serialize) -> BTreeMap<String, u64> {
    match serde_json::to_value(tallies) {
        Ok(serde_json::Value::Object(fields)) => fields
            .into_iter()
            .filter_map(|(name, count)| Some((name, count.as_u64()?)))
            .collect(),
        // A struct of integers is an object of integers.
        _ => BTreeMap::new(),
    }
}
