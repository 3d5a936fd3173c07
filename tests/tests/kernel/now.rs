//! `now`: what is wrong at this moment, without anything new that goes wrong.

use std::process::Command;

use conntracer_tests::{
    family::Family,
    line::{Finding, Line},
    link::Pair,
    scenario::{accept_queue::AcceptQueueFull, dead_peer::DeadPeer, send_stall::SendStall},
    socket::{tcp_info, transfer},
    tracer::Binary,
    wait::{self, EVENTUALLY},
};
use serde_json::Value;

use crate::support::{binary, skip};

/// What one look came to.
struct Said {
    code: Option<i32>,
    moment: Value,
    findings: Vec<Finding>,
}

/// `None` where nothing can be traced.
fn said(binary: &Binary, mut command: Command) -> Option<Said> {
    let output = command.output().unwrap();
    if output.status.code() == Some(3) {
        skip(&String::from_utf8_lossy(&output.stderr));
        return None;
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines().map(|line| Line::parse(line).unwrap());
    let Some(Line::Event(kind, moment)) = lines.next() else {
        panic!("{}: {text}{:?}", binary.hooks(), output.stderr);
    };
    assert_eq!(kind, "now");
    let findings: Vec<Finding> = lines
        .map(|line| match line {
            Line::Finding(finding) => *finding,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(moment["findings"], findings.len());
    Some(Said {
        code: output.status.code(),
        moment,
        findings,
    })
}

#[test]
fn a_healthy_host_is_well() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let connection = pair.connect(Family::V4).unwrap();
    transfer(&connection.accepted, &connection.connected, 100_000).unwrap();
    let Some(said) = said(&binary, binary.now_within(&[&pair.server, &pair.client])) else {
        return;
    };
    assert_eq!(said.code, Some(0), "{:#?}", said.findings);
    assert!(said.findings.is_empty(), "{:#?}", said.findings);
    // Both ends; the listener is closed by then.
    assert_eq!(said.moment["connections"], 2, "{:#?}", said.moment);
    assert_eq!(said.moment["namespaces"], 2);
    assert_eq!(said.moment["tight"], Value::Array(Vec::new()));
}

/// Nothing comes any more: the queue itself tells.
#[test]
fn a_full_queue_is_named_with_its_acceptor() {
    let Some(binary) = binary() else { return };
    let mut scenario = AcceptQueueFull::new(Family::V4).unwrap();
    scenario.provoke().unwrap();
    let Some(said) = said(&binary, binary.now_within(&[&scenario.netns])) else {
        return;
    };
    assert_eq!(said.code, Some(1), "{:#?}", said.moment);
    let delay = said
        .findings
        .iter()
        .find(|finding| finding.finding == "accept_delay")
        .unwrap_or_else(|| panic!("{:#?}", said.findings));
    let owner = delay.owner.as_ref().map(|owner| owner.pid);
    assert_eq!(owner, Some(std::process::id()), "{delay:#?}");
    let filling = &said.moment["filling"][0];
    assert_eq!(filling["waiting"], filling["most"], "{:#?}", said.moment);
}

#[test]
fn a_peer_that_was_silent_before_is_named() {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(Family::V4).unwrap().for_a_while();
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    let connection = scenario.accepted().unwrap();
    wait::until("three timeouts in a row", EVENTUALLY, || {
        Ok((tcp_info(connection)?.tcpi_retransmits >= 3).then_some(()))
    })
    .unwrap();
    let Some(said) = said(&binary, binary.now_within(&[&scenario.pair.server])) else {
        return;
    };
    assert_eq!(said.code, Some(1), "{:#?}", said.moment);
    let dead = said
        .findings
        .iter()
        .find(|finding| finding.symptom() == "dead_peer");
    assert!(dead.is_some(), "{:#?}", said.findings);
    scenario.quiet().unwrap();
}

/// Both ends of a connection that stands still since before: one incident, the process that does not read first.
#[test]
fn a_connection_that_stands_still_is_named_at_both_ends() {
    let Some(binary) = binary() else { return };
    let scenario = SendStall::new(Family::V4).unwrap();
    scenario.stop_reading().unwrap();
    let ends = [&scenario.pair.server, &scenario.pair.client];
    let Some(said) = said(&binary, binary.now_within(&ends)) else {
        return;
    };
    assert_eq!(said.code, Some(1), "{:#?}", said.moment);
    let kinds: Vec<&str> = said
        .findings
        .iter()
        .map(|finding| finding.finding.as_str())
        .collect();
    assert_eq!(
        kinds,
        ["receive_stall", "send_stall"],
        "{:#?}",
        said.findings
    );
    assert_eq!(said.moment["incidents"], 1);
    let [reader, sender] = said.findings.as_slice() else {
        unreachable!("two kinds");
    };
    assert_eq!(sender.explained_by, Some(reader.id), "{sender:#?}");
    // It has sent nothing since the window shut, which is longer than anybody looked.
    let stalled_s = sender.evidence["stalled_s"].as_f64().unwrap();
    assert!(stalled_s > 1.0, "{sender:#?}");
    scenario.read_again().unwrap();
    scenario.quiet().unwrap();
}
