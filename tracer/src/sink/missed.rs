//! What one sink could not take, told in its own stream as soon as there is room again: how many lines of each kind, from
//! when to when, and the latest of each finding that was among them.

use std::collections::BTreeMap;

use super::line::{Line, SinkGap};
use crate::{count::Grow, finding::Finding, time::Ktime};

/// Findings that are kept to be said again, by their id. Those that are alike have become one by then, so that it takes as
/// many different troubles to reach this; one is some 3 kB.
const KEPT: usize = 4_096;

/// The collection of it.
#[derive(Debug)]
pub(super) struct Missed {
    since: Ktime,
    until: Ktime,
    kinds: BTreeMap<&'static str, u64>,
    findings: BTreeMap<u64, Box<Finding>>,
}

impl Missed {
    /// Begins with its first line.
    pub(super) fn of(line: Line) -> Self {
        let time = line.time();
        let mut missed = Self {
            since: time,
            until: time,
            kinds: BTreeMap::new(),
            findings: BTreeMap::new(),
        };
        missed.add(line);
        missed
    }

    pub(super) fn add(&mut self, line: Line) {
        self.until = self.until.max(line.time());
        self.kinds.entry(line.kind()).or_default().grow(1);
        if let Line::Finding(finding) = line {
            let has_room = self.findings.len() < KEPT;
            if has_room || self.findings.contains_key(&finding.id) {
                self.findings.insert(finding.id, finding);
            }
        }
    }

    /// The line that tells of it, and those that it lets follow.
    pub(super) fn told(self, sink: &str) -> impl Iterator<Item = Line> {
        let gap = SinkGap {
            sink: sink.to_owned(),
            since: self.since,
            until: self.until,
            kinds: self.kinds,
            said_again: u64::try_from(self.findings.len()).unwrap_or(u64::MAX),
        };
        [Line::SinkGap(Box::new(gap))]
            .into_iter()
            .chain(self.findings.into_values().map(Line::Finding))
    }
}
