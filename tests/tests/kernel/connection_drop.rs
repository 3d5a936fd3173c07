//! `connection_drop`: each way in which an established connection dies, by its cause; and none for those that
//! end in order.

use std::{fs, io::Write, net::SocketAddr, time::Duration};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::{Certainty, Finding, Subject},
    link::Pair,
    output::Run,
    scenario::healthy::{ask, serve},
    sock_diag,
    socket::{
        Connection, abort_on_close, connect_without_waiting, deafen, fill, listen, tcp, tcp_info,
        wait_acknowledged, wait_error, wait_readable,
    },
    wait::{self, EVENTUALLY},
};
use rstest::rstest;
use serde_json::Value;
use socket2::{Socket, TcpKeepalive};

use crate::support::{assert_said, assert_sound, binary, is_own_machine, lacking, trace};

const RESETS: u64 = 3;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn each_death_has_its_cause(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    // Not 924 s and 100 s.
    for (name, value) in [("tcp_retries2", "1"), ("tcp_orphan_retries", "1")] {
        server
            .set_sysctl(&format!("net/ipv4/{name}"), value)
            .unwrap();
    }
    let Some(mut tracer) = trace(&binary, &server, &["--emit", "connection,reset"]) else {
        return;
    };
    let before = server.counters().unwrap();
    let address = family.veth_listener();
    let listener = server.run(|| listen(family, address, 16)).unwrap();
    let client = || {
        pair.client
            .run(|| {
                let client = tcp(family)?;
                connect_without_waiting(&client, address)?;
                Ok(client)
            })
            .unwrap()
    };
    let connect = || Connection::accept(&listener, client()).unwrap();

    // In order: the client closes first.
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| serve(&listener, 20));
        pair.client
            .run(|| (0..20).try_for_each(|_| ask(family, address)))
            .unwrap();
        serving.join().unwrap().unwrap();
    });
    // In order: the server closes first, and the client reads the end.
    let Connection {
        accepted,
        connected,
    } = connect();
    drop(accepted);
    wait_readable(&connected).unwrap();
    drop(connected);

    // Those that take their time first.
    let [probed, bounded, retried, orphan] = std::array::from_fn(|_| connect());
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1))
        .with_retries(1);
    probed.accepted.set_tcp_keepalive(&keepalive).unwrap();
    bounded
        .accepted
        .set_tcp_user_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    for connection in [&probed, &bounded, &retried, &orphan] {
        deafen(&connection.connected).unwrap();
    }
    for connection in [&bounded, &retried, &orphan] {
        (&connection.accepted).write_all(b"lost").unwrap();
    }
    // Data waits behind a window that was shut, and the next probe is not answered.
    let shut = connect();
    wait::until("the window to be shut", EVENTUALLY, || {
        fill(&shut.accepted)?;
        let info = tcp_info(&shut.accepted)?;
        Ok((info.tcpi_unacked == 0 && info.tcpi_backoff > 0).then_some(()))
    })
    .unwrap();
    deafen(&shut.connected).unwrap();
    let Connection {
        accepted,
        connected: deaf,
    } = orphan;
    drop(accepted);

    for _ in 0..RESETS {
        let connection = connect();
        abort_on_close(&connection.connected).unwrap();
        drop(connection.connected);
        assert_eq!(death(&connection.accepted), libc::ECONNRESET);
    }
    let mut connection = connect();
    connection.connected.write_all(b"unread").unwrap();
    wait_readable(&connection.accepted).unwrap();
    // A repeat of it that crosses the RST would be answered with another (a listener's, `tcp_rcv_state_process`).
    wait_acknowledged(&connection.connected, EVENTUALLY).unwrap();
    drop(connection.accepted);
    let connection = connect();
    abort_on_close(&connection.accepted).unwrap();
    drop(connection.accepted);
    for connection in [&probed, &bounded, &retried, &shut] {
        assert_eq!(death(&connection.accepted), libc::ETIMEDOUT);
    }
    let waiting = client();
    wait_readable(&listener).unwrap();
    drop(listener);
    let expected = [
        ("reset_received", "reset_by_peer", RESETS),
        ("reset_sent", "closed_with_unread_data", 1),
        ("reset_sent", "closed_without_linger", 1),
        ("reset_sent", "closed_before_accept", 1),
        ("timed_out", "keepalive", 1),
        ("timed_out", "user_timeout", 1),
        ("timed_out", "data", 1),
        ("timed_out", "window_probe", 1),
        ("timed_out", "orphan_timeout", 1),
    ];
    for (_, how, count) in expected {
        tracer
            .wait_for(how, EVENTUALLY, |finding| {
                is_how(finding, how) && finding.count == count
            })
            .unwrap();
    }
    let counted = server.counters().unwrap() - before;
    let run = tracer.stop().unwrap();
    drop((waiting, deaf));

    let found = run.last_of(|finding| finding.finding == "connection_drop");
    assert_eq!(found.len(), expected.len(), "{run:#?}");
    for finding in &found {
        let (cause, ..) = expected
            .iter()
            .find(|(_, how, _)| is_how(finding, how))
            .unwrap_or_else(|| panic!("{finding:#?}"));
        assert_eq!(finding.cause, *cause, "{finding:#?}");
        let subject = Subject::Listener {
            netns: server.inode(),
            local: address,
        };
        assert_eq!(finding.subject, subject, "{finding:#?}");
        // The listener was gone before its children were, and with it what they would have inherited.
        let owned = finding.owner.as_ref().map(|owner| owner.pid);
        let expected = (!is_how(finding, "closed_before_accept")).then(std::process::id);
        assert_eq!(owned, expected, "{finding:#?}");
    }
    // From ESTABLISHED and CLOSE_WAIT straight to CLOSE: all but the orphan, which was in FIN_WAIT1.
    let died: u64 = found.iter().map(|finding| finding.count).sum();
    assert_eq!(died - 1, counted.estab_resets, "{run:#?}");
    let timed_out = run.total("connection_drop", &["timed_out"]);
    assert_eq!(timed_out, counted.abort_on_timeout);
    // One more ended the keepalives.
    let sent = run.total("connection_drop", &["reset_sent"]) + 1;
    assert_eq!(sent, counted.out_rsts, "{run:#?}");
    let ends = |orderly: bool| {
        run.events()
            .filter(|(kind, fields)| *kind == "connection" && fields["orderly"] == orderly)
            .count()
    };
    assert_eq!(ends(true), 21, "{run:#?}");
    assert_eq!(u64::try_from(ends(false)).unwrap(), died, "{run:#?}");
    assert_said(&run, "connection_drop");
    assert_sound(&run, &server);
}

/// Killed from outside, as `ss -K` does.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_connection_that_an_administrator_kills_is_aborted(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = trace(&binary, &server, &[]) else {
        return;
    };
    let connection = pair.connect(family).unwrap();
    let (local, remote) = connection.endpoints().unwrap();
    let before = server.counters().unwrap();
    if !server.run(|| sock_diag::destroy(local, remote)).unwrap() {
        lacking("this kernel cannot destroy sockets: CONFIG_INET_DIAG_DESTROY");
        return;
    }
    let dropped = tracer
        .wait_for("its death", EVENTUALLY, |finding| is_how(finding, "killed"))
        .unwrap();
    assert_eq!(death(&connection.accepted), libc::ECONNABORTED);
    assert_eq!(death(&connection.connected), libc::ECONNRESET);
    let counted = server.counters().unwrap() - before;
    let run = tracer.stop().unwrap();

    assert_eq!(dropped.cause, "aborted", "{dropped:#?}");
    assert_eq!(dropped.evidence["error"], "ECONNABORTED", "{dropped:#?}");
    assert_eq!((counted.estab_resets, counted.out_rsts), (1, 1));
    assert_only(&run, 1);
    assert_said(&run, "connection_drop");
    assert_sound(&run, &server);
}

/// A router says that there is no way to the peer any more; the kernel keeps that in mind and tries on until its
/// retransmissions are used up.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_peer_that_icmp_calls_unreachable_is_said_to_be(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    server.set_sysctl("net/ipv4/tcp_retries2", "1").unwrap();
    let away = family.lent();
    pair.lend(away).unwrap();
    let Some(mut tracer) = trace(&binary, &server, &[]) else {
        return;
    };
    let listener = pair
        .client
        .run(|| listen(family, SocketAddr::new(away, SERVER_PORT), 1))
        .unwrap();
    let client = server
        .run(|| {
            let client = tcp(family)?;
            connect_without_waiting(&client, SocketAddr::new(away, SERVER_PORT))?;
            Ok(client)
        })
        .unwrap();
    let connection = Connection::accept(&listener, client).unwrap();
    let before = server.counters().unwrap();
    pair.withdraw(away).unwrap();
    (&connection.connected).write_all(b"lost").unwrap();
    let dropped = tracer
        .wait_for("its death", EVENTUALLY, |finding| is_how(finding, "icmp"))
        .unwrap();
    let error = death(&connection.connected);
    let counted = server.counters().unwrap() - before;
    let run = tracer.stop().unwrap();

    assert_eq!(error, libc::ENETUNREACH);
    assert_eq!(dropped.cause, "unreachable", "{dropped:#?}");
    assert_eq!(dropped.evidence["error"], "ENETUNREACH", "{dropped:#?}");
    assert_eq!(
        dropped.subject,
        Subject::Peer {
            netns: server.inode(),
            remote: SocketAddr::new(away, SERVER_PORT)
        }
    );
    assert_eq!((counted.estab_resets, counted.abort_on_timeout), (1, 1));
    assert_only(&run, 1);
    assert_sound(&run, &server);
}

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
    let dropped = tracer
        .wait_for("its end", EVENTUALLY, |finding| is_how(finding, "orphan"))
        .unwrap();
    let counted = server.counters().unwrap() - before;
    let run = tracer.stop().unwrap();

    assert_eq!(dropped.cause, "aborted", "{dropped:#?}");
    // The kernel does not say why.
    assert_eq!(dropped.certainty, Certainty::Inferred, "{dropped:#?}");
    assert_eq!((counted.abort_on_memory, counted.out_rsts), (1, 1));
    assert_only(&run, 1);
    assert_sound(&run, &server);
}

/// That many connections died, and of one cause.
#[track_caller]
fn assert_only(run: &Run, count: u64) {
    let found = run.last_of(|finding| finding.finding == "connection_drop");
    assert!(
        matches!(found.as_slice(), [only] if only.count == count),
        "{run:#?}"
    );
}

fn is_how(finding: &Finding, how: &str) -> bool {
    finding.finding == "connection_drop"
        && finding.evidence.get("how").and_then(Value::as_str) == Some(how)
}

/// The error with which a connection ends.
fn death(socket: &Socket) -> i32 {
    let error = wait_error(socket, EVENTUALLY).unwrap();
    error.raw_os_error().unwrap()
}
