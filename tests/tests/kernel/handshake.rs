//! `half_open` / `handshake`: how the requests of a listener end, and who is behind them.

use std::{fs, time::Instant};

use conntracer_tests::{
    family::Family,
    line::{Coverage, Finding, Status, Subject},
    output::Run,
    scenario::{
        handshakes::{Handshakes, REQUESTS},
        syn_flood::{SynFlood, stuck},
    },
    wait::{EVENTUALLY, SOON},
    watch::Watch,
};
use rstest::rstest;
use rustix::process::Pid;

use crate::support::{
    assert_counted, assert_reconciled, assert_said, assert_seen, assert_sound, binary, streaming,
    tell_all, trace, watch,
};

/// What tells of requests, and of how they end.
const HOOKS: [&str; 4] = ["syn", "ack", "synack", "request"];

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn requests_that_expire_are_told(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = Handshakes::new(family).unwrap();
    scenario.expire_early().unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.begin().unwrap();
    scenario.wait_expired().unwrap();
    let name = ended(&tracer, "requests_expired");
    let run = tell_all(&mut tracer, &HOOKS, REQUESTS, |run| number(run, name));
    let counted = scenario.counted().unwrap();

    let finding = only(&run);
    assert_seen(&run, &HOOKS, finding.number(name), REQUESTS);
    assert_counted(&run, "TCPSynRetrans", finding.count, counted.syn_retrans);
    assert_eq!(counted.syn_retrans, REQUESTS, "{counted:#?}");
    assert_eq!(finding.number("syn_qlen"), 0, "{finding:#?}");
    assert_eq!(finding.number("completed"), 0, "{finding:#?}");
    assert_eq!(finding.evidence["looks_like"], "one_client");
    assert_listener(finding, server.inode(), family);
    assert_said(&run, "half_open.handshake");
    assert_sound(&run, &server);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn requests_that_clients_reset_equal_embryonic_rsts(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = Handshakes::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.begin().unwrap();
    tracer
        .wait_for("a handshake finding", SOON, is_handshake)
        .unwrap();
    scenario.reset().unwrap();
    let name = ended(&tracer, "requests_reset");
    let absolute = server.counters().unwrap();
    let run = tell_all(&mut tracer, &HOOKS, REQUESTS, |run| number(run, name));
    let counted = scenario.counted().unwrap();

    let finding = only(&run);
    assert_seen(&run, &HOOKS, finding.number(name), REQUESTS);
    assert_eq!(counted.embryonic_rsts, REQUESTS, "{counted:#?}");
    assert_eq!(counted.attempt_fails, REQUESTS, "{counted:#?}");
    assert_reconciled(&run, &server, &absolute);
    assert_counted(&run, "TCPSynRetrans", finding.count, counted.syn_retrans);
    assert_eq!(finding.number("requests_aborted"), 0, "{finding:#?}");
    if name == "requests_reset" {
        assert_eq!(finding.number("requests_expired"), 0, "{finding:#?}");
    }
    assert_sound(&run, &server);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn requests_that_complete_late_are_told(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = Handshakes::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let name = ended(&tracer, "requests_expired");
    scenario.begin_deaf().unwrap();
    tracer
        .wait_for("a handshake finding", SOON, is_handshake)
        .unwrap();
    scenario.hear().unwrap();
    let run = tell_all(&mut tracer, &HOOKS, REQUESTS, |run| {
        number(run, "completed_late")
    });
    let counted = scenario.counted().unwrap();

    let finding = only(&run);
    assert_seen(&run, &HOOKS, finding.number("completed_late"), REQUESTS);
    assert_eq!(counted.passive_opens, REQUESTS, "{counted:#?}");
    assert_seen(&run, &HOOKS, finding.number("completed"), REQUESTS);
    assert_seen(&run, &HOOKS, finding.number("syn_added"), REQUESTS);
    assert_counted(&run, "TCPSynRetrans", finding.count, counted.syn_retrans);
    assert_eq!(finding.number(name), 0, "{finding:#?}");
    assert_sound(&run, &server);
}

/// One finding says flood, whatever the number of SYNs; what the queue did is beside it and exact; another
/// listener's trouble is not lost in it; and neither records nor memory grow with the SYNs. A tracer of its own: it is
/// a flood, whose records and memory are counted.
#[test]
fn a_syn_flood_is_one_finding() {
    let Some(binary) = binary() else { return };
    let mut scenario = SynFlood::new().unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = trace(&binary, &server, &[]) else {
        return;
    };
    let before = memory(tracer.pid());
    let begun = Instant::now();
    let mut others = streaming(&binary, &server);
    scenario.flood(|| others.catch_up()).unwrap();
    let flood = tracer
        .wait_for("a flood", EVENTUALLY, |finding| {
            is_handshake(finding) && finding.evidence["looks_like"] == "flood"
        })
        .unwrap();
    tracer
        .wait_for("the other listener's overflow", SOON, |finding| {
            finding.finding == "syn_drop"
                && matches!(finding.subject, Subject::Listener { local, .. } if local == stuck())
        })
        .unwrap();
    scenario.quiet().unwrap();
    let after = memory(tracer.pid());
    let counted = scenario.counted().unwrap();
    let run = tracer.stop().unwrap();

    let finding = only(&run);
    assert_eq!(finding.id, flood.id, "{run:#?}");
    assert_eq!(finding.evidence["looks_like"], "flood", "{finding:#?}");
    assert_counted(&run, "TCPSynRetrans", finding.count, counted.syn_retrans);
    assert_listener(finding, server.inode(), Family::V4);
    let (sources, truth) = (finding.number("sources"), u64::from(scenario.sources()));
    // Five standard errors of 6.5 %; the kernel may have dropped SYNs on the way.
    assert!(
        (truth / 3..truth * 3 / 2).contains(&sources),
        "{truth}: {finding:#?}"
    );

    // One after the other, where the rests are long.
    let findings = run.last_of(|finding| finding.finding == "syn_cookies");
    let (open, resolved) = findings.split_last().expect("cookies were sent");
    assert!(
        resolved
            .iter()
            .all(|finding| finding.status == Status::Resolved),
        "{run:#?}"
    );
    let cookies: u64 = findings.iter().map(|finding| finding.count).sum();
    // By tracepoint the program may be running already when a SYN comes, which is then counted as lost.
    let lost = run.totals.hooks["syn"].lost;
    let all = counted.req_q_full_do_cookies;
    assert!(
        (all.saturating_sub(lost)..=all).contains(&cookies),
        "{all} less up to {lost}: {run:#?}"
    );
    assert_eq!(open.number("flood_finding"), flood.id, "{open:#?}");
    let drops = run.last_of(|finding| finding.finding == "syn_drop");
    for drop in &drops {
        assert!(
            matches!(drop.subject, Subject::Listener { local, .. } if local == stuck()),
            "{drop:#?}"
        );
    }
    let dropped: u64 = drops
        .iter()
        .map(|drop| match drop.cause.as_str() {
            "ack_overflow" => drop.number("third_acks_refused"),
            _ => drop.count,
        })
        .sum();
    let all = counted.listen_drops;
    assert!(
        (all.saturating_sub(lost)..=all).contains(&dropped),
        "{all} less up to {lost}: {run:#?}"
    );

    // A poll, of which there are two a second, tells of both listeners and of sources, however many SYNs there were.
    let polls = 2 * begun.elapsed().as_secs() + 2;
    let records = run.totals.tallies["records"];
    assert!(
        records < u64::from(scenario.syns) / 50 + 10 * polls,
        "{records} records of {} SYNs and {polls} polls",
        scenario.syns
    );
    let growth = after.saturating_sub(before);
    assert!(growth < 8 << 20, "{growth} bytes more than {before}");
    assert_said(&run, "half_open.handshake");
    assert_sound(&run, &server);
}

/// Most memory the process ever held, in bytes.
fn memory(pid: Pid) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = fs::read_to_string(path).unwrap();
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|value| value.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no VmHWM in {status}"));
    kib << 10
}

/// The number that tells how requests ended: each way by its own, or all together where the hook that
/// tells them apart is off.
fn ended(tracer: &Watch, exact: &'static str) -> &'static str {
    match tracer.coverage("half_open.handshake").unwrap().coverage {
        Coverage::Exact => exact,
        Coverage::Degraded | Coverage::Off => "requests_gone",
    }
}

fn is_handshake(finding: &Finding) -> bool {
    finding.finding == "half_open" && finding.cause == "handshake"
}

/// What the findings about requests say under this name.
fn number(run: &Run, name: &str) -> u64 {
    let findings = run.last_of(is_handshake);
    findings.iter().map(|finding| finding.number(name)).sum()
}

#[track_caller]
fn only(run: &Run) -> &Finding {
    match run
        .last_of(|finding| finding.finding == "half_open")
        .as_slice()
    {
        [only] => only,
        all => panic!("expected one finding, got {all:#?}"),
    }
}

#[track_caller]
fn assert_listener(finding: &Finding, netns: u32, family: Family) {
    let local = family.veth_listener();
    assert_eq!(finding.subject, Subject::Listener { netns, local });
    let owner = finding
        .owner
        .as_ref()
        .expect("this process owns the listener");
    assert_eq!(owner.pid, std::process::id());
}
