use std::time::Duration;

use conntracer_common::record::{self, early_drop_hint, early_drop_place, path};
use rstest::rstest;

use crate::{
    detect::{Thresholds, restart::PATIENCE},
    finding::{Certainty, Status, Subject, Value},
    testing::{Run, evidence, host, listener, socket},
};

pub(super) const LOCAL: &str = "10.0.0.1:80";
pub(super) const REMOTE: &str = "10.0.0.2:4000";

#[rstest]
#[case::v4(LOCAL, REMOTE)]
#[case::v6("[fd00::1]:80", "[fd00::2]:4000")]
fn syns_to_a_closed_port_open_at_the_third_and_count_the_kernels_total(
    #[case] local: &str,
    #[case] remote: &str,
) {
    let mut run = Run::new();
    for count in 1..=2 {
        run.early_drop(socket(local, remote), count, "NO_SOCKET", |_| {});
        run.pass(Duration::from_secs(1));
    }
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
    run.early_drop(socket(local, remote), 3, "NO_SOCKET", |_| {});
    run.tick();
    run.early_drop(socket(local, remote), 40, "NO_SOCKET", |_| {});
    run.pass(Duration::from_secs(11));
    let finding = run.only();
    assert_eq!(finding.kind.name(), "syn_drop");
    assert_eq!(finding.cause, "no_listener");
    assert_eq!(finding.count, 40);
    assert_eq!(finding.certainty, Certainty::Exact);
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: 4026,
            local: local.parse().unwrap()
        }
    );
    assert_eq!(
        run.statuses(),
        [Status::Open, Status::Update, Status::Resolved]
    );
    assert_eq!(
        evidence(finding, "reason"),
        &Value::Text("NO_SOCKET".into())
    );
    run.assert_replays(Thresholds::default());
}

#[rstest]
#[case::no_listener("NO_SOCKET", "no_listener")]
#[case::filtered("NETFILTER_DROP", "filtered")]
#[case::xdp("XDP", "filtered")]
#[case::reverse_path("IP_RPFILTER", "reverse_path")]
#[case::md5("TCP_MD5NOTFOUND", "auth")]
#[case::ao("TCP_AOFAILURE", "auth")]
#[case::bad_checksum("TCP_CSUM", "bad_checksum")]
#[case::socket_filter("SOCKET_FILTER", "socket_filter")]
#[case::no_memory("NOMEM", "no_memory")]
#[case::ttl("TCP_MINTTL", "other")]
#[case::security("SECURITY_HOOK", "other")]
fn causes_are_the_kernels_reasons_by_name(#[case] reason: &str, #[case] cause: &str) {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 5, reason, |_| {});
    run.finish();
    assert_eq!((run.only().cause.as_ref(), run.only().count), (cause, 5));
    // A rule, or conntrack: nothing is known of the latter here.
    let expected = if reason == "NETFILTER_DROP" {
        Certainty::Inferred
    } else {
        Certainty::Exact
    };
    assert_eq!(run.only().certainty, expected);
}

/// What listens on the port, shown by the poll after the drop, and what is said.
#[rstest]
#[case::nobody(None, "nothing listens there", "start what should listen")]
#[case::on_loopback(
    Some("127.0.0.1:80"),
    "listens on 127.0.0.1:80, and not on that address",
    "listen on 10.0.0.1 too"
)]
#[case::for_ipv6(Some("[::]:80"), "for IPv6 alone", "without IPV6_V6ONLY")]
#[case::for_a_device(Some("0.0.0.0:80"), "for one device alone", "without SO_BINDTODEVICE")]
fn who_listens_for_others_is_told_from_nobody(
    #[case] local: Option<&str>,
    #[case] said: &str,
    #[case] advice: &str,
) {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 3, "NO_SOCKET", |_| {});
    run.skip(Duration::from_millis(1));
    if let Some(local) = local {
        let any = if local.starts_with('[') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        run.syn(listener(local, any), |syn| {
            syn.outcome = u8::MAX;
            syn.flags = 1;
            syn.bound_ifindex = 7;
        });
    }
    run.tick();
    let finding = run.only();
    assert!(finding.summary.contains(said), "{}", finding.summary);
    assert!(finding.advice[0].contains(advice), "{:?}", finding.advice);
    run.assert_replays(Thresholds::default());
}

#[test]
fn who_listens_since_is_not_said_to_have_gone() {
    let mut run = Run::new();
    run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
    run.early_drop(socket(LOCAL, REMOTE), 3, "NO_SOCKET", |_| {});
    run.skip(Duration::from_millis(1));
    run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
    run.tick();
    let finding = run.only();
    assert!(
        finding.summary.ends_with("listens on 0.0.0.0:80 by now"),
        "{}",
        finding.summary
    );
    assert!(
        finding
            .evidence
            .iter()
            .all(|fact| fact.name != "was_listening_pid")
    );
}

#[rstest]
#[case::a_repeated_syn("NOT_SPECIFIED", path::INPUT, 2)]
#[case::within_a_connection("TCP_INVALID_SYN", path::INPUT, 2)]
#[case::passing_through("NEIGH_FAILED", path::FORWARD, 2)]
#[case::without_a_route("NEIGH_FAILED", path::PREROUTING, 2)]
#[case::to_nobody_here("IP_INNOROUTES", path::FORWARD, 2)]
#[case::never_received("SECURITY_HOOK", path::INPUT, 0)]
fn what_is_no_drop_of_a_syn_to_this_host_is_no_finding(
    #[case] reason: &str,
    #[case] path: u8,
    #[case] ifindex: u32,
) {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 100, reason, |early_drop| {
        early_drop.path = path;
        early_drop.ifindex = ifindex;
    });
    run.pass(Duration::from_secs(1));
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_drop_at_a_device_with_generic_xdp_is_concluded_to_be_its_programs() {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 5, "NOT_SPECIFIED", |early_drop| {
        early_drop.path = path::PREROUTING;
        early_drop.hints = early_drop_hint::XDP;
    });
    run.finish();
    let finding = run.only();
    assert_eq!((finding.cause.as_ref(), finding.count), ("filtered", 5));
    assert_eq!(finding.certainty, Certainty::Inferred);
    assert!(finding.because.as_ref().unwrap().contains("XDP"));
}

#[rstest]
#[case::netfilter(early_drop_place::NETFILTER, 0, "filtered")]
#[case::route(
    early_drop_place::ROUTE,
    early_drop_hint::COUNTED | early_drop_hint::REVERSE_PATH,
    "reverse_path"
)]
#[case::no_route(early_drop_place::ROUTE, early_drop_hint::COUNTED, "other")]
#[case::checksum(
    early_drop_place::TCP,
    early_drop_hint::COUNTED | early_drop_hint::CHECKSUM,
    "bad_checksum"
)]
#[case::md5(
    early_drop_place::TCP,
    early_drop_hint::COUNTED | early_drop_hint::LISTENER | early_drop_hint::MD5,
    "auth"
)]
#[case::filter(
    early_drop_place::TCP,
    early_drop_hint::COUNTED | early_drop_hint::LISTENER | early_drop_hint::SOCKET_FILTER,
    "socket_filter"
)]
#[case::nobody(
    early_drop_place::TCP,
    early_drop_hint::COUNTED | early_drop_hint::RESET_SENT,
    "no_listener"
)]
fn without_reasons_causes_are_concluded_and_say_so(
    #[case] place: u8,
    #[case] hints: u8,
    #[case] cause: &str,
) {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 5, "", |early_drop| {
        early_drop.place = place;
        early_drop.hints = hints;
        early_drop.location = 0xffff_ffff_8100_0000;
    });
    run.finish();
    let finding = run.only();
    assert_eq!((finding.cause.as_ref(), finding.count), (cause, 5));
    assert_eq!(finding.certainty, Certainty::Inferred);
    assert!(
        finding
            .because
            .as_ref()
            .unwrap()
            .contains("gives no drop reasons")
    );
}

#[test]
fn a_repeated_syn_without_reasons_is_no_finding() {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 100, "", |early_drop| {
        early_drop.place = early_drop_place::TCP;
        early_drop.hints = early_drop_hint::COUNTED | early_drop_hint::LISTENER;
    });
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn stray_probes_far_apart_are_no_finding() {
    let mut run = Run::new();
    for count in 1..=20 {
        run.early_drop(socket(LOCAL, REMOTE), count, "NO_SOCKET", |_| {});
        run.pass(Duration::from_secs(11));
    }
    run.finish();
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn a_port_scan_is_one_finding() {
    let mut run = Run::new();
    for port in 1..=1000 {
        run.early_drop(
            socket(&format!("10.0.0.1:{port}"), REMOTE),
            1,
            "NO_SOCKET",
            |_| {},
        );
    }
    run.tick();
    // Repeated in the same order, as scanners do: still the same scan.
    for count in 2..=5 {
        for port in 1..=1000 {
            run.early_drop(
                socket(&format!("10.0.0.1:{port}"), REMOTE),
                count,
                "NO_SOCKET",
                |_| {},
            );
        }
        run.pass(Duration::from_secs(2));
    }
    run.pass(Duration::from_secs(11));
    let finding = run.only();
    assert_eq!(finding.cause, "no_listener");
    assert_eq!(finding.count, 5000);
    assert_eq!(evidence(finding, "ports"), &Value::Count(1000));
    assert_eq!(
        finding.subject,
        Subject::Listener {
            netns: 4026,
            local: "10.0.0.1:0".parse().unwrap()
        }
    );
    assert_eq!(finding.status, Status::Resolved);
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_closed_port_that_clients_want_stands_beside_a_scan() {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 5, "NO_SOCKET", |_| {});
    run.tick();
    for port in 100..200 {
        run.early_drop(
            socket(&format!("10.0.0.1:{port}"), REMOTE),
            1,
            "NO_SOCKET",
            |_| {},
        );
    }
    run.tick();
    run.early_drop(socket(LOCAL, REMOTE), 9, "NO_SOCKET", |_| {});
    run.finish();
    let found: Vec<_> = run
        .last_words()
        .iter()
        .map(|finding| finding.count)
        .collect();
    assert_eq!(found, [9, 100]);
}

/// A scan of a hundred ports, in the midst of which one is wanted `count` times; the SYNs of each finding.
fn outage_in_a_scan(run: &mut Run, port: u16, count: u64) -> Vec<u64> {
    for port in 100..200 {
        run.early_drop(
            socket(&format!("10.0.0.1:{port}"), REMOTE),
            1,
            "NO_SOCKET",
            |_| {},
        );
    }
    run.tick();
    for count in 1..=count {
        run.early_drop(
            socket(&format!("10.0.0.1:{port}"), "10.0.0.3:4000"),
            count,
            "NO_SOCKET",
            |_| {},
        );
        run.pass(Duration::from_secs(1));
    }
    run.finish();
    let found = run.last_words();
    found.iter().map(|finding| finding.count).collect()
}

#[test]
fn a_service_that_is_gone_is_told_of_in_the_midst_of_a_scan() {
    let mut run = Run::new();
    run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
    assert_eq!(outage_in_a_scan(&mut run, 80, 24), [100, 24]);
    let found = run.last_words();
    assert_eq!(found[0].status, Status::Resolved, "the scan is over");
    assert_eq!(evidence(found[1], "was_listening_pid"), &Value::Count(1234));
    run.assert_replays(Thresholds::default());
}

#[rstest]
#[case::no_more_than_a_scanner_tries(15, &[115])]
#[case::more(16, &[100, 16])]
fn a_port_that_is_wanted_by_far_the_most_is_no_part_of_a_scan(
    #[case] count: u64,
    #[case] found: &[u64],
) {
    let mut run = Run::new();
    assert_eq!(outage_in_a_scan(&mut run, 443, count), found);
}

#[test]
fn what_found_the_kernels_map_full_is_a_scan() {
    let mut run = Run::new();
    run.early_drop(socket("0.0.0.0:0", REMOTE), 77, "NETFILTER_DROP", |_| {});
    run.tick();
    assert_eq!(
        (run.only().cause.as_ref(), run.only().count),
        ("filtered", 77)
    );
}

/// A scan of more ports than the eBPF side has room for: those that it kept are of one address.
#[rstest]
#[case::one(&["10.0.0.1"], "70 ports of 10.0.0.1 and more that found no room")]
#[case::several(&["10.0.0.1", "10.0.0.3"], "70 ports of several addresses and more that found no room")]
fn a_scan_is_of_the_addresses_that_are_known(#[case] addresses: &[&str], #[case] said: &str) {
    let mut run = Run::new();
    for port in 0..70_usize {
        let address = addresses[port % addresses.len()];
        run.early_drop(
            socket(&format!("{address}:{}", 1000 + port), REMOTE),
            1,
            "NO_SOCKET",
            |_| {},
        );
    }
    run.early_drop(socket("0.0.0.0:0", REMOTE), 900, "NO_SOCKET", |_| {});
    run.tick();
    let summary = &run.only().summary;
    assert!(summary.contains(said), "{summary}");
}

#[test]
fn an_entry_that_was_removed_and_came_again_counts_from_its_beginning() {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 10, "NO_SOCKET", |_| {});
    run.tick();
    run.early_drop(socket(LOCAL, REMOTE), 4, "NO_SOCKET", |early_drop| {
        early_drop.first_ns += 1;
    });
    // Late, of the first entry: takes nothing back and adds nothing.
    run.early_drop(socket(LOCAL, REMOTE), 9, "NO_SOCKET", |_| {});
    run.finish();
    assert_eq!(run.only().count, 14);
}

#[test]
fn who_listened_before_is_named() {
    let mut run = Run::new();
    run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
    run.early_drop(socket(LOCAL, REMOTE), 3, "NO_SOCKET", |_| {});
    run.pass(PATIENCE);
    let finding = run.only();
    assert_eq!(finding.owner, None, "nobody owns a closed port");
    assert_eq!(evidence(finding, "was_listening_pid"), &Value::Count(1234));
}

/// A listener that is as old as this, and a client of it.
fn listens(run: &mut Run, age: Duration) {
    let age = u64::try_from(age.as_nanos()).expect("a short time");
    let socket = record::Socket {
        born_ns: run.ktime_ns() - age,
        sk: 0xffff_8880_2222_0000,
        ..listener("0.0.0.0:80", REMOTE)
    };
    run.syn(socket, |_| {});
}

#[test]
fn nobody_was_there_for_the_time_of_a_restart() {
    for comes_back in [true, false] {
        let mut run = Run::new();
        run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
        for count in 1..=8 {
            run.early_drop(socket(LOCAL, REMOTE), 3 * count, "NO_SOCKET", |_| {});
            run.pass(Duration::from_secs(1));
        }
        assert_eq!(run.findings.len(), 0);
        if comes_back {
            listens(&mut run, Duration::from_millis(500));
        }
        run.pass(Duration::from_secs(5));
        assert_eq!(run.last_words().len(), usize::from(!comes_back));
        run.finish();
        assert_eq!(run.last_words().len(), usize::from(!comes_back));
        run.assert_replays(Thresholds::default());
    }
}

#[test]
fn who_listened_in_a_namespace_that_is_gone_is_nobody_in_the_next_of_its_inode() {
    let mut run = Run::new();
    run.netns(4026, 1);
    run.syn(listener("0.0.0.0:80", REMOTE), |_| {});
    run.netns(4026, 1);
    run.netns(4027, 2);
    run.early_drop(socket(LOCAL, REMOTE), 3, "NO_SOCKET", |_| {});
    run.pass(PATIENCE);
    assert_eq!(
        evidence(run.only(), "was_listening_pid"),
        &Value::Count(1234)
    );
    run.netns(4026, 2);
    run.early_drop(socket(LOCAL, REMOTE), 30, "NO_SOCKET", |_| {});
    run.finish();
    let last = run.last_words();
    let next = last.last().expect("a finding of the next namespace");
    let evidence = &next.evidence;
    assert_eq!(next.count, 27);
    assert!(
        evidence.iter().all(|fact| fact.name != "was_listening_pid"),
        "{evidence:#?}"
    );
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_detector_that_is_degraded_says_so() {
    let mut host = host();
    for plan in &mut host.plan.detectors {
        if plan.detector == "syn_drop.early_drop" {
            plan.coverage = crate::plan::Coverage::Degraded;
            plan.because = Some("blind to much".to_owned());
        }
    }
    let mut run = Run::on(Thresholds::default(), host);
    run.early_drop(socket(LOCAL, REMOTE), 3, "NO_SOCKET", |_| {});
    run.finish();
    assert_eq!(run.only().because.as_deref(), Some("blind to much"));
}

#[test]
fn the_words_of_a_filtered_syn() {
    let mut run = Run::new();
    run.early_drop(socket(LOCAL, REMOTE), 3, "NETFILTER_DROP", |early_drop| {
        early_drop.socket.sk = 1;
        early_drop.remotes = 0b101;
        early_drop.listener_addr = [0; 4];
        early_drop.owner = crate::testing::owner();
    });
    run.tick();
    insta::assert_json_snapshot!(run.only());
}
