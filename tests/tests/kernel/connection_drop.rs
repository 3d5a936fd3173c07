//! `connection_drop`: each way in which an established connection dies, by its cause; and none for those that
//! end in order.

use std::{io::Write, net::SocketAddr, time::Duration};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::{Finding, Subject},
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

use crate::support::{
    assert_said, assert_seen, assert_sound, binary, lacking, tell_all, watch, watch_events,
};

/// What tells of a connection's end.
pub(crate) const HOOKS: [&str; 1] = ["state"];
const RESETS: u64 = 3;
/// Connections that the client closes first.
const ORDERLY: u32 = 20;

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
    let Some(mut tracer) = watch_events(&binary, &server, &["connection"]) else {
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
        let serving = scope.spawn(|| serve(&listener, ORDERLY));
        pair.client
            .run(|| (0..ORDERLY).try_for_each(|_| ask(family, address)))
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
        let mut connection = connect();
        // Without it, each would be a check whether somebody listens.
        connection.connected.write_all(b"request").unwrap();
        wait_acknowledged(&connection.connected, EVENTUALLY).unwrap();
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
    let all: u64 = expected.iter().map(|(.., count)| count).sum();
    let timed_out: u64 = expected
        .iter()
        .filter_map(|(cause, _, count)| (*cause == "timed_out").then_some(count))
        .sum();
    wait::until("the orphan to be given up", EVENTUALLY, || {
        let aborted = (server.counters()? - before).abort_on_timeout;
        Ok((aborted >= timed_out).then_some(()))
    })
    .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, all, died);
    let counted = server.counters().unwrap() - before;
    drop((waiting, deaf));

    assert_seen(&run, &HOOKS, died(&run), all);
    let mut missing = expected.to_vec();
    for finding in run.last_of(is_drop) {
        let at = missing.iter().position(|(_, how, _)| is_how(finding, how));
        let at = at.unwrap_or_else(|| panic!("{finding:#?}: {run:#?}"));
        let (cause, _, count) = missing.swap_remove(at);
        assert_eq!(finding.symptom(), cause, "{finding:#?}");
        // All of them together are exact.
        assert!(finding.count <= count, "{finding:#?}");
        let subject = Subject::Listener {
            netns: server.inode(),
            local: address,
        };
        assert_eq!(finding.subject, subject, "{finding:#?}");
        let owned = finding.owner.as_ref().map(|owner| owner.pid);
        assert_eq!(owned, Some(std::process::id()), "{finding:#?}");
    }
    // From ESTABLISHED and CLOSE_WAIT straight to CLOSE: all but the orphan, which was in FIN_WAIT1.
    assert_eq!(counted.estab_resets, all - 1, "{run:#?}");
    assert_eq!(counted.abort_on_timeout, timed_out, "{run:#?}");
    let of = |cause: &str| run.total("connection_drop", &[cause]);
    assert_seen(&run, &HOOKS, of("timed_out"), counted.abort_on_timeout);
    // One more ended the keepalives.
    assert_seen(&run, &HOOKS, of("reset_sent") + 1, counted.out_rsts);
    let ends = |orderly: bool| {
        let of = run.events();
        of.filter(|(_, fields)| fields["orderly"] == orderly)
            .count() as u64
    };
    assert_seen(&run, &HOOKS, ends(true), u64::from(ORDERLY) + 1);
    assert_seen(&run, &HOOKS, ends(false), all);
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
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let connection = pair.connect(family).unwrap();
    let (local, remote) = connection.endpoints().unwrap();
    let before = server.counters().unwrap();
    if !server.run(|| sock_diag::destroy(local, remote)).unwrap() {
        lacking("this kernel cannot destroy sockets: CONFIG_INET_DIAG_DESTROY");
        return;
    }
    assert_eq!(death(&connection.accepted), libc::ECONNABORTED);
    assert_eq!(death(&connection.connected), libc::ECONNRESET);
    let run = tell_all(&mut tracer, &HOOKS, 1, died);
    let counted = server.counters().unwrap() - before;

    assert_eq!((counted.estab_resets, counted.out_rsts), (1, 1));
    if let Some(dropped) = only(&run, "killed") {
        assert_eq!(dropped.cause, "aborted", "{dropped:#?}");
        assert_eq!(dropped.evidence["error"], "ECONNABORTED", "{dropped:#?}");
    }
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
    let Some(mut tracer) = watch(&binary, &server) else {
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
    let error = death(&connection.connected);
    let run = tell_all(&mut tracer, &HOOKS, 1, died);
    let counted = server.counters().unwrap() - before;

    assert_eq!(error, libc::ENETUNREACH);
    assert_eq!((counted.estab_resets, counted.abort_on_timeout), (1, 1));
    if let Some(dropped) = only(&run, "icmp") {
        assert_eq!(dropped.cause, "unreachable", "{dropped:#?}");
        assert_eq!(dropped.evidence["error"], "ENETUNREACH", "{dropped:#?}");
        assert_eq!(
            dropped.subject,
            Subject::Peer {
                netns: server.inode(),
                remote: SocketAddr::new(away, SERVER_PORT)
            }
        );
    }
    assert_sound(&run, &server);
}

/// The finding of the one connection that died, which tells how, where its end was not lost.
#[track_caller]
pub(crate) fn only<'a>(run: &'a Run, how: &str) -> Option<&'a Finding> {
    assert_seen(run, &HOOKS, died(run), 1);
    let found = run.last_of(is_drop).first().copied();
    assert!(
        found.is_none_or(|finding| is_how(finding, how)),
        "{found:#?}"
    );
    found
}

pub(crate) fn is_drop(finding: &Finding) -> bool {
    finding.finding == "connection_drop"
}

/// Connections that were told to have died.
pub(crate) fn died(run: &Run) -> u64 {
    run.last_of(is_drop)
        .iter()
        .map(|finding| finding.count)
        .sum()
}

fn is_how(finding: &Finding, how: &str) -> bool {
    is_drop(finding) && finding.evidence.get("how").and_then(Value::as_str) == Some(how)
}

/// The error with which a connection ends.
pub(crate) fn death(socket: &Socket) -> i32 {
    let error = wait_error(socket, EVENTUALLY).unwrap();
    error.raw_os_error().unwrap()
}
