//! Whose a socket is: never the process that happened to run when the kernel worked for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, RawFd},
        unix::net::UnixDatagram,
    },
    thread,
};

use anyhow::ensure;
use conntracer_tests::{
    cgroup::Cgroup,
    family::Family,
    forked::{self, Forked},
    line::{Finding, Status},
    link::Pair,
    netns::{COMM, NetNs},
    output::Run,
    scenario::{accept_queue::AcceptQueueFull, dead_peer::DeadPeer},
    served::say_who,
    socket::{
        Connection, Waiting, abort_on_close, connect_without_waiting, deafen, listen, tcp,
        transfer, wait_readable,
    },
    uring::Uring,
    wait::{EVENTUALLY, SOON},
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;
use socket2::{SockAddr, Socket};

use crate::support::{
    assert_seen, assert_sound, binary, is_ours, is_syn_drop, lacking, trace, trace_by, watch_events,
};

/// Every kind of event that tells of a socket.
const ALL: [&str; 11] = [
    "connect",
    "accept",
    "state",
    "retransmit",
    "syn",
    "reset",
    "drop",
    "early_drop",
    "connection",
    "failure",
    "probe",
];

/// A search for the holders of one socket finds those of all: one that was accepted and has not received anything is
/// accepted all the same, once. A tracer of its own, which searches for nobody else: the search has to come before the
/// kernel gives the peer up.
#[test]
fn a_search_for_another_socket_takes_no_accept_away() {
    let Some(binary) = binary() else { return };
    let mut scenario = DeadPeer::new(Family::V4).unwrap();
    let server = scenario.pair.server.clone();
    let Some(mut tracer) = trace(&binary, &server, &["--emit", "accept,retransmit"]) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let quiet = server
        .run(|| {
            let listener = listen(Family::V4, address, 1)?;
            let client = tcp(Family::V4)?;
            connect_without_waiting(&client, address)?;
            Connection::accept(&listener, client)
        })
        .unwrap();
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    tracer
        .wait_for_event("a search for holders", EVENTUALLY, "retransmit", |event| {
            event["holders"] == 1
        })
        .unwrap();
    let is_quiet = |event: &Value| event["network.local.address"] == address.ip().to_string();
    for _ in 0..2 {
        transfer(&quiet.connected, &quiet.accepted, 1).unwrap();
        tracer
            .wait_for_event("its accept", SOON, "accept", is_quiet)
            .unwrap();
    }
    let run = tracer.stop().unwrap();

    let accepts: Vec<_> = run
        .events()
        .filter(|(kind, event)| *kind == "accept" && is_quiet(event))
        .collect();
    assert_eq!(accepts.len(), 1, "{accepts:#?}");
    assert_eq!(accepts[0].1["process.pid"], std::process::id());
    assert_sound(&run, &server);
}

/// Every retransmission by a timer and every SYN comes while another process has the CPU: the timers fire
/// on it, and so do the softirqs that loopback packets wait for. A tracer of its own, which has a CPU less.
#[test]
fn a_busy_process_on_the_same_cpu_owns_nothing() {
    let Some(binary) = binary() else { return };
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).expect("this host has a CPU 0");
    let busy = Forked::run(c"ct-busy", &[], || {
        loop {
            hint::spin_loop();
        }
    })
    .unwrap();
    let mut dead = DeadPeer::new(Family::V4).unwrap();
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    let server = dead.pair.server.clone();
    let other = full.netns.inode().to_string();
    let kinds = ALL.join(",");
    let arguments = ["--netns", &other, "--emit", &kinds];
    let Some(mut tracer) = trace(&binary, &server, &arguments) else {
        return;
    };
    dead.connect().unwrap();
    dead.vanish().unwrap();
    full.provoke().unwrap();
    let dropped = tracer.wait_for("dropped SYNs", SOON, is_syn_drop).unwrap();
    let silent = tracer
        .wait_for("a silent peer", EVENTUALLY, is("half_open"))
        .unwrap();
    full.quiet().unwrap();
    let run = tracer.stop().unwrap();

    for finding in [&dropped, &silent] {
        let owner = finding
            .owner
            .as_ref()
            .unwrap_or_else(|| panic!("this process owns it: {finding:#?}"));
        assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    }
    let retransmits = pids(&run, |kind| kind == "retransmit");
    assert!(retransmits.len() >= 3, "{retransmits:?}");
    assert_eq!(
        retransmits,
        vec![Some(std::process::id()); retransmits.len()]
    );
    // Who has the CPU is not even named where nobody is known.
    assert!(
        !pids(&run, |_| true).contains(&Some(busy.pid())),
        "{run:#?}"
    );
}

/// Thousands of attempts that fail leave nothing behind in the eBPF side: with room for few sockets at a
/// time, none is lost, and what comes after them is seen.
#[test]
fn refused_connects_in_a_row_leave_nothing_behind() {
    const ATTEMPTS: u16 = 5_000;
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = trace_by(&binary, &netns, "[trace]\nmax_sockets = 64\n", &[]) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    netns
        .run(|| {
            for _ in 0..ATTEMPTS {
                // Until the RST is there: a socket that is closed before is no refused one.
                let told = tcp(Family::V4)?.connect(&address.into());
                ensure!(told.is_err(), "nobody listens");
            }
            let listener = listen(Family::V4, address, 1)?;
            let client = tcp(Family::V4)?;
            connect_without_waiting(&client, address)?;
            Connection::accept(&listener, client)?.abort()
        })
        .unwrap();
    // What passed while a program was running (see `assert_sound`) is counted as lost.
    let nearly = u64::from(ATTEMPTS) * 99 / 100;
    tracer
        .wait_for("every early drop", SOON, |finding| {
            finding.finding == "connect_failure" && finding.count >= nearly
        })
        .unwrap();
    let run = tracer.stop().unwrap();

    let failures = run.last_of(|finding| finding.finding == "connect_failure");
    let lost: u64 = run.totals.hooks.values().map(|account| account.lost).sum();
    // Of an attempt whose connect() no program saw, nobody knows whose it was.
    let (known, unknown): (Vec<&Finding>, Vec<&Finding>) =
        failures.iter().partition(|failure| failure.owner.is_some());
    let unknown: u64 = unknown.iter().map(|failure| failure.count).sum();
    assert!(unknown <= lost, "{failures:#?}");
    let [refused] = known.as_slice() else {
        panic!("one process, one remote end, one cause: {failures:#?}");
    };
    let told = refused.count + unknown;
    assert!(told + lost >= u64::from(ATTEMPTS), "{run:#?}");
    assert_eq!(refused.cause, "refused", "{refused:#?}");
    let owner = refused
        .owner
        .as_ref()
        .expect("this process called connect()");
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    let connects = &run.totals.hooks["connect"];
    // Those of other tests' namespaces are filtered, and of those that no program saw it is not known whose they were.
    assert!(
        connects.aggregated <= u64::from(ATTEMPTS) + 1
            && connects.aggregated + connects.lost >= u64::from(ATTEMPTS),
        "{connects:?}"
    );
    assert_sound(&run, &netns);
}

/// A socket outlives the process that connected it and left something unsaid, and is its to the end.
#[test]
fn a_socket_is_its_process_after_that_has_ended() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &pair.client, &ALL) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 1)).unwrap();
    let client = pair.client.run(|| tcp(Family::V4)).unwrap();
    client.set_nonblocking(false).unwrap();
    let fd = client.as_raw_fd();
    let raw = SockAddr::from(address);
    let (here, there) = UnixDatagram::pair().unwrap();
    let order = there.as_raw_fd();
    let forked = Forked::run(c"ct-gone", &[fd, order], || {
        let mut bytes = [0_u8; 100];
        // SAFETY: descriptors, an address and a buffer that live as long as the calls.
        let said = unsafe {
            libc::connect(fd, raw.as_ptr().cast(), raw.len()) == 0
                && libc::read(order, bytes.as_mut_ptr().cast(), 1) == 1
                && libc::write(fd, bytes.as_ptr().cast(), bytes.len()) == 100
        };
        u8::from(!said)
    })
    .unwrap();
    let pid = forked.pid();
    drop(client);
    let (accepted, _) = pair
        .server
        .run(|| {
            wait_readable(&listener)?;
            Ok(listener.accept()?)
        })
        .unwrap();
    deafen(&accepted).unwrap();
    here.send(b"x").unwrap();
    forked.wait().unwrap();
    tracer
        .wait_for_event("a retransmission", SOON, "retransmit", |_| true)
        .unwrap();
    drop(accepted);
    let run = tracer.checkpoint().unwrap();

    let retransmits = pids(&run, |kind| kind == "retransmit");
    assert_eq!(retransmits, vec![Some(pid); retransmits.len()], "{run:#?}");
    assert!(
        run.events()
            .filter(|(kind, _)| *kind == "retransmit")
            .all(|(_, event)| event["process.command"] == "ct-gone"),
        "{run:#?}"
    );
    assert_sound(&run, &pair.client);
}

/// Two processes that reset their connections and take each other's port at once: one address and one kernel
/// socket after another, and every event is of the process whose connection it was.
#[test]
fn a_port_that_changes_hands_within_a_moment_is_each_processs_own() {
    const ROUNDS: u8 = 10;
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &ALL) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let listener = netns
        .run(|| listen(Family::V4, address, 2 * i32::from(ROUNDS)))
        .unwrap();
    // A socket is of the namespace that it was made in: those of all rounds are made beforehand.
    let sockets: Vec<Vec<Socket>> = [(); 2]
        .map(|()| {
            let made = netns.run(|| (0..ROUNDS).map(|_| resettable()).collect());
            made.unwrap()
        })
        .into();
    let ends = [UnixDatagram::pair().unwrap(), UnixDatagram::pair().unwrap()];
    let (first, second) = (&ends[0], &ends[1]);
    let turns = [
        (first.0.as_raw_fd(), second.1.as_raw_fd()),
        (second.0.as_raw_fd(), first.1.as_raw_fd()),
    ];
    let remote = SockAddr::from(address);
    let local = SockAddr::from(SocketAddr::from(([127, 0, 0, 1], TAKEN_PORT)));
    let (mut there, here) = std::io::pipe().unwrap();
    let ready = here.as_raw_fd();
    let processes: Vec<Forked> = sockets
        .iter()
        .zip(turns)
        .map(|(sockets, (mine, other))| {
            let fds: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
            let kept: Vec<RawFd> = fds.iter().copied().chain([mine, other, ready]).collect();
            Forked::run(c"ct-taker", &kept, || {
                let takes = |fd: &RawFd| take(*fd, &local, &remote, mine, other);
                u8::from(!(say_who(ready) && fds.iter().all(takes)))
            })
            .unwrap()
        })
        .collect();
    drop(sockets);
    let pids: Vec<u32> = processes.iter().map(Forked::pid).collect();
    // Each has let go of the other's sockets by then, which would be its own to close.
    there.read_exact(&mut [0; 8]).unwrap();
    first.1.send(b"x").unwrap();
    for process in processes {
        process.wait().unwrap();
    }
    drop(listener);
    let run = tracer.checkpoint().unwrap();

    let mut lives: BTreeMap<u64, BTreeSet<Option<u64>>> = BTreeMap::new();
    for (_, event) in run.events() {
        if event["network.local.port"] == TAKEN_PORT
            && let Some(born) = event["born_ktime_ns"].as_u64().filter(|born| *born != 0)
        {
            let pid = event["process.pid"].as_u64();
            lives.entry(born).or_default().insert(pid);
        }
    }
    let lost: u64 = run.totals.hooks.keys().map(|hook| run.lost(hook)).sum();
    assert!(
        lives.len() as u64 + lost >= 2 * u64::from(ROUNDS),
        "{run:#?}"
    );
    if lost == 0 {
        for (turn, owners) in lives.values().enumerate() {
            let expected = Some(u64::from(pids[turn % 2]));
            assert_eq!(owners, &BTreeSet::from([expected]), "turn {turn}: {run:#?}");
        }
    }
    assert!(lives.values().all(|owners| owners.len() == 1), "{lives:#?}");
    assert_sound(&run, &netns);
}

/// The port that both take.
const TAKEN_PORT: u16 = 4242;

/// A socket that is reset when it is closed, whoever had its port before.
fn resettable() -> anyhow::Result<Socket> {
    let socket = tcp(Family::V4)?;
    socket.set_nonblocking(false)?;
    socket.set_reuse_address(true)?;
    abort_on_close(&socket)?;
    Ok(socket)
}

/// Waits for its turn, connects, resets and gives the turn to the other; by system calls alone.
fn take(fd: RawFd, local: &SockAddr, remote: &SockAddr, mine: RawFd, other: RawFd) -> bool {
    let mut byte = [0_u8; 1];
    // SAFETY: system calls with descriptors, addresses and a buffer that live.
    unsafe {
        libc::read(mine, byte.as_mut_ptr().cast(), 1) == 1
            && libc::bind(fd, local.as_ptr().cast(), local.len()) == 0
            && libc::connect(fd, remote.as_ptr().cast(), remote.len()) == 0
            && libc::close(fd) == 0
            && libc::write(other, byte.as_ptr().cast(), 1) == 1
    }
}

/// Many threads that wait in accept() are one process.
#[test]
fn threads_that_accept_are_their_process() {
    const THREADS: u8 = 25;
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let address = Family::V4.loopback_listener();
    let listener = netns
        .run(|| listen(Family::V4, address, THREADS.into()))
        .unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &["accept"]) else {
        return;
    };
    thread::scope(|scope| {
        let waiting = Waiting(&listener);
        for number in 0..THREADS {
            let serve = || -> std::io::Result<()> {
                let (mut accepted, _) = listener.accept()?;
                // Whose it is shows at its first receive on the tracepoint hook type.
                accepted.read_exact(&mut [0; 1])?;
                accepted.write_all(b"x")
            };
            thread::Builder::new()
                .name(format!("ct-thread-{number}"))
                .spawn_scoped(scope, serve)
                .unwrap();
        }
        let clients: anyhow::Result<Vec<Socket>> = netns.run(|| {
            (0..THREADS)
                .map(|_| {
                    let mut client = tcp(Family::V4)?;
                    client.set_nonblocking(false)?;
                    client.connect(&address.into())?;
                    client.write_all(b"x")?;
                    // One after the other, while the rest wait: what happens at once, Linux 7 may skip.
                    client.read_exact(&mut [0; 1])?;
                    Ok(client)
                })
                .collect()
        });
        let _clients = clients.unwrap();
        tracer
            .wait_for_events((THREADS - SKIPPED).into(), SOON)
            .unwrap();
        drop(waiting);
    });
    let run = tracer.checkpoint().unwrap();

    let accepts: Vec<_> = run.events().collect();
    assert_seen(&run, &["accept"], accepts.len() as u64, THREADS.into());
    for (_, event) in accepts {
        assert_eq!(event["process.pid"], std::process::id(), "{event}");
        assert_eq!(event["process.command"], COMM, "{event}");
    }
    assert_sound(&run, &netns);
}

/// Accepts whose event may be skipped: see `assert_sound`.
const SKIPPED: u8 = 2;

/// What io_uring accepts is the process's that asked for it: a thread of its own does it, or before Linux 5.12 one
/// of the kernel's, which owns nothing.
#[test]
fn what_io_uring_accepts_is_nobody_elses() {
    let Some(binary) = binary() else { return };
    // One of these accepts is seen: what the kernel skips of a connection's begin takes its accept along.
    let rings = match (0..=SKIPPED)
        .map(|_| Uring::new())
        .collect::<Result<Vec<_>, _>>()
    {
        Ok(rings) => rings,
        Err(error) => return lacking(&format!("io_uring_setup: {error}")),
    };
    let netns = NetNs::new().unwrap();
    let address = Family::V4.loopback_listener();
    let listener = netns.run(|| listen(Family::V4, address, 1)).unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &["accept", "state"]) else {
        return;
    };
    let ends: Vec<_> = rings
        .into_iter()
        .map(|ring| {
            let client = netns
                .run(|| {
                    let client = tcp(Family::V4)?;
                    connect_without_waiting(&client, address)?;
                    (&client).write_all(b"x")?;
                    Ok(client)
                })
                .unwrap();
            let mut accepted = ring.accept(&listener).unwrap();
            accepted.read_exact(&mut [0; 1]).unwrap();
            (client, accepted)
        })
        .collect();
    tracer
        .wait_for_event("what was accepted", SOON, "accept", |_| true)
        .unwrap();
    drop(ends);
    let run = tracer.checkpoint().unwrap();

    let accepts = pids(&run, |kind| kind == "accept");
    assert!(!accepts.is_empty(), "{run:#?}");
    for (_, event) in run.events() {
        let is_owned = event.get("process.pid").is_some();
        assert!(!is_owned || is_ours(event), "{event}: {run:#?}");
    }
    assert_sound(&run, &netns);
}

/// A process in a control group and a network namespace such as a container has: both name its findings.
#[test]
fn a_process_of_a_container_is_named_by_it() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let id = format!("{:064x}", std::process::id());
    let cgroup = match Cgroup::new(&format!("docker-{id}.scope")) {
        Ok(cgroup) => cgroup,
        Err(error) => return lacking(&format!("{error:#}")),
    };
    let Some(mut tracer) = watch_events(&binary, &netns, &["failure"]) else {
        return;
    };
    let client = netns.run(|| tcp(Family::V4)).unwrap();
    client.set_nonblocking(false).unwrap();
    let fd = client.as_raw_fd();
    let nobody = SockAddr::from(Family::V4.loopback_listener());
    let client_of_it = Forked::run(c"ct-contained", &[fd], || {
        // SAFETY: a socket and an address that live as long as the call.
        let connect = || unsafe { libc::connect(fd, nobody.as_ptr().cast(), nobody.len()) };
        if !cgroup.enter() || connect() == 0 {
            return 1;
        }
        forked::pause()
    })
    .unwrap();
    let finding = tracer
        .wait_for("a refused connect", SOON, is("connect_failure"))
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    let pid = client_of_it.pid();
    drop(client_of_it);

    let owner = finding.owner.as_ref().expect("it called connect()");
    assert_eq!((owner.pid, owner.comm.as_str()), (pid, "ct-contained"));
    assert_eq!(owner.cgroup_id, cgroup.id().unwrap(), "{owner:#?}");
    let container = owner.container.as_ref().expect("its control group tells");
    assert_eq!((container.runtime.as_str(), &container.id), ("docker", &id));
    assert_eq!(owner.unit, Some(format!("docker-{id}.scope")));
    assert_eq!(owner.cgroup, Some(format!("/docker-{id}.scope")));
    // Told at once, and again by the poll.
    let failures = pids(&run, |kind| kind == "failure");
    assert_eq!(failures, vec![Some(pid); failures.len()], "{run:#?}");
    assert_sound(&run, &netns);
}

fn is(kind: &str) -> impl Fn(&Finding) -> bool {
    move |finding| finding.finding == kind && finding.status == Status::Open
}

/// The owners that events of some kinds name.
fn pids(run: &Run, of: impl Fn(&str) -> bool) -> Vec<Option<u32>> {
    run.events()
        .filter(|(kind, _)| of(kind))
        .map(|(_, event)| {
            event
                .get("process.pid")
                .and_then(Value::as_u64)
                .map(|pid| u32::try_from(pid).expect("a pid"))
        })
        .collect()
}
