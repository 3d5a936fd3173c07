//! Synthetic records and a pipeline to feed them to, for the tests of everything right of `decode`.

mod fixtures;
mod records;

use std::{collections::BTreeMap, env, fs, path::Path, sync::Arc, time::Duration};

use conntracer_common::record::{self, Header, kind};
use zerocopy::{Immutable, IntoBytes};

pub(crate) use self::fixtures::{REASONS, any_record, host, listener, owner, socket, sources};
use crate::{
    detect::{Thresholds, claims},
    finding::{Finding, Status, Value},
    host::Host,
    pipeline::{Output, Pipeline},
};

/// When test time begins: not zero, which means "not seen" in records.
const START_NS: u64 = 1_000_000_000_000;

/// Holds a generated file against what it is to say; with `UPDATE_GENERATED` in the environment, writes it.
#[track_caller]
pub(crate) fn generated(path: &Path, text: &str) {
    if env::var_os("UPDATE_GENERATED").is_some() {
        fs::write(path, text).expect("the source tree can be written");
    }
    let found = fs::read_to_string(path).expect("it is in the source tree");
    assert!(
        found == text,
        "{} is out of date: UPDATE_GENERATED=1 cargo test -p conntracer --lib",
        path.display()
    );
}

fn keep(findings: &mut Vec<Finding>, output: &Output<'_>) {
    if let Output::Finding(finding) = output {
        claims::assert_registered(finding);
        findings.push((*finding).clone());
    }
}

/// A pipeline, what it found, and what it was fed.
pub(crate) struct Run {
    pub(crate) pipeline: Pipeline,
    pub(crate) findings: Vec<Finding>,
    pub(crate) fed: Vec<Vec<u8>>,
    ktime_ns: u64,
}

impl Run {
    pub(crate) fn new() -> Self {
        Self::with(Thresholds::default())
    }

    pub(crate) fn with(thresholds: Thresholds) -> Self {
        Self::on(thresholds, host())
    }

    pub(crate) fn on(thresholds: Thresholds, host: Host) -> Self {
        Self {
            pipeline: Pipeline::new(thresholds, Arc::new(host)),
            findings: Vec::new(),
            fed: Vec::new(),
            ktime_ns: START_NS,
        }
    }

    pub(crate) fn ktime_ns(&self) -> u64 {
        self.ktime_ns
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.fed.push(bytes.to_vec());
        let findings = &mut self.findings;
        self.pipeline
            .feed(bytes, &mut |output| keep(findings, &output));
    }

    pub(crate) fn finish(&mut self) {
        let findings = &mut self.findings;
        self.pipeline.finish(&mut |output| keep(findings, &output));
    }

    fn record<T: IntoBytes + Immutable>(&mut self, record: &T) {
        self.feed(record.as_bytes());
    }

    fn header<T>(&self, kind: u16) -> Header {
        Header {
            ktime_ns: self.ktime_ns,
            kind,
            size: u16::try_from(size_of::<T>()).expect("records are small"),
            cpu: 1,
        }
    }

    pub(crate) fn tick(&mut self) {
        let header = self.header::<record::Tick>(kind::TICK);
        self.record(&record::Tick { header });
    }

    pub(crate) fn checkpoint(&mut self) {
        let header = self.header::<record::Checkpoint>(kind::CHECKPOINT);
        self.record(&record::Checkpoint { header });
    }

    /// Lets time pass, with a tick every 250 ms.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let end = self.ktime_ns + u64::try_from(duration.as_nanos()).expect("a test's duration");
        while self.ktime_ns < end {
            self.ktime_ns = end.min(self.ktime_ns + 250_000_000);
            self.tick();
        }
    }

    /// Lets time pass without a record.
    pub(crate) fn skip(&mut self, duration: Duration) {
        self.ktime_ns += u64::try_from(duration.as_nanos()).expect("a test's duration");
    }

    /// The findings' ids in order of opening, with the last that was said of each.
    pub(crate) fn last_words(&self) -> Vec<&Finding> {
        let mut last: BTreeMap<u64, &Finding> = BTreeMap::new();
        for finding in &self.findings {
            last.insert(finding.id, finding);
        }
        last.into_values().collect()
    }

    /// The one finding there is, as last told.
    pub(crate) fn only(&self) -> &Finding {
        match self.last_words().as_slice() {
            [only] => only,
            all => panic!("expected one finding, got {all:#?}"),
        }
    }

    pub(crate) fn statuses(&self) -> Vec<Status> {
        self.findings.iter().map(|finding| finding.status).collect()
    }

    /// Feeds the same bytes to a new pipeline and compares every word.
    pub(crate) fn assert_replays(&self, thresholds: Thresholds) {
        let mut again = Self::with(thresholds);
        for record in &self.fed {
            again.feed(record);
        }
        again.finish();
        let said = |run: &Self| serde_json::to_string(&run.findings).expect("findings serialise");
        assert_eq!(said(&again), said(self));
    }
}

/// The one finding of a kind, as last told.
pub(crate) fn only_of<'a>(run: &'a Run, kind: &str) -> &'a Finding {
    let found = run.last_words();
    let mut alike = found.iter().filter(|finding| finding.kind.name() == kind);
    match (alike.next(), alike.next()) {
        (Some(only), None) => only,
        _ => panic!("expected one {kind}, got {found:#?}"),
    }
}

/// A number or word of the evidence.
pub(crate) fn evidence<'a>(finding: &'a Finding, name: &str) -> &'a Value {
    finding
        .evidence
        .iter()
        .find(|evidence| evidence.name == name)
        .map_or_else(
            || panic!("no {name} in {finding:#?}"),
            |evidence| &evidence.value,
        )
}
