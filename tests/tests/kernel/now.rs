//! `now`: what is wrong at this moment, without anything new that goes wrong.

use std::process::Command;

use conntracer_tests::{
    family::Family,
    line::{Finding, Line},
    link::Pair,
    netns::NetNs,
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

impl Said {
    /// The findings about a namespace.
    fn of(&self, netns: &NetNs) -> Vec<&Finding> {
        let about = |finding: &&Finding| finding.subject.netns() == Some(netns.inode());
        self.findings.iter().filter(about).collect()
    }
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

/// Nothing new goes wrong, in four namespaces: a queue that is full, a peer that has been silent, and a connection whose
/// both ends stand still since its process does not read.
#[test]
fn what_has_been_wrong_for_long_is_named() {
    let Some(binary) = binary() else { return };
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    full.provoke().unwrap();
    let mut dead = DeadPeer::new(Family::V4).unwrap().for_a_while();
    dead.connect().unwrap();
    dead.vanish().unwrap();
    let stalled = SendStall::new(Family::V4).unwrap();
    stalled.stop_reading().unwrap();
    let silent = dead.accepted().unwrap();
    wait::until("three timeouts in a row", EVENTUALLY, || {
        Ok((tcp_info(silent)?.tcpi_retransmits >= 3).then_some(()))
    })
    .unwrap();
    let (server, client) = (&stalled.pair.server, &stalled.pair.client);
    let namespaces = [&full.netns, &dead.pair.server, server, client];
    let Some(said) = said(&binary, binary.now_within(&namespaces)) else {
        return;
    };
    assert_eq!(said.code, Some(1), "{:#?}", said.moment);

    let found = said.of(&full.netns);
    let delay = found
        .iter()
        .find(|finding| {
            // A SYN that a client sends again meanwhile makes it the other one, which says the same of the queue.
            finding.finding == "accept_delay" || finding.symptom() == "accept_queue_full"
        })
        .unwrap_or_else(|| panic!("{found:#?}"));
    let owner = delay.owner.as_ref().map(|owner| owner.pid);
    assert_eq!(owner, Some(std::process::id()), "{delay:#?}");
    let filling = said.moment["filling"].as_array().unwrap();
    let queue = filling
        .iter()
        .find(|queue| queue["netns"] == full.netns.inode())
        .unwrap_or_else(|| panic!("{filling:#?}"));
    assert_eq!(queue["waiting"], queue["most"]);

    let found = said.of(&dead.pair.server);
    assert!(
        found.iter().any(|finding| finding.symptom() == "dead_peer"),
        "{found:#?}"
    );

    // One incident, and the process that does not read is its cause.
    let (reader, sender) = (said.of(client), said.of(server));
    let ([reader], [sender]) = (reader.as_slice(), sender.as_slice()) else {
        panic!("{reader:#?}{sender:#?}");
    };
    assert_eq!(reader.finding, "receive_stall");
    assert_eq!(sender.finding, "send_stall");
    assert_eq!(sender.explained_by, Some(reader.id), "{sender:#?}");
    // It has sent nothing since the window shut, which is longer than anybody looked.
    let stalled_s = sender.evidence["stalled_s"].as_f64().unwrap();
    assert!(stalled_s > 1.0, "{sender:#?}");
    stalled.read_again().unwrap();
    stalled.quiet().unwrap();
    dead.quiet().unwrap();
}
