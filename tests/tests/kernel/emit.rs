//! `--emit`: every event of a known number of connections is streamed, once, with its owner, and
//! filters let through what they say.

use std::collections::BTreeMap;

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    netns::{COMM, NetNs},
    output::Run,
    scenario::short_lives::{Close, LISTENER_CHANGES, live},
    wait::SOON,
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{assert_sound, assert_source, binary, is_ours, trace};

/// Connections of each run: far fewer than a ring holds, so that none may be lost.
const CONNECTIONS: usize = 20;

/// A second listener, for filters to tell apart from the first.
const OTHER_PORT: u16 = SERVER_PORT + 1;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn every_state_change_is_streamed_once(
    #[case] family: Family,
    #[values(Close::Fin, Close::Rst)] ending: Close,
    #[values("ringbuf", "perf")] transport: &str,
) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let arguments = ["--emit", "state", "--transport", transport];
    let Some(mut tracer) = trace(&binary, &netns, &arguments) else {
        return;
    };
    live(&netns, family, SERVER_PORT, CONNECTIONS, ending).unwrap();
    let expected = CONNECTIONS * ending.changes().len() + LISTENER_CHANGES.len();
    tracer.wait_for_events(expected, SOON).unwrap();
    let run = tracer.stop().unwrap();

    let mut changes: BTreeMap<_, usize> = LISTENER_CHANGES.map(|change| (change, 1)).into();
    for change in ending.changes() {
        *changes.entry(*change).or_default() += CONNECTIONS;
    }
    let mut streamed: BTreeMap<_, usize> = BTreeMap::new();
    for (kind, event) in run.events() {
        assert_eq!(kind, "state");
        let change = (word(event, "old_state"), word(event, "new_state"));
        *streamed.entry(change).or_default() += 1;
    }
    assert_eq!(streamed, changes);
    for (_, event) in run.events() {
        assert_owner(event);
    }
    assert_emitted(&run, "state", expected);
    assert_sound(&run, &netns);
}

/// The owner of the client's end is this process, from the moment `connect` is hooked: before it, at
/// `closed` → `syn_sent`, nobody may be named who is not.
#[track_caller]
fn assert_owner(event: &Value) {
    // Left out when the owner is not known.
    let source = event["owner_source"].as_str();
    let is_client = number(event, "network.peer.port") == Some(u64::from(SERVER_PORT));
    let is_connected = is_client && word(event, "new_state") != "syn_sent";
    if is_connected && source != Some("passed") {
        assert_source(source, "connect");
    }
    if source.is_some() {
        assert_is_ours(event);
    }
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn every_connection_is_connected_and_accepted_once(
    #[case] family: Family,
    #[values("ringbuf", "perf")] transport: &str,
) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let arguments = ["--emit", "connect,accept", "--transport", transport];
    let Some(mut tracer) = trace(&binary, &netns, &arguments) else {
        return;
    };
    live(&netns, family, SERVER_PORT, CONNECTIONS, Close::Fin).unwrap();
    tracer.wait_for_events(2 * CONNECTIONS, SOON).unwrap();
    let run = tracer.stop().unwrap();

    let expected = BTreeMap::from([
        (("accept", SERVER_PORT), CONNECTIONS),
        (("connect", SERVER_PORT), CONNECTIONS),
    ]);
    assert_eq!(served(&run), expected);
    for (kind, event) in run.events() {
        assert_is_ours(event);
        assert_eq!(word(event, "owner_source"), kind, "{event}");
        let role = if kind == "connect" {
            "active"
        } else {
            "passive"
        };
        assert_eq!(word(event, "role"), role, "{event}");
        let address = family.loopback().to_string();
        assert_eq!(word(event, "network.local.address"), address, "{event}");
        assert_eq!(word(event, "network.peer.address"), address, "{event}");
    }
    assert_emitted(&run, "connect", CONNECTIONS);
    assert_emitted(&run, "accept", CONNECTIONS);
    assert_sound(&run, &netns);
}

/// Both families connect to both ports; `accepts` and `connects` are the ports whose events are to
/// come, for each of `families`.
#[rstest]
#[case::nothing(&[], &[SERVER_PORT, OTHER_PORT], &[SERVER_PORT, OTHER_PORT], 2)]
#[case::local_port(&["--lport", "8080"], &[SERVER_PORT], &[], 2)]
#[case::remote_port(&["--rport", "8080"], &[], &[SERVER_PORT], 2)]
#[case::either_port(&["--port", "8080"], &[SERVER_PORT], &[SERVER_PORT], 2)]
#[case::v4(&["--addr", "127.0.0.0/8"], &[SERVER_PORT, OTHER_PORT], &[SERVER_PORT, OTHER_PORT], 1)]
#[case::v6(&["--addr", "::1"], &[SERVER_PORT, OTHER_PORT], &[SERVER_PORT, OTHER_PORT], 1)]
#[case::both(&["--addr", "::1", "--rport", "8081"], &[], &[OTHER_PORT], 1)]
#[case::another_address(&["--addr", "10.0.0.0/8"], &[], &[], 0)]
fn a_filter_selects_what_it_says(
    #[case] filter: &[&str],
    #[case] accepts: &[u16],
    #[case] connects: &[u16],
    #[case] families: usize,
) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let arguments = [&["--emit", "connect,accept"], filter].concat();
    let Some(mut tracer) = trace(&binary, &netns, &arguments) else {
        return;
    };
    for family in [Family::V4, Family::V6] {
        for port in [SERVER_PORT, OTHER_PORT] {
            live(&netns, family, port, CONNECTIONS, Close::Fin).unwrap();
        }
    }
    let each = families * CONNECTIONS;
    tracer
        .wait_for_events((accepts.len() + connects.len()) * each, SOON)
        .unwrap();
    let run = tracer.stop().unwrap();

    let accepted = accepts.iter().map(|port| (("accept", *port), each));
    let connected = connects.iter().map(|port| (("connect", *port), each));
    assert_eq!(served(&run), accepted.chain(connected).collect());
    assert_emitted(&run, "accept", accepts.len() * each);
    assert_emitted(&run, "connect", connects.len() * each);
    assert_sound(&run, &netns);
}

/// How many events of each kind came for each of the servers' ports.
fn served(run: &Run) -> BTreeMap<(&str, u16), usize> {
    let mut served = BTreeMap::new();
    for (kind, event) in run.events() {
        // The client's own port may be 0, not bound yet: it is not looked at.
        let key = match kind {
            "connect" => "network.peer.port",
            "accept" => "network.local.port",
            _ => panic!("nobody asked for a {kind}: {event}"),
        };
        let port = number(event, key).and_then(|port| u16::try_from(port).ok());
        *served
            .entry((kind, port.unwrap_or_else(|| panic!("no {key}: {event}"))))
            .or_default() += 1;
    }
    served
}

#[track_caller]
fn assert_is_ours(event: &Value) {
    assert!(is_ours(event), "{event}");
    if event["process.pid"] == std::process::id() {
        assert_eq!(word(event, "process.command"), COMM, "{event}");
    }
}

/// What the eBPF side says it wrote is what came out.
#[track_caller]
fn assert_emitted(run: &Run, hook: &str, expected: usize) {
    let emitted = run.totals.hooks[hook].emitted;
    assert_eq!(emitted, expected as u64, "{hook}: {:?}", run.totals);
}

#[track_caller]
fn word<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key]
        .as_str()
        .unwrap_or_else(|| panic!("no word {key}: {event}"))
}

fn number(event: &Value, key: &str) -> Option<u64> {
    event[key].as_u64()
}
