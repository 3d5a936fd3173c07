//! Whose a socket is: never the process that happened to run when the kernel worked for it.

use std::{hint, io::Write as _, os::fd::AsRawFd};

use conntracer_tests::{
    family::Family,
    forked::Forked,
    line::{Finding, Status},
    link::Pair,
    netns::{COMM, NetNs},
    scenario::{accept_queue::AcceptQueueFull, dead_peer::DeadPeer},
    socket::{Connection, connect_without_waiting, deafen, listen, tcp},
    tracer::Run,
    wait::{EVENTUALLY, SOON},
};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::Value;

use crate::support::{assert_sound, binary, is_syn_drop, trace};

/// Every kind of event that tells of a socket.
const ALL: &str = "connect,accept,state,retransmit,syn,reset,drop,refusal,connection,failure,probe";

/// Every retransmission by a timer and every SYN comes while another process has the CPU: the timers fire
/// on it, and so do the softirqs that loopback packets wait for.
#[test]
fn a_busy_process_on_the_same_cpu_owns_nothing() {
    let Some(binary) = binary() else { return };
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).expect("this host has a CPU 0");
    let busy = Forked::run(c"ct-busy", || {
        loop {
            hint::spin_loop();
        }
    })
    .unwrap();
    let mut dead = DeadPeer::new(Family::V4).unwrap();
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    let server = dead.pair.server.clone();
    let other = full.netns.inode().to_string();
    let arguments = ["--netns", &other, "--emit", ALL];
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

/// Thousands of attempts that fail leave nothing behind in the kernel half: with room for few sockets at a
/// time, none is lost, and what comes after them is seen.
#[test]
fn refused_connects_in_a_row_leave_nothing_behind() {
    const ATTEMPTS: u16 = 5_000;
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let config = tempfile::NamedTempFile::new().unwrap();
    config
        .as_file()
        .write_all(b"[trace]\nmax_sockets = 64\n")
        .unwrap();
    let path = config.path().to_str().expect("a path of ASCII").to_owned();
    let Some(mut tracer) = trace(&binary, &netns, &["--config", &path]) else {
        return;
    };
    let address = Family::V4.loopback_listener();
    netns
        .run(|| {
            for _ in 0..ATTEMPTS {
                // Refused at once, or a moment later where the softirq is.
                let _refused = connect_without_waiting(&tcp(Family::V4)?, address);
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
        .wait_for("every refusal", SOON, |finding| {
            finding.finding == "connect_failure" && finding.count >= nearly
        })
        .unwrap();
    let run = tracer.stop().unwrap();

    let failures = run.last_of(|finding| finding.finding == "connect_failure");
    let [refused] = failures.as_slice() else {
        panic!("one process, one remote end, one cause: {failures:#?}");
    };
    let lost: u64 = run.stop.hooks.values().map(|account| account.lost).sum();
    assert!(refused.count + lost >= u64::from(ATTEMPTS), "{run:#?}");
    assert_eq!(refused.cause, "refused", "{refused:#?}");
    let owner = refused
        .owner
        .as_ref()
        .expect("this process called connect()");
    assert_eq!((owner.pid, owner.comm.as_str()), (std::process::id(), COMM));
    let connects = &run.stop.hooks["connect"];
    // Those of other tests' namespaces are filtered.
    assert!(
        (u64::from(ATTEMPTS)..=u64::from(ATTEMPTS) + 1)
            .contains(&(connects.aggregated + connects.lost)),
        "{connects:?}"
    );
    assert_sound(&run, &netns);
}

/// A socket outlives the process that connected it, and is its to the end.
#[test]
fn a_socket_is_its_process_after_that_has_ended() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let Some(mut tracer) = trace(&binary, &pair.client, &["--emit", ALL]) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 1)).unwrap();
    let client = pair.client.run(|| tcp(Family::V4)).unwrap();
    client.set_nonblocking(false).unwrap();
    let fd = client.as_raw_fd();
    let raw = socket2::SockAddr::from(address);
    let forked = Forked::run(c"ct-gone", || {
        // SAFETY: a socket and an address that live as long as the calls.
        let connected = unsafe { libc::connect(fd, raw.as_ptr().cast(), raw.len()) };
        u8::from(connected != 0)
    })
    .unwrap();
    let pid = forked.pid();
    forked.wait().unwrap();
    let (accepted, _) = pair.server.run(|| Ok(listener.accept()?)).unwrap();
    deafen(&accepted).unwrap();
    (&client).write_all(&[0; 100]).unwrap();
    tracer
        .wait_for_event("a retransmission", SOON, "retransmit", |_| true)
        .unwrap();
    drop(client);
    let run = tracer.stop().unwrap();

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
