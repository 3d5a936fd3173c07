//! How conntracer starts and ends: what it refuses and how, and that it leaves nothing behind.
//!
//! How it ends in order is looked at where it is started anyway: by SIGINT all of a test's own end, and the shared ones,
//! by SIGTERM the one of `seed::the_list_of_connections_agrees_with_ss`, and after `--duration` the one of
//! `seed::what_several_processes_hold_is_said_to_be_shared`.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    os::unix::process::CommandExt,
    process::Command,
    time::Duration,
};

use anyhow::ensure;
use conntracer_tests::{
    bpf::{self, Objects},
    family::Family,
    netns::NetNs,
    process::Process,
    socket::tcp,
    tracer::{CANNOT_TRACE, Tracer},
    wait::{self, SOON},
};

use crate::support::{begun, binary, is_own_machine, lacking, skip, trace};

/// `nobody`.
const UNPRIVILEGED: u32 = 65534;

/// Exit status for what the user got wrong.
const USAGE: i32 = 2;

/// Longest life of a process that has something to attach or refuse first.
const CLOSE: Duration = Duration::from_mins(2);

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

/// A network namespace that is made while conntracer runs is watched, and is not kept when nobody else does.
#[test]
fn namespaces_come_and_go_while_it_runs() {
    let Some(binary) = binary() else { return };
    if !is_own_machine() {
        return lacking("every namespace is traced, and this machine's are not the test's own");
    }
    let mut command = binary.command();
    // Every namespace, and nothing of them but one port.
    let port = ITS_OWN_PORT.to_string();
    command.args(["run", "--hooks", binary.hooks(), "--port", &port]);
    let Some(mut tracer) = begun(Tracer::of(&mut command)) else {
        return;
    };
    let fds = format!("/proc/{}/fd", tracer.pid().as_raw_nonzero());
    let before = fs::read_dir(&fds).unwrap().count();
    // Kept until the end: the number of one that is gone is given again.
    let namespaces = [(); 2].map(|()| {
        let netns = NetNs::new().unwrap();
        netns
            .run(|| {
                let nobody = SocketAddr::from(([127, 0, 0, 1], ITS_OWN_PORT));
                // Until the RST is there: a socket that is closed before is no refused one.
                let told = tcp(Family::V4)?.connect(&nobody.into());
                ensure!(told.is_err(), "nobody listens");
                Ok(())
            })
            .unwrap();
        tracer
            .wait_for("a refused connect in it", SOON, |finding| {
                finding.subject.netns() == Some(netns.inode())
            })
            .unwrap();
        netns
    });
    wait::until("no more descriptors than before", SOON, || {
        Ok((fs::read_dir(&fds)?.count() <= before).then_some(()))
    })
    .unwrap();
    let run = tracer.stop().unwrap();
    for netns in namespaces {
        let of_it = run.last_of(|finding| finding.subject.netns() == Some(netns.inode()));
        let [finding] = of_it.as_slice() else {
            panic!("one refused connect: {of_it:#?}");
        };
        assert_eq!((finding.cause.as_str(), finding.count), ("refused", 1));
        let owner = finding
            .owner
            .as_ref()
            .expect("this process called connect()");
        assert_eq!(owner.pid, std::process::id(), "{finding:#?}");
    }
}

/// A port that no other test uses.
const ITS_OWN_PORT: u16 = 4243;

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
    let (status, stderr) = process.wait(CLOSE).unwrap();
    if status.code() == Some(CANNOT_TRACE) {
        skip(&stderr);
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
    let (status, stderr) = process.wait(CLOSE).unwrap();
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert!(stderr.contains(word), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(lines.is_empty(), "{lines:?}");
}
