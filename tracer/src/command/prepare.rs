//! What every tracing command begins with, and what it comes to.

use crate::{cli::CommonArguments, config::Config, telemetry};

/// What a tracing command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Findings were shown, and that was to be an error.
    pub(super) failed: bool,
}

/// Logging and config: what every tracing command does first.
pub(super) fn prepare(common: &CommonArguments) -> anyhow::Result<Config> {
    telemetry::install(common.verbose);
    Ok(Config::load(common.config.as_deref())?)
}
