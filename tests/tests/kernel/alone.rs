//! What is the whole machine's: `conntracer-live` runs these when nothing else is running, one at a time.
//! Each has a conntracer of its own: this is another process than the one whose namespaces the shared ones know.

use std::fs;

use conntracer_tests::{family::Family, line::Certainty, link::Pair, socket::deafen};

use crate::{
    connection_drop::{HOOKS, died, only},
    support::{assert_sound, binary, is_own_machine, lacking, tell_all, trace},
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
    let Some(mut tracer) = trace(&binary, &server, &[]) else {
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
