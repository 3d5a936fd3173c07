//! A healthy hour, or as much of it as there is time for: what servers do all day, under the conntracer that all tests
//! share and its default thresholds. Nothing of it is to wake anybody.
//!
//! `CONNTRACER_HEALTHY_MINUTES` says how long each test goes on; a few seconds where it is not set.

use std::{
    collections::BTreeMap,
    env,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::Finding,
    link::Pair,
    netfilter::{Hook, Match, drop_some_at},
    netns::NetNs,
    output::Run,
    scenario::healthy,
    socket::{abort_on_close, listen, tcp},
    wait::{self, EVENTUALLY, SOON},
};
use jiff::Timestamp;
use rustix::process::Signal;

use crate::{
    nginx::Nginx,
    programs::{Served, ask, is_listening, program, words},
    support::{Over, assert_sound, binary, trace_everywhere, watch},
};

/// A test's share of every run of the tests.
const BRIEF: Duration = Duration::from_secs(8);

/// How long conntracer waits for another server in place of one that has ended.
const RESTART: Duration = Duration::from_secs(10);

/// When a test is to end.
fn until_when() -> Instant {
    let minutes = env::var("CONNTRACER_HEALTHY_MINUTES").ok();
    let long = minutes.map_or(BRIEF, |minutes| {
        let minutes = minutes
            .parse()
            .expect("CONNTRACER_HEALTHY_MINUTES is a whole number");
        Duration::from_mins(minutes)
    });
    Instant::now() + long
}

/// Nothing was found in a namespace in which something was done.
#[track_caller]
fn assert_quiet(run: &Run, netns: &NetNs) {
    let findings: Vec<_> = run.findings().collect();
    assert!(findings.is_empty(), "{findings:#?}");
    assert_sound(run, netns);
}

/// Clients that ask one after the other until the end, each as fast as a person's browser would, and how many
/// requests were answered. A request that fails is the test's failure.
fn load(netns: &NetNs, address: SocketAddr, is_over: &AtomicBool) -> Result<u64> {
    const CLIENTS: usize = 4;
    let answered = AtomicU64::new(0);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    netns.run(|| {
                        while !is_over.load(Relaxed) {
                            ask(address, "GET / HTTP/1.0\r\n\r\n", "well")?;
                            answered.fetch_add(1, Relaxed);
                            pace(Duration::from_millis(20));
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| {
            client
                .join()
                .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
        })
    })?;
    Ok(answered.into_inner())
}

/// The rate of a load: no more than a server of two CPUs has beside other tests. Nothing is waited for.
fn pace(between: Duration) {
    thread::sleep(between);
}

/// nginx with a socket for each worker (`reuseport`) reloads every other second while clients ask, and a balancer looks
/// ten times a second whether it lives, by a handshake that a RST ends.
#[test]
fn a_web_server_reloads_under_load() {
    let Some(binary) = binary() else { return };
    let Some(nginx) = program("CONNTRACER_NGINX") else {
        return;
    };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let nginx = Nginx::start_reuseport(nginx, &netns, address).unwrap();
    let end = until_when();
    let is_over = AtomicBool::new(false);
    let (answered, checked) = thread::scope(|scope| {
        let over = Over(&is_over);
        let load = scope.spawn(|| load(&netns, address, &is_over));
        let mut checks = 0;
        while Instant::now() < end && !load.is_finished() {
            if checks % 20 == 10 {
                nginx.signal_master(Signal::HUP).unwrap();
            }
            check(&netns, address).unwrap();
            checks += 1;
            pace(Duration::from_millis(100));
        }
        drop(over);
        (load.join().unwrap().unwrap(), checks)
    });
    let run = tracer.checkpoint().unwrap();
    assert!(answered > checked && checked > 10, "{answered}, {checked}");
    assert_quiet(&run, &netns);
}

/// A balancer's look: connected, and aborted.
fn check(netns: &NetNs, address: SocketAddr) -> Result<()> {
    netns.run(|| {
        let check = tcp(Family::V4)?;
        check.connect(&address.into())?;
        abort_on_close(&check)
    })
}

/// A database is replaced every few seconds, as by a deploy: it ends in order, and the next one listens a moment later.
/// Its clients keep their connections, and come again until somebody answers.
#[test]
fn a_deploy_restarts_a_server() {
    const CLIENTS: usize = 4;
    let Some(binary) = binary() else { return };
    let Some(redis) = program("CONNTRACER_REDIS") else {
        return;
    };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    let serve = || {
        let text = format!("--bind 127.0.0.1 --port {SERVER_PORT} --save --appendonly no");
        Served::start(&redis, &netns, |_| Ok(words(&text)))
    };
    let is_over = AtomicBool::new(false);
    let answered = AtomicU64::new(0);
    let end = until_when();
    // Whom clients ask from the beginning on.
    let mut server = serve().unwrap();
    wait::until("redis to listen", SOON, || is_listening(&netns)).unwrap();
    let deploys = thread::scope(|scope| {
        let _over = Over(&is_over);
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                netns.run(|| {
                    while !is_over.load(Relaxed) {
                        // Refused, or ended between two requests: that is what a client of a deploy expects.
                        let _ends_with_the_server = session(address, &is_over, &answered);
                        pace(Duration::from_millis(50));
                    }
                    Ok(())
                })
            });
        }
        let mut deploys = 0;
        while Instant::now() < end {
            let before = answered.load(Relaxed);
            wait::until("clients to be answered", SOON, || {
                Ok((answered.load(Relaxed) > before + 400).then_some(()))
            })
            .unwrap();
            server.process.signal(Signal::TERM).unwrap();
            let (status, stderr) = server.process.wait(SOON).unwrap();
            assert!(status.success(), "{status}: {stderr}");
            server = serve().unwrap();
            deploys += 1;
        }
        // What waits for another server to come is told by then.
        pace(RESTART + Duration::from_secs(2));
        deploys
    });
    let run = tracer.checkpoint().unwrap();
    assert!(deploys > 1, "{deploys}");
    assert_quiet(&run, &netns);
}

/// A client's connection, a request every 20 ms, until it or the test ends.
fn session(address: SocketAddr, is_over: &AtomicBool, answered: &AtomicU64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    let mut answer = [0; 64];
    while !is_over.load(Relaxed) {
        stream.write_all(b"PING\r\n")?;
        let read = stream.read(&mut answer)?;
        ensure!(read > 0, "the server ended");
        answered.fetch_add(1, Relaxed);
        pace(Duration::from_millis(20));
    }
    Ok(())
}

/// Namespaces that live for a moment, as those of a host's jobs do: each has a server, a client, and is gone. A tracer of
/// its own, of all namespaces: so many readers of the shared one would be its work.
#[test]
fn namespaces_come_and_go() {
    /// Of an hour.
    const MOST: usize = 2000;
    let Some(binary) = binary() else { return };
    let Some(tracer) = trace_everywhere(&binary) else {
        return;
    };
    let end = until_when();
    let mut made = BTreeMap::new();
    while Instant::now() < end && made.len() < MOST {
        let before = Timestamp::now();
        let netns = NetNs::new().unwrap();
        netns.run(one_connection).unwrap();
        made.insert(netns.inode(), before..=Timestamp::now());
        pace(Duration::from_millis(20));
    }
    assert!(made.len() > 10, "{}", made.len());
    let run = tracer.stop().unwrap();
    // A namespace of another process may have had the inode before or afterwards.
    let is_theirs = |finding: &&Finding| {
        let since: Timestamp = finding.since.parse().expect("a time");
        let made = finding.subject.netns().and_then(|inode| made.get(&inode));
        made.is_some_and(|made| made.contains(&since))
    };
    let findings: Vec<_> = run.findings().filter(is_theirs).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

/// A request and its answer.
fn one_connection() -> Result<()> {
    let address = Family::V4.loopback_listener();
    let listener = listen(Family::V4, address, 8)?;
    thread::scope(|scope| {
        let serving = scope.spawn(|| healthy::serve(&listener, 1));
        healthy::ask(Family::V4, address)?;
        serving
            .join()
            .unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    })
    .context("one connection of a namespace")
}

/// Transfers over a path that loses one packet of a thousand, one after the other.
#[test]
fn transfers_lose_little() {
    let Some(binary) = binary() else { return };
    let Some(iperf3) = program("CONNTRACER_IPERF3") else {
        return;
    };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.client) else {
        return;
    };
    let server = pair.server.clone();
    server
        .run(|| drop_some_at(Hook::Input, Match::PerMille(1)))
        .unwrap();
    let port = SERVER_PORT.to_string();
    let _serving =
        Served::start(&iperf3, &server, |_| Ok(words(&format!("-s -p {port}")))).unwrap();
    wait::until("iperf3 to listen", SOON, || is_listening(&server)).unwrap();
    let address: IpAddr = Family::V4.server();
    let before = pair.client.counters().unwrap();
    let end = until_when();
    // Segments go in packets of many, of which chance may spare all for a while.
    let lost = || (pair.client.counters().unwrap() - before).retrans_segs > 0;
    while Instant::now() < end || (!lost() && Instant::now() < end + EVENTUALLY) {
        let text = format!("-c {address} -p {port} -t 5 -P 2 -b 60M");
        let mut sending = Served::start(&iperf3, &pair.client, |_| Ok(words(&text))).unwrap();
        let (status, stderr) = sending.process.wait(EVENTUALLY).unwrap();
        assert!(status.success(), "{status}: {stderr}");
    }
    let counted = pair.client.counters().unwrap() - before;
    assert!(counted.retrans_segs > 0, "something was lost: {counted:?}");
    let run = tracer.checkpoint().unwrap();
    // iperf3's server ends some of its tests with data unread: that is told, and true, and is no matter of the loss.
    let is_its_end = |finding: &&Finding| {
        (&*finding.finding, &*finding.cause) == ("connection_drop", "reset_received")
    };
    let others: Vec<_> = run
        .findings()
        .filter(|finding| !is_its_end(finding))
        .collect();
    assert!(others.is_empty(), "{others:#?}");
    assert_sound(&run, &pair.client);
}
