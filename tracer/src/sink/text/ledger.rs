//! What was found, for the table at the end.

use std::collections::BTreeMap;

use super::words::{OwnerText, SubjectText};
use crate::{
    finding::{Finding, Severity, Status},
    time::Ktime,
};

/// Findings that the table has: more is no table that anybody reads. Of the others it has the number.
const MAX_ROWS: usize = 100;

/// One finding, as last said.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: u64,
    pub(super) incident: u64,
    pub(super) explained_by: Option<u64>,
    pub(super) severity: Severity,
    pub(super) kind: &'static str,
    pub(super) cause: String,
    pub(super) count: u64,
    pub(super) subject: String,
    pub(super) owner: Option<String>,
    pub(super) since: Ktime,
    pub(super) is_open: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    rows: BTreeMap<u64, Row>,
    left_out: u64,
}

impl Ledger {
    pub(super) fn said(&mut self, finding: &Finding) {
        let id = finding.id;
        if !self.rows.contains_key(&id) && self.rows.len() >= MAX_ROWS {
            self.left_out = self
                .left_out
                .saturating_add(u64::from(finding.status == Status::Open));
            return;
        }
        self.rows.insert(
            id,
            Row {
                id,
                incident: finding.incident,
                explained_by: finding.explained_by,
                severity: finding.severity,
                kind: finding.kind.name(),
                cause: finding.cause.clone().into_owned(),
                count: finding.count,
                subject: SubjectText(&finding.subject).to_string(),
                owner: finding
                    .owner
                    .as_ref()
                    .map(|owner| OwnerText(owner).to_string()),
                since: finding.since,
                is_open: finding.status != Status::Resolved,
            },
        );
    }

    /// Incident by incident, the oldest first, and in each the cause before what it explains.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.values().collect();
        rows.sort_by_key(|row| (row.incident, row.explained_by.is_some(), row.id));
        rows
    }

    pub(super) const fn left_out(&self) -> u64 {
        self.left_out
    }
}
