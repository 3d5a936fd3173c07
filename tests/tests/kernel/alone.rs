//! What is the whole machine's: `conntracer-live` runs these when nothing else is running, one at a time.
//! They have a conntracer of this process's own: the shared ones know the namespaces of another one, whose numbers are given
//! again.

use std::fs;

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::Certainty,
    link::Pair,
    netfilter,
    scenario::early_drop::{Obstacle, Refused},
    socket::deafen,
    wait::EVENTUALLY,
};

use crate::{
    connection_drop::{HOOKS, died, only},
    support::{assert_sound, binary, is_own_machine, is_syn_drop, lacking, tell_all, watch},
};

/// `tcp_max_orphans` is the whole machine's.
#[test]
fn an_orphan_too_many_is_given_up() {
    const LIMIT: &str = "/proc/sys/net/ipv4/tcp_max_orphans";
    let Some(binary) = binary() else { return };
    if !is_own_machine() {
        lacking("tcp_max_orphans is the whole machine's, and this one is not the test's own");
        return;
    }
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    deafen(&connection.connected).unwrap();
    let before = server.counters().unwrap();
    let limit = fs::read_to_string(LIMIT).unwrap();
    // The kernel counts roughly, and 0 orphans are more than this.
    fs::write(LIMIT, "-1").unwrap();
    drop(connection.accepted);
    fs::write(LIMIT, limit).unwrap();
    let run = tell_all(&mut tracer, &HOOKS, 1, died);
    let counted = server.counters().unwrap() - before;

    assert_eq!((counted.abort_on_memory, counted.out_rsts), (1, 1));
    if let Some(dropped) = only(&run, "orphan") {
        assert_eq!(dropped.cause, "aborted", "{dropped:#?}");
        // The kernel does not say why.
        assert_eq!(dropped.certainty, Certainty::Inferred, "{dropped:#?}");
    }
    assert_sound(&run, &server);
}

/// Conntrack's table has room for a few: it drops what comes beyond, and no rule does. `nf_conntrack_max` is the whole
/// machine's.
#[test]
fn a_full_conntrack_table_is_told_from_a_rule() {
    const LIMIT: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
    const ROOM: u16 = 8;
    let Some(binary) = binary() else { return };
    if !is_own_machine() {
        lacking("nf_conntrack_max is the whole machine's, and this one is not the test's own");
        return;
    }
    let mut scenario = Refused::new(Family::V4, Obstacle::None).unwrap();
    let server = scenario.pair.server.clone();
    server.run(netfilter::track).unwrap();
    let _inhabitant = server.inhabit().unwrap();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.listen().unwrap();
    let limit = fs::read_to_string(LIMIT).unwrap();
    // As many as there is room for: the twin.
    for number in 0..ROOM {
        scenario.send_one(number, SERVER_PORT).unwrap();
    }
    let healthy = tracer.checkpoint().unwrap();
    fs::write(LIMIT, ROOM.to_string()).unwrap();
    for number in ROOM..2 * ROOM {
        scenario.send_one(number, SERVER_PORT).unwrap();
    }
    let told = tracer.wait_for("a full table", EVENTUALLY, |finding| {
        is_syn_drop(finding) && finding.evidence["filtered_by"] == "conntrack_table_full"
    });
    fs::write(LIMIT, limit).unwrap();
    let run = tracer.checkpoint().unwrap();

    assert!(healthy.last_of(is_syn_drop).is_empty(), "{healthy:#?}");
    let told = told.unwrap();
    assert_eq!(told.cause, "filtered", "{told:#?}");
    assert!(
        told.summary
            .contains("the conntrack table of this namespace is full"),
        "{told:#?}"
    );
    assert!(
        told.summary.contains(&format!("of {ROOM})")),
        "n of max: {told:#?}"
    );
    assert_eq!(told.number("conntrack_max"), u64::from(ROOM), "{told:#?}");
    let advice = told.advice.join("; ");
    assert!(advice.contains("nf_conntrack_max"), "{told:#?}");
    assert!(!advice.contains("look for the rule"), "{told:#?}");
    assert_sound(&run, &server);
}
