//! `half_open`: handshakes that nobody completes, peers that vanish, sockets that nobody closes.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    os::fd::AsRawFd as _,
};

use anyhow::ensure;
use conntracer_tests::{
    family::{Family, SERVER_PORT},
    forked::Forked,
    line::{Finding, Status, Subject},
    link::Pair,
    netns::COMM,
    scenario::{
        dead_peer::DeadPeer,
        ghost_syns::{Cookies, GhostSyns},
        half_closed::{self, HalfClosed},
    },
    socket::{fill, listen, tcp_info},
    wait::{self, EVENTUALLY, SOON},
};
use rstest::rstest;
use rustix::{io::read, net::accept};

use crate::support::{
    assert_counted, assert_reconciled, assert_said, assert_seen, assert_sound, binary, lacking,
    watch, watch_quick,
};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn handshake_equals_syn_retrans(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = GhostSyns::new(family, Cookies::WhenFull).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.abandon().unwrap();
    let opened = tracer
        .wait_for("a handshake finding", SOON, is("handshake"))
        .unwrap();
    scenario.quiet();
    let counted = scenario.counted().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_counted(
        &run,
        "TCPSynRetrans",
        run.total("half_open", &["handshake"]),
        counted.syn_retrans,
    );
    let local = family.veth_listener();
    assert_eq!(
        opened.subject,
        Subject::Listener {
            netns: server.inode(),
            local
        }
    );
    let owner = opened
        .owner
        .as_ref()
        .expect("this process owns the listener");
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    assert!(
        run.last_of(|finding| finding.finding == "syn_drop")
            .is_empty(),
        "{run:#?}"
    );
    assert_reconciled(&run, &server, &counted);
    assert_said(&run, "half_open.handshake");
    assert_sound(&run, &server);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn dead_peer_is_suspected_then_confirmed(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    let (local, remote) = scenario.endpoints().unwrap();
    let suspected = tracer
        .wait_for("a suspicion", EVENTUALLY, |finding| {
            is("dead_peer")(finding) && finding.stage.as_deref() == Some("suspected")
        })
        .unwrap();
    assert_eq!(scenario.wait_given_up().unwrap(), libc::ETIMEDOUT);
    let confirmed = tracer
        .wait_for("its confirmation", SOON, |finding| {
            finding.id == suspected.id && finding.stage.as_deref() == Some("confirmed")
        })
        .unwrap();
    let counted = scenario.counted().unwrap();
    scenario.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(suspected.status, Status::Open);
    assert_eq!(confirmed.status, Status::Resolved);
    assert_connection(&confirmed, server.inode(), local, remote);
    let owner = confirmed
        .owner
        .as_ref()
        .expect("this process accepted the connection");
    assert_eq!(owner.pid, std::process::id());
    assert_eq!(run.last_of(is("dead_peer")).len(), 1, "{run:#?}");
    // The last of them is the one in which the kernel gave up.
    let hooks = ["retransmit", "timeout", "rto"];
    assert_seen(&run, &hooks, confirmed.count, counted.timeouts);
    assert_eq!(counted.abort_on_timeout, 1);
    assert_reconciled(&run, &server, &counted);
    assert_said(&run, "half_open.dead_peer");
    assert_sound(&run, &server);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn dead_peer_that_comes_back_has_recovered(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(family).unwrap().for_a_while();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    let suspected = tracer
        .wait_for("a suspicion", EVENTUALLY, is("dead_peer"))
        .unwrap();
    scenario.come_back().unwrap();
    let recovered = tracer
        .wait_for("the recovery", SOON, |finding| {
            finding.id == suspected.id && finding.stage.as_deref() == Some("recovered")
        })
        .unwrap();
    scenario.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(recovered.status, Status::Resolved);
    assert_eq!(run.last_of(is("dead_peer")).len(), 1, "{run:#?}");
    assert_sound(&run, &server);
}

/// Down with the client's interface in the middle of a connection, for good or until before the kernel gives up.
/// Nothing leaves the host meanwhile; that the timeouts are seen all the same needs the rto hook, which 5.10 has no
/// tracepoint for.
#[rstest]
#[case::v4_for_good(Family::V4, "confirmed")]
#[case::v6_for_good(Family::V6, "confirmed")]
#[case::v4_for_a_while(Family::V4, "recovered")]
#[case::v6_for_a_while(Family::V6, "recovered")]
fn dead_peer_whose_link_is_down(#[case] family: Family, #[case] end: &str) {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(family).unwrap();
    if end == "recovered" {
        scenario = scenario.for_a_while();
    }
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    if !tracer.has_hook("rto") {
        assert_said(&tracer.checkpoint().unwrap(), "half_open.dead_peer");
        lacking("the rto hook is off: timeouts that send nothing are not seen");
        return;
    }
    scenario.connect().unwrap();
    scenario.pair.cut().unwrap();
    scenario.speak().unwrap();
    let suspected = tracer
        .wait_for("a suspicion", EVENTUALLY, |finding| {
            is("dead_peer")(finding) && finding.stage.as_deref() == Some("suspected")
        })
        .unwrap();
    // By the third timeout.
    assert!(
        suspected.number("consecutive_timeouts") <= 3,
        "{suspected:#?}"
    );
    if end == "recovered" {
        scenario.pair.mend().unwrap();
        scenario.wait_answered().unwrap();
    } else {
        assert_eq!(scenario.wait_given_up().unwrap(), libc::ETIMEDOUT);
    }
    let ended = tracer
        .wait_for("the end of the doubt", SOON, |finding| {
            finding.id == suspected.id && finding.stage.as_deref() == Some(end)
        })
        .unwrap();
    let aborted = server.counters().unwrap().abort_on_timeout;
    scenario.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(suspected.status, Status::Open);
    assert_eq!(ended.status, Status::Resolved);
    assert_eq!(aborted, u64::from(end == "confirmed"));
    assert_eq!(run.last_of(is("dead_peer")).len(), 1, "{run:#?}");
    assert_sound(&run, &server);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn half_closed_counts_the_sockets(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = HalfClosed::new(family).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    scenario.provoke().unwrap();
    let all = u64::try_from(half_closed::LEAKED).unwrap();
    let leaked = tracer
        .wait_for("all leaked sockets", EVENTUALLY, |finding| {
            is("half_closed")(finding) && finding.count == all
        })
        .unwrap();
    scenario.mend();
    let mended = tracer
        .wait_for("the resolution", SOON, |finding| {
            finding.id == leaked.id && finding.status == Status::Resolved
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    let pid = std::process::id();
    assert!(
        matches!(&mended.subject, Subject::Process { netns, pid: owner, .. }
            if *netns == server.inode() && *owner == pid),
        "{mended:#?}"
    );
    assert!(
        run.last_of(is("half_closed"))
            .iter()
            .all(|finding| finding.count <= all),
        "{run:#?}"
    );
    assert_said(&run, "half_open.half_closed");
    assert_sound(&run, &server);
}

/// A process that never closes what its clients have left, beside a connection whose peer has left and is slow to take
/// what it is still sent.
#[test]
fn a_leak_is_told_from_a_slow_peer() {
    const MOST: u32 = 500;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let slow = pair.connect(Family::V4).unwrap();
    wait::until("the slow peer's window to be shut", EVENTUALLY, || {
        fill(&slow.accepted)?;
        let info = tcp_info(&slow.accepted)?;
        Ok((info.tcpi_unacked == 0 && info.tcpi_backoff > 0).then_some(()))
    })
    .unwrap();
    slow.connected.shutdown(Shutdown::Write).unwrap();
    let address = Family::V4.veth_listener_on(SERVER_PORT + 1);
    let listener = server.run(|| listen(Family::V4, address, 16)).unwrap();
    let leaking = Forked::run(c"ct-leaking", &[listener.as_raw_fd()], || {
        let mut byte = [0];
        loop {
            if let Ok(socket) = accept(&listener) {
                // Whose it is, some hooks learn when it is read from.
                let _read = read(&socket, &mut byte);
                std::mem::forget(socket);
            }
        }
    })
    .unwrap();
    let by = |pid: u32, reading: &'static str| {
        move |finding: &Finding| {
            is("half_closed")(finding)
                && finding.owner.as_ref().is_some_and(|owner| owner.pid == pid)
                && finding.evidence["looks_like"] == reading
        }
    };
    // One more at every look, however long a look takes on a slow machine: it grows again and again.
    let mut leaked = 0;
    let leak = wait::until("a leak to be told", EVENTUALLY, || {
        ensure!(leaked < MOST, "{leaked} are no leak");
        let client = pair.client.run(|| Ok(TcpStream::connect(address)?))?;
        (&client).write_all(b"?")?;
        drop(client);
        leaked += 1;
        let run = tracer.checkpoint()?;
        let told = run.last_of(by(leaking.pid(), "leak"));
        Ok(told.first().map(|told| Finding::clone(told)))
    })
    .unwrap();
    let slow_one = tracer
        .wait_for(
            "the slow peer",
            EVENTUALLY,
            by(std::process::id(), "slow_peer"),
        )
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    drop((slow, leaking));

    assert!(leak.summary.contains("a leak"), "{leak:#?}");
    assert!(leak.number("gained_sockets") >= 3, "{leak:#?}");
    assert!(slow_one.summary.contains("slow to take"), "{slow_one:#?}");
    assert_eq!(slow_one.count, 1, "{slow_one:#?}");
    assert_ne!(leak.advice, slow_one.advice);
    assert_eq!(run.last_of(is("half_closed")).len(), 2, "{run:#?}");
    assert_sound(&run, &server);
}

/// The application has closed, and its last data is not acknowledged.
#[test]
fn dead_peer_of_a_closed_connection_is_an_orphans() {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(Family::V4).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.connect().unwrap();
    let (local, remote) = scenario.endpoints().unwrap();
    scenario.vanish().unwrap();
    let deaf = scenario.close().unwrap();
    let suspected = tracer
        .wait_for("a suspicion", EVENTUALLY, is("dead_peer"))
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    drop(deaf);

    assert_eq!(suspected.stage.as_deref(), Some("suspected"));
    assert_connection(&suspected, server.inode(), local, remote);
    assert_eq!(suspected.evidence["orphan"], "yes", "{suspected:#?}");
    assert!(suspected.summary.contains("has closed"), "{suspected:#?}");
    assert_said(&run, "half_open.dead_peer");
    assert_sound(&run, &server);
}

fn is(cause: &str) -> impl Fn(&Finding) -> bool {
    move |finding| finding.finding == "half_open" && finding.symptom() == cause
}

#[track_caller]
fn assert_connection(
    finding: &Finding,
    inode: u32,
    expected_local: std::net::SocketAddr,
    expected_remote: std::net::SocketAddr,
) {
    assert!(
        matches!(&finding.subject, Subject::Connection { netns, local, remote, .. }
            if *netns == inode && *local == expected_local && *remote == expected_remote),
        "{finding:#?}"
    );
}
