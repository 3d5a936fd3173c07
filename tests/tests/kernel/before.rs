//! What began before conntracer: whose it is, and since when, is said as far as it is known, and nothing is concluded from
//! what was not seen. Each has a tracer of its own, for what was there before it.

use std::{
    io::Write as _,
    net::SocketAddr,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    forked::Forked,
    line::Certainty,
    link::Pair,
    served::accept,
    socket::{
        Connection, connect_without_waiting, deafen, listen, tcp, tcp_info, transfer,
        wait_acknowledged,
    },
    wait::{self, EVENTUALLY, SOON},
};
use jiff::Timestamp;
use socket2::Socket;

use crate::{
    connection_drop::{HOOKS, death, died, is_drop},
    deaths::{assert_blames_nobody, client, is, wait_connected},
    support::{Over, assert_seen, assert_sound, binary, tell_all, trace},
};

/// A server that listened and served before conntracer is killed: its clients of before and those of after it died with it.
#[test]
fn an_older_server_that_is_killed_is_named() {
    const EACH: u64 = 25;
    let Some(binary) = binary() else { return };
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
    let ask = || {
        let client = client(&pair, address);
        wait_connected(&client);
        (&client).write_all(b"request").unwrap();
        wait_acknowledged(&client, EVENTUALLY).unwrap();
        client
    };
    let accepted = || {
        wait::until("the queue to be empty", EVENTUALLY, || {
            Ok((tcp_info(&listener)?.tcpi_unacked == 0).then_some(()))
        })
        .unwrap();
    };
    let mut clients: Vec<Socket> = (0..EACH).map(|_| ask()).collect();
    accepted();
    let Some(tracer) = trace(&binary, &pair.server, &[]) else {
        return;
    };
    let mut tracer = tracer.into_watch();
    clients.extend((0..EACH).map(|_| ask()));
    accepted();
    // Else this process holds the listener, too.
    drop(listener);
    let healthy = tracer.checkpoint().unwrap();
    assert!(healthy.last_of(|_| true).is_empty(), "{healthy:#?}");
    let pid = server.pid();
    drop(server);
    for client in &clients {
        assert_eq!(death(client), libc::ECONNRESET);
    }
    let run = tell_all(&mut tracer, &HOOKS, 2 * EACH, died);
    assert_seen(&run, &HOOKS, died(&run), 2 * EACH);
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
    assert_sound(&run, &pair.server);
}

/// A connection whose process closed it, or has ended, is nobody's: whose it was, nobody tells who was not there.
#[test]
fn an_orphan_of_before_has_no_owner() {
    let Some(binary) = binary() else { return };
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
    let Some(mut tracer) = trace(&binary, &server, &[]) else {
        return;
    };
    let silence = tracer
        .wait_for("the orphan's silence", EVENTUALLY, |finding| {
            finding.finding == "half_open" && finding.cause == "dead_peer"
        })
        .unwrap();
    let run = tracer.stop().unwrap();
    assert!(silence.owner.is_none(), "{silence:#?}");
    assert!(silence.owners.is_empty(), "{silence:#?}");
    assert_eq!(silence.evidence["orphan"], "yes", "{silence:#?}");
    assert_sound(&run, &server);
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
