//! What is printed of VMs that have ended.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::trial::Outcome;
use crate::excerpt::excerpt;

/// Prints what the failed VMs said about their failures.
pub(crate) fn print_failures(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        if let Some(reason) = &outcome.failure {
            print_failure(&outcome.row.stage, reason, &outcome.log)?;
        }
    }
    Ok(())
}

/// Prints what a VM said about its failure; its log has it all.
pub(crate) fn print_failure(name: &str, reason: &str, log: &Path) -> Result<()> {
    let text = fs::read_to_string(log).with_context(|| format!("reading {}", log.display()))?;
    println!("\n{name}: {reason}; {}\n{}", log.display(), excerpt(&text));
    Ok(())
}
