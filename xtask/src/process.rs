//! Running other programs: each failure says which command failed, and how.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs `command` with this process's terminal, and fails unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{}: {status}", line(command));
    }
    Ok(())
}

/// Runs `command` with this process's terminal.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| line(command))
}

/// Runs `command` and gives back all it wrote; its exit status is the caller's to judge.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| line(command))
}

/// Runs `command`, which must succeed, and gives back its standard output as text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "{}: {}: {}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {}", line(command)))
}

/// How much less than others of this machine's CPUs a child is to have: of what runs beside each other, the live tests
/// come first, as they are judged by this machine's clock, and the VMs before what is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Niceness {
    Vm = 5,
    Compiler = 10,
}

/// `command` with less of the CPUs.
pub(crate) fn yielding(command: &mut Command, niceness: Niceness) -> &mut Command {
    // SAFETY: setpriority(2) is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::nice(niceness as i32)?;
            Ok(())
        })
    }
}

/// The first file called `program` on `PATH`, or in the system directories that a normal user's
/// `PATH` leaves out.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// `program`, to be run as root: through sudo where this process is not.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("--").arg(program);
    command
}

/// `command` as a person would type it, for messages.
pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}
