//! Sockets that are inherited, passed on and shared: whose they are by now, and who else holds them.

use std::{
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixDatagram},
};

use conntracer_tests::{
    family::Family,
    forked::{self, Forked},
    line::{Finding, Subject},
    netns::COMM,
    output::Run,
    passed,
    scenario::accept_queue::{AcceptQueueFull, BACKLOG},
    served::{Served, accept, answer, close, hear, listens, say_who},
    socket::deafen,
    wait::EVENTUALLY,
    watch::Watch,
};
use rstest::rstest;
use socket2::Socket;

use crate::support::{assert_sound, binary, is_syn_drop, missed, watch, watch_events};

fn retransmitted(tracer: &mut Watch, pid: u32) {
    tracer
        .wait_for_event("a retransmission", EVENTUALLY, "retransmit", |event| {
            event["process.pid"] == pid
        })
        .unwrap();
}

/// Whose the retransmissions to each client were.
fn owners(run: &Run, client: &Socket) -> Vec<Option<u64>> {
    let port = client.local_addr().unwrap().as_socket().unwrap().port();
    run.events()
        .filter(|(kind, event)| *kind == "retransmit" && event["network.peer.port"] == port)
        .map(|(_, event)| event["process.pid"].as_u64())
        .collect()
}

/// About the server's end: what the client sends is not acknowledged to it either.
fn is_dead_client(finding: &Finding, served: &Served) -> bool {
    let Subject::Connection { local, .. } = &finding.subject else {
        return false;
    };
    finding.cause == "dead_peer" && *local == served.address
}

/// Workers that inherit a listener each own what they accept, and the listener is theirs together.
#[test]
fn each_worker_of_a_preforked_server_owns_what_it_accepts() {
    const WORKERS: usize = 3;
    let Some(binary) = binary() else { return };
    let served = Served::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &served.netns, &["retransmit"]) else {
        return;
    };
    let fd = served.fd();
    let mut clients = Vec::new();
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        let worker = Forked::run(c"ct-worker", &[fd], || {
            let accepted = accept(fd, 0);
            // It has one connection and no time for more.
            if say_who(accepted) && hear(accepted).is_some() && answer(accepted) {
                return forked::pause();
            }
            1
        })
        .unwrap();
        let (client, pid) = served.client().unwrap();
        assert_eq!(pid, worker.pid());
        workers.push(worker);
        clients.push(client);
    }
    for (client, worker) in clients.iter().zip(&workers) {
        deafen(client).unwrap();
        (&*client).write_all(b"x").unwrap();
        retransmitted(&mut tracer, worker.pid());
    }
    let run = tracer.checkpoint().unwrap();

    for (client, worker) in clients.iter().zip(&workers) {
        let owners = owners(&run, client);
        let expected = Some(u64::from(worker.pid()));
        assert_eq!(owners, vec![expected; owners.len()], "{run:#?}");
    }
    assert_sound(&run, &served.netns);
}

/// A listener in trouble is said to be shared by everybody who holds it.
#[test]
fn a_listener_that_workers_inherited_is_said_to_be_shared() {
    const WORKERS: usize = 10;
    let Some(binary) = binary() else { return };
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    full.open().unwrap();
    let fd = full.listener().unwrap();
    let workers: Vec<Forked> = (0..WORKERS)
        .map(|_| Forked::run(c"ct-worker", &[fd], forked::pause).unwrap())
        .collect();
    let netns = full.netns.clone();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    full.provoke().unwrap();
    let shared = tracer
        .wait_for("a shared listener", EVENTUALLY, |finding| {
            is_syn_drop(finding) && finding.holders == Some(11)
        })
        .unwrap();
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    let owner = shared.owner.as_ref().expect("this process listens");
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    let told: Vec<u32> = shared.owners.iter().map(|owner| owner.pid).collect();
    assert_eq!((told.len(), told[0]), (8, owner.pid), "{shared:#?}");
    let mut pids: Vec<u32> = workers.iter().map(Forked::pid).collect();
    pids.sort_unstable();
    assert_eq!(told[1..], pids[..7], "{shared:#?}");
    assert!(
        shared.owners[1..]
            .iter()
            .all(|owner| owner.comm == "ct-worker"),
        "{shared:#?}"
    );
    assert_sound(&run, &netns);
}

/// A descriptor that is passed to another process is that one's from then on.
#[test]
fn a_connection_is_its_receivers_once_it_was_passed() {
    let Some(binary) = binary() else { return };
    let served = Served::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &served.netns, &["retransmit"]) else {
        return;
    };
    let fd = served.fd();
    let (here, there) = UnixDatagram::pair().unwrap();
    let (here, there) = (here.as_raw_fd(), there.as_raw_fd());
    let acceptor = Forked::run(c"ct-acceptor", &[fd, here], || {
        let accepted = accept(fd, 0);
        if passed::send(here, accepted) {
            close(accepted);
            return forked::pause();
        }
        1
    })
    .unwrap();
    let receiver = Forked::run(c"ct-receiver", &[there], || {
        let received = passed::receive(there);
        if say_who(received) && hear(received).is_some() && answer(received) {
            return forked::pause();
        }
        1
    })
    .unwrap();
    let (client, pid) = served.client().unwrap();
    assert_eq!(pid, receiver.pid());
    deafen(&client).unwrap();
    (&client).write_all(b"x").unwrap();
    let finding = tracer
        .wait_for("a silent peer of one process", EVENTUALLY, |finding| {
            is_dead_client(finding, &served) && finding.holders == Some(1)
        })
        .unwrap();
    // Elsewhere the first to receive from it is taken for who accepted it.
    let source = if tracer.has_hook("pass") {
        "passed"
    } else {
        "accept"
    };
    let run = tracer.checkpoint().unwrap();

    let owner = finding.owner.as_ref().expect("it was passed to a process");
    assert_eq!(
        (owner.pid, owner.comm.as_str(), owner.source.as_str()),
        (receiver.pid(), "ct-receiver", source),
        "not {acceptor:?}: {finding:#?}"
    );
    assert!(finding.owners.is_empty(), "{finding:#?}");
    let owners = owners(&run, &client);
    let told = owners.len() as u64;
    assert!(told + missed(&run, &["retransmit"]) >= 3, "{owners:?}");
    assert_eq!(owners, vec![Some(u64::from(receiver.pid())); owners.len()]);
    assert_sound(&run, &served.netns);
}

/// A connection whose acceptor forked a process for it and closed its own descriptor is that process's: the hooks
/// tell that it may be, and the search that it is.
#[test]
fn an_inherited_connection_is_found_to_be_the_heirs() {
    let Some(binary) = binary() else { return };
    let served = Served::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &served.netns, &["retransmit"]) else {
        return;
    };
    let fd = served.fd();
    let (mut here, there) = std::io::pipe().map(|(read, write)| (write, read)).unwrap();
    let order = there.as_raw_fd();
    let acceptor = Forked::run(c"ct-acceptor", &[fd, order], || {
        let accepted = accept(fd, 0);
        if forked::again(c"ct-heir") {
            // It never receives anything from the connection.
            if say_who(accepted) && hear(order).is_some() && answer(accepted) {
                return forked::pause();
            }
            return 1;
        }
        close(accepted);
        forked::pause()
    })
    .unwrap();
    let (client, heir) = served.client().unwrap();
    assert_ne!(heir, acceptor.pid());
    deafen(&client).unwrap();
    here.write_all(b"x").unwrap();
    let finding = tracer
        .wait_for("a silent peer of one process", EVENTUALLY, |finding| {
            is_dead_client(finding, &served) && finding.holders == Some(1)
        })
        .unwrap();
    // The eBPF side knows by then.
    retransmitted(&mut tracer, heir);
    let run = tracer.checkpoint().unwrap();

    let owner = finding.owner.as_ref().expect("a process holds it");
    assert_eq!(
        (owner.pid, owner.comm.as_str(), owner.source.as_str()),
        (heir, "ct-heir", "seeded"),
        "{finding:#?}"
    );
    assert!(finding.owners.is_empty(), "{finding:#?}");
    // Before anybody had looked it was said to be its acceptor's or a descendant's.
    let mut looked_for = false;
    for (_, event) in run.events() {
        looked_for |= event.get("holders").is_some();
        let source = if looked_for { "seeded" } else { "forked" };
        assert_eq!(event["owner_source"], source, "{event}");
        if looked_for {
            assert_eq!(event["process.pid"], heir, "{event}");
        }
    }
    assert!(looked_for, "{run:#?}");
    assert_sound(&run, &served.netns);
}

/// Who is named for a listener that was passed on: all who were said to be its owner in turn, and at last.
struct Named {
    first: Vec<(u32, String)>,
    last: Finding,
}

/// Lets the queue of a listener overflow that another process made, until a finding has so many holders.
fn overflow(full: &mut AcceptQueueFull, mut tracer: Watch, holders: u32) -> Named {
    full.overflow().unwrap();
    let last = tracer
        .wait_for("whose the listener is", EVENTUALLY, |finding| {
            is_syn_drop(finding) && finding.holders == Some(holders)
        })
        .unwrap();
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();
    let owner = last.owner.as_ref().expect("a process holds it");
    for finding in run.findings().filter(|finding| is_syn_drop(finding)) {
        // Handshakes that were under way when the queue filled are refused at their third ACK.
        let causes = ["accept_queue_full", "ack_overflow"];
        assert!(causes.contains(&finding.cause.as_str()), "{finding:#?}");
    }
    let first = run
        .findings()
        .filter(|finding| is_syn_drop(finding))
        .filter_map(|finding| finding.owner.as_ref())
        .take_while(|before| before.pid != owner.pid || before.source != owner.source)
        .map(|before| (before.pid, before.source.clone()))
        .collect();
    assert_sound(&run, &full.netns);
    Named { first, last }
}

/// A listener that one process makes and leaves to the service that it starts, as systemd does: the service's when
/// its maker lets go of it, and both their own when it does not, never plainly its maker's.
#[rstest]
#[case::let_go(false)]
#[case::kept(true)]
fn a_listener_of_socket_activation_is_the_services(#[case] keeps: bool) {
    let Some(binary) = binary() else { return };
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    let bound = full.bound().unwrap();
    let Some(tracer) = watch(&binary, &full.netns) else {
        return;
    };
    let fd = bound.as_raw_fd();
    let (mut there, here) = std::io::pipe().unwrap();
    let tell = here.as_raw_fd();
    let maker = Forked::run(c"ct-maker", &[fd, tell], || {
        if !listens(fd, BACKLOG) {
            return 1;
        }
        if forked::again(c"ct-service") {
            return if say_who(tell) { forked::pause() } else { 1 };
        }
        if !keeps {
            close(fd);
        }
        forked::pause()
    })
    .unwrap();
    drop((bound, here));
    let service = read_pid(&mut there);
    let Named { first, last } = overflow(&mut full, tracer, 1 + u32::from(keeps));

    let owner = last.owner.as_ref().unwrap();
    let owners: Vec<u32> = last.owners.iter().map(|owner| owner.pid).collect();
    if keeps {
        assert_eq!(
            (owner.pid, owner.source.as_str()),
            (maker.pid(), "forked"),
            "{last:#?}"
        );
        assert_eq!(owners, [maker.pid(), service], "{last:#?}");
    } else {
        assert_eq!(
            (owner.pid, owner.comm.as_str()),
            (service, "ct-service"),
            "{last:#?}"
        );
        assert!(owners.is_empty(), "{last:#?}");
    }
    for (pid, source) in first {
        assert_eq!((pid, source.as_str()), (maker.pid(), "forked"));
    }
}

/// The same by a message to a service that runs already: the hook for such messages tells at once, and the search
/// where there is none.
#[test]
fn a_listener_that_was_sent_is_its_receivers() {
    let Some(binary) = binary() else { return };
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    let bound = full.bound().unwrap();
    let Some(tracer) = watch(&binary, &full.netns) else {
        return;
    };
    let tells = tracer.has_hook("pass");
    let fd = bound.as_raw_fd();
    let (mut there, here) = std::io::pipe().unwrap();
    let tell = here.as_raw_fd();
    let (from, to) = UnixDatagram::pair().unwrap();
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let service = Forked::run(c"ct-service", &[to, tell], || {
        if passed::receive(to) >= 0 && say_who(tell) {
            return forked::pause();
        }
        1
    })
    .unwrap();
    let maker = Forked::run(c"ct-maker", &[fd, from], || {
        u8::from(!(listens(fd, BACKLOG) && passed::send(from, fd)))
    })
    .unwrap();
    maker.wait().unwrap();
    drop((bound, here));
    assert_eq!(read_pid(&mut there), service.pid());
    let Named { first, last } = overflow(&mut full, tracer, 1);

    let owner = last.owner.as_ref().unwrap();
    assert_eq!(
        (owner.pid, owner.comm.as_str()),
        (service.pid(), "ct-service"),
        "{last:#?}"
    );
    if tells {
        assert!(
            first.iter().all(|(pid, _)| *pid == service.pid()),
            "{first:?}"
        );
    }
}

fn read_pid(from: &mut std::io::PipeReader) -> u32 {
    let mut pid = [0; 4];
    from.read_exact(&mut pid).unwrap();
    u32::from_ne_bytes(pid)
}
