//! `demo`: the three findings on screen, on this host or, where that may not trace, in a VM.

use std::{
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Result;

use crate::{
    build::{self, Profile},
    kernel,
    packages::Installation,
    process,
    vm::{self, Plan, Setup},
    workspace::Workspace,
};

/// The line a demo VM runs: the newest long-term kernel that Debian's stable release builds.
const DEMO_LINE: &str = "6.12";

/// What the demo exits with where it cannot trace, as conntracer does.
const CANNOT_TRACE: i32 = 3;

/// Emulated, the demo's half minute takes several.
const VM_TIMEOUT: Duration = Duration::from_mins(5);

/// Show findings of every kind on throw-away network namespaces
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run in a VM even where this host could trace.
    #[arg(long)]
    vm: bool,
}

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    if arguments.vm {
        eprintln!("running the demo in a VM: asked to by --vm");
        return in_vm(workspace, installation);
    }
    let conntracer = build::conntracer(workspace, installation, Profile::Release)?;
    let demo = build::test_binary(workspace, installation, "conntracer-demo", Profile::Dev)?;
    if !process::is_root() && process::which("sudo").is_none() {
        eprintln!("running the demo in a VM: this user is not root, and there is no sudo");
        return in_vm(workspace, installation);
    }
    let mut variable = std::ffi::OsString::from("CONNTRACER_BIN=");
    variable.push(conntracer);
    // `env` since sudo drops variables otherwise.
    let mut command: Command = process::as_root("env");
    command.arg(variable).arg(demo);
    let status = process::status(&mut command)?;
    match status.code() {
        Some(CANNOT_TRACE) => {
            eprintln!("running the demo in a VM: this host may not trace (its reason is above)");
            in_vm(workspace, installation)
        }
        code => Ok(ExitCode::from(
            code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
        )),
    }
}

fn in_vm(workspace: &Workspace, installation: Installation) -> Result<ExitCode> {
    let plan = Plan {
        setups: vec![Setup::of(kernel::line(DEMO_LINE)?, "auto")],
        jobs: 1,
        timeout: VM_TIMEOUT,
        keep: false,
    };
    vm::demo(workspace, installation, &plan)
}
