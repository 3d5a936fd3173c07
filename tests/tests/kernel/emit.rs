//! `--emit`: every event of a known number of connections is streamed, once, with its owner, and
//! filters let through what they say.

use std::{collections::BTreeMap, fmt::Debug};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    netns::{COMM, NetNs},
    output::Run,
    scenario::short_lives::{Close, LISTENER_CHANGES, live},
};
use rstest::rstest;
use serde_json::Value;

use crate::support::{
    assert_seen, assert_sound, assert_source, binary, is_ours, tell_all, trace, trace_all,
    watch_events,
};

/// Connections of each run: far fewer than a ring holds, so that none may be lost but by the kernel.
const CONNECTIONS: usize = 20;

/// A second listener, for filters to tell apart from the first.
const OTHER_PORT: u16 = SERVER_PORT + 1;

const STATES: [&str; 1] = ["state"];
/// The kinds of both ends' beginnings, and the hooks that tell of them: by tracepoint a connect() is a change of state.
const ENDS: [&str; 2] = ["connect", "accept"];
const ENDS_HOOKS: [&str; 3] = ["connect", "accept", "state"];

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn every_state_change_is_streamed_once(
    #[case] family: Family,
    #[values(Close::Fin, Close::Rst)] ending: Close,
) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &STATES) else {
        return;
    };
    live(&netns, family, SERVER_PORT, CONNECTIONS, ending).unwrap();
    let expected = changes(ending).values().sum::<usize>();
    let run = tell_all(&mut tracer, &STATES, expected as u64, told);

    assert_states(&run, ending);
    assert_sound(&run, &netns);
}

/// All of it at once. A tracer of its own: the others have the transport of the whole run.
#[test]
fn every_event_is_streamed_once_by_the_other_transport() {
    const CASES: [(Family, Close); 4] = [
        (Family::V4, Close::Fin),
        (Family::V4, Close::Rst),
        (Family::V6, Close::Fin),
        (Family::V6, Close::Rst),
    ];
    let Some(binary) = binary() else { return };
    let binary = binary.by_the_other_transport();
    let namespaces = CASES.map(|_| NetNs::new().unwrap());
    let arguments = ["--emit", "state,connect,accept"];
    let Some(mut tracer) = trace_all(&binary, &namespaces.each_ref(), &arguments) else {
        return;
    };
    let mut expected = 0;
    for (netns, (family, ending)) in namespaces.iter().zip(CASES) {
        live(netns, family, SERVER_PORT, CONNECTIONS, ending).unwrap();
        expected += 2 * CONNECTIONS + changes(ending).values().sum::<usize>();
    }
    tell_all(&mut tracer, &ENDS_HOOKS, expected as u64, told);
    let run = tracer.stop().unwrap();

    assert_eq!(run.start.plan.transport, binary.transport());
    for kind in STATES.into_iter().chain(ENDS) {
        assert_emitted(&run, kind);
    }
    for (netns, (family, ending)) in namespaces.iter().zip(CASES) {
        let run = run.within(netns);
        assert_states(&run, ending);
        assert_ends(&run, family);
        assert_sound(&run, netns);
    }
}

/// All changes of state, by the state before and after.
fn changes(ending: Close) -> BTreeMap<(&'static str, &'static str), usize> {
    let mut changes: BTreeMap<_, usize> = LISTENER_CHANGES.map(|change| (change, 1)).into();
    for change in ending.changes() {
        *changes.entry(*change).or_default() += CONNECTIONS;
    }
    changes
}

#[track_caller]
fn assert_states(run: &Run, ending: Close) {
    let mut streamed: BTreeMap<_, usize> = BTreeMap::new();
    for (_, event) in run.events().filter(|(kind, _)| *kind == "state") {
        let change = (word(event, "old_state"), word(event, "new_state"));
        *streamed.entry(change).or_default() += 1;
        assert_owner(event);
    }
    assert_streamed(run, &STATES, &streamed, &changes(ending));
}

/// What was streamed is what happened, but for what was lost of `hooks`.
#[track_caller]
fn assert_streamed<K: Ord + Debug>(
    run: &Run,
    hooks: &[&str],
    streamed: &BTreeMap<K, usize>,
    happened: &BTreeMap<K, usize>,
) {
    for (key, count) in streamed {
        assert!(
            happened.get(key).is_some_and(|happened| count <= happened),
            "{key:?}: {streamed:?} and not {happened:?}"
        );
    }
    let [streamed, happened] = [streamed, happened].map(|of| of.values().sum::<usize>() as u64);
    assert_seen(run, hooks, streamed, happened);
}

/// Events, of the kinds that were asked for.
fn told(run: &Run) -> u64 {
    run.events().count() as u64
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
fn every_connection_is_connected_and_accepted_once(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &ENDS) else {
        return;
    };
    live(&netns, family, SERVER_PORT, CONNECTIONS, Close::Fin).unwrap();
    let run = tell_all(&mut tracer, &ENDS_HOOKS, 2 * CONNECTIONS as u64, told);

    assert_ends(&run, family);
    assert_sound(&run, &netns);
}

#[track_caller]
fn assert_ends(run: &Run, family: Family) {
    let expected = ENDS.map(|kind| ((kind, SERVER_PORT), CONNECTIONS)).into();
    assert_streamed(run, &ENDS_HOOKS, &served(run), &expected);
    for (kind, event) in run.events().filter(|(kind, _)| ENDS.contains(kind)) {
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
}

/// Both families connect to both ports; `accepts` and `connects` are the ports whose events are to
/// come, for each of `families`. A tracer of its own each, for its filter.
#[rstest]
#[case::local_port_of_v4(&["--addr", "127.0.0.0/8", "--lport", "8080"], &[SERVER_PORT], &[], 1)]
#[case::remote_port_of_v6(&["--addr", "::1", "--rport", "8081"], &[], &[OTHER_PORT], 1)]
#[case::either_port(&["--port", "8080"], &[SERVER_PORT], &[SERVER_PORT], 2)]
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
    connect_to_both(&netns);
    let expected = selected(accepts, connects, families);
    let all = expected.values().sum::<usize>();
    tell_all(&mut tracer, &ENDS_HOOKS, all as u64, told);
    let run = tracer.stop().unwrap();

    assert_streamed(&run, &ENDS_HOOKS, &served(&run), &expected);
    for kind in ENDS {
        assert_emitted(&run, kind);
    }
    assert_sound(&run, &netns);
    // The kernel counts what a filter hides.
    let reconciliation = &run.totals.reconciliation;
    assert_eq!(reconciliation.compared, 0);
    assert!(reconciliation.namespaces.is_empty(), "{reconciliation:#?}");
    let reason = &reconciliation.not_reconciled["ListenDrops"];
    assert!(reason.contains("filter"), "{reason}");
}

/// The same without a filter: all of it.
#[test]
fn no_filter_selects_everything() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &ENDS) else {
        return;
    };
    connect_to_both(&netns);
    let ports = [SERVER_PORT, OTHER_PORT];
    let expected = selected(&ports, &ports, 2);
    let all = expected.values().sum::<usize>();
    let run = tell_all(&mut tracer, &ENDS_HOOKS, all as u64, told);

    assert_streamed(&run, &ENDS_HOOKS, &served(&run), &expected);
    assert_sound(&run, &netns);
}

/// Connections of both families to both ports.
fn connect_to_both(netns: &NetNs) {
    for family in [Family::V4, Family::V6] {
        for port in [SERVER_PORT, OTHER_PORT] {
            live(netns, family, port, CONNECTIONS, Close::Fin).unwrap();
        }
    }
}

/// The events of those by kind and port.
fn selected(
    accepts: &[u16],
    connects: &[u16],
    families: usize,
) -> BTreeMap<(&'static str, u16), usize> {
    let accepts = accepts.iter().map(|port| ("accept", *port));
    let connects = connects.iter().map(|port| ("connect", *port));
    accepts
        .chain(connects)
        .map(|key| (key, families * CONNECTIONS))
        .collect()
}

/// How many events of each kind came for each of the servers' ports.
fn served(run: &Run) -> BTreeMap<(&str, u16), usize> {
    let mut served = BTreeMap::new();
    for (kind, event) in run.events().filter(|(kind, _)| *kind != "state") {
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
fn assert_emitted(run: &Run, kind: &str) {
    let told = run.events().filter(|(of, _)| *of == kind).count();
    let emitted = run.totals.hooks[kind].emitted;
    assert_eq!(emitted, told as u64, "{kind}: {:?}", run.totals);
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
