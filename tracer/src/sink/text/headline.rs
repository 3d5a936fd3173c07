//! One change of a finding on one line.

use std::fmt;

use jiff::tz::TimeZone;

use super::{
    super::{escape::Escaped, line::Time},
    width::{cut, cut_front},
    words::{Clock, OwnerText, Paint, SubjectText},
};
use crate::finding::{Finding, Severity, Status};

/// Of the longest word of each.
const SEVERITY: usize = 8;
const KIND: usize = 16;
/// Of an id below a hundred; a longer one moves the rest of its line.
const ID: usize = 3;
/// Where it is, of a narrow line and of a wide one.
const PLACE: (usize, usize) = (17, 34);
/// A line that is as wide as this has room for the longest place.
const WIDE: usize = 120;

/// Time, severity, finding, where, cause, count, id, and who, as far as there is room.
pub(super) struct Headline<'a> {
    pub(super) finding: &'a Finding,
    pub(super) time: Time,
    pub(super) zone: &'a TimeZone,
    pub(super) paint: &'a Paint,
    pub(super) columns: usize,
}

impl fmt::Display for Headline<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { finding, paint, .. } = self;
        let colour = match (finding.status, finding.severity) {
            (Status::Resolved, _) => paint.green(),
            (_, Severity::Critical) => paint.red(),
            (_, Severity::Warning) => paint.yellow(),
            (_, Severity::Notice) => paint.dim(),
        };
        let clock = Clock(self.time, self.zone).to_string();
        let severity = match finding.status {
            Status::Resolved => "ended",
            Status::Open | Status::Update => finding.severity.name(),
        };
        let place = if self.columns < WIDE {
            PLACE.0
        } else {
            PLACE.1
        };
        // Of an address that is too long the port tells more than the network.
        let subject = cut_front(&SubjectText(&finding.subject).short(), place);
        let id = format!("#{}", finding.id);
        let before = clock.len() + 1 + SEVERITY + 1 + id.len().max(ID) + 1 + KIND + 1 + place + 1;
        let mut rest = vec![
            Escaped(&finding.cause).to_string(),
            format!("{}×", finding.count),
        ];
        rest.extend(
            finding
                .stage
                .as_deref()
                .map(|stage| Escaped(stage).to_string()),
        );
        rest.extend(incident(finding));
        rest.extend(
            finding
                .owner
                .as_ref()
                .map(|owner| OwnerText(owner).to_string()),
        );
        write!(
            formatter,
            "{clock} {colour}{severity:<SEVERITY$}{} {id:<ID$} {:<KIND$} {subject:<place$} {}",
            paint.off(),
            finding.kind.name(),
            cut(&rest.join("  "), self.columns.saturating_sub(before)),
        )
    }
}

/// What it belongs to, where it does not stand alone.
fn incident(finding: &Finding) -> Option<String> {
    match finding.explained_by {
        Some(cause) => Some(format!("because of #{cause}")),
        None if finding.related.is_empty() => None,
        None => Some(format!("in incident {}", finding.incident)),
    }
}
