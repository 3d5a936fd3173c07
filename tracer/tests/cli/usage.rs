//! What is said, and with which status, when the command line or the config is wrong.

use std::{fs, io::Read, process::Stdio};

use rstest::rstest;

use crate::{conntracer, run, stderr, stdout, text};

#[rstest]
#[case::flag(&["--no-such-flag"], "--no-such-flag")]
#[case::tip(&["--frmt", "json"], "'--frmt' found; a similar argument exists: '--format'; ")]
#[case::command(&["tarce"], "tarce")]
#[case::duration(&["--duration", "soon"], "5s")]
#[case::hooks(&["--hooks", "magic"], "fentry")]
#[case::emit(&["--emit", "everything"], "everything")]
#[case::port(&["--port", "0"], "--port")]
#[case::address(&["--addr", "10.0.0.0/40"], "0 to 32")]
#[case::netns(&["--netns", "no-such-netns"], "ip netns")]
#[case::cgroup(&["--cgroup", "/web/../db"], "/sys/fs/cgroup")]
#[case::container(&["--container", "a/b"], "docker ps")]
#[case::comm(&["--comm", "a-name-too-long-for-it"], "write a-name-too-long")]
#[case::pid(&["--pid", "0"], "--pid")]
#[case::listener(&["--listener", "10.0.0.1"], "10.1.2.3:443")]
#[case::listener_of_no_port(&["--listener", "*:0"], "1 to 65535")]
#[case::too_many(&["--port", "1,2,3,4,5,6,7,8,9"], "up to 8")]
#[case::config(&["--config", "/no/such/file"], "/no/such/file")]
#[case::config_without_end(&["--config", "/dev/zero"], "larger than 1 MiB")]
#[case::report_without_end(&["report", "/dev/zero"], "neither a recording nor JSON")]
#[case::recording(&["replay", "/no/such/file"], "/no/such/file")]
#[case::no_file(&["replay"], "<FILE>")]
#[case::word(&["explain", "nonsense"], "conntracer explain")]
fn wrong_usage_is_one_sentence_and_status_2(#[case] arguments: &[&str], #[case] names: &str) {
    let output = run(arguments);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("conntracer: "), "{said}");
    assert!(said.contains(names), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(stdout(&output), "");
}

#[test]
fn what_is_quoted_back_is_escaped() {
    let output = run(&["explain", "\u{1b}[31m\nred"]);
    assert!(!stderr(&output).contains('\u{1b}'), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1);
}

#[rstest]
#[case::help(&["--help"], "--fail-on-finding")]
#[case::version(&["--version"], env!("CARGO_PKG_VERSION"))]
#[case::explain(&["explain", "half-open"], "dead_peer")]
#[case::words(&["explain"], "retransmit_storm")]
#[case::bash(&["completions", "bash"], "--netns")]
#[case::zsh(&["completions", "zsh"], "--netns")]
#[case::fish(&["completions", "fish"], "netns")]
#[case::bash_words(&["completions", "bash"], "accept_queue_full")]
#[case::zsh_words(&["completions", "zsh"], "accept_queue_full")]
#[case::fish_words(&["completions", "fish"], "accept_queue_full")]
fn what_needs_no_kernel_works(#[case] arguments: &[&str], #[case] names: &str) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains(names), "{}", stdout(&output));
    assert_eq!(stderr(&output), "");
}

#[test]
fn config_prints_what_it_checks() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("conntracer.toml");
    fs::write(&file, "[detect.half_open]\ntimeouts = 9\n").unwrap();
    let printed = run(&["config", "--config", text(&file)]);
    assert!(
        stdout(&printed).contains("\ntimeouts = 9\n"),
        "{}",
        stdout(&printed)
    );
    fs::write(&file, &printed.stdout).unwrap();
    let checked = run(&["config", "--check", text(&file)]);
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
}

#[test]
fn a_wrong_config_names_file_line_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("conntracer.toml");
    fs::write(&file, "[trace]\nhoks = \"auto\"\n").unwrap();
    for arguments in [
        ["config", "--check", text(&file)],
        ["run", "--config", text(&file)],
    ] {
        let output = run(&arguments);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("conntracer.toml:2: trace.hoks"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// Whoever may not trace at all is told the same before.
#[test]
fn what_cannot_be_traced_leaves_no_recording() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("recording");
    let output = run(&["record", text(&file), "--btf", "/no/such/btf"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(!file.exists());
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = conntracer(&["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert_eq!(said, "");
}
