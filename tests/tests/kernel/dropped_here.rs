//! `dropped_here`: segments of established connections that this host drops, told as the cause by whatever finding is
//! about the connection, with the count of what drops them.

use std::{io::Write as _, net::Shutdown};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::Finding,
    link::{CLIENT, Pair},
    netfilter::{Hook, Rule, Segments},
    netns::NetNs,
    queue,
    scenario::dead_peer::DeadPeer,
    wait::{self, EVENTUALLY},
    watch::Watch,
};
use rstest::rstest;

use crate::support::{HALF_CLOSED_1_S, assert_sound, binary, lacking, trace_by, watch};

const CAUSE: &str = "dropped_here";

fn is_told(finding: &Finding) -> bool {
    finding.cause == CAUSE
}

/// The running kernel's version.
fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or_default();
    (next(), next())
}

/// The finding says where, and which rule where the kernel shows it.
fn assert_names(finding: &Finding, hook: &str, netns: &NetNs, rule: &Rule) {
    let evidence = &finding.evidence;
    assert_eq!(evidence["drop_hook"], hook, "{finding:#?}");
    assert_eq!(evidence["drop_layer"], "netfilter", "{finding:#?}");
    assert_eq!(evidence["drop_netns"], netns.inode(), "{finding:#?}");
    if let Some(handle) = evidence.get("nft_rule_handle") {
        assert_eq!(*handle, rule.handle, "{finding:#?}");
        assert_eq!(evidence["nft_table"], *rule.table, "{finding:#?}");
        assert_eq!(evidence["nft_chain"], *rule.chain, "{finding:#?}");
        assert_eq!(evidence["nft_family"], "inet", "{finding:#?}");
    } else {
        assert_eq!(evidence["nft_rule"], "not known", "{finding:#?}");
    }
    assert!(
        finding
            .summary
            .contains("dropped on this host, by netfilter"),
        "{finding:#?}"
    );
}

/// What the finding counts is what the rule counts, once both were read at a moment without a packet; but for what the
/// kernel did not let the hook see, which is counted. What a machine of [`conntracer_tests::witness`] skips unsaid is skipped
/// of timers, which is when these segments are sent again: their own tracepoint has the second witness.
fn assert_agrees(tracer: &mut Watch, told: &Finding, netns: &NetNs, rule: &Rule) {
    let mut figures = String::new();
    wait::until("the counts to agree", EVENTUALLY, || {
        let before = netns.run(|| rule.counted())?;
        let run = tracer.checkpoint()?;
        let last = run.last_of(|finding| finding.id == told.id);
        let says = last.first().map(|finding| finding.number(CAUSE));
        let after = netns.run(|| rule.counted())?;
        let skipped = run.lost("drop") + run.unseen("retransmit") + run.unseen("state");
        figures = format!("the rule counts {before} and then {after}, the finding {says:?}; {skipped} were skipped: {last:#?}");
        let agree = says.is_some_and(|says| (says..=says + skipped).contains(&after));
        Ok((before == after && agree).then_some(()))
    })
    .unwrap_or_else(|error| panic!("{error}: {figures}"));
}

/// What a rule of the server's namespace drops at input is the client's acknowledgements: the server sends again and again.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn what_a_rule_drops_at_input_is_the_cause(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(family).unwrap().for_a_while();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.connect().unwrap();
    let to = Segments::To(SERVER_PORT);
    let rule = server
        .run(|| Rule::drop("ct-filter", "ct-in", Hook::Input, to))
        .unwrap();
    scenario.speak().unwrap();
    let told = tracer
        .wait_for("the rule to be told of", EVENTUALLY, is_told)
        .unwrap();
    assert_names(&told, "input", &server, &rule);
    assert_eq!(told.evidence["symptom"], "dead_peer", "{told:#?}");
    assert_agrees(&mut tracer, &told, &server, &rule);
    scenario.quiet().unwrap();
    assert_sound(&tracer.checkpoint().unwrap(), &server);
}

/// Rules in two tables, at two hooks, each for a connection of its own: each is named, with its own count.
#[test]
fn each_rule_is_named_with_its_count() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let cases = [
        ("ct-one", "ct-in", Hook::Input, "input"),
        ("ct-two", "ct-in", Hook::Input, "input"),
        ("ct-two", "ct-pre", Hook::Prerouting, "prerouting"),
    ];
    let mut open = Vec::new();
    for (port, (table, chain, hook, name)) in (SERVER_PORT..).zip(cases) {
        let address = Family::V4.veth_listener_on(port);
        let mut scenario = DeadPeer::across(pair.clone(), Family::V4, address).for_a_while();
        scenario.connect().unwrap();
        let segments = Segments::To(port);
        let rule = server
            .run(|| Rule::drop(table, chain, hook, segments))
            .unwrap();
        open.push((scenario, rule, name));
    }
    for (scenario, ..) in &open {
        scenario.speak().unwrap();
    }
    for (scenario, rule, name) in &open {
        let (local, _) = scenario.endpoints().unwrap();
        let of_this =
            |finding: &Finding| is_told(finding) && finding.summary.contains(&local.to_string());
        let told: Finding = wait::until("each rule to be told of", EVENTUALLY, || {
            let run = tracer.checkpoint()?;
            Ok(run.last_of(of_this).first().map(|told| (*told).clone()))
        })
        .unwrap();
        assert_names(&told, name, &server, rule);
        assert_agrees(&mut tracer, &told, &server, rule);
    }
    for (scenario, ..) in &mut open {
        scenario.quiet().unwrap();
    }
    assert_sound(&tracer.checkpoint().unwrap(), &server);
}

/// What the other namespace of this host drops is told, too.
#[test]
fn what_another_namespace_drops_is_the_cause() {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(Family::V4).unwrap().for_a_while();
    let Pair { server, client } = scenario.pair.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.connect().unwrap();
    let from = Segments::From(SERVER_PORT);
    let rule = client
        .run(|| Rule::drop("ct-filter", "ct-in", Hook::Input, from))
        .unwrap();
    scenario.speak().unwrap();
    let told = tracer
        .wait_for("the rule to be told of", EVENTUALLY, is_told)
        .unwrap();
    assert_names(&told, "input", &client, &rule);
    assert_agrees(&mut tracer, &told, &client, &rule);
    scenario.quiet().unwrap();
    assert_sound(&tracer.checkpoint().unwrap(), &server);
}

/// What drops all that the client sends.
#[derive(Clone, Copy)]
enum Obstacle {
    Filter,
    Queue,
}

/// A program or a queue at the client's interface drops what the client sends: its answers do not come to the server.
#[rstest]
#[case::tc_program(Obstacle::Filter, "tc_egress")]
#[case::queue(Obstacle::Queue, "qdisc")]
fn what_the_interface_drops_is_the_cause(#[case] obstacle: Obstacle, #[case] layer: &str) {
    let Some(binary) = binary() else { return };
    if kernel() < (5, 18) {
        lacking("this kernel gives no reasons of drops");
        return;
    }
    let mut scenario = DeadPeer::new(Family::V4).unwrap().for_a_while();
    let Pair { server, client } = scenario.pair.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.connect().unwrap();
    let made = client.run(|| match obstacle {
        Obstacle::Filter => queue::drop_at_egress(CLIENT),
        Obstacle::Queue => queue::shut(CLIENT),
    });
    if let Err(error) = made {
        lacking(&format!("{error:#}"));
        return;
    }
    scenario.speak().unwrap();
    let told = tracer
        .wait_for("the drops to be told of", EVENTUALLY, is_told)
        .unwrap();
    assert_eq!(told.evidence["drop_layer"], layer, "{told:#?}");
    assert_eq!(told.evidence["drop_device"], CLIENT, "{told:#?}");
    assert_eq!(told.evidence["drop_netns"], client.inode(), "{told:#?}");
    scenario.quiet().unwrap();
    assert_sound(&tracer.checkpoint().unwrap(), &server);
}

/// The client has closed, and a rule of the server drops its FIN alone: the server's socket stays in FIN_WAIT2.
#[test]
fn a_rule_that_drops_the_end_is_why_it_is_half_closed() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = trace_by(&binary, &server, HALF_CLOSED_1_S, &[]) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    (&connection.connected).write_all(b"a line").unwrap();
    let rule = server
        .run(|| {
            let fins = Segments::FinTo(SERVER_PORT);
            Rule::drop("ct-filter", "ct-in", Hook::Input, fins)
        })
        .unwrap();
    connection.accepted.shutdown(Shutdown::Write).unwrap();
    drop(connection.connected);
    let mut line = [0; 6];
    std::io::Read::read_exact(&mut &connection.accepted, &mut line).unwrap();
    let told = tracer
        .wait_for("the rule to be told of", EVENTUALLY, |finding| {
            is_told(finding) && finding.evidence["symptom"] == "half_closed"
        })
        .unwrap();
    assert_names(&told, "input", &server, &rule);
    assert!(told.summary.contains("FIN"), "{told:#?}");
}

/// A rule for another port, and a client that has vanished outside of this host's doing: nobody blames the rule. And a
/// connection that it lets pass is silent.
#[test]
fn a_rule_for_others_is_not_the_cause() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let (other, healthy) = (SERVER_PORT + 1, SERVER_PORT + 2);
    let _rule = server
        .run(|| {
            let to = Segments::To(other);
            Rule::drop("ct-filter", "ct-in", Hook::Input, to)
        })
        .unwrap();
    let at = |port| Family::V4.veth_listener_on(port);
    let mut well = DeadPeer::across(pair.clone(), Family::V4, at(healthy)).for_a_while();
    well.connect().unwrap();
    well.speak().unwrap();
    well.wait_answered().unwrap();
    let mut scenario = DeadPeer::across(pair, Family::V4, at(SERVER_PORT)).for_a_while();
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    let told = tracer
        .wait_for("a dead peer", EVENTUALLY, |finding| {
            finding.cause == "dead_peer"
        })
        .unwrap();
    assert!(!told.evidence.contains_key(CAUSE), "{told:#?}");
    scenario.quiet().unwrap();
    well.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();
    assert!(run.last_of(is_told).is_empty(), "{run:#?}");
    assert_sound(&run, &server);
}
