//! What a listener does with SYNs and third ACKs beyond its two queues: the rarer causes, clients that
//! try again, and listeners of other kinds. Each count is held against the kernel's.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use conntracer_tests::{
    counters::Counters,
    cpu,
    family::{Family, SERVER_PORT},
    line::{Coverage, Finding},
    link::Pair,
    netns::NetNs,
    output::Run,
    packet::send_syn,
    scenario::accept_queue::{AcceptQueueFull, AckOverflow, CLIENTS, VICTIMS},
    socket::{
        self, abort_on_close, connect_with_data, connect_without_waiting, defer_accept, listen,
        listen_on, take_fast_opens, tcp,
    },
    wait::{self, SOON},
    watch::Watch,
};
use rstest::rstest;
use serde_json::Value;
use socket2::Socket;

use crate::support::{
    assert_counted, assert_listener, assert_reconciled, assert_said, assert_seen, assert_sound,
    binary, is_syn_drop, lacking, overflows, tell_all, trace, watch, watch_events,
};

/// A client whose third ACK is refused tries again and again, and is one victim; the finding says that it
/// believes it is connected.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_client_that_repeats_its_ack_is_one_victim(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AckOverflow::new(family).unwrap();
    let Some(mut tracer) = watch(&binary, &scenario.netns) else {
        return;
    };
    scenario.provoke().unwrap();
    scenario.repeat().unwrap();
    wait_for_cause(&mut tracer, "ack_overflow");
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    let finding = only(&run, "ack_overflow");
    assert_eq!(finding.count, VICTIMS, "{finding:#?}");
    let refused_acks = finding.number("third_acks_refused");
    assert!(refused_acks >= 2 * VICTIMS, "{finding:#?}");
    let told = refused_acks + run.total("syn_drop", &["accept_queue_full"]);
    assert_counted(&run, "ListenOverflows", told, counted.listen_overflows);
    assert!(
        finding.summary.contains("believe they are connected"),
        "{finding:#?}"
    );
    assert_said(&run, "syn_drop");
    assert_sound(&run, &scenario.netns);
}

/// With `tcp_abort_on_overflow` the same clients get a RST, once each.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn abort_on_overflow_equals_embryonic_resets(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AckOverflow::new(family).unwrap();
    scenario
        .netns
        .set_sysctl("net/ipv4/tcp_abort_on_overflow", "1")
        .unwrap();
    let before = scenario.netns.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &scenario.netns) else {
        return;
    };
    scenario.provoke().unwrap();
    wait_for_cause(&mut tracer, "abort_on_overflow");
    let after = scenario.netns.counters().unwrap();
    let counted = after - before;
    let run = tracer.checkpoint().unwrap();

    let finding = only(&run, "abort_on_overflow");
    assert_eq!(finding.count, VICTIMS, "{finding:#?}");
    assert_eq!(counted.embryonic_rsts, VICTIMS, "{counted:#?}");
    assert_eq!(finding.number("abort_on_overflow"), 1);
    assert!(
        finding
            .advice
            .iter()
            .any(|advice| advice.contains("tcp_abort_on_overflow")),
        "{finding:#?}"
    );
    assert_eq!(run.total("syn_drop", &["ack_overflow"]), 0, "{run:#?}");
    assert_reconciled(&run, &scenario.netns, &after);
    assert_listener(finding, &scenario.netns, family.loopback_listener());
    assert_sound(&run, &scenario.netns);
}

/// SYNs of the tests below that are made by hand.
const SYNS: u16 = 12;

/// A SYN from where this host cannot send anything.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn no_route_back_equals_listen_drops(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    // Or the reverse path filter drops them before TCP.
    for interface in ["all", "ct-server"] {
        pair.server
            .set_sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")
            .unwrap();
    }
    let before = pair.server.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let _listener = knock(&pair, family, 64, family.stranger(), SYNS);
    wait_counted(&pair.server, &before, |counted| {
        counted.listen_drops >= u64::from(SYNS)
    });
    wait_for_cause(&mut tracer, "no_route");
    let counted = pair.server.counters().unwrap() - before;
    let run = tracer.checkpoint().unwrap();

    let other = run.total("syn_drop", &["other"]);
    let told = run.total("syn_drop", &["no_route"]) + other;
    assert_counted(&run, "ListenDrops", told, counted.listen_drops);
    if is_exact(&run) {
        assert_eq!(other, 0, "{run:#?}");
    }
    for finding in run.last_of(is_syn_drop) {
        assert_listener(finding, &pair.server, family.veth_listener());
    }
    assert_sound(&run, &pair.server);
}

/// With cookies off, the last quarter of `tcp_max_syn_backlog` is not for strangers.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn syn_queue_pressure_equals_listen_drops(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    pair.server
        .set_sysctl("net/ipv4/tcp_syncookies", "0")
        .unwrap();
    pair.server
        .set_sysctl("net/ipv4/tcp_max_syn_backlog", "8")
        .unwrap();
    let before = pair.server.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let _listener = knock(&pair, family, 64, family.ghost(), SYNS);
    // 8 - length < 2 from the seventh on: what is stored before is below that.
    wait_counted(&pair.server, &before, |counted| {
        counted.in_segs >= u64::from(SYNS) && counted.listen_drops >= u64::from(SYNS) - 7
    });
    wait_for_cause(&mut tracer, "syn_queue_pressure");
    let counted = pair.server.counters().unwrap() - before;
    let run = tracer.checkpoint().unwrap();

    let finding = only(&run, "syn_queue_pressure");
    assert_counted(&run, "ListenDrops", finding.count, counted.listen_drops);
    assert_eq!(counted.req_q_full_drop, 0);
    assert_eq!(run.last_of(is_syn_drop).len(), 1, "{run:#?}");
    assert_eq!(finding.number("max_syn_backlog"), 8);
    assert_listener(finding, &pair.server, family.veth_listener());
    assert_sound(&run, &pair.server);
}

/// Cookies save SYNs from a full SYN queue, and none from a full accept queue: the kernel counts both, and
/// what decides is the drop.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn cookies_do_not_help_a_full_accept_queue(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    pair.server
        .set_sysctl("net/ipv4/tcp_syncookies", "1")
        .unwrap();
    let before = pair.server.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    // Requests that stay, so that every later SYN finds the SYN queue full.
    let _listener = knock(&pair, family, 1, family.ghost(), SYNS);
    wait_counted(&pair.server, &before, |counted| {
        counted.in_segs >= u64::from(SYNS) && counted.syncookies_sent > 0
    });
    let clients = pair
        .client
        .run(|| {
            (0..CLIENTS)
                .map(|_| {
                    let client = tcp(family)?;
                    abort_on_close(&client)?;
                    connect_without_waiting(&client, family.veth_listener())?;
                    Ok(client)
                })
                .collect::<Result<Vec<_>, anyhow::Error>>()
        })
        .unwrap();
    wait_counted(&pair.server, &before, |counted| {
        counted.listen_overflows >= CLIENTS / 2
    });
    wait_for_cause(&mut tracer, "accept_queue_full");
    drop(clients);
    let counted = pair.server.counters().unwrap() - before;
    let run = tracer.checkpoint().unwrap();

    let drops = run.last_of(is_syn_drop);
    let told = overflows(&drops);
    assert_counted(&run, "ListenOverflows", told, counted.listen_overflows);
    assert_eq!(counted.listen_drops, counted.listen_overflows);
    let told = run.total("syn_cookies", &["syn_queue_full"]);
    assert_counted(&run, "SyncookiesSent", told, counted.syncookies_sent);
    assert!(counted.req_q_full_do_cookies > counted.syncookies_sent);
    for finding in drops {
        assert_listener(finding, &pair.server, family.veth_listener());
    }
    assert_sound(&run, &pair.server);
}

/// Two services of the same address and port, each in a namespace of its own, overflow at once: each has what its
/// namespace counted.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn listeners_of_two_namespaces_do_not_mix(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenarios = [
        AcceptQueueFull::new(family).unwrap(),
        AcceptQueueFull::new(family).unwrap(),
    ];
    let mut readers = Vec::new();
    for scenario in &scenarios {
        let Some(reader) = watch(&binary, &scenario.netns) else {
            return;
        };
        readers.push(reader);
    }
    std::thread::scope(|scope| {
        for scenario in &mut scenarios {
            scope.spawn(|| scenario.provoke().unwrap());
        }
    });
    for (scenario, mut reader) in scenarios.iter_mut().zip(readers) {
        reader
            .wait_for("a finding of each namespace", SOON, is_syn_drop)
            .unwrap();
        scenario.quiet().unwrap();
        let counted = scenario.netns.counters().unwrap();
        let run = reader.checkpoint().unwrap();

        let findings = run.last_of(is_syn_drop);
        let told = overflows(&findings);
        assert_counted(&run, "ListenOverflows", told, counted.listen_overflows);
        for finding in findings {
            assert_listener(finding, &scenario.netns, family.loopback_listener());
        }
        assert_sound(&run, &scenario.netns);
    }
}

/// What a CPU counted before conntracer looked there for the first time is none of the SYN's that it looks at: a tracer of its
/// own, which starts afterwards.
#[test]
fn a_syn_is_not_judged_by_what_was_before() {
    let family = Family::V4;
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let mut before = AcceptQueueFull::within(netns.clone(), family);
    // Over loopback a SYN is received where it was sent.
    cpu::on_each(|| {
        before.provoke()?;
        before.quiet()
    })
    .unwrap();
    drop(before);
    let Some(mut tracer) = trace(&binary, &netns, &["--emit", "syn"]) else {
        return;
    };
    let address = family.loopback_listener();
    let listener = netns.run(|| listen(family, address, 64)).unwrap();
    let cpus = cpu::on_each(|| {
        let client = netns.run(|| {
            let client = tcp(family)?;
            client.connect(&address.into())?;
            Ok(client)
        })?;
        listener.accept()?;
        drop(client);
        Ok(())
    })
    .unwrap();
    assert_totals(&mut tracer, cpus);
    drop(listener);
    let run = tracer.stop().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &netns);
}

/// An MPTCP listener is a TCP listener to its clients.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn mptcp_listener_overflows_like_any_other(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = AcceptQueueFull::new(family).unwrap();
    let Some(socket) = scenario.netns.run(|| socket::mptcp(family)).unwrap() else {
        return lacking("this kernel has no MPTCP");
    };
    let Some(mut tracer) = watch(&binary, &scenario.netns) else {
        return;
    };
    scenario.provoke_with(socket).unwrap();
    wait_for_cause(&mut tracer, "accept_queue_full");
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    let run = tracer.checkpoint().unwrap();

    let findings = run.last_of(is_syn_drop);
    let told = overflows(&findings);
    assert_counted(&run, "ListenOverflows", told, counted.listen_overflows);
    for finding in findings {
        assert_listener(finding, &scenario.netns, family.loopback_listener());
    }
    assert_sound(&run, &scenario.netns);
}

/// Data with the SYN makes a connection at once: each is one SYN added and one connection, no drop.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn fast_open_is_added_and_completed(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    // Client and server, both without a cookie (Documentation/networking/ip-sysctl.rst).
    netns.set_sysctl("net/ipv4/tcp_fastopen", "519").unwrap();
    let before = netns.counters().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &["syn"]) else {
        return;
    };
    let address = family.loopback_listener();
    let listener = netns
        .run(|| {
            let listener = listen(family, address, 64)?;
            take_fast_opens(&listener, 64)?;
            for _ in 0..CLIENTS {
                let mut client = tcp(family)?;
                connect_with_data(&client)?;
                client.connect(&address.into())?;
                client.write_all(b"now")?;
                // A close() with the data unread would be a finding of its own.
                let (mut accepted, _) = listener.accept()?;
                accepted.read_exact(&mut [0; 3])?;
            }
            Ok(listener)
        })
        .unwrap();
    let counted = netns.counters().unwrap() - before;
    assert_eq!(counted.fast_open_passive, CLIENTS, "{counted:#?}");
    assert_totals(&mut tracer, CLIENTS);
    drop(listener);
    let run = tracer.checkpoint().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &netns);
}

/// A listener that waits for data discards every bare third ACK: that is what it was asked to do, and no drop.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn deferred_accepts_are_added_and_completed(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let before = netns.counters().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &["syn"]) else {
        return;
    };
    let address = family.loopback_listener();
    let listener = netns
        .run(|| {
            let listener = listen(family, address, 64)?;
            defer_accept(&listener, 10)?;
            for _ in 0..CLIENTS {
                let mut client = tcp(family)?;
                client.connect(&address.into())?;
                client.write_all(b"now")?;
                let (mut accepted, _) = listener.accept()?;
                accepted.read_exact(&mut [0; 3])?;
            }
            Ok(listener)
        })
        .unwrap();
    let counted = netns.counters().unwrap() - before;
    // Once more where a SYN-ACK was retransmitted before the data came.
    assert!(counted.defer_accept_drop >= CLIENTS, "{counted:#?}");
    assert_totals(&mut tracer, CLIENTS);
    drop(listener);
    let run = tracer.checkpoint().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &netns);
}

/// The same of MPTCP clients of an MPTCP listener.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn mptcp_clients_are_added_and_completed(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(socket) = netns.run(|| socket::mptcp(family)).unwrap() else {
        return lacking("this kernel has no MPTCP");
    };
    let Some(mut tracer) = watch_events(&binary, &netns, &["syn"]) else {
        return;
    };
    let address = family.loopback_listener();
    let listener = netns
        .run(|| {
            let listener = listen_on(socket, address, 64)?;
            for _ in 0..CLIENTS {
                let Some(client) = socket::mptcp(family)? else {
                    continue;
                };
                client.connect(&address.into())?;
                drop(listener.accept()?);
            }
            Ok(listener)
        })
        .unwrap();
    assert_totals(&mut tracer, CLIENTS);
    drop(listener);
    let run = tracer.checkpoint().unwrap();
    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &netns);
}

/// Every connection was added and completed, but for what the kernel skipped, and nothing else became of any.
#[track_caller]
fn assert_totals(tracer: &mut Watch, connections: u64) {
    let totals = |run: &Run| {
        let syns = run.events().filter(|(kind, _)| *kind == "syn");
        // The totals of a listener only grow.
        syns.last().map(|(_, event)| event.clone())
    };
    let number = |event: &Value, name: &str| event[name].as_u64().unwrap_or_default();
    let run = tell_all(tracer, &["syn", "ack"], connections, |run| {
        totals(run).map_or(0, |event| {
            number(&event, "added").min(number(&event, "completed"))
        })
    });
    let event = totals(&run).expect("the listener's totals were told");
    assert_seen(&run, &["syn"], number(&event, "added"), connections);
    assert_seen(&run, &["ack"], number(&event, "completed"), connections);
    for name in [
        "syn_cookies",
        "accept_queue_full",
        "syn_queue_full",
        "syn_queue_pressure",
        "no_route",
        "other",
        "ack_overflow",
        "ack_other",
    ] {
        assert_eq!(event[name], 0, "{name}: {event}");
    }
    assert_eq!(event["network.local.port"], SERVER_PORT);
}

/// A listener of the server, and SYNs to it whose answers nobody hears.
#[track_caller]
fn knock(pair: &Pair, family: Family, backlog: i32, from: std::net::IpAddr, count: u16) -> Socket {
    let address = family.veth_listener();
    let listener = pair
        .server
        .run(|| listen(family, address, backlog))
        .unwrap();
    pair.client
        .run(|| {
            (0..count).try_for_each(|number| {
                send_syn(family, SocketAddr::new(from, 20_000 + number), address)
            })
        })
        .unwrap();
    listener
}

#[track_caller]
fn wait_counted(netns: &NetNs, before: &Counters, enough: impl Fn(&Counters) -> bool) {
    wait::until("the kernel to count the SYNs", SOON, || {
        Ok(enough(&(netns.counters()? - *before)).then_some(()))
    })
    .unwrap();
}

#[track_caller]
fn wait_for_cause(tracer: &mut Watch, cause: &str) {
    tracer
        .wait_for(&format!("a finding {cause}"), SOON, |finding| {
            is_syn_drop(finding) && finding.cause == cause
        })
        .unwrap();
}

#[track_caller]
fn only<'a>(run: &'a Run, cause: &str) -> &'a Finding {
    match run
        .last_of(|finding| is_syn_drop(finding) && finding.cause == cause)
        .as_slice()
    {
        [only] => only,
        all => panic!("expected one finding {cause}, got {all:#?}: {run:#?}"),
    }
}

/// Whether the plan promises the cause of every SYN; where it does not, the first SYN on each CPU has
/// nothing to be compared with.
fn is_exact(run: &Run) -> bool {
    run.start
        .plan
        .detectors
        .iter()
        .any(|plan| plan.detector == "syn_drop" && plan.coverage == Coverage::Exact)
}
