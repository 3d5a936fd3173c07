//! `receive_stall`: a process that does not read is told from its own side, where nothing is retransmitted, probed or
//! dropped.

use std::os::fd::AsRawFd;

use conntracer_tests::{
    family::Family,
    forked::{Forked, pause},
    line::{Finding, Status, Subject},
    link::Pair,
    scenario::send_stall::SendStall,
    socket::{Connection, fill, tcp_info},
    wait::{self, EVENTUALLY, SOON},
};
use rstest::rstest;

use crate::support::{assert_said, assert_sound, binary, watch_quick};

fn is_stall(finding: &Finding) -> bool {
    finding.finding == "receive_stall"
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_process_that_does_not_read_is_told_from_its_own_side(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let scenario = SendStall::new(family).unwrap();
    let reader = scenario.pair.client.clone();
    let Some(mut tracer) = watch_quick(&binary, &reader, &[]) else {
        return;
    };
    scenario.stop_reading().unwrap();
    let opened = tracer.wait_for("a finding", SOON, is_stall).unwrap();
    let unread = scenario.unread().unwrap();
    scenario.read_again().unwrap();
    let ended = tracer
        .wait_for("its end", SOON, |finding| {
            is_stall(finding) && finding.status == Status::Resolved
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    let (remote, local) = scenario.endpoints().unwrap();
    assert!(
        matches!(&opened.subject, Subject::Connection { netns, local: from, remote: to, .. }
            if *netns == reader.inode() && *from == local && *to == remote),
        "{opened:#?}"
    );
    assert_eq!(opened.cause, "not_reading", "{opened:#?}");
    assert_eq!(opened.count, unread, "{opened:#?}");
    let owner = opened.owner.as_ref().map(|owner| owner.pid);
    assert_eq!(owner, Some(std::process::id()), "{opened:#?}");
    assert_eq!(ended.id, opened.id);
    assert_eq!(ended.stage.as_deref(), Some("resumed"), "{ended:#?}");
    assert_said(&run, "receive_stall");
    assert_sound(&run, &reader);
    scenario.quiet().unwrap();
}

/// The window stays shut, and the process reads: slowly.
#[test]
fn one_that_reads_slowly_is_no_finding() {
    let Some(binary) = binary() else { return };
    let scenario = SendStall::new(Family::V4).unwrap();
    let reader = scenario.pair.client.clone();
    let Some(mut tracer) = watch_quick(&binary, &reader, &[]) else {
        return;
    };
    // Nothing is read while the window is filled, for less than what a finding takes, unless the machine is slow.
    scenario.stop_reading().unwrap();
    let before = tracer.checkpoint().unwrap().last_of(is_stall).len();
    // 0.2 + 0.4 + ... + 6.4 s: six times what a finding takes.
    scenario.sip(6).unwrap();
    let run = tracer.checkpoint().unwrap();
    let told = run.last_of(is_stall);
    assert!(told.len() <= before, "{told:#?}");
    assert!(
        told.iter().all(|told| told.status == Status::Resolved),
        "{told:#?}"
    );
    assert_sound(&run, &reader);
    scenario.quiet().unwrap();
}

#[test]
fn a_reader_that_is_stopped_is_why_until_it_goes_on() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.client.clone();
    let Some(mut tracer) = watch_quick(&binary, &client, &[]) else {
        return;
    };
    let Connection {
        accepted,
        connected,
    } = pair.connect(Family::V4).unwrap();
    let reader = Forked::run(c"ct-reader", &[connected.as_raw_fd()], pause).unwrap();
    drop(connected);
    reader.stop().unwrap();
    wait::until("the reader's window to be shut", EVENTUALLY, || {
        fill(&accepted)?;
        let info = tcp_info(&accepted)?;
        Ok((info.tcpi_unacked == 0 && info.tcpi_backoff > 0).then_some(()))
    })
    .unwrap();
    let stopped = tracer
        .wait_for("who is stopped", SOON, |finding| {
            is_stall(finding) && finding.cause == "stopped"
        })
        .unwrap();
    reader.go_on().unwrap();
    let goes_on = tracer
        .wait_for("that it goes on, and does not read", SOON, |finding| {
            finding.id == stopped.id && finding.cause == "not_reading"
        })
        .unwrap();
    let pid = reader.pid();
    drop(reader);
    let ended = tracer
        .wait_for("the connection's end", SOON, |finding| {
            finding.id == stopped.id && finding.status == Status::Resolved
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(stopped.number("reader_pid"), u64::from(pid), "{stopped:#?}");
    let advice = format!("kill -CONT {pid}");
    assert!(stopped.advice[0].contains(&advice), "{stopped:#?}");
    assert!(!goes_on.summary.contains("is stopped"), "{goes_on:#?}");
    assert_eq!(ended.stage.as_deref(), Some("closed"), "{ended:#?}");
    assert_sound(&run, &client);
}
