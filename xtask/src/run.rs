//! `run`: build, then become conntracer.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::ExitCode};

use anyhow::{Context, Result};

use crate::{
    build::{self, Profile},
    packages::Installation,
    process,
    workspace::Workspace,
};

/// Build conntracer and run it, through sudo when not root
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Arguments for conntracer.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let binary = build::conntracer(workspace, installation, Profile::Release)?;
    // Replaces this process: signals, terminal and exit status are conntracer's own.
    let error = process::as_root(&binary).args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("running {}", binary.display()))
}
