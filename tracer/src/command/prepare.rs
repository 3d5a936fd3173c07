//! What every tracing command begins with, and what it comes to.

use anyhow::Context;
use tokio::runtime::{Builder, Runtime};

use crate::{
    cli::CommonArguments,
    conditions::Conditions,
    config::{Config, Trace},
    kernel, telemetry,
};

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

/// How the kernel is looked at where nothing is streamed and nothing is searched for.
pub(super) fn options(trace: Trace, conditions: Conditions, verbose: bool) -> kernel::Options {
    kernel::Options {
        btf: trace.btf,
        mode: trace.hooks,
        transport: trace.transport,
        filter: conditions.sockets,
        owners: conditions.owners,
        emit: 0,
        max_sockets: trace.max_sockets,
        ring_bytes: trace.ring_bytes,
        idle_ns: None,
        verbose,
    }
}

/// What waits for the kernel, time and signals, on this thread.
pub(super) fn event_loop() -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the event loop")
}
