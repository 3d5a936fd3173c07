//! Which lines a sink takes.

use super::line::{Line, Occasion};
use crate::{emit::Emits, finding::FindingKind};

/// Start, stop, gaps, findings, and what is asked for.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    pub emits: Emits,
    /// The kinds of findings that it has; all where this is empty.
    pub findings: Vec<FindingKind>,
}

impl Selection {
    pub(super) fn takes(&self, line: &Line) -> bool {
        match line {
            Line::Event(event) => self.emits.prints(&event.body),
            Line::Finding(finding) => {
                self.findings.is_empty() || self.findings.contains(&finding.kind)
            }
            Line::Stats { occasion, .. } => self.emits.stats || *occasion == Occasion::Signal,
            // A clock that was set changes the time of all lines behind it.
            Line::Start { .. }
            | Line::Gap { .. }
            | Line::SinkGap(_)
            | Line::Clock { .. }
            | Line::Now { .. }
            | Line::Stop { .. } => true,
        }
    }
}
