//! Alike findings beyond a bound are one: a process that fails to reach fifty thousand peers is one thing to know, and no
//! reader reads the second screen of it.
//!
//! Findings are alike that have kind, cause, namespace, scope and process in common. Of those that are open at one time the
//! first [`MAX_APART`] are told apart. What opens beyond them is folded into one finding, which says how many they are and
//! which was the last, goes on at growing intervals, and ends when the last of them has. Nothing folded is lost: its events
//! are in the count of that one.
//!
//! The stage between the detectors and attribution. Called by the pipeline; judges nothing.

#[cfg(test)]
pub(crate) mod tests;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use crate::{
    cadence::Cadence,
    count::Grow,
    finding::{Evidence, Finding, FindingKind, Status, Subject, Value},
    table::Bounded,
    time::Ktime,
};

/// Told apart at one time: what fits a screen.
pub(crate) const MAX_APART: usize = 16;
/// Sorts of findings of which some are open. 1 MB when full.
const MAX_SORTS: usize = 1_024;
/// Findings folded at one time: those of all tables that detectors have by default. 4 MB when full.
const MAX_FOLDED: usize = 65_536;
/// The finding for the others stays as long as more may come soon.
const QUIET: Duration = Duration::from_secs(10);

/// What alike findings have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sort {
    kind: FindingKind,
    cause: &'static str,
    netns: Option<u32>,
    scope: mem::Discriminant<Subject>,
    pid: u32,
}

impl Sort {
    /// `None` of a cause that no detector has by name.
    fn of(finding: &Finding) -> Option<Self> {
        let Cow::Borrowed(cause) = finding.cause else {
            return None;
        };
        Some(Self {
            kind: finding.kind,
            cause,
            netns: finding.subject.netns(),
            scope: mem::discriminant(&finding.subject),
            pid: finding.owner.as_ref().map_or(0, |owner| owner.pid),
        })
    }
}

/// The findings of one sort.
#[derive(Debug, Default)]
struct Crowd {
    /// Those told apart that are open.
    apart: BTreeSet<u64>,
    others: Option<Others>,
}

/// Those beyond them.
#[derive(Debug)]
struct Others {
    /// Of the finding that tells of them: the first that was folded.
    id: u64,
    /// Told apart, for who wants to see one.
    example: u64,
    /// Folded so far, and how many of them are open.
    folded: u64,
    open: u64,
    events: u64,
    since: Ktime,
    /// The last that was folded, as it was said then.
    latest: Finding,
    has_news: bool,
    cadence: Cadence,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Alike {
    crowds: Bounded<Sort, Crowd>,
    /// Of each that is folded: its sort, and its events as last said.
    folded: Bounded<u64, (Sort, u64)>,
    /// The sort of each that is told apart, by the cause that it had when it opened.
    apart: BTreeMap<u64, Sort>,
}

impl Default for Alike {
    fn default() -> Self {
        Self {
            crowds: Bounded::new(MAX_SORTS),
            folded: Bounded::new(MAX_FOLDED),
            apart: BTreeMap::new(),
        }
    }
}

impl Alike {
    /// Sorts and findings that had to make room.
    pub(crate) const fn evicted(&self) -> u64 {
        self.crowds.evicted().saturating_add(self.folded.evicted())
    }

    /// The finding that tells of another: itself, or that for the others of its sort.
    pub(crate) fn told_by(&self, id: u64) -> u64 {
        let sort = self.folded.get(&id).map(|(sort, _)| sort);
        let crowd = sort.and_then(|sort| self.crowds.get(sort));
        let others = crowd.and_then(|crowd| crowd.others.as_ref());
        others.map_or(id, |others| others.id)
    }

    /// Takes what the detectors said at `now`, and leaves what is to be told.
    pub(crate) fn fold(&mut self, said: Vec<Finding>, now: Ktime) -> Vec<Finding> {
        let mut told = Vec::with_capacity(said.len());
        for finding in said {
            match finding.status {
                Status::Open => self.opened(finding, now, &mut told),
                Status::Update if self.folded.get(&finding.id).is_none() => told.push(finding),
                Status::Update => self.goes_on(finding),
                Status::Resolved => self.ended(finding, &mut told),
            }
        }
        told
    }

    fn opened(&mut self, finding: Finding, now: Ktime, told: &mut Vec<Finding>) {
        let Some(sort) = Sort::of(&finding) else {
            return told.push(finding);
        };
        if self.crowds.touch(&sort).is_none()
            && let Some((_, gone)) = self.crowds.insert(sort, Crowd::default())
        {
            told.extend(gone.others.map(|others| others.line(Status::Resolved, now)));
        }
        let Some(crowd) = self.crowds.get_mut(&sort) else {
            return told.push(finding);
        };
        if crowd.apart.len() < MAX_APART {
            crowd.apart.insert(finding.id);
            self.apart.insert(finding.id, sort);
            return told.push(finding);
        }
        let (id, count) = (finding.id, finding.count);
        if let Some(others) = &mut crowd.others {
            others.folded.grow(1);
            others.open.grow(1);
            others.events.grow(count);
            others.latest = finding;
            others.has_news = true;
        } else {
            let others = Others {
                id,
                example: crowd.apart.first().copied().unwrap_or(id),
                folded: 1,
                open: 1,
                events: count,
                since: finding.since,
                latest: finding,
                has_news: false,
                cadence: Cadence::begin(now),
            };
            told.push(others.line(Status::Open, now));
            crowd.others = Some(others);
        }
        if let Some((gone, (sort, _))) = self.folded.insert(id, (sort, count))
            && gone != id
        {
            self.over(&sort);
        }
    }

    fn goes_on(&mut self, finding: Finding) {
        let Some((sort, before)) = self.folded.get_mut(&finding.id) else {
            return;
        };
        let more = finding.count.saturating_sub(*before);
        *before = finding.count;
        let sort = *sort;
        if let Some(others) = self.others(&sort)
            && more > 0
        {
            others.events.grow(more);
            others.latest = finding;
            others.has_news = true;
        }
    }

    fn ended(&mut self, finding: Finding, told: &mut Vec<Finding>) {
        let id = finding.id;
        if self.folded.get(&id).is_some() {
            self.goes_on(finding);
            if let Some((sort, _)) = self.folded.remove(&id) {
                self.over(&sort);
            }
            return;
        }
        if let Some(sort) = self.apart.remove(&id)
            && let Some(crowd) = self.crowds.get_mut(&sort)
        {
            crowd.apart.remove(&id);
            if crowd.apart.is_empty() && crowd.others.is_none() {
                self.crowds.remove(&sort);
            }
        }
        told.push(finding);
    }

    fn others(&mut self, sort: &Sort) -> Option<&mut Others> {
        self.crowds.get_mut(sort)?.others.as_mut()
    }

    fn over(&mut self, sort: &Sort) {
        if let Some(others) = self.others(sort) {
            others.open = others.open.saturating_sub(1);
            others.has_news = true;
        }
    }

    /// What is to be said by time of those that are folded; or all of it, when somebody asks or it is the end of input.
    pub(crate) fn tick(&mut self, now: Ktime, all: bool) -> Vec<Finding> {
        let mut told = Vec::new();
        let sorts: Vec<Sort> = self
            .crowds
            .iter()
            .filter(|(_, crowd)| crowd.others.is_some())
            .map(|(sort, _)| *sort)
            .collect();
        for sort in sorts {
            let Some(crowd) = self.crowds.get_mut(&sort) else {
                continue;
            };
            let Some(others) = &mut crowd.others else {
                continue;
            };
            if others.open == 0 && now.since(others.latest.at) >= QUIET {
                told.push(others.line(Status::Resolved, now));
                crowd.others = None;
                if crowd.apart.is_empty() {
                    self.crowds.remove(&sort);
                }
            } else if all || others.has_news && others.cadence.is_due(now) {
                told.push(others.line(Status::Update, now));
                others.cadence.said(now);
                others.has_news = false;
                if !all {
                    others.cadence.lengthen();
                }
            }
        }
        told
    }
}

impl Others {
    fn line(&self, status: Status, now: Ktime) -> Finding {
        let Self {
            folded,
            open,
            example,
            latest,
            ..
        } = self;
        let (kind, cause) = (latest.kind.name(), &latest.cause);
        let netns = latest.subject.netns();
        let subject = match (&latest.owner, netns) {
            (Some(owner), Some(netns)) => Subject::Process {
                netns,
                pid: owner.pid,
                comm: owner.comm.clone(),
            },
            (None, Some(netns)) => Subject::Netns { netns },
            (_, None) => Subject::Host,
        };
        let text = |name: &'static str, value: String| Evidence {
            name: name.into(),
            value: Value::Text(value.into()),
        };
        let count = |name: &'static str, value: u64| Evidence {
            name: name.into(),
            value: Value::Count(value),
        };
        let more = if *folded == 1 {
            format!(
                "1 more finding {kind} {cause} like finding {example} is counted here and not told by itself"
            )
        } else {
            format!(
                "{folded} more findings {kind} {cause} like finding {example} are counted here and not told one by one"
            )
        };
        Finding {
            id: self.id,
            incident: self.id,
            status,
            subject,
            sample: None,
            holders: None,
            owners: Vec::new(),
            since: self.since,
            last: latest.last,
            at: now,
            count: self.events,
            summary: format!("{more}; {open} still open"),
            evidence: vec![
                count("findings_folded", *folded),
                count("findings_folded_open", *open),
                count("example_finding", *example),
                text("last_about", about(&latest.subject)),
            ],
            advice: vec![format!("begin with finding {example}: it is one of them").into()],
            ..latest.clone()
        }
    }
}

/// What a finding is about, in a word.
fn about(subject: &Subject) -> String {
    match subject {
        Subject::Listener { local, .. } => local.to_string(),
        Subject::Connection { local, remote, .. } => format!("{local} {remote}"),
        Subject::Remote { remote, .. } => remote.to_string(),
        Subject::Peer { remote, .. } => remote.to_string(),
        Subject::Prefix { prefix, length, .. } => format!("{prefix}/{length}"),
        Subject::Process { pid, .. } => pid.to_string(),
        Subject::Netns { netns } => netns.to_string(),
        Subject::Host => "this host".to_owned(),
    }
}
