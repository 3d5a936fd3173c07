//! `--emit connection`: what is said of a connection at its end is what its ends counted.

use std::{
    net::{Shutdown, SocketAddr},
    thread,
};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    link::Pair,
    output::Run,
    socket::{
        Connection, abort_on_close, connect_without_waiting, deafen, hear_again, listen, tcp,
        tcp_info, transfer, wait_acknowledged, wait_readable,
    },
    wait::{self, EVENTUALLY},
};
use serde_json::Value;
use socket2::Socket;

use crate::support::{assert_seen, assert_sound, binary, is_ours, tell_all, watch_events};

/// What tells of a connection's end.
const HOOKS: [&str; 1] = ["state"];
/// What the server sends, and the client.
const SENT: u64 = 300_000;
const RECEIVED: u64 = 4_096;

/// Three connections of one namespace: opened by the peer and closed by it first, opened and closed first here,
/// and one whose client misses what comes first, and that ends at once.
#[test]
fn a_connection_ends_with_what_its_ends_counted() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let Some(mut tracer) = watch_events(&binary, &server, &["connection"]) else {
        return;
    };

    let taken = pair.connect(Family::V4).unwrap();
    exchange(&taken.accepted, &taken.connected);
    let by_remote = address_of(&taken.accepted);
    drop(taken.connected);
    wait_readable(&taken.accepted).unwrap();
    drop(taken.accepted);

    let opened = connect_from_server(&pair, Family::V6);
    exchange(&opened.connected, &opened.accepted);
    let by_local = address_of(&opened.connected);
    opened.connected.shutdown(Shutdown::Write).unwrap();
    wait_readable(&opened.accepted).unwrap();
    drop(opened.accepted);
    wait_readable(&opened.connected).unwrap();
    drop(opened.connected);

    let lossy = pair.connect(Family::V4).unwrap();
    deafen(&lossy.connected).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| exchange(&lossy.accepted, &lossy.connected));
        wait::until("the server to repeat", EVENTUALLY, || {
            let repeated = tcp_info(&lossy.accepted)?.tcpi_total_retrans;
            Ok((repeated > 0).then_some(()))
        })
        .unwrap();
        hear_again(&lossy.connected).unwrap();
    });
    wait_acknowledged(&lossy.accepted, EVENTUALLY).unwrap();
    let by_nobody = address_of(&lossy.accepted);
    let info = tcp_info(&lossy.accepted).unwrap();
    abort_on_close(&lossy.accepted).unwrap();
    drop(lossy.accepted);

    let told = |run: &Run| run.events().count() as u64;
    let run = tell_all(&mut tracer, &HOOKS, 3, told);
    drop(lossy.connected);

    assert_seen(&run, &HOOKS, told(&run), 3);
    for (remote, role, closed_first, orderly) in [
        (by_remote, "passive", "remote", true),
        (by_local, "active", "local", true),
        (by_nobody, "passive", "nobody", false),
    ] {
        let Some(ended) = close(&run, remote) else {
            continue;
        };
        assert_eq!(ended["role"], role, "{ended}");
        assert_eq!(ended["closed_first"], closed_first, "{ended}");
        assert_eq!(ended["orderly"], orderly, "{ended}");
        assert_eq!(ended["reset_sent"], !orderly, "{ended}");
        assert_eq!(ended["bytes_sent"], SENT, "{ended}");
        assert_eq!(ended["bytes_received"], RECEIVED, "{ended}");
        assert_eq!(ended["unacked_bytes"], 0, "{ended}");
        assert!(ended["age_ms"].is_u64() && ended["idle_ms"].is_u64());
        assert!(is_ours(ended), "{ended}");
    }
    assert!(info.tcpi_total_retrans > 0);
    if let Some(ended) = close(&run, by_nobody) {
        assert_eq!(ended["total_retrans"], info.tcpi_total_retrans, "{ended}");
        assert_eq!(ended["srtt_us"], info.tcpi_rtt, "{ended}");
        assert_eq!(ended["bytes_sent"], info.tcpi_bytes_acked, "{ended}");
        assert_eq!(ended["bytes_received"], info.tcpi_bytes_received);
    }
    assert_sound(&run, &server);
}

/// Data both ways, acknowledged.
fn exchange(ours: &Socket, theirs: &Socket) {
    transfer(theirs, ours, RECEIVED).unwrap();
    transfer(ours, theirs, SENT).unwrap();
    wait_acknowledged(ours, EVENTUALLY).unwrap();
    wait_acknowledged(theirs, EVENTUALLY).unwrap();
}

/// A connection from the server to a listener of the client.
fn connect_from_server(pair: &Pair, family: Family) -> Connection {
    let address = SocketAddr::new(family.client(), SERVER_PORT);
    let listener = pair.client.run(|| listen(family, address, 1)).unwrap();
    let connected = pair
        .server
        .run(|| {
            let socket = tcp(family)?;
            connect_without_waiting(&socket, address)?;
            Ok(socket)
        })
        .unwrap();
    Connection::accept(&listener, connected).unwrap()
}

fn address_of(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

/// The one record about a connection to `remote`, where it was not lost.
#[track_caller]
fn close(run: &Run, remote: SocketAddr) -> Option<&Value> {
    let ip = remote.ip().to_string();
    let mut found = run.events().filter(|(kind, event)| {
        *kind == "connection"
            && event["network.peer.address"] == ip
            && event["network.peer.port"] == remote.port()
    });
    let (_, event) = found.next()?;
    assert!(found.next().is_none(), "{run:#?}");
    Some(event)
}
