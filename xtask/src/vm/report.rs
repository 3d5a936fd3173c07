//! What is printed of VMs that have ended.

use anyhow::Result;

use super::trial::Outcome;
use crate::excerpt::print_failure;

/// Prints what the failed VMs said about their failures.
pub(crate) fn print_failures(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        if let Some(reason) = &outcome.failure {
            print_failure(&outcome.row.stage, reason, &outcome.log)?;
        }
    }
    Ok(())
}
