//! Sockets that are inherited by fork(): never said to be plainly the parent's, while nobody knows who kept them.

use std::{
    ffi::CString,
    io::Write as _,
    os::{
        fd::{AsRawFd as _, RawFd},
        unix::ffi::OsStrExt as _,
    },
};

use conntracer_tests::{
    forked::{self, Forked},
    output::Run,
    proc_net::{held, sockets},
    served::{Served, accept, answer, close, hear, say_who},
    socket::{abort_on_close, deafen},
    wait::{self, EVENTUALLY, SOON},
};
use serde_json::Value;
use socket2::Socket;

use crate::support::{assert_seen, assert_sound, binary, watch_events, watch_quick};

/// Every kind of event that tells of a connection and its owner.
const ALL: [&str; 6] = [
    "accept",
    "state",
    "retransmit",
    "reset",
    "connection",
    "probe",
];

/// How the connection of a forked server ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The server closes, and its client after it.
    Closed,
    /// The server closes what it has not read.
    Aborted,
    /// The client resets it.
    Reset,
}

/// What a server that forked for a connection is told to do: it never receives from it.
fn serve(accepted: RawFd, orders: RawFd) -> u8 {
    if !say_who(accepted) {
        return 1;
    }
    match hear(orders) {
        Some(b'c') => {
            close(accepted);
            forked::pause()
        }
        Some(_) => forked::pause(),
        None => 1,
    }
}

/// A server that forks for every connection and closes its own descriptor: every event from then on is its child's,
/// or said to be its or a descendant's. Who closes a connection holds it, and is its owner for certain.
#[test]
fn what_a_forked_process_serves_is_never_plainly_its_parents() {
    const ENDS: [End; 3] = [End::Closed, End::Aborted, End::Reset];
    let Some(binary) = binary() else { return };
    let served = Served::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &served.netns, &ALL) else {
        return;
    };
    let fd = served.fd();
    let (there, mut here) = std::io::pipe().unwrap();
    let orders = there.as_raw_fd();
    let acceptor = Forked::run(c"ct-acceptor", &[fd, orders], || {
        loop {
            let accepted = accept(fd, 0);
            if accepted < 0 {
                return 1;
            }
            if forked::again(c"ct-child") {
                return serve(accepted, orders);
            }
            close(accepted);
        }
    })
    .unwrap();
    let mut ended = Vec::new();
    for end in ENDS {
        let (client, child) = served.client().unwrap();
        assert_ne!(child, acceptor.pid());
        // Who closes last ends the connection.
        wait::until("the acceptor to close its copy", SOON, || {
            Ok((held(acceptor.pid())?.len() == 1).then_some(()))
        })
        .unwrap();
        let port = port_of(&client);
        match end {
            End::Closed => here.write_all(b"c").unwrap(),
            End::Aborted => {
                (&client).write_all(b"x").unwrap();
                here.write_all(b"c").unwrap();
            }
            End::Reset => {
                here.write_all(b"w").unwrap();
                abort_on_close(&client).unwrap();
            }
        }
        let mut client = Some(client);
        if end == End::Closed {
            wait_state(&served, port, Some(FIN_WAIT2));
        }
        if end != End::Aborted {
            client = None;
        }
        wait_state(&served, port, None);
        drop(client);
        ended.push((end, port, child));
    }
    let run = tracer.checkpoint().unwrap();

    for (end, port, child) in ended {
        let events = of_server(&run, port);
        for (kind, event) in &events {
            // It is in the queue before it is established: accept() may be told first, where it is called just then.
            let is_before_fork = *kind == "accept" || event["new_state"] == "established";
            let is_accepts = is_before_fork && event["process.pid"] == acceptor.pid();
            let is_childs = event["process.pid"] == child;
            // As the handshake ends: nobody's yet.
            let is_nobodys = event.get("process.pid").is_none();
            let is_doubted = is_nobodys || event["owner_source"] == "forked";
            assert!(is_accepts || is_childs || is_doubted, "{end:?}: {event}");
        }
        let closing: Vec<_> = events
            .iter()
            .filter(|(kind, event)| match end {
                End::Closed => *kind == "state" && event["old_state"] == "established",
                End::Aborted => *kind == "connection",
                End::Reset => false,
            })
            .collect();
        let expected = u64::from(end != End::Reset);
        assert_seen(&run, &["state"], closing.len() as u64, expected);
        for (_, event) in closing {
            assert_eq!(event["process.pid"], child, "{end:?}: {event}");
            assert_ne!(event["owner_source"], "forked", "{end:?}: {event}");
        }
    }
    assert_sound(&run, &served.netns);
}

/// A process that forks a helper keeps connections that the helper loses as it starts: they are said to be its or a
/// descendant's until somebody has looked, and are its own from then on.
#[test]
fn a_connection_that_no_helper_keeps_is_its_process_again() {
    let Some(binary) = binary() else { return };
    let served = Served::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &served.netns, &["retransmit"]) else {
        return;
    };
    let helper = CString::new(binary.path().as_os_str().as_bytes()).unwrap();
    let arguments = [helper.as_ptr(), c"--version".as_ptr(), std::ptr::null()];
    let fd = served.fd();
    let keeper = Forked::run(c"ct-server", &[fd], || {
        let accepted = accept(fd, libc::SOCK_CLOEXEC);
        if !say_who(accepted) || hear(accepted).is_none() {
            return 1;
        }
        if forked::again(c"ct-helper") {
            // What it says is for nobody.
            close(libc::STDOUT_FILENO);
            close(libc::STDERR_FILENO);
            // SAFETY: strings that live, ended by NULL as execv(3) wants them.
            unsafe { libc::execv(helper.as_ptr(), arguments.as_ptr()) };
            return 1;
        }
        if answer(accepted) {
            return forked::pause();
        }
        1
    })
    .unwrap();
    let (client, pid) = served.client().unwrap();
    assert_eq!(pid, keeper.pid());
    deafen(&client).unwrap();
    (&client).write_all(b"x").unwrap();
    tracer
        .wait_for_event(
            "a retransmission of one process",
            EVENTUALLY,
            "retransmit",
            |event| event["network.local.port"] == served.address.port() && event["holders"] == 1,
        )
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    let mut sources = Vec::new();
    for (kind, event) in of_server(&run, port_of(&client)) {
        assert_eq!((kind, &event["process.pid"]), ("retransmit", &pid.into()));
        let source = event["owner_source"].as_str().unwrap();
        assert_eq!(
            source == "seeded",
            event.get("holders").is_some(),
            "{event}"
        );
        sources.push(source);
    }
    sources.dedup();
    // Somebody may have looked, for another's sake, before the first of them.
    assert!(["forked", "seeded"].ends_with(&sources), "{run:#?}");
    assert_sound(&run, &served.netns);
}

/// A connection that parent and child both forgot: the peer has closed, and the finding says who else must.
#[test]
fn what_a_child_inherited_and_forgot_is_said_to_be_shared() {
    let Some(binary) = binary() else { return };
    let served = Served::new().unwrap();
    let Some(mut tracer) = watch_quick(&binary, &served.netns, &[]) else {
        return;
    };
    let fd = served.fd();
    let parent = Forked::run(c"ct-parent", &[fd], || {
        let accepted = accept(fd, 0);
        // Whose it is, some hooks learn when it is read from.
        if !say_who(accepted) || hear(accepted).is_none() {
            return 1;
        }
        if forked::again(c"ct-child") {
            return forked::pause();
        }
        forked::pause()
    })
    .unwrap();
    let (client, pid) = served.client().unwrap();
    assert_eq!(pid, parent.pid());
    (&client).write_all(b"x").unwrap();
    drop(client);
    let finding = tracer
        .wait_for("a connection that two share", EVENTUALLY, |finding| {
            finding.cause == "half_closed" && finding.owners.len() == 2
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    let owner = finding.owner.as_ref().expect("its parent has it first");
    assert_eq!(
        (owner.pid, owner.source.as_str()),
        (pid, "forked"),
        "{finding:#?}"
    );
    let names: Vec<&str> = finding
        .owners
        .iter()
        .map(|owner| owner.comm.as_str())
        .collect();
    assert_eq!(names, ["ct-parent", "ct-child"], "{finding:#?}");
    assert_eq!(finding.number("shared_sockets"), 1, "{finding:#?}");
    assert_sound(&run, &served.netns);
}

fn port_of(client: &Socket) -> u16 {
    client.local_addr().unwrap().as_socket().unwrap().port()
}

/// Of include/net/tcp_states.h.
const FIN_WAIT2: u8 = 5;
const TIME_WAIT: u8 = 6;

/// Waits until the server's end of a client's connection is in a state; or gone, but for what TIME_WAIT keeps.
fn wait_state(served: &Served, port: u16, expected: Option<u8>) {
    wait::until("the server's end to go on", SOON, || {
        let sockets = served.netns.run(sockets)?;
        let state = sockets
            .iter()
            .find(|socket| socket.local == served.address && socket.remote.port() == port)
            .map(|socket| socket.state)
            .filter(|state| *state != TIME_WAIT);
        Ok((state == expected).then_some(()))
    })
    .unwrap();
}

/// The events of the server's end of a client's connection.
fn of_server(run: &Run, port: u16) -> Vec<(&str, &Value)> {
    run.events()
        .filter(|(_, event)| event["network.peer.port"] == port)
        .collect()
}
