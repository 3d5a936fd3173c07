//! Silence and its look-alikes: what is said of connections on which nothing comes through needs its own evidence, and
//! the healthy twin of each is no finding.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::{Finding, Status, Subject},
    link::Pair,
    netfilter::{self, Hook, Match},
    socket::{self, Connection, connect_without_waiting, deafen, listen, tcp, tcp_info},
    wait::{self, EVENTUALLY, SOON},
};
use rstest::rstest;
use serde_json::Value;
use socket2::Socket;

use crate::support::{assert_sound, binary, lacking, watch, watch_quick};

/// Connects at once to an address that does not answer: their SYNs, repeated, are a storm of the remote's by the second
/// repetition on every kernel.
const CONNECTS: usize = 40;

/// 0 is the window of every socket that waits for a SYN-ACK.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn syns_that_are_not_answered_shut_no_window(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let nobody = SocketAddr::new(family.ghost(), SERVER_PORT);
    let connecting: Vec<Socket> = server
        .run(|| (0..CONNECTS).map(|_| connect(family, nobody)).collect())
        .unwrap();
    let storm = tracer
        .wait_for("a storm of SYNs", SOON, is("retransmit_storm"))
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    drop(connecting);

    assert_eq!(storm.cause, "syns_unanswered", "{storm:#?}");
    for storm in run.last_of(is("retransmit_storm")) {
        assert_eq!(storm.cause, "syns_unanswered", "{storm:#?}");
        assert!(!storm.summary.contains("window"), "{storm:#?}");
        assert!(storm.summary.contains("SYNs retransmitted"), "{storm:#?}");
    }
    assert!(run.last_of(is("half_open")).is_empty(), "{run:#?}");
    assert_sound(&run, &server);
}

/// The same connects where somebody listens.
#[test]
fn syns_that_are_answered_are_nothing() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &pair.client) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = server.run(|| listen(Family::V4, address, 128)).unwrap();
    let connecting: Vec<Socket> = pair
        .client
        .run(|| {
            (0..CONNECTS)
                .map(|_| connect(Family::V4, address))
                .collect()
        })
        .unwrap();
    for client in connecting {
        drop(Connection::accept(&listener, client).unwrap());
    }
    let run = tracer.checkpoint().unwrap();

    assert!(run.last_of(|_| true).is_empty(), "{run:#?}");
    assert_sound(&run, &pair.client);
}

/// Data whose first retransmission leaves and is lost on the way, while none of the others leave: or all of them do.
#[rstest]
#[case::some_stay_here(true)]
#[case::all_leave(false)]
fn what_never_left_is_not_the_peers_silence(#[case] stay: bool) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    if !tracer.has_hook("rto") {
        lacking("the rto hook is off: timeouts that send nothing are not seen");
        return;
    }
    let connection = pair.connect(Family::V4).unwrap();
    deafen(&connection.connected).unwrap();
    (&connection.accepted).write_all(&[0; 1000]).unwrap();
    retransmitted(&connection.accepted, 1);
    if stay {
        server.run(|| netfilter::drop_at(Hook::Output)).unwrap();
    }
    retransmitted(&connection.accepted, 4);
    let said = tracer
        .wait_for("a silence", SOON, |finding| {
            is_silence(finding) && finding.count >= 4
        })
        .unwrap();
    let counted = server.counters().unwrap();
    let run = tracer.checkpoint().unwrap();
    if stay {
        server.run(netfilter::let_pass).unwrap();
    }
    connection.abort().unwrap();

    assert_eq!(counted.retrans_fail > 0, stay, "{counted:?}");
    let last = run.last_of(is_silence);
    for finding in last.into_iter().chain([&said]) {
        let unsent = finding.number("segments_not_sent");
        assert_eq!(unsent >= 2, stay, "{finding:#?}");
        // Which rule it was is known where the kernel tells the drops' place.
        let is_local = if finding.drops_here() {
            finding.evidence["drop_hook"] == "output" && finding.number("dropped_here") >= 2
        } else {
            finding.summary.contains("never left this host")
                && finding.advice[0].starts_with("look at this host's output firewall")
        };
        assert_eq!(is_local, stay, "{finding:#?}");
        assert_eq!(finding.number("unacked_bytes"), 1000, "{finding:#?}");
    }
    assert_sound(&run, &server);
}

/// The FIN alone is in flight.
#[test]
fn an_unacknowledged_fin_is_no_byte() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    deafen(&connection.connected).unwrap();
    connection.accepted.shutdown(Shutdown::Write).unwrap();
    let said = tracer.wait_for("a silence", SOON, is_silence).unwrap();
    connection.abort().unwrap();

    assert_eq!(said.number("unacked_bytes"), 0, "{said:#?}");
    assert_eq!(said.evidence["fin_acknowledged"], "no");
    assert!(said.summary.contains("the FIN unacknowledged"), "{said:#?}");
    assert!(!said.summary.contains("byte"), "{said:#?}");
}

/// One side is shut on either of two connections, and the other side goes on for several times as long as makes a
/// half-closed socket a finding: a line each now and then. Then nothing more comes.
#[test]
fn half_closed_and_in_use_is_healthy() {
    const LINES: usize = 60;
    const PAUSE: Duration = Duration::from_millis(100);
    /// Nearly what makes a half-closed socket a finding.
    const SLOW: Duration = Duration::from_millis(1900);
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = server.run(|| listen(Family::V4, address, 16)).unwrap();
    let connected = || {
        let client = pair.client.run(|| connect(Family::V4, address)).unwrap();
        Connection::accept(&listener, client).unwrap()
    };
    let (listens, asks) = (connected(), connected());
    listens.connected.shutdown(Shutdown::Write).unwrap();
    asks.accepted.shutdown(Shutdown::Write).unwrap();
    let mut slowest = Duration::ZERO;
    let mut spoken = Instant::now();
    for _ in 0..LINES {
        say(&listens.accepted, &listens.connected);
        say(&asks.connected, &asks.accepted);
        slowest = slowest.max(spoken.elapsed());
        spoken = Instant::now();
        // What paces them is no wait for anything.
        thread::sleep(PAUSE);
    }
    let in_use = tracer.checkpoint().unwrap();
    if slowest.max(spoken.elapsed()) >= SLOW {
        lacking("this machine is too slow for a line each now and then");
        return;
    }
    let mut idle = Vec::new();
    for state in ["CLOSE_WAIT", "FIN_WAIT2"] {
        let found = tracer.wait_for(state, SOON, |finding| {
            is_half_closed(finding) && finding.evidence["state"] == state
        });
        idle.push(found.unwrap());
    }
    let at_most = spoken.elapsed().as_secs_f64();
    let run = tracer.checkpoint().unwrap();
    drop((listens, asks));

    assert!(in_use.last_of(|_| true).is_empty(), "{in_use:#?}");
    // The server has not read the client's end, which nobody told it to.
    assert_eq!(idle[0].evidence["looks_like"], "not_read", "{idle:#?}");
    assert!(!idle[0].summary.contains("close() was not"), "{idle:#?}");
    assert_eq!(idle[1].evidence["looks_like"], "slow_peer", "{idle:#?}");
    for finding in &idle {
        let since = seconds(finding, "oldest_without_progress_s").unwrap();
        assert!((2.0..=at_most).contains(&since), "{finding:#?}");
    }
    assert_sound(&run, &server);
}

/// Clients that have left before anybody called accept(): nobody has those descriptors. One that is accepted, read to its
/// end and kept is forgotten.
#[test]
fn a_socket_that_is_not_accepted_waits_for_accept() {
    const CLIENTS: usize = 3;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch_quick(&binary, &server, &[]) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = server.run(|| listen(Family::V4, address, 16)).unwrap();
    for _ in 0..CLIENTS {
        pair.client
            .run(|| Ok(std::net::TcpStream::connect(address)?))
            .unwrap();
    }
    let queued = tracer
        .wait_for("those that wait", SOON, |finding| {
            is_half_closed(finding) && finding.count == CLIENTS as u64
        })
        .unwrap();
    let accepted: Vec<Socket> = (0..CLIENTS)
        .map(|_| {
            let (accepted, _) = listener.accept().unwrap();
            let read = (&accepted).read(&mut [0]).unwrap();
            assert_eq!(read, 0, "the peer has closed");
            accepted
        })
        .collect();
    tracer
        .wait_for("the end of the wait", SOON, |finding| {
            finding.id == queued.id && finding.status == Status::Resolved
        })
        .unwrap();
    let forgotten = tracer
        .wait_for("those that are kept", SOON, |finding| {
            is_half_closed(finding) && finding.id != queued.id && finding.count == CLIENTS as u64
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    drop(accepted);

    assert_eq!(queued.evidence["looks_like"], "not_accepted", "{queued:#?}");
    // The clients' FINs are no bytes.
    for finding in [&queued, &forgotten] {
        let unread = finding.evidence.get("unread_bytes").and_then(Value::as_u64);
        assert_eq!(unread.unwrap_or(0), 0, "{finding:#?}");
    }
    assert!(queued.summary.contains("wait for accept()"), "{queued:#?}");
    assert!(!queued.summary.contains("close()"), "{queued:#?}");
    assert!(!queued.advice.join("\n").contains("close"), "{queued:#?}");
    assert_eq!(forgotten.evidence["looks_like"], "forgotten");
    assert!(
        forgotten.summary.contains("close() was not called"),
        "{forgotten:#?}"
    );
    assert_sound(&run, &server);
}

fn connect(family: Family, address: SocketAddr) -> anyhow::Result<Socket> {
    let client = tcp(family)?;
    connect_without_waiting(&client, address)?;
    Ok(client)
}

/// One line, which arrives.
fn say(from: &Socket, to: &Socket) {
    socket::transfer(from, to, 10).unwrap();
}

/// Waits until so many timeouts in a row have come.
pub(crate) fn retransmitted(socket: &Socket, times: u8) {
    wait::until("timeouts", EVENTUALLY, || {
        Ok((tcp_info(socket)?.tcpi_retransmits >= times).then_some(()))
    })
    .unwrap();
}

pub(crate) fn seconds(finding: &Finding, name: &str) -> Option<f64> {
    finding.evidence.get(name)?.as_f64()
}

fn is(kind: &str) -> impl Fn(&Finding) -> bool {
    move |finding| finding.finding == kind
}

pub(crate) fn is_silence(finding: &Finding) -> bool {
    finding.finding == "half_open" && finding.symptom() == "dead_peer"
}

fn is_half_closed(finding: &Finding) -> bool {
    finding.finding == "half_open" && finding.cause == "half_closed"
}

/// Full-sized segments alone are in flight, and none arrives: of a path that carries only small ones, or of a peer that is
/// gone. Another connection to it, beside, is answered or there is none.
#[rstest]
#[case::beside_one_that_is_answered(true)]
#[case::alone(false)]
fn full_sized_loss_alone_names_both_candidates(#[case] others: bool) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = server.run(|| listen(Family::V4, address, 16)).unwrap();
    let connected = || {
        let client = pair.client.run(|| connect(Family::V4, address)).unwrap();
        Connection::accept(&listener, client).unwrap()
    };
    let (silent, beside) = (connected(), connected());
    deafen(&silent.connected).unwrap();
    let segment = usize::try_from(tcp_info(&silent.accepted).unwrap().tcpi_snd_mss).unwrap();
    (&silent.accepted).write_all(&vec![0; segment]).unwrap();
    let said = tracer
        .wait_for("both candidates", EVENTUALLY, |finding| {
            if others {
                // Answered all the while.
                say(&beside.accepted, &beside.connected);
            }
            is_silence(finding)
                && finding
                    .evidence
                    .get("other_connections_answered")
                    .is_some_and(|answered| answered.as_u64() == Some(u64::from(others)))
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    for connection in [silent, beside] {
        connection.abort().unwrap();
    }

    let looks_like = if others {
        "path_mtu_or_forgotten"
    } else {
        "path_mtu_or_dead_peer"
    };
    assert_eq!(said.evidence["looks_like"], looks_like, "{said:#?}");
    assert!(
        said.summary.contains("the path may be too narrow"),
        "{said:#?}"
    );
    assert_eq!(
        said.summary.contains("the peer is gone"),
        !others,
        "{said:#?}"
    );
    assert!(said.advice[0].contains("ping -c3 -M do"), "{said:#?}");
    assert_sound(&run, &server);
}

/// The same where another connection to that peer shows that its path is too narrow: it talks, and its large segments do
/// not come through either.
#[test]
fn full_sized_loss_beside_a_narrow_path_is_its() {
    const NARROW: u32 = 1400;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = server.run(|| listen(Family::V4, address, 16)).unwrap();
    let connected = || {
        let client = pair.client.run(|| connect(Family::V4, address)).unwrap();
        Connection::accept(&listener, client).unwrap()
    };
    let (silent, talks) = (connected(), connected());
    // What a path of more than this carries is not found out by probes.
    let large = Match::LargerThan(NARROW);
    pair.client
        .run(|| netfilter::drop_some_at(Hook::Input, large))
        .unwrap();
    let segment = usize::try_from(tcp_info(&silent.accepted).unwrap().tcpi_snd_mss).unwrap();
    (&talks.accepted).write_all(&vec![0; segment]).unwrap();
    (&silent.accepted).write_all(&vec![0; segment]).unwrap();
    let narrow = |finding: &Finding| {
        is_silence(finding)
            && finding
                .evidence
                .get("looks_like")
                .is_some_and(|looks_like| looks_like == "path_mtu")
    };
    let ports = [&silent, &talks].map(|connection| connection.endpoints().unwrap().1.port());
    let of = |finding: &Finding, port: u16| matches!(finding.subject, Subject::Connection { remote, .. } if remote.port() == port);
    let said = tracer
        .wait_for("a path that is too narrow", EVENTUALLY, |finding| {
            // It asks all the while, and what it is answered is lost.
            let _sent = (&talks.connected).write_all(b"more?");
            narrow(finding) && of(finding, ports[0])
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    for connection in [silent, talks] {
        connection.abort().unwrap();
    }

    assert!(
        said.summary.contains("the path is too narrow for them") || said.drops_here(),
        "{said:#?}"
    );
    assert!(!said.summary.contains("the peer is gone"), "{said:#?}");
    let of_talking = run.last_of(|finding| narrow(finding) && of(finding, ports[1]));
    assert!(
        of_talking[0].summary.contains("which talks") || of_talking[0].drops_here(),
        "{of_talking:#?}"
    );
    assert_sound(&run, &server);
}
