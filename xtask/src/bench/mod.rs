//! `bench`: what tracing costs: in time on this host ([`host`]), or in instructions in VMs ([`vm`]), which is exact,
//! tracked beside the programs' budgets, and held by the suite.

mod cost;
mod host;
mod rounds;
mod spread;
pub(crate) mod vm;

use std::process::ExitCode;

use anyhow::Result;

use crate::{packages::Installation, workspace::Workspace};

/// Measure what tracing costs: paired runs of a load with and without conntracer
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    paired: host::Paired,
    #[command(flatten)]
    counted: vm::Counted,
}

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    match &arguments.counted.vm {
        Some(kernels) => vm::execute(workspace, installation, kernels, &arguments.counted),
        None => host::execute(workspace, installation, &arguments.paired),
    }
}
