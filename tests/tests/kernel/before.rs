//! What began before conntracer: whose it is, and since when, is said as far as it is known, and nothing is concluded from
//! what was not seen. One tracer is for all that only has to be there before it; what goes on while it starts has its own.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use conntracer_tests::{
    counters::Counters,
    family::{Family, SERVER_PORT},
    forked::Forked,
    line::Certainty,
    link::Pair,
    netns::NetNs,
    output::Run,
    scenario::accept_queue::AcceptQueueFull,
    served::accept,
    socket::{
        Connection, connect_without_waiting, deafen, listen, tcp, tcp_info, transfer,
        wait_acknowledged,
    },
    wait::{self, EVENTUALLY, SOON},
    watch::Watch,
};
use jiff::Timestamp;
use socket2::Socket;

use crate::{
    connection_drop::{HOOKS, death, died, is_drop},
    deaths::{assert_blames_nobody, client, is, wait_connected},
    silence::{is_silence, retransmitted, seconds},
    support::{
        Over, assert_counted, assert_reconciled, assert_seen, assert_sound, assert_source, binary,
        is_syn_drop, overflows, tell_all, trace, trace_all,
    },
};

/// What is judged once conntracer runs.
type Later = Box<dyn FnOnce(&mut Watch)>;

/// Each in namespaces of its own, and one tracer for all of them.
#[test]
fn what_began_before_is_told_as_what_it_is() {
    let Some(binary) = binary() else { return };
    let parts = [
        a_silence_of_before(),
        an_orphan_of_before(),
        older_listeners(),
        an_older_server_that_is_killed(),
    ];
    let (namespaces, later): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
    let namespaces = namespaces.concat();
    let all: Vec<&NetNs> = namespaces.iter().collect();
    let Some(mut tracer) = trace_all(&binary, &all, &[]) else {
        return;
    };
    for later in later {
        later(&mut tracer);
    }
    let run = tracer.stop().unwrap();
    for netns in namespaces {
        assert_sound(&run.within(&netns), &netns);
    }
}

/// A silence that began before conntracer says since when, as the socket knows.
fn a_silence_of_before() -> (Vec<NetNs>, Later) {
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let connection = pair.connect(Family::V4).unwrap();
    deafen(&connection.connected).unwrap();
    let spoken = Instant::now();
    (&connection.accepted).write_all(&[0; 1000]).unwrap();
    retransmitted(&connection.accepted, 3);
    // The first was 0.2 s after the data, the third 1.2 s after the first.
    let at_least = Duration::from_secs(1);
    let later = move |tracer: &mut Watch| {
        // A timeout may come before the socket was looked at, and the next one is twice as far: minutes on a slow machine.
        let said = tracer
            .wait_for("a silence and since when it is", EVENTUALLY, |finding| {
                is_silence(finding)
                    && finding.subject.netns() == Some(pair.server.inode())
                    && seconds(finding, "silent_s").is_some()
            })
            .unwrap();
        let at_most = spoken.elapsed() + Duration::from_secs(1);
        connection.abort().unwrap();

        if !tracer.has_hook("seed") {
            assert!(said.count >= 3, "{said:#?}");
        }
        let silent = seconds(&said, "silent_s").expect("it was waited for");
        assert!(
            (at_least.as_secs_f64()..at_most.as_secs_f64()).contains(&silent),
            "{silent} {said:#?}"
        );
        assert!(!said.summary.contains("leaves this host"), "{said:#?}");
        assert!(!said.summary.contains("in 0.0 s"), "{said:#?}");
    };
    (vec![server], Box::new(later))
}

/// A server that listened and served before conntracer is killed: its clients of before and those of after it died with it.
fn an_older_server_that_is_killed() -> (Vec<NetNs>, Later) {
    const EACH: u64 = 25;
    let pair = Pair::new().unwrap();
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
    let ask = move |pair: &Pair| {
        let client = client(pair, address);
        wait_connected(&client);
        (&client).write_all(b"request").unwrap();
        wait_acknowledged(&client, EVENTUALLY).unwrap();
        client
    };
    let accepted = |listener: &Socket| {
        wait::until("the queue to be empty", EVENTUALLY, || {
            Ok((tcp_info(listener)?.tcpi_unacked == 0).then_some(()))
        })
        .unwrap();
    };
    let mut clients: Vec<Socket> = (0..EACH).map(|_| ask(&pair)).collect();
    accepted(&listener);
    let netns = pair.server.clone();
    let later = move |tracer: &mut Watch| {
        clients.extend((0..EACH).map(|_| ask(&pair)));
        accepted(&listener);
        // Else this process holds the listener, too.
        drop(listener);
        let healthy = tracer.checkpoint().unwrap().within(&pair.server);
        assert!(healthy.last_of(|_| true).is_empty(), "{healthy:#?}");
        let pid = server.pid();
        drop(server);
        for client in &clients {
            assert_eq!(death(client), libc::ECONNRESET);
        }
        let died = |run: &Run| died(&run.within(&pair.server));
        let run = tell_all(tracer, &HOOKS, 2 * EACH, died);
        assert_seen(&run, &HOOKS, died(&run), 2 * EACH);
        let run = run.within(&pair.server);
        for killed in run.last_of(is_drop) {
            assert_blames_nobody(killed);
            assert!(is(killed, "how", "process_ended"), "{killed:#?}");
            assert!(is(killed, "signal", "SIGKILL"), "{killed:#?}");
            let owner = killed.owner.as_ref().map(|owner| owner.pid);
            assert_eq!(owner, Some(pid), "{killed:#?}");
            assert!(
                !killed.advice.concat().contains("read until the end before"),
                "{killed:#?}"
            );
        }
    };
    (vec![netns], Box::new(later))
}

/// A connection whose process closed it, or has ended, is nobody's: whose it was, nobody tells who was not there.
fn an_orphan_of_before() -> (Vec<NetNs>, Later) {
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    // However long a slow machine takes to start conntracer.
    server
        .set_sysctl("net/ipv4/tcp_orphan_retries", "15")
        .unwrap();
    // The listener stays, and so does its process.
    let address = Family::V4.veth_listener();
    let listener = server.run(|| listen(Family::V4, address, 8)).unwrap();
    let connection = Connection::accept(&listener, client(&pair, address)).unwrap();
    transfer(&connection.connected, &connection.accepted, 10).unwrap();
    deafen(&connection.connected).unwrap();
    (&connection.accepted).write_all(b"lost").unwrap();
    drop(connection.accepted);
    let later = move |tracer: &mut Watch| {
        let silence = tracer
            .wait_for("the orphan's silence", EVENTUALLY, |finding| {
                is_silence(finding) && finding.subject.netns() == Some(pair.server.inode())
            })
            .unwrap();
        assert!(silence.owner.is_none(), "{silence:#?}");
        assert!(silence.owners.is_empty(), "{silence:#?}");
        assert_eq!(silence.evidence["orphan"], "yes", "{silence:#?}");
        drop((listener, connection.connected));
    };
    (vec![server], Box::new(later))
}

/// A listener that was there before conntracer is found at start: what it drops is counted from then on, and
/// the finding names its owner.
fn older_listeners() -> (Vec<NetNs>, Later) {
    let mut scenarios = [Family::V4, Family::V6].map(|family| {
        let mut scenario = AcceptQueueFull::new(family).unwrap();
        scenario.open().unwrap();
        scenario
    });
    let namespaces = scenarios.each_ref().map(|scenario| scenario.netns.clone());
    let later = move |tracer: &mut Watch| {
        for scenario in &mut scenarios {
            scenario.provoke().unwrap();
        }
        let counted = scenarios.each_mut().map(|scenario| {
            tracer
                .wait_for("a syn_drop finding of each", SOON, |finding| {
                    is_syn_drop(finding) && finding.subject.netns() == Some(scenario.netns.inode())
                })
                .unwrap();
            scenario.quiet().unwrap();
            scenario.netns.counters().unwrap()
        });
        let run = tracer.checkpoint().unwrap();
        for (scenario, counted) in scenarios.iter().zip(counted) {
            assert_no_residue(&run.within(&scenario.netns), &scenario.netns, &counted);
        }
    };
    (namespaces.to_vec(), Box::new(later))
}

#[track_caller]
fn assert_no_residue(run: &Run, netns: &NetNs, counted: &Counters) {
    let findings = run.last_of(is_syn_drop);
    let told = overflows(&findings);
    assert_counted(run, "ListenOverflows", told, counted.listen_overflows);
    for finding in findings {
        let owner = finding.owner.as_ref().expect("this process holds it");
        assert_eq!(owner.pid, std::process::id(), "{finding:#?}");
        assert_source(Some(&owner.source), "seeded");
    }
    assert_reconciled(run, netns, counted);
    assert_sound(run, netns);
}

/// Attempts are refused all the time while conntracer starts: that a RST was not seen, whose hook may be the last to be
/// attached, says nothing. Others are accepted by a listener that conntracer knows only when it has listed what is there:
/// those before are of the time before, and none is lost.
#[test]
fn nothing_is_concluded_from_a_hook_that_was_not_there() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let nobody = SocketAddr::new(Family::V4.client(), SERVER_PORT);
    let address = Family::V4.loopback_listener();
    let older = server.run(|| listen(Family::V4, address, 64)).unwrap();
    let over = AtomicBool::new(false);
    let run = thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                server
                    .run(|| {
                        let socket = tcp(Family::V4)?;
                        let refused = connect_without_waiting(&socket, nobody);
                        drop(refused);
                        let client = tcp(Family::V4)?;
                        client.connect(&address.into())?;
                        let (accepted, _) = older.accept()?;
                        drop(client);
                        drop(accepted);
                        Ok(())
                    })
                    .unwrap();
                // No flood: others are traced meanwhile.
                thread::sleep(Duration::from_millis(20));
            }
        });
        let _over = Over(&over);
        let mut tracer = trace(&binary, &server, &[])?;
        tracer
            .wait_for("an attempt that was refused", SOON, |finding| {
                finding.finding == "connect_failure" && finding.count >= 3
            })
            .unwrap();
        over.store(true, Ordering::Relaxed);
        load.join().unwrap();
        Some(tracer.stop().unwrap())
    });
    let Some(run) = run else { return };
    let start: Timestamp = run.start.time.parse().unwrap();
    for finding in run.findings() {
        let since: Timestamp = finding.since.parse().unwrap();
        assert_eq!(finding.cause, "refused", "{finding:#?}");
        assert!(
            !finding.summary.contains("refused by an ICMP message"),
            "{finding:#?}"
        );
        // Hooks are attached one by one: what came meanwhile was seen by some.
        let told_by = &finding.evidence["told_by"];
        assert!(
            told_by == "rst" || finding.certainty == Certainty::Inferred,
            "since {since}, the start was at {start}: {finding:#?}"
        );
        if since >= start {
            assert_eq!(told_by, "rst", "{finding:#?}");
        }
    }
    assert_sound(&run, &server);
}
