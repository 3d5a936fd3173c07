//! What a conntracer printed: waited for line by line, and everything up to some moment as a [`Run`].

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use serde_json::Value;

use crate::{
    line::{Account, Finding, Line, Start, Totals},
    netns::NetNs,
};

/// The lines that one reader is given.
#[derive(Debug)]
pub(crate) struct Lines {
    more: Receiver<Result<Line>>,
    seen: Vec<Line>,
}

impl Lines {
    pub(crate) fn new(more: Receiver<Result<Line>>) -> Self {
        Self {
            more,
            seen: Vec::new(),
        }
    }

    /// Waits for a line in which `find` finds something, among those seen already and those to come.
    pub(crate) fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&Line) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        let mut next = 0;
        loop {
            while let Some(line) = self.seen.get(next) {
                next += 1;
                if let Some(found) = find(line) {
                    return Ok(found);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.more.recv_timeout(left) {
                Ok(line) => self.seen.push(line?),
                Err(RecvTimeoutError::Timeout) => bail!(
                    "waited {} s for {what}; so far: {:#?}",
                    limit.as_secs(),
                    self.said()
                ),
                Err(RecvTimeoutError::Disconnected) => bail!(
                    "conntracer ended while waiting for {what}: {:#?}",
                    self.said()
                ),
            }
        }
    }

    /// Everything but the answers to other readers.
    fn said(&self) -> Vec<&Line> {
        let said = self.seen.iter();
        said.filter(|line| !matches!(line, Line::Checkpoint(_)))
            .collect()
    }

    /// Everything up to the `stats` line that answered checkpoint `number`, that line left out, and its totals.
    pub(crate) fn up_to(&mut self, number: u64, limit: Duration) -> Result<(Vec<Line>, Totals)> {
        let what = format!("the answer to checkpoint {number}");
        let mut lines = 0;
        let totals = self.wait_for(&what, limit, |line| {
            lines += 1;
            match line {
                Line::Checkpoint(totals) if totals.checkpoint >= number => {
                    Some(Totals::clone(totals))
                }
                _ => None,
            }
        })?;
        let said = self.seen[..lines].iter();
        let said = said.filter(|line| !matches!(line, Line::Checkpoint(_)));
        Ok((said.cloned().collect(), totals))
    }

    /// Everything, of a conntracer that has ended; the last line is `stop`.
    pub(crate) fn into_whole(mut self) -> Result<(Vec<Line>, Totals)> {
        for line in self.more.try_iter() {
            self.seen.push(line?);
        }
        let Some(Line::Stop(totals)) = self.seen.pop() else {
            bail!("the last line is not `stop`");
        };
        let said = self.seen.into_iter();
        let said = said.filter(|line| !matches!(line, Line::Checkpoint(_)));
        Ok((said.collect(), totals))
    }
}

/// Everything that was printed for one reader up to some moment: from the start to the stop of a conntracer of its own,
/// or of a namespace up to a checkpoint.
#[derive(Clone)]
pub struct Run {
    pub start: Arc<Start>,
    pub lines: Vec<Line>,
    /// The accounts are those of all namespaces and of the whole time; see [`Run::lost`].
    pub totals: Totals,
    pub(crate) before: Before,
}

impl fmt::Debug for Run {
    /// A line of it a line: what failed is read from a terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Start { host, plan, .. } = &*self.start;
        writeln!(
            f,
            "Linux {} ({}, {}):",
            host.kernel, plan.mode, plan.transport
        )?;
        for line in &self.lines {
            writeln!(f, "{line:?}")?;
        }
        write!(f, "{:?}; before: {:?}", self.totals, self.before)
    }
}

/// What was before the first line that a reader is given.
#[derive(Clone, Debug, Default)]
pub(crate) struct Before {
    /// Events lost, hook by hook.
    pub(crate) lost: BTreeMap<String, u64>,
    /// How far the second witness was ahead; see [`Totals::ahead`].
    pub(crate) ahead: BTreeMap<&'static str, i64>,
}

impl Run {
    /// The findings in the order printed, each status of each.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.lines.iter().filter_map(|line| match line {
            Line::Finding(finding) => Some(&**finding),
            _ => None,
        })
    }

    /// The events that `--emit` brought, in the order printed: kind and fields.
    pub fn events(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.lines.iter().filter_map(|line| match line {
            Line::Event(kind, fields) => Some((kind.as_str(), fields)),
            _ => None,
        })
    }

    /// The last that was said of every finding that `matches`.
    #[must_use]
    pub fn last_of(&self, matches: impl Fn(&Finding) -> bool) -> Vec<&Finding> {
        let mut last: Vec<&Finding> = Vec::new();
        for finding in self.findings().filter(|finding| matches(finding)) {
            match last.iter_mut().find(|earlier| earlier.id == finding.id) {
                Some(earlier) => *earlier = finding,
                None => last.push(finding),
            }
        }
        last
    }

    /// Sum of the final counts of the findings of `kind` with one of `causes`.
    #[must_use]
    pub fn total(&self, kind: &str, causes: &[&str]) -> u64 {
        self.last_of(|finding| finding.finding == kind && causes.contains(&finding.cause.as_str()))
            .iter()
            .map(|finding| finding.count)
            .sum()
    }

    /// Events of `hook` that were lost since the first of the lines; what the kernel skipped has no namespace, so it may
    /// be another's.
    #[must_use]
    pub fn lost(&self, hook: &str) -> u64 {
        let lost = self
            .totals
            .hooks
            .get(hook)
            .map_or(0, |account| account.lost);
        lost - self.before.lost.get(hook).unwrap_or(&0).min(&lost)
    }

    /// The same, with those that the kernel skipped and did not count: a second witness did.
    #[must_use]
    pub fn missed(&self, hook: &str) -> u64 {
        self.lost(hook) + self.unseen(hook)
    }

    /// Events that the kernel skipped and did not count.
    #[must_use]
    pub fn unseen(&self, hook: &str) -> u64 {
        let mut hooks = self.start.plan.hooks.iter();
        let is_witnessed = hooks.any(|plan| plan.hook == hook && plan.hook_type == "tracepoint");
        let ahead = [
            self.before.ahead.get(hook).copied(),
            self.totals.ahead.get(hook).map(|[_, now]| *now),
        ];
        match ahead {
            [Some(before), Some(now)] if is_witnessed => {
                u64::try_from(now - before).unwrap_or_default()
            }
            _ => 0,
        }
    }

    /// What was said of one of several namespaces.
    #[must_use]
    pub fn within(&self, netns: &NetNs) -> Self {
        let is_of = |line: &&Line| match line {
            Line::Finding(finding) => finding.subject.netns() == Some(netns.inode()),
            Line::Event(_, event) => event["netns"] == netns.inode(),
            _ => true,
        };
        Self {
            lines: self.lines.iter().filter(is_of).cloned().collect(),
            ..self.clone()
        }
    }

    /// Whether conntracer has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.totals.checkpoint == 0
    }

    /// Hooks whose events are not all accounted for.
    #[must_use]
    pub fn unbalanced(&self) -> Vec<(&str, Account)> {
        self.totals.unbalanced()
    }
}
