//! `replay` and `report`: recordings judged without root.

use std::fs;

use rstest::rstest;
use serde_json::Value;

use crate::{
    recorded::{self, DROPS},
    run, stderr, stdout, text,
};

fn findings(output: &str) -> Vec<Value> {
    output
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["kind"] == "finding")
        .collect()
}

#[test]
fn the_count_is_the_kernels() {
    let recording = recorded::drops();
    let output = run(&["replay", text(recording.path())]);
    let findings = findings(stdout(&output));
    let last = findings.last().unwrap();
    assert_eq!(last["finding"], "syn_drop");
    assert_eq!(last["cause"], "accept_queue_full");
    assert_eq!(last["status"], "resolved");
    assert_eq!(last["count"], DROPS);
    assert_eq!(last["subject"]["local"], "10.0.0.1:80");
    assert!(findings.iter().all(|finding| finding["id"] == last["id"]));
    let stop: Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    assert_eq!(stop["reason"], "end_of_input");
    assert_eq!(stop["findings"]["syn_drop"], 1);
}

#[test]
fn two_replays_are_the_same_byte_for_byte() {
    let recording = recorded::everything();
    let arguments = ["replay", text(recording.path()), "--emit", "all"];
    assert_eq!(run(&arguments).stdout, run(&arguments).stdout);
}

#[test]
fn fail_on_finding_fails_only_on_findings() {
    let (drops, silence) = (recorded::drops(), recorded::silence());
    let status = |path, flags: &[&str]| {
        let arguments = [&["replay", path][..], flags].concat();
        run(&arguments).status.code()
    };
    assert_eq!(status(text(drops.path()), &["--fail-on-finding"]), Some(1));
    assert_eq!(status(text(drops.path()), &[]), Some(0));
    assert_eq!(
        status(text(silence.path()), &["--fail-on-finding"]),
        Some(0)
    );
}

#[rstest]
#[case::nothing(&[], true)]
#[case::port(&["--port", "80"], true)]
#[case::other_port(&["--port", "81"], false)]
#[case::netns(&["--netns", "4026531840"], true)]
#[case::other_netns(&["--netns", "1"], false)]
#[case::address(&["--addr", "10.0.0.0/24"], true)]
#[case::address_of_clients(&["--addr", "10.1.0.0/24"], true)]
#[case::owner(&["--pid", "99,1234"], true)]
#[case::other_owner(&["--pid", "1"], false)]
#[case::other_name(&["--comm", "nginx"], false)]
#[case::any_port(&["--port", "81", "--lport", "79,80"], false)]
#[case::any_local_port(&["--lport", "79,80"], true)]
#[case::listener(&["--listener", "81,10.0.0.1:80"], true)]
#[case::mapped(&["--listener", "[::ffff:10.0.0.1]:80"], true)]
#[case::listener_at_any_port(&["--listener", "*:80"], true)]
#[case::other_listener(&["--listener", "0.0.0.0:80"], false)]
#[case::any_address(&["--addr", "10.1.0.0/24,10.0.0.0/24"], true)]
#[case::unknown_group(&["--cgroup", "/"], false)]
#[case::unknown_container(&["--container", "c0ffee"], false)]
fn filters_decide_what_is_found(#[case] flags: &[&str], #[case] found: bool) {
    let recording = recorded::drops();
    let output = run(&[&["replay", text(recording.path())][..], flags].concat());
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        !findings(stdout(&output)).is_empty(),
        found,
        "{}",
        stdout(&output)
    );
}

#[rstest]
#[case::text("text")]
#[case::json("json")]
fn names_that_processes_chose_cannot_harm(#[case] format: &str) {
    let recording = recorded::everything();
    let output = run(&[
        "replay",
        text(recording.path()),
        "--emit",
        "all",
        "--format",
        format,
    ]);
    let printed = stdout(&output);
    assert!(printed.contains("[2J"), "the name is shown: {printed}");
    let hostile =
        |character: char| (character.is_control() && character != '\n') || character == '\u{202e}';
    assert!(!printed.contains(hostile), "{printed:?}");
}

#[test]
fn text_tells_cause_subject_owner_count_and_advice() {
    let recording = recorded::drops();
    let output = run(&["replay", text(recording.path()), "--format", "text"]);
    let printed = stdout(&output);
    for part in [
        "conntracer ",
        "on web1, Linux 6.12.0 x86_64",
        "not everything is seen here: ",
        "syn_drop         10.0.0.1:80       accept_queue_full",
        "[1234] uid 33",
        "20×",
        "ended",
        "→ ",
        "stopped: end of the recording; 1 syn_drop",
    ] {
        assert!(printed.contains(part), "{part:?} is missing:\n{printed}");
    }
    assert!(!printed.contains('\u{1b}'), "no colour where nobody looks");
}

#[test]
fn output_goes_to_a_file_and_is_appended() {
    let recording = recorded::drops();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("log");
    let arguments = ["replay", text(recording.path()), "--output", text(&file)];
    assert!(run(&arguments).status.success());
    let once = fs::read_to_string(&file).unwrap();
    assert!(run(&arguments).status.success());
    assert_eq!(fs::read_to_string(&file).unwrap(), once.repeat(2));

    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let output = run(&["replay", text(recording.path()), "--output", text(&link)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("symbolic link"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn further_outputs_are_not_for_replays() {
    let recording = recorded::drops();
    let directory = tempfile::tempdir().unwrap();
    let (config, log) = (
        directory.path().join("config"),
        directory.path().join("log"),
    );
    let also = format!("[[output.also]]\nto = \"file:{}\"\n", log.display());
    fs::write(&config, also).unwrap();
    let output = run(&["replay", text(recording.path()), "--config", text(&config)]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!log.exists());
}

#[test]
fn a_recording_is_not_its_own_output() {
    let recording = recorded::drops();
    let link = recording.path().with_file_name("other-name");
    fs::hard_link(recording.path(), &link).unwrap();
    let before = fs::read(recording.path()).unwrap();
    for output in [recording.path(), link.as_path()] {
        let output = run(&["replay", text(recording.path()), "--output", text(output)]);
        assert_eq!(output.status.code(), Some(2));
        assert!(
            stderr(&output).contains("name another file"),
            "{}",
            stderr(&output)
        );
        assert_eq!(fs::read(recording.path()).unwrap(), before);
    }
}

#[test]
fn a_recording_cut_short_still_gives_its_findings() {
    let recording = recorded::drops();
    let bytes = fs::read(recording.path()).unwrap();
    fs::write(recording.path(), &bytes[..bytes.len() - 3]).unwrap();
    let output = run(&["replay", text(recording.path())]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("40 whole ones"),
        "{}",
        stderr(&output)
    );
    let findings = findings(stdout(&output));
    assert_eq!(findings.last().unwrap()["count"], DROPS);
    assert!(stdout(&output).lines().last().unwrap().contains("\"stop\""));

    let output = run(&["report", text(recording.path())]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("40 whole ones"),
        "{}",
        stderr(&output)
    );
    let printed = stdout(&output);
    assert!(printed.contains("1 found         20 events"), "{printed}");
}

#[test]
fn report_tells_the_findings_of_every_run_that_was_appended() {
    let directory = tempfile::tempdir().unwrap();
    let lines = directory.path().join("lines");
    for recording in [recorded::drops(), recorded::everything()] {
        let arguments = ["replay", text(recording.path()), "--output", text(&lines)];
        assert!(run(&arguments).status.success());
    }
    let output = run(&["report", text(&lines)]);
    let printed = stdout(&output);
    for finding in ["syn_drop", "retransmit_storm"] {
        assert!(printed.contains(finding), "{finding}:\n{printed}");
    }
}

#[test]
fn report_reads_a_recording_and_its_output_alike() {
    let recording = recorded::drops();
    let directory = tempfile::tempdir().unwrap();
    let lines = directory.path().join("lines");
    fs::write(&lines, run(&["replay", text(recording.path())]).stdout).unwrap();
    for file in [recording.path(), lines.as_path()] {
        let output = run(&["report", text(file)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let printed = stdout(&output);
        assert!(printed.contains("accept_queue_full"), "{printed}");
        assert!(printed.contains("1 found         20 events"), "{printed}");
    }
    fs::write(&lines, "neither\n").unwrap();
    let output = run(&["report", text(&lines)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("conntracer record FILE"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn report_judges_a_recording_by_the_configuration() {
    let recording = recorded::everything();
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("config");
    let said = |floor: f64| {
        let keys =
            ["connection", "remote", "host"].map(|scope| format!("{scope}_per_s = {floor:?}"));
        fs::write(
            &config,
            format!("[detect.retransmit_storm]\n{}\n", keys.join("\n")),
        )
        .unwrap();
        let file = text(recording.path());
        let output = run(&["report", file, "--config", text(&config)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output).contains("retransmit_storm")
    };
    assert!(said(5.0));
    assert!(!said(1000.0));
}

/// A page of a recording and of its output hold the same figures; a file that is there stays as it is.
#[test]
fn report_writes_one_page_and_never_over_a_file() {
    let recording = recorded::drops();
    let directory = tempfile::tempdir().unwrap();
    let lines = directory.path().join("lines");
    let all = ["replay", text(recording.path()), "--emit", "all"];
    fs::write(&lines, run(&all).stdout).unwrap();
    let pages = [
        ("of-recording", recording.path()),
        ("of-lines", lines.as_path()),
    ]
    .map(|(name, file)| {
        let page = directory.path().join(name);
        let output = run(&["report", text(file), "--html", text(&page)]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert!(output.stdout.is_empty());
        fs::read_to_string(&page).unwrap()
    });
    assert_eq!(pages[0], pages[1]);
    for mark in [
        "id=\"incident-1\"",
        "data-mark=\"bar\"",
        "accept_queue_full",
    ] {
        assert!(pages[0].contains(mark), "{mark}");
    }

    let taken = directory.path().join("lines");
    let before = fs::read(&taken).unwrap();
    let output = run(&["report", text(recording.path()), "--html", text(&taken)]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("name a file that does not exist yet"));
    assert_eq!(fs::read(&taken).unwrap(), before);
}

#[test]
fn report_is_one_object_for_programs() {
    let recording = recorded::drops();
    let output = run(&["report", text(recording.path()), "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let said: Value = serde_json::from_str(stdout(&output)).unwrap();
    let finding = &said["incidents"][0]["findings"][0];
    assert_eq!(finding["cause"], "accept_queue_full");
    assert_eq!(finding["count"], DROPS);
    assert_eq!(said["findings_left_out"], 0);
    assert_eq!(said["lost"], serde_json::json!({}));
}
