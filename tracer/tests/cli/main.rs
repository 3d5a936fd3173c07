//! The built binary from outside, without root: usage, exit statuses, replay, and the output contract.
//!
//! Recordings are made by the library's own writer from synthetic records, but for those of live kernels in
//! [`scenarios`].

mod contract;
mod recorded;
mod replay;
mod scenarios;
mod usage;

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// The binary, with an environment that cannot change what it prints.
fn conntracer(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conntracer"));
    command
        .args(arguments)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> Output {
    conntracer(arguments).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
