//! How connections died, where several causes look alike: what is said is what happened, and of a healthy twin nothing.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    forked::{self, Forked},
    line::{Finding, Subject},
    link::Pair,
    netns::NetNs,
    output::Run,
    packet::{self, Segment, flag},
    peer::{Peer, Script},
    proc_net::sockets,
    served::{accept, listens},
    sock_diag,
    socket::{
        Connection, abort_on_close, connect_without_waiting, deafen, listen, listen_on, mptcp, tcp,
        vanish, wait_acknowledged, wait_readable,
    },
    tracer::Binary,
    wait::{self, EVENTUALLY},
    watch::Watch,
};
use rstest::rstest;
use serde_json::Value;
use socket2::Socket;

use crate::{
    connection_drop::{HOOKS, death, died, is_drop},
    support::{assert_said, assert_seen, assert_sound, binary, lacking, tell_all, watch},
};

/// include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;

/// Longer than the least pause that a finding speaks of.
const PAUSE: Duration = Duration::from_secs(11);

pub(crate) fn is(finding: &Finding, name: &str, value: &str) -> bool {
    finding.evidence.get(name).and_then(Value::as_str) == Some(value)
}

pub(crate) fn seconds(finding: &Finding, name: &str) -> f64 {
    let value = finding.evidence.get(name).and_then(Value::as_f64);
    value.unwrap_or_else(|| panic!("no {name} in {finding:#?}"))
}

/// The words that were untrue in so many cases.
pub(crate) fn assert_blames_nobody(finding: &Finding) {
    for text in finding.advice.iter().chain([&finding.summary]) {
        assert!(!text.contains("crashed"), "{finding:#?}");
        assert!(!text.contains("somebody's idle"), "{finding:#?}");
    }
}

/// All the deaths of a namespace, which are told in `how` and where they are not lost.
#[track_caller]
pub(crate) fn all(tracer: &mut Watch, count: u64, how: &str) -> (Run, Option<Finding>) {
    let run = tell_all(tracer, &HOOKS, count, died);
    assert_seen(&run, &HOOKS, died(&run), count);
    let mut found = run.last_of(is_drop);
    for finding in &found {
        assert!(is(finding, "how", how), "not {how}: {finding:#?}");
        assert_blames_nobody(finding);
    }
    let first = found.pop().cloned();
    assert!(found.is_empty(), "one finding: {found:#?} {first:#?}");
    assert_said(&run, "connection_drop");
    (run, first)
}

#[track_caller]
pub(crate) fn assert_nothing(tracer: &mut Watch) {
    let run = tracer.checkpoint().unwrap();
    let found = run.last_of(is_drop);
    assert!(found.is_empty(), "{found:#?}");
}

pub(crate) fn client(pair: &Pair, address: SocketAddr) -> Socket {
    pair.client
        .run(|| {
            let client = tcp(Family::of(address.ip()))?;
            connect_without_waiting(&client, address)?;
            Ok(client)
        })
        .unwrap()
}

pub(crate) fn wait_connected(client: &Socket) {
    wait::until("a connection to be established", EVENTUALLY, || {
        Ok(client.peer_addr().is_ok().then_some(()))
    })
    .unwrap();
    client.set_nonblocking(false).unwrap();
}

/// Two namespaces, and what is said of the server's and of the client's.
#[track_caller]
pub(crate) fn both_ends(binary: &Binary) -> Option<(Pair, Watch, Watch)> {
    let pair = Pair::new().unwrap();
    let here = watch(binary, &pair.server)?;
    let there = watch(binary, &pair.client)?;
    Some((pair, here, there))
}

/// Whether the kernel tells of every RST that it sends, without a socket, too.
pub(crate) fn tells_of_resets(tracer: &Watch) -> bool {
    let plan = &tracer.plan().plan;
    plan.hooks
        .iter()
        .any(|hook| hook.hook == "reset_sent" && hook.hook_type != "off" && hook.blind_to.is_none())
}

/// A server that is killed with requests that it has not read: the process ended, and nobody is told to read until the
/// end.
#[test]
fn a_server_that_is_killed_takes_its_connections_with_it() {
    const CLIENTS: u64 = 50;
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 64)).unwrap();
    let fd = listener.as_raw_fd();
    let server = Forked::run(c"ct-server", &[fd], || {
        loop {
            if accept(fd, 0) < 0 {
                return 1;
            }
        }
    })
    .unwrap();
    let clients: Vec<Socket> = (0..CLIENTS)
        .map(|_| {
            let client = client(&pair, address);
            wait_connected(&client);
            (&client).write_all(b"request").unwrap();
            client
        })
        .collect();
    for client in &clients {
        wait_acknowledged(client, EVENTUALLY).unwrap();
    }
    // All are accepted: nothing waits any more.
    wait::until("the queue to be empty", EVENTUALLY, || {
        let info = conntracer_tests::socket::tcp_info(&listener)?;
        Ok((info.tcpi_unacked == 0).then_some(()))
    })
    .unwrap();
    let pid = server.pid();
    drop(server);
    for client in &clients {
        assert_eq!(death(client), libc::ECONNRESET);
    }
    let (run, killed) = all(&mut here, CLIENTS, "process_ended");
    if let Some(killed) = killed {
        assert_eq!(killed.cause, "reset_sent", "{killed:#?}");
        assert!(is(&killed, "signal", "SIGKILL"), "{killed:#?}");
        assert!(
            killed.summary.contains("was ended by SIGKILL"),
            "{killed:#?}"
        );
        let owner = killed.owner.as_ref().map(|owner| owner.pid);
        assert_eq!(owner, Some(pid), "{killed:#?}");
        let local = address;
        let netns = pair.server.inode();
        assert_eq!(killed.subject, Subject::Listener { netns, local });
        assert!(
            !killed.advice.concat().contains("read until the end before"),
            "{killed:#?}"
        );
    }
    assert_sound(&run, &pair.server);
    let run = tell_all(&mut there, &HOOKS, CLIENTS, died);
    for reset in run.last_of(is_drop) {
        assert_blames_nobody(reset);
        assert!(
            is(
                reset,
                "reset_sent_by",
                "the socket at the other end, on this host"
            ),
            "{reset:#?}"
        );
    }
}

/// Its twin: a server that reads all and closes in order.
#[test]
fn a_server_that_ends_in_order_is_no_death() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    for _ in 0..4 {
        let Connection {
            accepted,
            connected,
        } = pair.connect(Family::V4).unwrap();
        drop(connected);
        wait_readable(&accepted).unwrap();
        drop(accepted);
    }
    assert_nothing(&mut tracer);
}

/// Clients that wait for accept() and give up: the process never had their connections.
#[test]
fn clients_that_give_up_in_the_queue_are_not_blamed_on_a_crash() {
    const CLIENTS: u64 = 6;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 64)).unwrap();
    for _ in 0..CLIENTS {
        let client = client(&pair, address);
        wait_connected(&client);
        (&client).write_all(b"request").unwrap();
        wait_acknowledged(&client, EVENTUALLY).unwrap();
        abort_on_close(&client).unwrap();
    }
    let (run, gave_up) = all(&mut tracer, CLIENTS, "reset_before_accept");
    if let Some(gave_up) = gave_up {
        let said = format!(
            "{} clients gave up while they waited for accept()",
            gave_up.count
        );
        assert!(gave_up.summary.starts_with(&said), "{gave_up:#?}");
        assert!(
            gave_up.summary.contains("never had these connections"),
            "{gave_up:#?}"
        );
    }
    assert_sound(&run, &pair.server);
    drop(listener);
}

/// Checks whether somebody listens are quiet at both ends, and are not mixed with a reset in the middle of a transfer.
#[test]
fn checks_that_end_in_a_reset_are_quiet() {
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 64)).unwrap();
    let mut late = 0;
    for _ in 0..20 {
        let begun = Instant::now();
        let connection = Connection::accept(&listener, client(&pair, address)).unwrap();
        abort_on_close(&connection.connected).unwrap();
        drop(connection.connected);
        assert_eq!(death(&connection.accepted), libc::ECONNRESET);
        // On an emulated CPU one may take a second.
        late += u32::from(begun.elapsed() >= Duration::from_secs(1));
    }
    if late > 0 {
        lacking("this machine is too slow for checks");
        return;
    }
    assert_nothing(&mut here);
    assert_nothing(&mut there);

    let connection = Connection::accept(&listener, client(&pair, address)).unwrap();
    (&connection.connected).write_all(b"half").unwrap();
    wait_acknowledged(&connection.connected, EVENTUALLY).unwrap();
    abort_on_close(&connection.connected).unwrap();
    drop(connection.connected);
    assert_eq!(death(&connection.accepted), libc::ECONNRESET);
    let (_, reset) = all(&mut here, 1, "reset_by_peer");
    if let Some(reset) = reset {
        assert!(is(&reset, "reset_met", "a connection in use"), "{reset:#?}");
        let said = "at the other end on this host, closed with SO_LINGER 0";
        assert!(reset.summary.contains(said), "{reset:#?}");
    }
}

/// A listener that closes with clients in its queue: whose it was is known, and said at both ends.
#[test]
fn a_listener_that_closes_with_a_queue_has_an_owner() {
    const CLIENTS: u64 = 5;
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 64)).unwrap();
    let clients: Vec<Socket> = (0..CLIENTS).map(|_| client(&pair, address)).collect();
    for client in &clients {
        wait_connected(client);
    }
    drop(listener);
    for client in &clients {
        assert_eq!(death(client), libc::ECONNRESET);
    }
    let (run, closed) = all(&mut here, CLIENTS, "closed_before_accept");
    if let Some(closed) = closed {
        let owner = closed.owner.as_ref().map(|owner| owner.pid);
        assert_eq!(owner, Some(std::process::id()), "{closed:#?}");
    }
    assert_sound(&run, &pair.server);
    let (_, reset) = all(&mut there, CLIENTS, "reset_by_peer");
    if let Some(reset) = reset {
        assert!(
            reset
                .summary
                .contains("closed its listener before they were accepted"),
            "{reset:#?}"
        );
    }
}

/// Two listeners at one address: what waited at the one that goes is its own process's.
#[test]
fn of_two_listeners_the_one_that_closes_is_the_owner() {
    const CLIENTS: usize = 16;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let [stays, goes] = [(), ()].map(|()| {
        let socket = pair.server.run(|| tcp(Family::V4)).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket
    });
    goes.bind(&address.into()).unwrap();
    let fd = goes.as_raw_fd();
    let server = Forked::run(c"ct-server", &[fd], || {
        if listens(fd, 64) { forked::pause() } else { 1 }
    })
    .unwrap();
    wait::until("the other process to listen", EVENTUALLY, || {
        let info = conntracer_tests::socket::tcp_info(&goes)?;
        Ok((info.tcpi_state == 10).then_some(()))
    })
    .unwrap();
    let stays = listen_on(stays, address, 64).unwrap();
    drop(goes);
    let clients: Vec<Socket> = (0..CLIENTS).map(|_| client(&pair, address)).collect();
    for client in &clients {
        wait_connected(client);
    }
    let pid = server.pid();
    let waits = || -> u64 {
        let info = conntracer_tests::socket::tcp_info(&stays).unwrap();
        info.tcpi_unacked.into()
    };
    wait::until("all to wait at one of both", EVENTUALLY, || {
        let sockets = pair.server.run(sockets)?;
        let waiting = sockets.iter().filter(|socket| socket.state == ESTABLISHED);
        Ok((waiting.count() == CLIENTS && waits() > 0).then_some(()))
    })
    .unwrap();
    drop(server);
    let gone = CLIENTS as u64 - waits();
    let (_, closed) = all(&mut tracer, gone, "process_ended");
    if let Some(closed) = closed {
        let owner = closed.owner.as_ref().map(|owner| owner.pid);
        assert_eq!(owner, Some(pid), "{closed:#?}");
        assert_eq!(closed.number("not_accepted"), closed.count, "{closed:#?}");
    }
}

/// A pause, one segment, and a RST at once, or nothing: as something between does that forgot the connection. The pause
/// is told, and not the time since this kernel sent again. Nobody on this host sent that RST. Its twin has no pause.
#[test]
fn a_pause_before_the_fatal_segment_is_told() {
    /// The sequence number after the scripted peer's SYN.
    const NEXT: u32 = 7_000_001;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let script = Script {
        lost_syns: 0,
        timestamps: false,
        steps: &[],
    };
    let peers: Vec<(u16, Socket)> = [1001, 1002, 1003]
        .into_iter()
        .map(|port| {
            let peer = Peer::new(&pair, Family::V4, port).unwrap();
            (port, peer.play(&pair, &script).unwrap())
        })
        .collect();
    let [(twin_port, twin), (reset_port, reset), (_, silent)] = <[_; 3]>::try_from(peers).unwrap();
    let answer = |port: u16, socket: &Socket| {
        (&mut { socket }).write_all(b"late").unwrap();
        let destination = socket.local_addr().unwrap().as_socket().unwrap();
        let rst = Segment {
            source: SocketAddr::new(Family::V4.ghost(), port),
            destination,
            flags: flag::RST,
            seq: NEXT,
            ack: 0,
            bytes: 0,
            timestamp: None,
        };
        pair.client
            .run(|| packet::send_segment(Family::V4, &rst, &[]))
            .unwrap();
        assert_eq!(death(socket), libc::ECONNRESET);
    };
    answer(twin_port, &twin);
    silent
        .set_tcp_user_timeout(Some(Duration::from_millis(600)))
        .unwrap();
    // The pause itself is what is tested.
    thread::sleep(PAUSE);
    answer(reset_port, &reset);
    (&silent).write_all(b"late").unwrap();
    assert_eq!(death(&silent), libc::ETIMEDOUT);
    let run = tell_all(&mut tracer, &HOOKS, 3, died);
    assert_seen(&run, &HOOKS, died(&run), 3);
    for finding in run.last_of(is_drop) {
        assert_blames_nobody(finding);
        let idle = seconds(finding, "idle_least_s");
        let Subject::Peer { remote, .. } = finding.subject else {
            panic!("{finding:#?}");
        };
        if remote.port() == twin_port {
            assert!(idle < PAUSE.as_secs_f64() - 1.0, "{finding:#?}");
            assert!(
                is(finding, "reset_met", "a connection in use"),
                "{finding:#?}"
            );
            continue;
        }
        assert!(idle >= PAUSE.as_secs_f64() - 0.1, "{finding:#?}");
        if remote.port() == reset_port {
            let met = "the first segment after a pause";
            assert!(is(finding, "reset_met", met), "{finding:#?}");
            assert!(
                finding
                    .summary
                    .contains("in answer to the first segment after a pause of 1")
            );
            let told = is(finding, "reset_sent_by", "no TCP socket of this host");
            // A hook that lost something has not seen that nobody sent it.
            let lost = run.missed("reset_sent") > 0;
            assert!(lost || told == tells_of_resets(&tracer), "{finding:#?}");
        } else {
            assert!(is(finding, "how", "user_timeout"), "{finding:#?}");
            assert!(
                finding
                    .summary
                    .contains("before the first segment that was not answered")
            );
        }
    }
    assert_sound(&run, &pair.server);
}

/// Connections that a server ends after the same pause, at different times: that is its own idle timeout. Those that
/// it ends in one moment after the same pause are one event.
#[test]
fn an_idle_timeout_is_named_where_one_event_does_not_explain_it() {
    const EACH: u64 = 3;
    /// Pauses that differ by more than half of the time between them are no pattern.
    const LATE: Duration = Duration::from_millis(400);
    let Some(binary) = binary() else { return };
    let (timed, at_once) = (Pair::new().unwrap(), Pair::new().unwrap());
    let Some(mut tracer) = watch(&binary, &timed.server) else {
        return;
    };
    let Some(mut there) = watch(&binary, &timed.client) else {
        return;
    };
    let Some(mut twin) = watch(&binary, &at_once.server) else {
        return;
    };
    let used = |pair: &Pair| {
        let connection = pair.connect(Family::V4).unwrap();
        (&connection.connected).write_all(b"request").unwrap();
        wait_acknowledged(&connection.connected, EVENTUALLY).unwrap();
        // Read: what is left unread is another story.
        std::io::Read::read_exact(&mut &connection.accepted, &mut [0; 7]).unwrap();
        abort_on_close(&connection.accepted).unwrap();
        (Instant::now() + PAUSE, connection)
    };
    let mut late = Duration::ZERO;
    let mut alike = Vec::new();
    let together: Vec<_> = (0..EACH).map(|_| used(&at_once)).collect();
    for _ in 0..EACH {
        alike.push(used(&timed));
        thread::sleep(Duration::from_millis(900));
    }
    for (end, connection) in alike {
        thread::sleep(end.saturating_duration_since(Instant::now()));
        drop(connection.accepted);
        late = late.max(end.elapsed());
        assert_eq!(death(&connection.connected), libc::ECONNRESET);
    }
    let begun = Instant::now();
    drop(together);
    if late.max(begun.elapsed()) >= LATE {
        lacking("this machine is too slow for pauses that are alike");
        return;
    }
    let (_, named) = all(&mut tracer, EACH, "closed_without_linger");
    let (_, other) = all(&mut there, EACH, "reset_by_peer");
    let (_, unnamed) = all(&mut twin, EACH, "closed_without_linger");
    if let Some(named) = named.filter(|named| named.count == EACH) {
        assert!(
            named.summary.contains("an idle timeout of process"),
            "{named:#?}"
        );
        assert!(
            named.advice[0].contains("leave SO_LINGER alone"),
            "{named:#?}"
        );
    }
    if let Some(other) = other.filter(|other| other.count == EACH) {
        assert!(
            other.summary.contains("closed with SO_LINGER 0"),
            "{other:#?}"
        );
        assert!(other.summary.ends_with("its idle timeout"), "{other:#?}");
    }
    if let Some(unnamed) = unnamed {
        assert!(!unnamed.summary.contains("timeout"), "{unnamed:#?}");
    }
}

/// The way to the peer goes, or is forbidden, and no ICMP says so: the error is this host's own.
#[rstest]
#[case::gone(
    false,
    libc::ENETUNREACH,
    "ENETUNREACH",
    "has no route to the peer any more"
)]
#[case::forbidden(true, libc::EACCES, "EACCES", "forbids to send to the peer")]
fn a_route_that_goes_is_not_told_as_icmp(
    #[case] forbids: bool,
    #[case] errno: i32,
    #[case] name: &str,
    #[case] said: &str,
) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = &pair.server;
    // More timeouts than the tail loss probe makes up for.
    server.set_sysctl("net/ipv4/tcp_retries2", "4").unwrap();
    let away = Family::V4.lent();
    pair.lend(away).unwrap();
    let Some(mut tracer) = watch(&binary, server) else {
        return;
    };
    let address = SocketAddr::new(away, SERVER_PORT);
    let listener = pair.client.run(|| listen(Family::V4, address, 1)).unwrap();
    let connected = server
        .run(|| {
            let client = tcp(Family::V4)?;
            connect_without_waiting(&client, address)?;
            Ok(client)
        })
        .unwrap();
    let connection = Connection::accept(&listener, connected).unwrap();
    deafen(&connection.accepted).unwrap();
    (&connection.connected).write_all(b"lost").unwrap();
    pair.forget_way(away).unwrap();
    if forbids {
        pair.prohibit(away).unwrap();
    }
    assert_eq!(death(&connection.connected), errno);
    let (run, dropped) = all(&mut tracer, 1, "no_route");
    if let Some(dropped) = dropped {
        assert_eq!(dropped.cause, "unreachable", "{dropped:#?}");
        assert!(is(&dropped, "error", name), "{dropped:#?}");
        assert!(dropped.summary.contains(said), "{dropped:#?}");
        assert!(!dropped.summary.contains("ICMP"), "{dropped:#?}");
    }
    assert_sound(&run, server);
}

/// A kernel that has no socket answers in its place, on this host: the other end is told so, and so is who killed one.
#[test]
fn a_reset_is_told_by_who_sent_it() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.client) else {
        return;
    };
    let gone = pair.connect(Family::V4).unwrap();
    (&gone.connected).write_all(b"request").unwrap();
    wait_acknowledged(&gone.connected, EVENTUALLY).unwrap();
    vanish(gone.accepted).unwrap();
    (&gone.connected).write_all(b"another").unwrap();
    assert_eq!(death(&gone.connected), libc::ECONNRESET);
    let (run, reset) = all(&mut tracer, 1, "reset_by_peer");
    if let Some(reset) = reset {
        let told = is(
            &reset,
            "reset_sent_by",
            "the kernel of this host, for no socket",
        );
        let lost = run.missed("reset_sent") > 0;
        assert!(lost || told == tells_of_resets(&tracer), "{reset:#?}");
        if told {
            assert_eq!(
                reset.number("reset_sent_in_netns"),
                u64::from(pair.server.inode())
            );
        }
    }

    let killed = pair.connect(Family::V4).unwrap();
    (&killed.connected).write_all(b"request").unwrap();
    wait_acknowledged(&killed.connected, EVENTUALLY).unwrap();
    let (local, remote) = killed.endpoints().unwrap();
    if !pair
        .server
        .run(|| sock_diag::destroy(local, remote))
        .unwrap()
    {
        lacking("this kernel cannot destroy sockets: CONFIG_INET_DIAG_DESTROY");
        return;
    }
    assert_eq!(death(&killed.connected), libc::ECONNRESET);
    let run = tell_all(&mut tracer, &HOOKS, 2, died);
    assert_seen(&run, &HOOKS, died(&run), 2);
    let by = "the socket at the other end, on this host";
    for reset in run.last_of(|finding| is_drop(finding) && is(finding, "reset_sent_by", by)) {
        let said = "was killed by an administrator's command";
        assert!(reset.summary.contains(said), "{reset:#?}");
    }
    assert_sound(&run, &pair.client);
}

/// MPTCP ends its TCP connections by a RST where data is left unread: nobody has killed them, and no process has set
/// SO_LINGER.
#[test]
fn what_mptcp_ends_is_not_told_as_killed() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let address = Family::V4.veth_listener();
    let made = |netns: &NetNs| netns.run(|| mptcp(Family::V4)).unwrap();
    let (Some(listener), Some(client)) = (made(&pair.server), made(&pair.client)) else {
        lacking("this kernel has no MPTCP");
        return;
    };
    let Some(mut here) = watch(&binary, &pair.server) else {
        return;
    };
    let Some(mut there) = watch(&binary, &pair.client) else {
        return;
    };
    let listener = listen_on(listener, address, 4).unwrap();
    connect_without_waiting(&client, address).unwrap();
    let mut connection = Connection::accept(&listener, client).unwrap();
    connection.connected.write_all(b"request").unwrap();
    wait_readable(&connection.accepted).unwrap();
    drop(connection.accepted);
    wait_readable(&connection.connected).unwrap();
    let (run, ended) = all(&mut here, 1, "mptcp");
    if let Some(ended) = ended {
        assert_eq!(ended.cause, "reset_sent", "{ended:#?}");
        assert!(ended.summary.contains("of MPTCP"), "{ended:#?}");
    }
    assert_sound(&run, &pair.server);
    let run = tell_all(&mut there, &HOOKS, 1, died);
    for ended in run.last_of(is_drop) {
        assert!(ended.summary.contains("of MPTCP"), "{ended:#?}");
        assert!(!ended.summary.contains("administrator"), "{ended:#?}");
    }
}
