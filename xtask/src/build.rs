//! `build`: the eBPF side, then one static binary with it embedded. The other verbs get their
//! programs here too.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::{
    packages::{self, Installation, Missing, Need},
    process,
    toolchain::{BPF_TARGET, BpfToolchain},
    workspace::Workspace,
};

/// Build the eBPF object and the static binary that embeds it
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build the binary with optimisations (the eBPF object always is).
    #[arg(long)]
    release: bool,
}

/// How user-space programs are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

pub(crate) fn execute(
    workspace: &Workspace,
    installation: Installation,
    arguments: &Arguments,
) -> Result<ExitCode> {
    let profile = if arguments.release {
        Profile::Release
    } else {
        Profile::Dev
    };
    let binary = conntracer(workspace, installation, profile)?;
    eprintln!("built {}", binary.display());
    Ok(ExitCode::SUCCESS)
}

/// Builds the eBPF object.
pub(crate) fn object(workspace: &Workspace, installation: Installation) -> Result<PathBuf> {
    let toolchain = BpfToolchain::ensure(workspace, installation)?;
    // A directory of its own: two compilers in one would rebuild each other's artefacts.
    let target = workspace.target().join("bpf");
    process::run(
        toolchain
            .cargo(workspace)
            .args(["build", "--package", "conntracer-ebpf", "--release"])
            .args(toolchain.cargo_arguments())
            .arg("--target-dir")
            .arg(&target)
            .current_dir(workspace.root()),
    )
    .context("building the eBPF object")?;
    Ok(target.join(BPF_TARGET).join("release/conntracer-ebpf"))
}

/// Builds the static binary with the eBPF object embedded.
pub(crate) fn conntracer(
    workspace: &Workspace,
    installation: Installation,
    profile: Profile,
) -> Result<PathBuf> {
    let object = object(workspace, installation)?;
    let mut command = static_cargo(workspace, installation)?;
    command
        .args(["build", "--package", "conntracer", "--bin", "conntracer"])
        .env("CONNTRACER_EBPF_OBJECT", object);
    if profile == Profile::Release {
        command.arg("--release");
    }
    executable(command, "conntracer")
}

/// Builds a binary of the tests' package, statically, so that it runs in a VM without a userland.
pub(crate) fn test_binary(
    workspace: &Workspace,
    installation: Installation,
    name: &str,
    profile: Profile,
) -> Result<PathBuf> {
    let mut command = static_cargo(workspace, installation)?;
    command.args(["build", "--package", "conntracer-tests", "--bin", name]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    executable(command, name)
}

/// Builds a test target of the tests' package, statically.
pub(crate) fn test_target(
    workspace: &Workspace,
    installation: Installation,
    name: &str,
) -> Result<PathBuf> {
    let mut command = static_cargo(workspace, installation)?;
    command.args([
        "test",
        "--package",
        "conntracer-tests",
        "--test",
        name,
        "--no-run",
    ]);
    executable(command, name)
}

/// A `cargo` whose programs need no library of the host. The target is always given: flags then
/// reach neither build scripts nor the artefacts of a plain `cargo test`. What is compiled by it shares its dependencies.
pub(crate) fn static_cargo(workspace: &Workspace, installation: Installation) -> Result<Command> {
    ensure_static_libc(installation)?;
    let mut command = Command::new(workspace.cargo());
    command
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_BUILD_TARGET", host_triple()?)
        // Symbols for a backtrace without the ten times larger debug information, which would have
        // to fit into a VM's memory.
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .current_dir(workspace.root());
    Ok(command)
}

fn ensure_static_libc(installation: Installation) -> Result<()> {
    // The compiler driver prints the bare name back when it finds no such file.
    let found = process::text(Command::new("cc").arg("-print-file-name=libc.a"))
        .context("looking for the C compiler that links Rust programs")?;
    if Path::new(found.trim()).is_absolute() {
        return Ok(());
    }
    if packages::has_apt() {
        return packages::ensure(
            &[Need {
                package: "libc6-dev",
                reason: "the static C library for the static binary",
            }],
            installation,
        );
    }
    Err(packages::missing_error(&[Missing {
        what: "the static C library (libc.a)".to_owned(),
        remedy: "install your distribution's glibc-static or glibc development package".to_owned(),
    }]))
}

/// The triple of the machine this runs on, as rustc names it.
pub(crate) fn host_triple() -> Result<String> {
    let version = process::text(Command::new("rustc").arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host")
}

/// Runs a compiling cargo `command`, and gives the executable called `name` that it made.
fn executable(mut command: Command, name: &str) -> Result<PathBuf> {
    command.arg("--message-format=json-render-diagnostics");
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| process::line(&command))?;
    if !output.status.success() {
        bail!("{}: {}", process::line(&command), output.status);
    }
    let messages = String::from_utf8(output.stdout).context("cargo's messages")?;
    executable_in(&messages, name)
        .with_context(|| format!("{}: no executable called {name}", process::line(&command)))
}

/// The path of the executable of target `name` in cargo's JSON messages.
fn executable_in(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .filter(|message| message["target"]["name"] == name)
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_is_found_among_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"other"},"executable":"/t/other"}"#,
            "\n",
            "not a message\n",
            r#"{"reason":"compiler-artifact","target":{"name":"kernel"},"executable":"/t/kernel-1"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(
            executable_in(messages, "kernel"),
            Some(PathBuf::from("/t/kernel-1"))
        );
        assert_eq!(executable_in(messages, "absent"), None);
    }
}
