//! How conntracer starts and ends: what it refuses and how, and that it leaves nothing behind.

use std::{
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::Command,
    time::Duration,
};

use conntracer_tests::{
    bpf::{self, Objects},
    netns::NetNs,
    tracer::{CANNOT_TRACE, Process},
    wait::{self, SOON},
};
use rustix::process::Signal;

use crate::support::{binary, trace};

/// `nobody`.
const UNPRIVILEGED: u32 = 65534;

/// Exit status for what the user got wrong.
const USAGE: i32 = 2;

/// Longest life of a process that has something to attach or refuse first.
const ENDING: Duration = Duration::from_mins(2);

#[test]
fn kill_9_leaves_nothing_in_the_kernel() {
    let Some(binary) = binary() else { return };
    let pins = bpf::pins().unwrap();
    let netns = NetNs::new().unwrap();
    let Some(tracer) = trace(&binary, &netns, &[]) else {
        return;
    };
    let held = Objects::of(tracer.pid()).unwrap();
    assert!(
        !held.programs.is_empty() && !held.maps.is_empty(),
        "it did trace: {held:?}"
    );
    assert!(!Objects::in_kernel().unwrap().is_disjoint(&held));
    tracer.kill().unwrap();
    wait::until("the kernel to free programs and maps", SOON, || {
        Ok(Objects::in_kernel()?.is_disjoint(&held).then_some(()))
    })
    .unwrap();
    assert_eq!(bpf::pins().unwrap(), pins);
}

#[test]
fn sigint_and_sigterm_end_with_totals() {
    let Some(binary) = binary() else { return };
    for signal in [Signal::INT, Signal::TERM] {
        let netns = NetNs::new().unwrap();
        let Some(tracer) = trace(&binary, &netns, &[]) else {
            return;
        };
        let run = tracer.stop_with(signal).unwrap();
        assert_eq!(run.stop.reason, "signal");
        assert_eq!(run.unbalanced(), []);
    }
}

#[test]
fn duration_ends_by_itself() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(tracer) = trace(&binary, &netns, &["--duration", "1s"]) else {
        return;
    };
    let run = tracer.finish().unwrap();
    assert_eq!(run.stop.reason, "duration");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    // Has the next line to write soon, whatever happens meanwhile.
    let mut command = binary.run(&netns);
    command.args(["--format", "json", "--duration", "1s"]);
    let mut process = Process::spawn(&mut command).unwrap();
    let mut first = String::new();
    BufReader::new(process.stdout().unwrap())
        .read_line(&mut first)
        .unwrap();
    let (status, stderr) = process.wait(ENDING).unwrap();
    if status.code() == Some(CANNOT_TRACE) {
        crate::support::skip(&stderr);
        return;
    }
    assert!(status.success(), "{status}: {stderr}");
    assert_eq!(stderr, "");
}

#[test]
fn an_unprivileged_user_is_told_what_is_missing() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let (binary, _directory) = binary.copy_for_everybody().unwrap();
    let mut command = binary.run(&netns);
    command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
    assert_refuses(&mut command, CANNOT_TRACE, "root");
}

#[test]
fn a_kernel_without_btf_is_named() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    assert_refuses(
        binary.run(&netns).args(["--btf", "/dev/null"]),
        CANNOT_TRACE,
        "BTF",
    );
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    let Some(binary) = binary() else { return };
    assert_refuses(
        binary.command().arg("--no-such-flag"),
        USAGE,
        "--no-such-flag",
    );
}

/// Ends with `code`, says one thing naming `word`, and prints no line.
#[track_caller]
fn assert_refuses(command: &mut Command, code: i32, word: &str) {
    let mut process = Process::spawn(command).unwrap();
    let lines: Vec<_> = BufReader::new(process.stdout().unwrap()).lines().collect();
    let (status, stderr) = process.wait(ENDING).unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(word), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(lines.is_empty(), "{lines:?}");
}
