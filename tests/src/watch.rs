//! What one reader has of a running conntracer: its plan, its lines as they come, and checkpoints.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    line::{Detector, Finding, Line, Start, Totals},
    output::{Before, Lines, Run},
    process::Process,
    witness::{self, Hits},
};

/// Longest wait for the answer to SIGUSR1: the namespaces of all tests are compared, on an emulated CPU.
const ANSWERING: Duration = Duration::from_mins(5);

/// The lines of one reader, and the plan under which they came. A reader of a [`Shared`](crate::shared::Shared)
/// conntracer is given those of one namespace.
#[derive(Debug)]
pub struct Watch {
    pub(crate) start: Arc<Start>,
    pub(crate) lines: Lines,
    pub(crate) asker: Arc<Asker>,
    /// See [`Run`].
    pub(crate) before: Before,
    /// A conntracer that runs for this reader alone, and no longer than it.
    #[expect(dead_code, reason = "held until the reader is dropped, which ends it")]
    pub(crate) own: Option<Process>,
}

impl Watch {
    /// The hook plan, as said at start.
    #[must_use]
    pub fn plan(&self) -> &Start {
        &self.start
    }

    /// How well one detector says it can see.
    pub fn coverage(&self, detector: &str) -> Result<&Detector> {
        self.start
            .plan
            .detectors
            .iter()
            .find(|plan| plan.detector == detector)
            .with_context(|| format!("the plan does not speak of {detector}"))
    }

    /// Whether a hook is attached.
    #[must_use]
    pub fn has_hook(&self, hook: &str) -> bool {
        self.start
            .plan
            .hooks
            .iter()
            .any(|plan| plan.hook == hook && plan.hook_type != "off")
    }

    /// Waits for a finding, among those printed already and those to come.
    pub fn wait_for(
        &mut self,
        what: &str,
        limit: Duration,
        matches: impl Fn(&Finding) -> bool,
    ) -> Result<Finding> {
        self.lines.wait_for(what, limit, |line| match line {
            Line::Finding(finding) if matches(finding) => Some(Finding::clone(finding)),
            _ => None,
        })
    }

    /// Waits for an event of `kind`, among those printed already and those to come.
    pub fn wait_for_event(
        &mut self,
        what: &str,
        limit: Duration,
        kind: &str,
        matches: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.lines.wait_for(what, limit, |line| match line {
            Line::Event(of, event) if of == kind && matches(event) => Some(event.clone()),
            _ => None,
        })
    }

    /// Waits until `count` events of the kinds asked for have been printed.
    pub fn wait_for_events(&mut self, count: usize, limit: Duration) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let mut seen = 0;
        self.lines
            .wait_for(&format!("{count} events"), limit, |line| {
                seen += usize::from(matches!(line, Line::Event(..)));
                (seen >= count).then_some(())
            })
    }

    /// Asks how things stand, and collects everything up to the answer: all that happened before the call is in it, and
    /// the last of every open finding is of now.
    pub fn checkpoint(&mut self) -> Result<Run> {
        let number = self.asker.ask()?;
        let (lines, totals) = self.lines.up_to(number, ANSWERING)?;
        Ok(self.run(lines, totals))
    }

    fn run(&self, lines: Vec<Line>, totals: Totals) -> Run {
        Run {
            start: Arc::clone(&self.start),
            lines,
            totals,
            before: self.before.clone(),
        }
    }
}

/// Sends SIGUSR1 for all readers of one conntracer: never two before an answer, since those would be one.
#[derive(Debug)]
pub(crate) struct Asker {
    pid: Pid,
    state: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    sent: u64,
    answered: u64,
    /// By the second witness, when it was sent last.
    hits: Hits,
    /// Somebody asked while one was on its way, which may have begun before.
    again: bool,
}

impl Asker {
    pub(crate) fn new(pid: Pid) -> Self {
        Self {
            pid,
            state: Mutex::default(),
        }
    }

    /// The number of the first checkpoint that begins from now on.
    pub(crate) fn ask(&self) -> Result<u64> {
        let mut state = self.lock();
        if state.sent > state.answered {
            state.again = true;
            return Ok(state.sent + 1);
        }
        self.send(&mut state)?;
        Ok(state.sent)
    }

    /// Takes in an answer: which it is, and what the second witness says to it.
    pub(crate) fn answered(&self, totals: &mut Totals) -> Result<()> {
        let mut state = self.lock();
        state.answered += 1;
        totals.checkpoint = state.answered;
        totals.ahead = ahead(totals, &state.hits);
        if state.again {
            self.send(&mut state)?;
        }
        Ok(())
    }

    fn send(&self, state: &mut Asked) -> Result<()> {
        state.hits = witness::hits();
        kill_process(self.pid, Signal::USR1).context("sending SIGUSR1 to conntracer")?;
        state.sent += 1;
        state.again = false;
        Ok(())
    }

    /// A test that panicked here had changed nothing yet.
    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the second witness counted beyond what was seen: from `hits` on, and until now.
pub(crate) fn ahead(totals: &Totals, hits: &Hits) -> BTreeMap<&'static str, [i64; 2]> {
    let now = witness::hits();
    hits.iter()
        .filter_map(|(hook, then)| {
            let seen = totals.hooks.get(*hook)?.seen;
            let [then, now] = [then, now.get(hook)?].map(|hits| hits.wrapping_sub(seen));
            Some((*hook, [then.cast_signed(), now.cast_signed()]))
        })
        .collect()
}
