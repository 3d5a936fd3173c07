//! `connect_failure` by what came back: nothing, an ICMP message, or nothing because nothing was sent; and who gave up.

use std::{net::SocketAddr, os::fd::AsRawFd as _, time::Duration};

use conntracer_tests::{
    family::Family,
    forked::{self, Forked},
    line::Finding,
    link::Pair,
    netfilter::{self, Hook, Match},
    netns::NetNs,
    scenario::accept_queue::AcceptQueueFull,
    socket::{
        Connection, connect_without_waiting, listen_on, repeat_syns, tcp, tcp_info, vanish,
        wait_error,
    },
    wait::{self, EVENTUALLY},
};
use rstest::rstest;
use socket2::Socket;

use crate::support::{assert_sound, binary, is_syn_drop, lacking, tell_all, watch};

/// Nobody listens there.
const PORT: u16 = 9010;

fn is_failure(finding: &Finding) -> bool {
    finding.finding == "connect_failure"
}

/// A connect() that is under way, for a minute where nobody answers: it does not time out before a slow machine has given
/// it up.
fn begin(netns: &NetNs, family: Family, address: SocketAddr) -> Socket {
    begin_with(netns, family, address, 5)
}

/// The same with so many SYNs to come.
fn begin_with(netns: &NetNs, family: Family, address: SocketAddr, syns: i32) -> Socket {
    netns
        .run(|| {
            let socket = tcp(family)?;
            repeat_syns(&socket, syns)?;
            // The kernel may say at once that it could not send, and tries again.
            let _ = connect_without_waiting(&socket, address);
            Ok(socket)
        })
        .unwrap()
}

/// Waits until its SYN was retransmitted, or was to be: a second and more.
pub(crate) fn repeated(socket: &Socket) {
    wait::until("the SYN to be retransmitted", EVENTUALLY, || {
        Ok((tcp_info(socket)?.tcpi_total_retrans > 0).then_some(()))
    })
    .unwrap();
}

/// This host's own firewall keeps every SYN from leaving: no path is to blame, and no peer.
#[test]
fn syns_that_never_leave_this_host_are_told_from_silence() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.client.clone();
    client.run(|| netfilter::drop_at(Hook::Output)).unwrap();
    let Some(mut tracer) = watch(&binary, &client) else {
        return;
    };
    let address = SocketAddr::new(Family::V4.server(), PORT);
    let socket = begin_with(&client, Family::V4, address, 1);
    let error = wait_error(&socket, EVENTUALLY).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    let finding = tracer
        .wait_for("the failed attempt", EVENTUALLY, is_failure)
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(finding.cause, "timed_out", "{finding:#?}");
    assert_eq!(finding.evidence["told_by"], "timer", "{finding:#?}");
    // A retransmission that no program saw is not known to have failed.
    if run.missed("retransmit") == 0 {
        assert!(
            finding
                .summary
                .contains("no SYN is known to have left this host"),
            "{finding:#?}"
        );
        let advice = finding.advice.join("; ");
        assert!(
            advice.contains("TCPRetransFail") && !advice.contains("mtr"),
            "{finding:#?}"
        );
    }
    assert_sound(&run, &client);
}

/// `reject with icmp type host-prohibited`, met by a connect() that does not wait: the message finds the socket locked.
#[rstest]
#[case::given_up(false)]
#[case::waited_for(true)]
fn a_firewalls_message_is_told_by_type_and_code(#[case] waits: bool) {
    const HOST_PROHIBITED: u8 = 10;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.client.clone();
    let rejects = || netfilter::reject_at(Hook::Input, HOST_PROHIBITED);
    if let Err(error) = pair.server.run(rejects) {
        lacking(&format!("this kernel has no nft reject: {error:#}"));
        return;
    }
    let Some(mut tracer) = watch(&binary, &client) else {
        return;
    };
    if !waits && !tracer.has_hook("failure") {
        lacking("the failure hook is off: a message that finds the socket locked is not seen");
        return;
    }
    let address = SocketAddr::new(Family::V4.server(), PORT);
    let before = client.counters().unwrap();
    if waits {
        let refused = client.run(|| Ok(tcp(Family::V4)?.connect(&address.into())));
        let error = refused.unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
    } else {
        let socket = begin(&client, Family::V4, address);
        wait::until("the message to come back", EVENTUALLY, || {
            let counted = client.counters()? - before;
            Ok((counted.in_icmp_unreachable > 0).then_some(()))
        })
        .unwrap();
        drop(socket);
    }
    let finding = tracer
        .wait_for("the failed attempt", EVENTUALLY, is_failure)
        .unwrap();
    let sees_icmp = tracer.has_hook("failure");
    let run = tracer.checkpoint().unwrap();

    if waits {
        assert_eq!(finding.evidence["error"], "EHOSTUNREACH", "{finding:#?}");
    }
    if sees_icmp {
        assert_eq!(finding.cause, "denied", "{finding:#?}");
        assert_eq!(finding.evidence["told_by"], "icmp", "{finding:#?}");
        assert_eq!(finding.number("icmp_type"), 3, "{finding:#?}");
        assert_eq!(finding.number("icmp_code"), u64::from(HOST_PROHIBITED));
        let from = Family::V4.server().to_string();
        assert_eq!(finding.evidence["icmp_from"], from.as_str(), "{finding:#?}");
        let said = "rejected by a firewall: ICMP host prohibited (type 3, code 10)";
        assert!(finding.summary.contains(said), "{finding:#?}");
    } else {
        // What is not seen is not said: the candidates, and what tells.
        assert_eq!(finding.cause, "unreachable", "{finding:#?}");
        assert!(finding.summary.contains("ICMP message"), "{finding:#?}");
        assert!(finding.advice[0].contains("tcpdump"), "{finding:#?}");
    }
    assert_sound(&run, &client);
}

/// A process that is killed gave nothing up.
#[test]
fn an_attempt_ends_with_its_process() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.server.clone();
    let Some(mut tracer) = watch(&binary, &client) else {
        return;
    };
    let address = SocketAddr::new(Family::V4.ghost(), PORT);
    let socket = begin(&client, Family::V4, address);
    let process = Forked::run(c"ct-client", &[socket.as_raw_fd()], forked::pause).unwrap();
    repeated(&socket);
    // The process holds it alone from here on.
    drop(socket);
    drop(process);
    let finding = tracer
        .wait_for("the attempt that ended", EVENTUALLY, is_failure)
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(finding.cause, "cancelled", "{finding:#?}");
    assert_eq!(finding.evidence["told_by"], "signal", "{finding:#?}");
    assert!(
        finding
            .summary
            .contains("ended with their process, which signal 9 (SIGKILL) ended"),
        "{finding:#?}"
    );
    assert!(!finding.summary.contains("given up"), "{finding:#?}");
    assert_sound(&run, &client);
}

/// The listener that turns clients away is on this host: the attempts point to its finding.
#[test]
fn attempts_that_a_listener_of_this_host_turns_away_point_to_its_finding() {
    let Some(binary) = binary() else { return };
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    full.provoke().unwrap();
    let dropped = tracer
        .wait_for("the listener's finding", EVENTUALLY, |finding| {
            is_syn_drop(finding) && finding.cause == "accept_queue_full"
        })
        .unwrap();
    let patient = begin(&full.netns, Family::V4, Family::V4.loopback_listener());
    repeated(&patient);
    drop(patient);
    let finding = tracer
        .wait_for("the attempt that was given up", EVENTUALLY, |finding| {
            // Others may time out meanwhile.
            is_failure(finding) && finding.cause == "cancelled"
        })
        .unwrap();
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    // Its handshakes that were under way may have a finding of their own.
    let here = finding.number("dropped_here_finding");
    let of_listener = run.last_of(is_syn_drop);
    assert!(
        of_listener.iter().any(|found| found.id == here),
        "{finding:#?}, {dropped:#?}"
    );
    assert!(
        finding.advice[0].contains(&format!("finding {here}")),
        "{finding:#?}"
    );
    assert!(!finding.advice.join("; ").contains("mtr"), "{finding:#?}");
    assert_sound(&run, &full.netns);
}

/// What is left of an earlier connection answers, and its answers do not fit: that is no silence, and no full queue.
#[test]
fn an_answer_that_does_not_fit_is_no_silence() {
    /// Of the client's RSTs; a SYN has options.
    const SMALLEST: u32 = 41;
    const FROM: u16 = 40_321;
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.client.clone();
    let address = SocketAddr::new(Family::V4.server(), PORT);
    let listener = pair
        .server
        .run(|| listen_on(tcp(Family::V4)?, address, 16))
        .unwrap();
    let connect = || {
        client
            .run(|| {
                let socket = tcp(Family::V4)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SocketAddr::new(Family::V4.client(), FROM).into())?;
                repeat_syns(&socket, 1)?;
                connect_without_waiting(&socket, address)?;
                Ok(socket)
            })
            .unwrap()
    };
    let left = Connection::accept(&listener, connect()).unwrap();
    vanish(left.connected).unwrap();
    // They would end what is left.
    let rsts = Match::SmallerThan(SMALLEST);
    pair.server
        .run(|| netfilter::drop_some_at(Hook::Input, rsts))
        .unwrap();
    let Some(mut tracer) = watch(&binary, &client) else {
        return;
    };
    let again = connect();
    let error = wait_error(&again, EVENTUALLY).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    let finding = tracer
        .wait_for("the failed attempt", EVENTUALLY, is_failure)
        .unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(finding.cause, "timed_out", "{finding:#?}");
    let answered = finding.evidence.contains_key("answered_by");
    if !answered {
        // Where the RST for it is not seen, nothing is said of the peer's queue as a fact.
        assert!(!tracer.has_hook("reset_sent"), "{finding:#?}");
    }
    assert_eq!(
        finding.summary.contains("an answer came that does not fit"),
        answered,
        "{finding:#?}"
    );
    assert_eq!(
        finding.advice[0].contains("what is left of an earlier connection"),
        answered,
        "{finding:#?}"
    );
    assert!(
        !finding.summary.contains("queue may be full"),
        "{finding:#?}"
    );
    assert_sound(&run, &client);
    drop(left.accepted);
}

/// What ended the wait for an answer: a number of SYNs, of the socket's or of the namespace's, or a time. Which of them is
/// said where it is known, and else all three.
#[rstest]
#[case::by_the_socket("TCP_SYNCNT")]
#[case::by_the_namespace("net.ipv4.tcp_syn_retries")]
#[case::by_time("TCP_USER_TIMEOUT")]
fn what_bounds_an_attempt_is_among_the_candidates(#[case] bound: &str) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.server.clone();
    if bound == "net.ipv4.tcp_syn_retries" {
        client.set_sysctl("net/ipv4/tcp_syn_retries", "1").unwrap();
    }
    let Some(mut tracer) = watch(&binary, &client) else {
        return;
    };
    let nobody = SocketAddr::new(Family::V4.ghost(), PORT);
    let socket = client
        .run(|| {
            let socket = tcp(Family::V4)?;
            if bound == "TCP_SYNCNT" {
                repeat_syns(&socket, 1)?;
            } else if bound == "TCP_USER_TIMEOUT" {
                socket.set_tcp_user_timeout(Some(Duration::from_secs(2)))?;
            }
            connect_without_waiting(&socket, nobody)?;
            Ok(socket)
        })
        .unwrap();
    let error = wait_error(&socket, EVENTUALLY).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    // The one change of state that tells of it may be one that the kernel skipped.
    let run = tell_all(&mut tracer, &["state"], 1, |run| {
        run.last_of(is_failure).len() as u64
    });
    let Some(finding) = run.last_of(is_failure).first().copied() else {
        return;
    };

    let advice = finding.advice.join("; ");
    assert!(advice.contains(bound), "{finding:#?}");
    // A loss is the one SYN that tells of it.
    if run.missed("retransmit") == 0 {
        let is_time = advice.contains("TCP_USER_TIMEOUT");
        assert_eq!(is_time, bound == "TCP_USER_TIMEOUT", "{finding:#?}");
    }
    assert_sound(&run, &client);
}

/// The same link, and somebody listens.
#[test]
fn attempts_that_are_answered_are_no_finding() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let client = pair.client.clone();
    let Some(mut tracer) = watch(&binary, &client) else {
        return;
    };
    let address = SocketAddr::new(Family::V4.server(), PORT);
    let _listener = pair
        .server
        .run(|| listen_on(tcp(Family::V4)?, address, 16))
        .unwrap();
    client
        .run(|| Ok(tcp(Family::V4)?.connect(&address.into())?))
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    assert!(run.last_of(is_failure).is_empty(), "{run:#?}");
    assert_sound(&run, &client);
}
