//! Every line of JSON output against the published schema.

use std::collections::BTreeSet;

use conntracer::{
    finding::{Container, Names},
    sink::{
        Account, Line, Occasion, SinkAccount,
        json::Json,
        text::{Look, Text},
    },
    table::listener::Summary,
    view::doctor,
};
use conntracer_tests::schema::Schema;
use serde_json::Value;

use crate::{recorded, run, stderr, stdout, text};

fn lines(arguments: &[&str]) -> Vec<Value> {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn every_line_keeps_the_contract() {
    let schema = Schema::strict().unwrap();
    let recording = recorded::everything();
    let lines = lines(&["replay", text(recording.path()), "--emit", "all"]);
    for line in &lines {
        schema.accepts(line).unwrap();
    }
    assert!(
        lines.iter().any(|line| line["owners"]
            .as_array()
            .is_some_and(|owners| owners.len() == 8)
            && line["holders"] == 12),
        "a shared connection"
    );
    let kinds: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line["kind"].as_str())
        .collect();
    let expected = [
        "accept",
        "connect",
        "connection",
        "drop",
        "failure",
        "finding",
        "gap",
        "probe",
        "early_drop",
        "reset",
        "retransmit",
        "seed",
        "start",
        "state",
        "stop",
        "syn",
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
}

#[test]
fn the_schema_refuses_what_is_not_in_the_contract() {
    let schema = Schema::strict().unwrap();
    let published = Schema::published().unwrap();
    let recording = recorded::drops();
    for line in lines(&["replay", text(recording.path())]) {
        let mut extra = line.clone();
        extra["extra"] = Value::from(1);
        assert!(schema.accepts(&extra).is_err(), "{extra}");
        // Readers of today meet a later conntracer.
        published.accepts(&extra).unwrap();
        let mut short = line.clone();
        short.as_object_mut().unwrap().remove("time");
        assert!(schema.accepts(&short).is_err(), "{short}");
        assert!(published.accepts(&short).is_err(), "{short}");
    }
}

/// `doctor` needs a kernel: this host is made by hand.
#[test]
fn doctor_keeps_the_contract() {
    let host = recorded::host();
    let said = serde_json::to_value(doctor::Json::new(&host)).unwrap();
    Schema::strict().unwrap().accepts(&said).unwrap();
}

#[test]
fn default_output_is_start_findings_gaps_and_stop() {
    let recording = recorded::everything();
    let lines = lines(&["replay", text(recording.path())]);
    assert_eq!(lines.first().unwrap()["kind"], "start");
    assert_eq!(lines.last().unwrap()["kind"], "stop");
    assert!(
        lines[1..lines.len() - 1]
            .iter()
            .all(|line| line["kind"] == "finding" || line["kind"] == "gap")
    );
}

#[test]
fn times_are_the_recorded_hosts() {
    let recording = recorded::silence();
    let lines = lines(&["replay", text(recording.path())]);
    assert_eq!(lines[0]["time"], "2023-11-14T22:13:21.000000000Z");
    assert_eq!(lines[1]["time"], "2023-11-14T22:13:22.000000000Z");
}

/// A replay has no `stats` lines: this one is made by hand.
#[test]
fn stats_keep_the_contract() {
    let owner = conntracer::finding::Owner {
        pid: 1,
        comm: "server".to_owned(),
        uid: 33,
        cgroup_id: 7,
        source: "listener".into(),
        started_ms: 5,
        names: Names {
            container: Some(Container {
                runtime: "docker".into(),
                id: "0123abcd".to_owned(),
            }),
            unit: Some("docker-0123abcd.scope".to_owned()),
            ..Names::default()
        },
    };
    let busy = Summary {
        local: "[::]:80".parse().unwrap(),
        takes: Some("IPv6 and IPv4"),
        netns: 4026,
        owner: Some(owner),
        members: 4,
        accepts_per_s: Some(12.5),
        since_last_accept_s: Some(0.25),
        ack_backlog: 3,
        peak_ack_backlog: 17,
        max_ack_backlog: 16,
        syn_arrivals: 6,
        syn_added: 3,
        syn_cookies_sent: 2,
        syn_drops: 1,
    };
    let stalled = Summary {
        local: "10.0.0.1:443".parse().unwrap(),
        takes: None,
        accepts_per_s: Some(0.0),
        since_last_accept_s: Some(12.4),
        ..busy.clone()
    };
    let unknown = Summary {
        owner: None,
        accepts_per_s: None,
        since_last_accept_s: None,
        ..busy.clone()
    };
    let account = Account {
        listeners: vec![busy, stalled, unknown],
        listeners_left_out: 1,
        sinks: ["stdout", "file:/var/log/conntracer"]
            .map(|sink| SinkAccount {
                sink: sink.to_owned(),
                events_lost: 3,
                lines_lost: 1,
                failed: (sink != "stdout").then(|| "no space".to_owned()),
            })
            .into(),
        ..Account::default()
    };
    let line = Line::Stats {
        occasion: Occasion::Interval,
        account: Box::new(account),
    };
    let host = std::sync::Arc::new(recorded::host());
    let mut text = Vec::new();
    Json::new(host.clone()).render(&line, &mut text);
    let json: Value = serde_json::from_slice(&text).unwrap();
    Schema::strict().unwrap().accepts(&json).unwrap();
    insta::assert_json_snapshot!(json["listeners"]);

    text.clear();
    Text::new(host, Look::default()).render(&line, &mut text);
    insta::assert_snapshot!(String::from_utf8(text).unwrap());
}
