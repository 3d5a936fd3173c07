//! `record-data`: the recordings below `tests/data`, made again on this host.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use anyhow::Result;

use crate::{
    build::{self, Profile},
    packages::Installation,
    process,
    workspace::Workspace,
};

/// Record every scenario again as test data, on a host that may be traced
#[derive(clap::Args)]
pub(crate) struct Arguments {}

pub(crate) fn execute(workspace: &Workspace, installation: Installation) -> Result<ExitCode> {
    let conntracer = build::conntracer(workspace, installation, Profile::Release)?;
    let scenarios = build::test_binary(
        workspace,
        installation,
        "conntracer-scenarios",
        Profile::Dev,
    )?;
    let mut variable = OsString::from("CONNTRACER_BIN=");
    variable.push(conntracer);
    // `env` since sudo drops variables otherwise.
    let mut command: Command = process::as_root("env");
    command
        .arg(variable)
        .arg(scenarios)
        .arg(workspace.root().join("tests/data"));
    process::run(&mut command)?;
    Ok(ExitCode::SUCCESS)
}
