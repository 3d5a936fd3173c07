//! Incidents: what belongs together by a connection or a listener, across the namespaces of one host, and what only happens
//! at the same time.

use std::{fs, io::Write as _, mem::MaybeUninit, net::SocketAddr, path::Path};

use conntracer_tests::{
    family::Family,
    line::{Finding, Severity, Subject},
    link::Pair,
    netns::NetNs,
    proc_net,
    scenario::accept_queue::BACKLOG,
    socket::{
        Connection, abort_on_close, connect_without_waiting, listen_on, repeat_syns, tcp, tcp_info,
        wait_error, wait_readable,
    },
    wait::{self, EVENTUALLY, SOON},
};
use rstest::rstest;
use rustix::process::Signal;
use socket2::Socket;

use crate::{
    connects::repeated,
    nginx::Nginx,
    programs::{Served, ask, program},
    support::{assert_sound, binary, is_syn_drop, watch},
};

const BUSY: u16 = 9030;
const NOBODY: u16 = 9031;
/// Fewer SYNs to a closed port are no finding.
const REFUSED: u32 = 10;

/// As in include/net/tcp_states.h.
const ESTABLISHED: u8 = 1;
const SYN_SENT: u8 = 2;

fn is_failure_at(finding: &Finding, family: Family, port: u16) -> bool {
    let at = SocketAddr::new(family.server(), port);
    finding.finding == "connect_failure"
        && matches!(finding.subject, Subject::Peer { remote, .. } if remote == at)
}

/// A connect() that is under way, with more SYNs to come than a test waits for.
fn begin(netns: &NetNs, family: Family, port: u16) -> Socket {
    netns
        .run(|| {
            let socket = tcp(family)?;
            repeat_syns(&socket, 5)?;
            connect_without_waiting(&socket, SocketAddr::new(family.server(), port))?;
            Ok(socket)
        })
        .unwrap()
}

/// Its handshake is over, as far as it can tell.
fn established(socket: &Socket) {
    wait::until("the handshake", EVENTUALLY, || {
        Ok((tcp_info(socket)?.tcpi_state == ESTABLISHED).then_some(()))
    })
    .unwrap();
}

/// Gives an attempt up once its SYN was retransmitted: after a second and more.
fn give_up(socket: Socket) {
    repeated(&socket);
    drop(socket);
}

/// Two things fail at once on one host: a queue that nobody empties, and a port where nobody listens. Each is an incident of
/// its own, with the clients that it makes fail, which are in another namespace.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn two_faults_at_once_are_two_incidents_with_their_clients(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let (Some(mut server), Some(mut client)) =
        (watch(&binary, &pair.server), watch(&binary, &pair.client))
    else {
        return;
    };
    let listener = pair
        .server
        .run(|| {
            listen_on(
                tcp(family)?,
                SocketAddr::new(family.server(), BUSY),
                BACKLOG,
            )
        })
        .unwrap();
    // As many as the queue takes; then there is no room for one more.
    let waiting: Vec<Socket> = (0..=BACKLOG)
        .map(|_| begin(&pair.client, family, BUSY))
        .collect();
    for socket in &waiting {
        established(socket);
    }
    let turned_away = begin(&pair.client, family, BUSY);
    for _ in 0..REFUSED {
        let refused = begin(&pair.client, family, NOBODY);
        wait_error(&refused, EVENTUALLY).unwrap();
    }
    give_up(turned_away);
    for cause in ["accept_queue_full", "no_listener"] {
        server
            .wait_for(cause, EVENTUALLY, |finding| {
                is_syn_drop(finding) && finding.cause == cause
            })
            .unwrap();
    }
    for port in [BUSY, NOBODY] {
        client
            .wait_for("the attempt that was given up", EVENTUALLY, |finding| {
                is_failure_at(finding, family, port)
            })
            .unwrap();
    }
    let of_server = server.checkpoint().unwrap();
    let of_client = client.checkpoint().unwrap();

    let mut incidents = Vec::new();
    for (port, cause) in [(BUSY, "accept_queue_full"), (NOBODY, "no_listener")] {
        let causes = of_server.last_of(|finding| is_syn_drop(finding) && finding.cause == cause);
        let [cause] = causes[..] else {
            panic!("{causes:#?}")
        };
        let symptoms = of_client.last_of(|finding| is_failure_at(finding, family, port));
        let [symptom] = symptoms[..] else {
            panic!("{symptoms:#?}")
        };
        assert_eq!(symptom.explained_by, Some(cause.id), "{symptom:#?}");
        assert_eq!(symptom.incident, cause.incident, "{symptom:#?} {cause:#?}");
        assert_eq!(symptom.related.first(), Some(&cause.id), "{symptom:#?}");
        assert_eq!(cause.explained_by, None, "{cause:#?}");
        assert!(cause.related.contains(&symptom.id), "{cause:#?}");
        assert!(
            symptom.advice[0].contains(&format!("finding {}", cause.id)),
            "{symptom:#?}"
        );
        incidents.push(cause.incident);
    }
    assert_ne!(incidents[0], incidents[1]);
    let full = of_server.last_of(|finding| finding.cause == "accept_queue_full");
    assert_eq!(full[0].severity, Severity::Critical);
    drop((listener, waiting));
    assert_sound(&of_server, &pair.server);
    assert_sound(&of_client, &pair.client);
}

/// A server closes with data unread: its RST is what ended the client's connection. A second one, which goes on, and a third,
/// which ends in order, are no part of that.
#[test]
fn both_ends_of_a_reset_are_one_incident() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let (Some(mut server), Some(mut client)) =
        (watch(&binary, &pair.server), watch(&binary, &pair.client))
    else {
        return;
    };
    let healthy = pair.connect(Family::V4).unwrap();
    let ended = pair.connect(Family::V4).unwrap();
    let Connection {
        accepted,
        mut connected,
        ..
    } = pair.connect(Family::V4).unwrap();
    connected.write_all(b"a request that nobody reads").unwrap();
    wait_readable(&accepted).unwrap();
    drop(ended);
    drop(accepted);
    let sent = server
        .wait_for("the end that reset", EVENTUALLY, |finding| {
            finding.cause == "reset_sent"
        })
        .unwrap();
    client
        .wait_for("the end that was reset", EVENTUALLY, |finding| {
            finding.cause == "reset_received"
        })
        .unwrap();
    let of_client = client.checkpoint().unwrap();
    let of_server = server.checkpoint().unwrap();

    let received = of_client.last_of(|finding| finding.cause == "reset_received");
    assert_eq!(received.len(), 1, "{received:#?}");
    assert_eq!(received[0].explained_by, Some(sent.id), "{received:#?}");
    assert_eq!(received[0].incident, sent.incident, "{received:#?}");
    assert_eq!(sent.explained_by, None, "{sent:#?}");
    drop((connected, healthy));
    assert_sound(&of_server, &pair.server);
    assert_sound(&of_client, &pair.client);
}

const REQUEST: &str = "GET / HTTP/1.0\r\n\r\n";

/// haproxy before one server, which it gives up after a second and a half.
fn proxy(program: &Path, netns: &NetNs, front: SocketAddr, backend: SocketAddr) -> Served {
    Served::start(program, netns, |directory| {
        let path = directory.join("haproxy.cfg");
        let text = format!(
            "defaults\n mode http\n timeout connect 1500ms\n timeout client 60s\n timeout server 60s\n retries 0\n\
             frontend front\n bind {front}\n default_backend back\nbackend back\n server one {backend}\n"
        );
        fs::write(&path, text)?;
        Ok(vec!["-db".to_owned(), "-f".to_owned(), path.display().to_string()])
    })
    .unwrap()
}

/// So many clients, each of which has sent its request.
fn ask_at_once(netns: &NetNs, front: SocketAddr, count: usize) -> Vec<Socket> {
    let mut clients: Vec<Socket> = netns
        .run(|| {
            (0..count)
                .map(|_| {
                    let socket = tcp(Family::V4)?;
                    connect_without_waiting(&socket, front)?;
                    Ok(socket)
                })
                .collect()
        })
        .unwrap();
    for client in &mut clients {
        established(client);
        client.write_all(REQUEST.as_bytes()).unwrap();
    }
    clients
}

/// A proxy before a server whose workers are stopped, and two hundred clients, of which some lose patience. What is told begins
/// with the server that does not accept; what the proxy fails to open, and who gives up at its front, is of that incident.
#[test]
fn a_stopped_server_is_the_incident_of_its_proxy_and_its_clients() {
    const CLIENTS: usize = 200;
    const IMPATIENT: usize = 20;
    const FRONT: u16 = 9032;
    let Some(binary) = binary() else { return };
    let (Some(nginx), Some(haproxy)) = (program("CONNTRACER_NGINX"), program("CONNTRACER_HAPROXY"))
    else {
        return;
    };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let backend = Family::V4.loopback_listener();
    let nginx = Nginx::start(nginx, &pair.server, backend).unwrap();
    let front = SocketAddr::new(Family::V4.server(), FRONT);
    let haproxy = proxy(&haproxy, &pair.server, front, backend);
    wait::until("the proxy to serve", SOON, || {
        Ok(pair.client.run(|| ask(front, REQUEST, "well")).ok())
    })
    .unwrap();
    nginx.signal_workers(Signal::STOP).unwrap();
    nginx.wait_stopped().unwrap();

    // One that it keeps for later is none of those below.
    let kept = pair.server.run(proc_net::sockets).unwrap();
    let clients = ask_at_once(&pair.client, front, CLIENTS);
    let of_proxy = |finding: &Finding| {
        finding.finding == "connect_failure"
            && matches!(finding.subject, Subject::Peer { remote, .. } if remote == backend)
            && finding
                .owner
                .as_ref()
                .is_some_and(|owner| owner.comm == "haproxy")
    };
    tracer
        .wait_for("the proxy to give its server up", EVENTUALLY, of_proxy)
        .unwrap();
    // Those whose requests wait in the server's queue. The proxy has an answer for the others, as soon as each of its own
    // attempts is over: who closes before it has read that one resets for a reason of its own.
    let unanswered = |client: &Socket| client.peek(&mut [MaybeUninit::uninit()]).is_err();
    wait::until("the proxy to answer all others", EVENTUALLY, || {
        let of_proxy = pair.server.run(proc_net::sockets)?;
        let mut of_proxy: Vec<u8> = of_proxy
            .iter()
            .filter(|socket| socket.remote == backend && !kept.contains(socket))
            .map(|socket| socket.state)
            .collect();
        of_proxy.retain(|state| [ESTABLISHED, SYN_SENT].contains(state));
        let waiting = clients.iter().filter(|client| unanswered(client)).count();
        let over = of_proxy.iter().all(|state| *state == ESTABLISHED);
        Ok((over && waiting == of_proxy.len()).then_some(()))
    })
    .unwrap();
    let waiting: Vec<Socket> = clients.into_iter().filter(unanswered).collect();
    assert!(waiting.len() >= 3, "{} clients wait", waiting.len());
    for client in waiting.iter().take(IMPATIENT) {
        abort_on_close(client).unwrap();
    }
    let gave_up = waiting.len().min(IMPATIENT) as u64;
    drop(waiting);
    let at_front = |finding: &Finding| {
        finding.finding == "connection_drop"
            && finding.cause == "reset_received"
            && matches!(finding.subject, Subject::Listener { local, .. } if local == front)
    };
    wait::until("all who gave up to be told", EVENTUALLY, || {
        let run = tracer.checkpoint()?;
        let told: u64 = run.last_of(at_front).iter().map(|of| of.count).sum();
        Ok((told >= gave_up).then_some(()))
    })
    .unwrap();
    let run = tracer.checkpoint().unwrap();

    let server = |finding: &Finding| {
        matches!(finding.subject, Subject::Listener { local, .. } if local == backend)
            && matches!(&*finding.finding, "syn_drop" | "accept_delay")
            && finding.explained_by.is_none()
    };
    let causes = run.last_of(server);
    assert!(!causes.is_empty(), "{run:#?}");
    for cause in &causes {
        let said = format!("{} {:?}", cause.summary, cause.advice);
        assert!(said.contains("stopped"), "{cause:#?}");
        assert_eq!(cause.incident, causes[0].incident, "{causes:#?}");
    }
    let failures = run.last_of(of_proxy);
    let [failure] = failures[..] else {
        panic!("{failures:#?}")
    };
    assert_eq!(
        failure.incident, causes[0].incident,
        "{failure:#?} {causes:#?}"
    );
    let cause = failure.explained_by.expect("a cause");
    assert!(causes.iter().any(|of| of.id == cause), "{failure:#?}");
    let ends = run.last_of(at_front);
    assert!(!ends.is_empty());
    for end in ends {
        assert_eq!(end.incident, causes[0].incident, "{end:#?}");
    }
    nginx.signal_workers(Signal::CONT).unwrap();
    drop((nginx, haproxy));
    assert_sound(&run, &pair.server);
}
