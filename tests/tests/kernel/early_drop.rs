//! `syn_drop` before a listener decides: every SYN that was sent is in the finding of the right cause,
//! and in no other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use conntracer_tests::{
    counters::Counters,
    family::{Family, SERVER_PORT},
    line::{Certainty, Coverage, Finding, Subject},
    netfilter::{self, Hook},
    netns::{COMM, NetNs},
    output::Run,
    scenario::early_drop::{Obstacle, Refused, SYNS},
    socket::{connect_without_waiting, listen_on, tcp},
    wait::{self, EVENTUALLY, SOON},
};
use rstest::rstest;

use crate::support::{
    assert_said, assert_seen, assert_sound, binary, is_syn_drop, lacking, tell_all, watch,
    watch_events,
};

const DETECTOR: &str = "syn_drop.early_drop";
/// What tells of SYNs that no listener saw.
pub(crate) const HOOKS: [&str; 1] = ["drop"];

#[rstest]
#[case::closed_port_v4(Family::V4, Obstacle::ClosedPort, "no_listener")]
#[case::closed_port_v6(Family::V6, Obstacle::ClosedPort, "no_listener")]
#[case::input_v4(Family::V4, Obstacle::Firewall(Hook::Input), "filtered")]
#[case::input_v6(Family::V6, Obstacle::Firewall(Hook::Input), "filtered")]
#[case::prerouting_v4(Family::V4, Obstacle::Firewall(Hook::Prerouting), "filtered")]
#[case::prerouting_v6(Family::V6, Obstacle::Firewall(Hook::Prerouting), "filtered")]
#[case::reverse_path_v4(Family::V4, Obstacle::ReversePath, "reverse_path")]
#[case::bad_checksum_v4(Family::V4, Obstacle::BadChecksum, "bad_checksum")]
#[case::bad_checksum_v6(Family::V6, Obstacle::BadChecksum, "bad_checksum")]
#[case::md5_v4(Family::V4, Obstacle::Md5, "auth")]
#[case::md5_v6(Family::V6, Obstacle::Md5, "auth")]
#[case::authentication_v4(Family::V4, Obstacle::Authentication, "auth")]
#[case::authentication_v6(Family::V6, Obstacle::Authentication, "auth")]
#[case::xdp_v4(Family::V4, Obstacle::Xdp, "filtered")]
#[case::socket_filter_v4(Family::V4, Obstacle::SocketFilter, "socket_filter")]
#[case::socket_filter_v6(Family::V6, Obstacle::SocketFilter, "socket_filter")]
fn every_syn_is_in_the_finding_of_its_cause(
    #[case] family: Family,
    #[case] obstacle: Obstacle,
    #[case] cause: &str,
) {
    let Some(binary) = binary() else { return };
    let mut scenario = Refused::new(family, obstacle).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    if !scenario.listen().unwrap() {
        lacking(&format!("this kernel lacks what {obstacle:?} needs"));
        return;
    }
    scenario.send().unwrap();
    let run = tell_all(&mut tracer, &HOOKS, SYNS.into(), dropped);
    let counted = scenario.counted().unwrap();

    let finding = only(&run);
    assert_eq!(finding.cause, cause, "{finding:#?}");
    assert_seen(&run, &HOOKS, finding.count, SYNS.into());
    if let Some(kernels) = kernels_count(&counted, obstacle) {
        assert_eq!(kernels, u64::from(SYNS), "{counted:#?}");
    }
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: server.inode(),
            local: scenario.address()
        }
    );
    assert_owner(&run, finding, obstacle);
    if obstacle == Obstacle::Xdp {
        // Which of its programs dropped a packet the kernel does not say.
        assert_eq!(finding.certainty, Certainty::Inferred, "{finding:#?}");
    } else if matches!(obstacle, Obstacle::Firewall(_)) {
        // No process leads to what conntrack counts there: a rule, or conntrack.
        assert_eq!(finding.evidence["filtered_by"], "not_known", "{finding:#?}");
        assert_eq!(finding.certainty, Certainty::Inferred, "{finding:#?}");
        assert!(
            finding.summary.contains("a rule, or conntrack"),
            "{finding:#?}"
        );
    } else {
        assert_certainty(&run, finding);
    }
    if let Obstacle::Firewall(hook) = obstacle {
        let hook = match hook {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
        };
        assert_eq!(finding.evidence["netfilter_hook"], hook, "{finding:#?}");
    }
    assert_eq!(
        finding.evidence["interface"],
        conntracer_tests::link::SERVER,
        "{finding:#?}"
    );
    assert_eq!(finding.number("remotes_at_least"), 1);
    assert!(!finding.advice.is_empty(), "{finding:#?}");
    assert_said(&run, DETECTOR);
    assert_sound(&run, &server);
}

/// Where a process leads to what conntrack counts, a rule is told from it.
#[rstest]
#[case::input(Hook::Input)]
#[case::prerouting(Hook::Prerouting)]
fn a_rule_is_named_where_conntrack_is_excluded(#[case] hook: Hook) {
    let Some(binary) = binary() else { return };
    let mut scenario = Refused::new(Family::V4, Obstacle::Firewall(hook)).unwrap();
    let server = scenario.pair.server.clone();
    let _inhabitant = server.inhabit().unwrap();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.listen().unwrap();
    scenario.send().unwrap();
    // The process may be found by a search that comes later.
    tracer
        .wait_for("a rule to be told of", EVENTUALLY, |finding| {
            is_syn_drop(finding) && finding.evidence["filtered_by"] == "rule"
        })
        .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, SYNS.into(), dropped);

    let finding = only(&run);
    assert_eq!(finding.cause, "filtered", "{finding:#?}");
    assert!(
        finding.summary.contains("by a netfilter rule"),
        "{finding:#?}"
    );
    assert_certainty(&run, finding);
    assert_sound(&run, &server);
}

/// Who listens on the port for somebody else: what the finding says of it.
#[rstest]
#[case::on_another_address("other_address", "and not on that address")]
#[case::for_ipv6("other_family", "for IPv6 alone")]
#[case::for_a_device("other_device", "for one device alone")]
fn who_listens_for_others_is_told_from_nobody(#[case] listens_for: &str, #[case] said: &str) {
    let Some(binary) = binary() else { return };
    let scenario = Refused::new(Family::V4, Obstacle::ClosedPort).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let _listener = server
        .run(|| {
            let any = Ipv4Addr::UNSPECIFIED;
            let (socket, address) = match listens_for {
                "other_address" => (tcp(Family::V4)?, Family::V4.loopback_listener()),
                "other_family" => {
                    let socket = tcp(Family::V6)?;
                    socket.set_only_v6(true)?;
                    (
                        socket,
                        SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), SERVER_PORT),
                    )
                }
                _ => {
                    let socket = tcp(Family::V4)?;
                    socket.bind_device(Some(b"lo"))?;
                    (socket, SocketAddr::new(any.into(), SERVER_PORT))
                }
            };
            listen_on(socket, address, 16)
        })
        .unwrap();
    scenario.send().unwrap();
    // The poll that shows the listener may be the one after the finding.
    tracer
        .wait_for("who listens", SOON, |finding| {
            is_syn_drop(finding) && finding.summary.contains(said)
        })
        .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, SYNS.into(), dropped);

    let finding = only(&run);
    assert_eq!(finding.cause, "no_listener", "{finding:#?}");
    assert_eq!(finding.evidence["listens_for"], listens_for, "{finding:#?}");
    assert_eq!(
        finding.number("listening_pid"),
        u64::from(std::process::id())
    );
    assert!(!finding.summary.contains("any more"), "{finding:#?}");
    assert_certainty(&run, finding);
    assert_sound(&run, &server);
}

/// Listeners that take them by the same port: of every address, of both families, of the device by which they come.
#[rstest]
#[case::on_every_address("every_address")]
#[case::for_both_families("both_families")]
#[case::for_their_device("their_device")]
fn who_listens_for_these_is_no_finding(#[case] listens_for: &str) {
    let Some(binary) = binary() else { return };
    let scenario = Refused::new(Family::V4, Obstacle::ClosedPort).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let _listener = server
        .run(|| {
            let socket = match listens_for {
                "both_families" => {
                    let socket = tcp(Family::V6)?;
                    socket.set_only_v6(false)?;
                    socket
                }
                "their_device" => {
                    let socket = tcp(Family::V4)?;
                    socket.bind_device(Some(conntracer_tests::link::SERVER.as_bytes()))?;
                    socket
                }
                _ => tcp(Family::V4)?,
            };
            let any: IpAddr = if listens_for == "both_families" {
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                Ipv4Addr::UNSPECIFIED.into()
            };
            listen_on(socket, SocketAddr::new(any, SERVER_PORT), 16)
        })
        .unwrap();
    scenario.send().unwrap();
    wait::until("every SYN to arrive", SOON, || {
        let counted = scenario.counted()?;
        Ok((counted.in_segs >= u64::from(SYNS)).then_some(()))
    })
    .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert!(run.last_of(is_syn_drop).is_empty(), "{run:#?}");
    assert_eq!(scenario.counted().unwrap().out_rsts, 0);
    assert_sound(&run, &server);
}

/// A packet socket is given a copy of each SYN, without device or route: that is no SYN.
#[test]
fn copies_for_a_sniffer_are_no_syns() {
    let Some(binary) = binary() else { return };
    let mut scenario = Refused::new(Family::V4, Obstacle::None).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let sniffer = server.run(sniffer).unwrap();
    scenario.listen().unwrap();
    scenario.send().unwrap();
    wait::until("the copies to be read", SOON, || {
        let mut read = 0;
        while sniffer
            .recv(&mut [std::mem::MaybeUninit::uninit(); 128])
            .is_ok()
        {
            read += 1;
        }
        Ok((read > 0).then_some(()))
    })
    .unwrap();
    wait::until("every SYN to arrive", SOON, || {
        let counted = scenario.counted()?;
        Ok((counted.in_segs >= u64::from(SYNS)).then_some(()))
    })
    .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert!(run.last_of(is_syn_drop).is_empty(), "{run:#?}");
    // Each copy would have been one; the kernel may have skipped one of another test.
    assert!(run.lost("syn") < SYNS.into(), "{run:#?}");
    assert_sound(&run, &server);
}

/// A socket that is given everything, and does not wait.
fn sniffer() -> anyhow::Result<socket2::Socket> {
    /// `ETH_P_ALL` (linux/if_ether.h), in network order.
    const ALL: i32 = (3_u16).to_be() as i32;
    let socket = socket2::Socket::new(
        socket2::Domain::PACKET,
        socket2::Type::RAW,
        Some(socket2::Protocol::from(ALL)),
    )?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Over loopback the sender's packets pass through the same namespace: each SYN is one all the same.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn refused_connects_over_loopback_count_once(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let before = netns.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = family.loopback_listener();
    netns
        .run(|| {
            (0..SYNS).try_for_each(|_| {
                let client = tcp(family)?;
                // Refused at once, or a moment later where the softirq is.
                match connect_without_waiting(&client, address) {
                    Err(error) if !is_refused(&error) => Err(error),
                    _ => Ok(()),
                }
            })
        })
        .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, SYNS.into(), dropped);
    let counted = netns.counters().unwrap() - before;

    let finding = only(&run);
    assert_eq!(finding.cause, "no_listener", "{finding:#?}");
    assert_seen(&run, &HOOKS, finding.count, SYNS.into());
    assert_eq!(counted.out_rsts, u64::from(SYNS), "{counted:#?}");
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: netns.inode(),
            local: address
        }
    );
    assert_certainty(&run, finding);
    assert_sound(&run, &netns);
}

/// A listener of IPv6 alone is not the one that an IPv4 SYN was for.
#[test]
fn syns_beside_a_listener_of_ipv6_only_find_none() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let _listener = netns
        .run(|| {
            let socket = tcp(Family::V6)?;
            socket.set_only_v6(true)?;
            let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), SERVER_PORT);
            let listener = listen_on(socket, any, 16)?;
            for _ in 0..SYNS {
                let refused = tcp(Family::V4)?.connect(&address.into());
                assert!(
                    refused
                        .is_err_and(|error| { error.raw_os_error() == Some(libc::ECONNREFUSED) })
                );
            }
            Ok(listener)
        })
        .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, SYNS.into(), dropped);

    let finding = only(&run);
    assert_eq!(finding.cause, "no_listener", "{finding:#?}");
    assert_seen(&run, &HOOKS, finding.count, SYNS.into());
    assert!(finding.owner.is_none(), "{finding:#?}");
    assert_certainty(&run, finding);
    assert_sound(&run, &netns);
}

/// What this host's own firewall keeps from leaving is no SYN that came in.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn syns_dropped_on_their_way_out_are_no_finding(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    netns.run(|| netfilter::drop_at(Hook::Output)).unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &["drop"]) else {
        return;
    };
    let clients: Vec<_> = netns
        .run(|| {
            (0..SYNS)
                .map(|_| {
                    let client = tcp(family)?;
                    // The kernel may say at once that it was not sent, or try again.
                    let _ = connect_without_waiting(&client, family.loopback_listener());
                    Ok(client)
                })
                .collect()
        })
        .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, SYNS.into(), |run| {
        run.events().count() as u64
    });
    drop(clients);

    assert!(run.last_of(is_syn_drop).is_empty(), "{run:#?}");
    assert_sound(&run, &netns);
}

/// A client that repeats its SYN is answered again, and the repeated SYN freed: that is no drop.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn repeated_syns_are_no_finding(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = Refused::new(family, Obstacle::None).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.listen().unwrap();
    for _ in 0..5 {
        scenario.send().unwrap();
    }
    wait::until("every SYN to arrive", SOON, || {
        let counted = scenario.counted()?;
        Ok((counted.in_segs >= 5 * u64::from(SYNS)).then_some(()))
    })
    .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert!(run.last_of(is_syn_drop).is_empty(), "{run:#?}");
    assert_sound(&run, &server);
}

/// Many ports, one SYN each: one finding that says how many.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_port_scan_is_one_finding(#[case] family: Family) {
    const PORTS: u16 = 200;
    let Some(binary) = binary() else { return };
    let scenario = Refused::new(family, Obstacle::ClosedPort).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    for port in 0..PORTS {
        scenario.send_one(port, SERVER_PORT + port).unwrap();
    }
    let run = tell_all(&mut tracer, &HOOKS, PORTS.into(), dropped);
    let counted = scenario.counted().unwrap();

    let finding = only(&run);
    assert_seen(&run, &HOOKS, finding.count, PORTS.into());
    assert_seen(&run, &HOOKS, finding.number("ports"), PORTS.into());
    assert_eq!(counted.out_rsts, u64::from(PORTS), "{counted:#?}");
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: server.inode(),
            local: (family.server(), 0).into()
        }
    );
    assert_sound(&run, &server);
}

/// What the kernel counts for an obstacle, where it counts anything.
fn kernels_count(counted: &Counters, obstacle: Obstacle) -> Option<u64> {
    match obstacle {
        Obstacle::ClosedPort => Some(counted.out_rsts),
        Obstacle::ReversePath => Some(counted.reverse_path),
        Obstacle::BadChecksum => Some(counted.in_csum_errors),
        Obstacle::Md5 => Some(counted.md5_not_found),
        Obstacle::Authentication => Some(counted.ao_required),
        Obstacle::None | Obstacle::Firewall(_) | Obstacle::Xdp | Obstacle::SocketFilter => None,
    }
}

fn is_refused(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// SYNs that were told to be dropped.
pub(crate) fn dropped(run: &Run) -> u64 {
    let findings = run.last_of(is_syn_drop);
    findings.iter().map(|finding| finding.count).sum()
}

#[track_caller]
pub(crate) fn only(run: &Run) -> &Finding {
    match run.last_of(is_syn_drop).as_slice() {
        [only] => only,
        all => panic!("expected one syn_drop finding: {all:#?}"),
    }
}

/// Whose a listener is, the state hook tells when it listens: where that was lost, nobody knows.
#[track_caller]
fn assert_owner(run: &Run, finding: &Finding, obstacle: Obstacle) {
    if obstacle == Obstacle::ClosedPort {
        assert_eq!(finding.owner, None, "{finding:#?}");
        return;
    }
    if finding.owner.is_none() && run.missed("state") > 0 {
        return;
    }
    let owner = finding
        .owner
        .as_ref()
        .unwrap_or_else(|| panic!("this process owns the listener: {finding:#?}"));
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
}

/// Exact where the kernel gives its reasons, and nothing was ever lost. What was lost while the watch was open may have
/// come after the finding was said last.
#[track_caller]
fn assert_certainty(run: &Run, finding: &Finding) {
    let plan = run
        .start
        .plan
        .detectors
        .iter()
        .find(|plan| plan.detector == DETECTOR)
        .unwrap_or_else(|| panic!("the plan does not speak of {DETECTOR}"));
    let is_exact = finding.certainty == Certainty::Exact;
    let (lost, since) = (run.totals.hooks["drop"].lost, run.lost("drop"));
    if lost == 0 || lost > since || plan.coverage != Coverage::Exact {
        let expected = plan.coverage == Coverage::Exact && lost == 0;
        assert_eq!(is_exact, expected, "{lost} lost: {finding:#?}");
    }
    assert_eq!(finding.because.is_none(), is_exact, "{finding:#?}");
}
