//! `accept_delay`: connections that wait for accept(), by what keeps their server from taking them; and servers that take
//! what comes.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::fd::{AsRawFd as _, RawFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use conntracer_tests::{
    cgroup::Cgroup,
    family::Family,
    forked::{self, Forked},
    line::{Certainty, Finding, Status, Subject},
    netns::NetNs,
    served::{accept, close, listens},
    socket::{abort_on_close, listen, tcp},
    wait::{self, EVENTUALLY},
    watch::Watch,
};
use rstest::rstest;
use socket2::Socket;

use crate::support::{Over, assert_said, assert_sound, binary, lacking, trace, watch};

const CLIENTS: u64 = 5;
const BACKLOG: i32 = 8;
/// `TCP_LISTEN` (include/net/tcp_states.h).
const LISTENS: u8 = 10;

fn is_delay(finding: &Finding) -> bool {
    finding.finding == "accept_delay"
}

/// A namespace with a listener in it.
struct Server {
    netns: NetNs,
    address: SocketAddr,
    listener: Socket,
}

impl Server {
    fn new(backlog: i32) -> Self {
        let netns = NetNs::new().unwrap();
        let address = Family::V4.loopback_listener();
        let listener = netns.run(|| listen(Family::V4, address, backlog)).unwrap();
        Self {
            netns,
            address,
            listener,
        }
    }

    fn fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    fn clients(&self) -> Vec<TcpStream> {
        (0..CLIENTS).map(|_| self.client()).collect()
    }

    fn client(&self) -> TcpStream {
        self.netns
            .run(|| Ok(TcpStream::connect_timeout(&self.address, EVENTUALLY)?))
            .unwrap()
    }

    /// The first line of its finding that tells what is asked for.
    fn told(&self, tracer: &mut Watch, what: &str, is: impl Fn(&Finding) -> bool) -> Finding {
        let found = tracer
            .wait_for(what, EVENTUALLY, |finding| is_delay(finding) && is(finding))
            .unwrap();
        let subject = Subject::Listener {
            netns: self.netns.inode(),
            local: self.address,
        };
        assert_eq!(found.subject, subject);
        found
    }
}

/// Everything is told of one finding, which is exact.
#[track_caller]
fn assert_one<'a>(run: &'a conntracer_tests::output::Run, server: &Server) -> &'a Finding {
    let findings = run.last_of(is_delay);
    let [finding] = findings[..] else {
        panic!("one listener, one finding: {run:#?}");
    };
    assert_eq!(finding.certainty, Certainty::Exact, "{finding:#?}");
    assert_said(run, "accept_delay");
    assert_sound(run, &server.netns);
    finding
}

#[track_caller]
fn assert_silent(tracer: &mut Watch, server: &Server) {
    let run = tracer.checkpoint().unwrap();
    assert!(run.last_of(is_delay).is_empty(), "{run:#?}");
    assert_sound(&run, &server.netns);
}

fn accepts_all(server: &Server, count: u64) -> Vec<Socket> {
    (0..count)
        .map(|_| server.listener.accept().unwrap().0)
        .collect()
}

/// It takes none, then one, then all; the clients have left by then.
#[rstest]
#[case::closed_by_their_clients(
    false,
    "clients_closed",
    "5 clients closed their side while they waited"
)]
#[case::reset_by_their_clients(
    true,
    "clients_reset",
    "5 clients gave up with a RST while they waited"
)]
fn connections_that_nobody_takes_are_told_with_what_their_clients_do(
    #[case] resets: bool,
    #[case] ended: &str,
    #[case] said: &str,
) {
    let Some(binary) = binary() else { return };
    let server = Server::new(128);
    let Some(mut tracer) = watch(&binary, &server.netns) else {
        return;
    };
    let clients = server.clients();
    let opened = server.told(&mut tracer, "those that wait", |_| true);
    assert_eq!((&*opened.cause, opened.status), ("slow", Status::Open));
    assert!(
        opened.evidence["oldest_s"].as_f64() >= Some(1.0),
        "{opened:#?}"
    );
    assert_eq!(opened.count, CLIENTS, "{opened:#?}");
    assert!(!opened.advice.concat().contains("backlog"), "{opened:#?}");
    for client in clients {
        if resets {
            abort_on_close(&client.into()).unwrap();
        }
    }
    let left = server.told(&mut tracer, "clients that left", |finding| {
        finding.evidence.get(ended) == Some(&CLIENTS.into())
    });
    assert!(left.summary.contains(said), "{left:#?}");
    let mut accepted = accepts_all(&server, 1);
    let slow = server.told(&mut tracer, "one that was accepted", |finding| {
        finding.summary.contains("accept() took")
    });
    assert_eq!(slow.cause, "slow");
    accepted.extend(accepts_all(&server, CLIENTS - 1));
    let over = server.told(&mut tracer, "the end", |finding| {
        finding.status == Status::Resolved
    });
    assert!(over.summary.contains(said), "{over:#?}");
    let run = tracer.checkpoint().unwrap();
    assert_eq!(assert_one(&run, &server).id, opened.id);
}

/// A connection each 20 ms and an accept() each 100 ms that takes what has come, for as long as a finding would take; and
/// more at once than are taken at once.
#[test]
fn a_server_that_is_busy_and_takes_what_comes_is_no_finding() {
    const GOES_ON: Duration = Duration::from_millis(2500);
    let Some(binary) = binary() else { return };
    let server = Server::new(128);
    let Some(mut tracer) = watch(&binary, &server.netns) else {
        return;
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _over = Over(&is_over);
        scope.spawn(|| {
            server.listener.set_nonblocking(true).unwrap();
            while !is_over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                while server.listener.accept().is_ok() {}
            }
        });
        let burst: Vec<TcpStream> = (0..30).map(|_| server.client()).collect();
        let began = Instant::now();
        while began.elapsed() < GOES_ON {
            drop(server.client());
            thread::sleep(Duration::from_millis(20));
        }
        drop(burst);
    });
    assert_silent(&mut tracer, &server);
}

/// As many descriptors as the process may have.
const DESCRIPTORS: libc::rlim_t = 32;

/// Five in a queue of eight: nothing overflows, and accept() fails twenty times a second. Its twin has descriptors to
/// spare.
#[rstest]
#[case::none_to_spare(false)]
#[case::some_to_spare(true)]
fn a_process_without_a_descriptor_to_spare_cannot_accept(#[case] spare: bool) {
    let Some(binary) = binary() else { return };
    let server = Server::new(BACKLOG);
    let fd = server.fd();
    let worker = Forked::run(c"ct-worker", &[fd], move || {
        let limit = libc::rlimit {
            rlim_cur: DESCRIPTORS,
            rlim_max: DESCRIPTORS,
        };
        // SAFETY: a valid limit; duplicates of a descriptor that is open, until there is no room; numbers.
        unsafe {
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                return 1;
            }
            while !spare && libc::dup(0) >= 0 {}
            loop {
                let _accepted = accept(fd, libc::SOCK_NONBLOCK);
                libc::usleep(50_000);
            }
        }
    })
    .unwrap();
    // SAFETY: a descriptor that is open; the worker is to poll.
    unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_NONBLOCK) };
    let Some(mut tracer) = watch(&binary, &server.netns) else {
        return;
    };
    let clients = server.clients();
    if spare {
        wait_empty(&server);
        assert_silent(&mut tracer, &server);
        return;
    }
    let pid = format!("ct-worker {}", worker.pid());
    let finding = server.told(&mut tracer, "the worker to be told of", |finding| {
        finding.summary.contains(&pid)
    });
    assert_eq!(finding.cause, "no_descriptors", "{finding:#?}");
    let said = format!("accept() fails, {DESCRIPTORS} of {DESCRIPTORS} descriptors are in use");
    assert!(finding.summary.contains(&said), "{finding:#?}");
    drop(clients);
    let run = tracer.checkpoint().unwrap();
    assert_one(&run, &server);
}

/// Until nobody waits.
#[track_caller]
fn wait_empty(server: &Server) {
    wait::until("the queue to be empty", EVENTUALLY, || {
        let waiting = conntracer_tests::socket::tcp_info(&server.listener)?.tcpi_unacked;
        Ok((waiting == 0).then_some(()))
    })
    .unwrap();
}

/// Accepts and closes, for ever.
fn serve(fd: RawFd) -> u8 {
    loop {
        let accepted = accept(fd, 0);
        if accepted >= 0 {
            close(accepted);
        }
    }
}

/// The only worker is stopped, and let go: the end says what held.
#[test]
fn a_worker_that_is_stopped_takes_nothing() {
    let Some(binary) = binary() else { return };
    let server = Server::new(128);
    let fd = server.fd();
    let worker = Forked::run(c"ct-worker", &[fd], move || serve(fd)).unwrap();
    let Some(mut tracer) = watch(&binary, &server.netns) else {
        return;
    };
    drop(server.client());
    wait_empty(&server);
    worker.stop().unwrap();
    let _clients = server.clients();
    let pid = format!("ct-worker {}", worker.pid());
    let finding = server.told(&mut tracer, "the worker to be told of", |finding| {
        finding.summary.contains(&pid)
    });
    assert_eq!(finding.cause, "stopped", "{finding:#?}");
    assert!(finding.advice[0].contains("kill -CONT"), "{finding:#?}");
    worker.go_on().unwrap();
    let over = server.told(&mut tracer, "the end", |finding| {
        finding.status == Status::Resolved
    });
    assert_eq!(
        (&*over.cause, over.id),
        ("stopped", finding.id),
        "{over:#?}"
    );
    let run = tracer.checkpoint().unwrap();
    assert_one(&run, &server);
}

/// One of two sockets of an address, whose process is stopped: the kernel goes on to give it its share.
#[test]
fn one_of_two_that_share_an_address_is_stopped() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let address = Family::V4.loopback_listener();
    let mut bound: Vec<Socket> = (0..2)
        .map(|_| {
            let socket = netns.run(|| tcp(Family::V4)).unwrap();
            socket.set_reuse_port(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket
        })
        .collect();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let workers: Vec<Forked> = bound
        .iter()
        .map(|socket| {
            let fd = socket.as_raw_fd();
            Forked::run(c"ct-worker", &[fd], move || {
                if listens(fd, 128) { serve(fd) } else { 1 }
            })
            .unwrap()
        })
        .collect();
    let listener = bound.remove(0);
    let server = Server {
        netns,
        address,
        listener,
    };
    for socket in [&server.listener, &bound[0]] {
        wait::until("both to listen", EVENTUALLY, || {
            let state = conntracer_tests::socket::tcp_info(socket)?.tcpi_state;
            Ok((state == LISTENS).then_some(()))
        })
        .unwrap();
    }
    workers[0].stop().unwrap();
    let mut clients = Vec::new();
    wait::until("the stopped one to be given some", EVENTUALLY, || {
        clients.push(server.client());
        let waiting = conntracer_tests::socket::tcp_info(&server.listener)?.tcpi_unacked;
        Ok((waiting > 0).then_some(()))
    })
    .unwrap();
    let pid = workers[0].pid();
    let name = format!("ct-worker {pid}");
    let finding = server.told(&mut tracer, "the worker to be told of", |finding| {
        finding.summary.contains(&name) && finding.cause == "stopped"
    });
    assert_eq!(finding.number("members"), 2, "{finding:#?}");
    assert_eq!(finding.number("members_waiting"), 1, "{finding:#?}");
    let owner = finding.owner.as_ref().map(|owner| owner.pid);
    assert_eq!(owner, Some(pid), "{finding:#?}");
    workers[0].go_on().unwrap();
    wait_empty(&server);
    let run = tracer.checkpoint().unwrap();
    assert_one(&run, &server);
}

/// The process that called listen() lets go of it, and a child holds it that does not know of it. Its twin serves.
#[rstest]
#[case::by_one_that_never_accepts(false)]
#[case::by_one_that_serves(true)]
fn a_listener_that_a_child_inherited(#[case] serves: bool) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let listener = netns.run(|| listen(Family::V4, address, 16)).unwrap();
    let fd = listener.as_raw_fd();
    let heir = Forked::run(c"ct-heir", &[fd], move || {
        if serves { serve(fd) } else { forked::pause() }
    })
    .unwrap();
    // Nobody listens on this one: what the child holds is no longer this process's.
    let nothing = netns.run(|| tcp(Family::V4)).unwrap();
    let server = Server {
        netns,
        address,
        listener: nothing,
    };
    drop(listener);
    let _clients = server.clients();
    if serves {
        let mut last = server.client();
        let read = std::io::Read::read(&mut last, &mut [0]).unwrap();
        assert_eq!(read, 0, "the last one was accepted, and closed");
        return assert_silent(&mut tracer, &server);
    }
    let finding = server.told(&mut tracer, "the child to be told of", |finding| {
        finding.cause == "never_accepts"
    });
    let owner = finding.owner.as_ref().expect("the one who holds it");
    assert_eq!(owner.pid, heir.pid(), "{finding:#?}");
    let inherited = format!("ct-heir {} inherited the listener", heir.pid());
    let let_go = format!(
        "process {}, which called listen(), holds it no longer",
        std::process::id()
    );
    // On a slow machine the child may be its owner by the first look: then it is not known who called listen(), and not
    // said.
    let said = if owner.source == "seeded" && !finding.summary.contains(&let_go) {
        vec!["nobody has accepted from it since it listens"]
    } else {
        vec![&*inherited, &*let_go]
    };
    for words in said {
        assert!(finding.summary.contains(words), "{finding:#?}");
    }
    let run = tracer.checkpoint().unwrap();
    assert_one(&run, &server);
}

/// A queue that is full before conntracer starts, and no client comes any more: it is seen at the start, with when it
/// began. A tracer of its own, for what was there before it.
#[test]
fn a_queue_that_is_full_before_the_start_is_seen_at_the_start() {
    const ROOM: i32 = 2;
    const WAITED: Duration = Duration::from_millis(1500);
    /// By which the kernel's time of a connection may be off.
    const TICKS: Duration = Duration::from_millis(50);
    let Some(binary) = binary() else { return };
    let server = Server::new(ROOM);
    let began = Instant::now();
    let clients: Vec<TcpStream> = (0..=ROOM).map(|_| server.client()).collect();
    let connected = Instant::now();
    wait::until("them to have waited", EVENTUALLY, || {
        Ok((connected.elapsed() >= WAITED).then_some(()))
    })
    .unwrap();
    let Some(tracer) = trace(&binary, &server.netns, &[]) else {
        return;
    };
    let mut tracer = tracer.into_watch();
    let finding = server.told(&mut tracer, "those that wait", |_| true);
    assert_eq!(finding.cause, "slow", "{finding:#?}");
    assert!(
        finding.summary.contains("the queue is full (3 of 3)"),
        "{finding:#?}"
    );
    let oldest = Duration::from_secs_f64(finding.evidence["oldest_s"].as_f64().unwrap());
    let longest = began.elapsed() + TICKS;
    assert!(
        (WAITED..=longest).contains(&oldest),
        "{longest:?}: {finding:#?}"
    );
    let owner = finding.owner.as_ref().map(|owner| owner.pid);
    assert_eq!(owner, Some(std::process::id()), "{finding:#?}");
    drop(clients);
    let run = tracer.checkpoint().unwrap();
    assert_one(&run, &server);
}

/// The control group of the worker is frozen, as by `docker pause`.
#[test]
fn a_worker_that_is_frozen_takes_nothing() {
    let Some(binary) = binary() else { return };
    let path = format!("/ct-frozen-queue-{}", std::process::id());
    let frozen = || -> anyhow::Result<Cgroup> {
        let group = Cgroup::new(&path).context("making a control group")?;
        fs::write(group.directory().join("cgroup.freeze"), "0").context("freezing it")?;
        Ok(group)
    };
    let group = match frozen() {
        Ok(group) => group,
        Err(error) => return lacking(&format!("no control group can be frozen: {error:#}")),
    };
    let server = Server::new(128);
    let fd = server.fd();
    let worker = Forked::run(c"ct-worker", &[fd], move || serve(fd)).unwrap();
    group.take(worker.pid()).unwrap();
    let freeze = |value: &str| fs::write(group.directory().join("cgroup.freeze"), value).unwrap();
    freeze("1");
    wait::until("the control group to be frozen", EVENTUALLY, || {
        let events = fs::read_to_string(group.directory().join("cgroup.events"))?;
        Ok(events.contains("frozen 1").then_some(()))
    })
    .unwrap();
    let Some(mut tracer) = watch(&binary, &server.netns) else {
        return;
    };
    let _clients = server.clients();
    let finding = server.told(&mut tracer, "the worker to be told of", |finding| {
        finding.summary.contains("is frozen with its control group")
    });
    freeze("0");
    assert_eq!(finding.cause, "stopped", "{finding:#?}");
    assert!(finding.advice[0].contains("thaw"), "{finding:#?}");
    let run = tracer.checkpoint().unwrap();
    assert_one(&run, &server);
    drop(worker);
}
