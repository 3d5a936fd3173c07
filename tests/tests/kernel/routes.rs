//! What becomes of connections whose way goes: a device, a neighbour; and of a request that ICMP ends.

use std::io::Write as _;

use conntracer_tests::{
    family::Family,
    link::Pair,
    peer::Peer,
    socket::{listen, transfer},
    wait::{self, EVENTUALLY, SOON},
};

use crate::{
    connection_drop::death,
    deaths::{all, assert_nothing},
    support::{assert_sound, binary, is_syn_drop, watch},
};

/// The device goes with its address and routes while data is in flight, and no ICMP says so.
#[test]
fn a_device_that_goes_is_not_told_as_icmp() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = &pair.server;
    server.set_sysctl("net/ipv4/tcp_retries2", "4").unwrap();
    let Some(mut tracer) = watch(&binary, server) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    transfer(&connection.connected, &connection.accepted, 10).unwrap();
    assert_nothing(&mut tracer);
    pair.unplug().unwrap();
    // The kernel says at once that it has no way, or tries.
    let _ = (&connection.accepted).write_all(b"lost");
    let error = death(&connection.accepted);
    let counted = server.counters().unwrap();
    let (run, dropped) = all(&mut tracer, 1, "no_route");
    assert_eq!(counted.in_icmp_unreachable, 0, "{counted:?}");
    if let Some(dropped) = dropped {
        assert_eq!(dropped.cause, "unreachable", "{error}: {dropped:#?}");
        assert!(!dropped.summary.contains("ICMP"), "{dropped:#?}");
        assert!(
            dropped.summary.contains("this host finds no route")
                || dropped.summary.contains("this host has no route")
                || dropped.summary.contains("this host had no route"),
            "{dropped:#?}"
        );
        assert!(dropped.advice[0].contains("ip route get"), "{dropped:#?}");
    }
    assert_sound(&run, server);
}

/// A neighbour that does not answer keeps segments on this host, which tells itself by ICMP that there is no way: the
/// neighbour is a candidate, and nobody else has said so.
#[test]
fn a_neighbour_that_does_not_answer_is_a_candidate() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = &pair.server;
    server.set_sysctl("net/ipv4/tcp_retries2", "4").unwrap();
    let Some(mut tracer) = watch(&binary, server) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    transfer(&connection.connected, &connection.accepted, 10).unwrap();
    assert_nothing(&mut tracer);
    pair.forget_neighbour().unwrap();
    (&connection.accepted).write_all(b"lost").unwrap();
    assert_eq!(death(&connection.accepted), libc::EHOSTUNREACH);
    let (run, dropped) = all(&mut tracer, 1, "icmp_or_no_route");
    if let Some(dropped) = dropped {
        assert_eq!(dropped.cause, "unreachable", "{dropped:#?}");
        assert!(
            dropped.summary.contains("candidates") && dropped.summary.contains("neighbour entry"),
            "{dropped:#?}"
        );
        assert!(dropped.advice[0].contains("ip neigh show"), "{dropped:#?}");
        assert!(!dropped.summary.contains("ICMP said"), "{dropped:#?}");
    }
    assert_sound(&run, server);
}

/// An ICMP message ends a request, and the ACK that comes then is answered by a RST: no client believes to be connected,
/// and whether memory was short is not known by counters alone.
#[test]
fn a_request_that_icmp_ends_is_no_want_of_memory() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = &pair.server;
    let Some(mut tracer) = watch(&binary, server) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let _listener = server.run(|| listen(Family::V4, address, 8)).unwrap();
    let ports: [u16; 4] = [3001, 3002, 3003, 3004];
    for port in ports {
        let peer = Peer::new(&pair, Family::V4, port).unwrap();
        peer.acknowledge_too_late(address).unwrap();
    }
    wait::until("the late ACKs to be answered", SOON, || {
        let counted = server.counters()?;
        Ok((counted.out_rsts >= 4).then_some(()))
    })
    .unwrap();
    let counted = server.counters().unwrap();
    assert_eq!(counted.listen_drops, 4, "{counted:?}");
    let by_counters = tracer
        .plan()
        .plan
        .hooks
        .iter()
        .any(|hook| hook.hook == "ack" && hook.hook_type == "tracepoint");
    if by_counters {
        tracer
            .wait_for("the candidates", EVENTUALLY, |finding| {
                is_syn_drop(finding) && finding.summary.contains("or an ICMP message ended")
            })
            .unwrap();
    }
    let run = tracer.checkpoint().unwrap();
    for dropped in run.last_of(is_syn_drop) {
        assert!(by_counters, "{dropped:#?}");
        assert!(
            !dropped.summary.contains("believe they are connected"),
            "{dropped:#?}"
        );
        assert!(
            dropped.advice[0].contains("IcmpInDestUnreachs"),
            "{dropped:#?}"
        );
    }
    assert_sound(&run, server);
}

/// The same listener, whose clients get through.
#[test]
fn a_request_that_is_acknowledged_is_nothing() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    for _ in 0..4 {
        let connection = pair.connect(Family::V4).unwrap();
        transfer(&connection.connected, &connection.accepted, 10).unwrap();
        drop(connection.connected);
        drop(connection.accepted);
    }
    let run = tracer.checkpoint().unwrap();
    assert!(run.last_of(|_| true).is_empty(), "{run:#?}");
    assert_sound(&run, &pair.server);
}
