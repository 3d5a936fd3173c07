//! `connect_failure`: each way in which an attempt to connect fails, by its cause.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use conntracer_tests::{
    cgroup::Cgroup,
    family::Family,
    forbidden::Forbidden,
    line::{Coverage, Finding, Subject},
    link::Pair,
    output::Run,
    socket::{connect_without_waiting, repeat_syns, tcp, tcp_info, wait_error},
    wait::{self, EVENTUALLY},
};
use rstest::rstest;
use socket2::Socket;

use crate::support::{
    assert_reconciled, assert_seen, assert_sound, binary, lacking, tell_all, watch,
};

/// Nobody listens on them.
const REFUSED: u16 = 9001;
const TIMED_OUT: u16 = 9002;
const CANCELLED: u16 = 9003;
const ELSEWHERE: u16 = 9004;

/// What tells of an attempt that failed.
const HOOKS: [&str; 2] = ["state", "failure"];

/// Retransmissions of a SYN that take a minute: that attempt is not to time out, however slow the machine is.
const PATIENT: i32 = 5;

/// A local port that two sockets share.
const SHARED: u16 = 40_001;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn each_failed_attempt_has_its_cause(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    // Routed to the client, who knows no way there and says so.
    pair.lend(family.lent()).unwrap();
    pair.withdraw(family.lent()).unwrap();
    pair.prohibit(family.forbidden()).unwrap();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    let before = server.counters().unwrap();
    let remote = |address: IpAddr, port| SocketAddr::new(address, port);
    let refused = remote(family.client(), REFUSED);
    let timed_out = remote(family.ghost(), TIMED_OUT);
    let cancelled = remote(family.ghost(), CANCELLED);
    let no_route = remote(family.stranger(), ELSEWHERE);
    let by_icmp = remote(family.lent(), ELSEWHERE);
    let denied = remote(family.forbidden(), ELSEWHERE);

    let begin = |address, syns| {
        server
            .run(|| {
                let socket = tcp(family)?;
                repeat_syns(&socket, syns)?;
                connect_without_waiting(&socket, address)?;
                Ok(socket)
            })
            .unwrap()
    };
    let share = || -> Result<Socket> {
        let socket = tcp(family)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(family.server(), SHARED).into())?;
        Ok(socket)
    };
    let again = server.run(share).unwrap();
    let connect_again = |address: SocketAddr| server.run(|| Ok(error_of(&again, address)));
    assert_eq!(connect_again(refused).unwrap(), libc::ECONNREFUSED);
    let waiting = begin(timed_out, 1);
    let impatient = begin(cancelled, PATIENT);
    for _ in 0..3 {
        assert_eq!(fail(&server, family, refused).unwrap(), libc::ECONNREFUSED);
    }
    for _ in 0..2 {
        assert_eq!(fail(&server, family, no_route).unwrap(), libc::ENETUNREACH);
    }
    assert_eq!(fail(&server, family, denied).unwrap(), libc::EACCES);
    assert_eq!(fail(&server, family, by_icmp).unwrap(), libc::ENETUNREACH);
    wait::until("the SYN to be repeated", EVENTUALLY, || {
        Ok((tcp_info(&impatient)?.tcpi_total_retrans > 0).then_some(()))
    })
    .unwrap();
    drop(impatient);
    let error = wait_error(&waiting, EVENTUALLY).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
    // The first attempt of this socket began a second ago; this one finds its port taken.
    let sharer = server
        .run(|| {
            let sharer = share()?;
            connect_without_waiting(&sharer, cancelled)?;
            Ok(sharer)
        })
        .unwrap();
    assert_eq!(connect_again(cancelled).unwrap(), libc::EADDRNOTAVAIL);
    // Last: every later connect() would want for a port.
    server
        .set_sysctl("net/ipv4/ip_local_port_range", "40000 40000")
        .unwrap();
    let holder = begin(cancelled, PATIENT);
    assert_eq!(
        fail(&server, family, cancelled).unwrap(),
        libc::EADDRNOTAVAIL
    );
    let after = server.counters().unwrap();
    let sees_connect = tracer.has_hook("failure");
    let mut expected = vec![
        ("refused", refused, 4, "rst"),
        ("timed_out", timed_out, 1, "timer"),
        ("cancelled", cancelled, 1, "application"),
        // By the state alone a port that the socket was bound to before is not missed.
        ("no_port", cancelled, 1 + u64::from(sees_connect), "connect"),
        ("unreachable", by_icmp, 1, "icmp"),
    ];
    if sees_connect {
        expected.push(("denied", denied, 1, "connect"));
        expected.push(("unreachable", no_route, 2, "connect"));
    }
    let all: u64 = expected.iter().map(|(.., count, _)| count).sum();
    let run = tell_all(&mut tracer, &HOOKS, all, failed);
    drop((holder, sharer));

    assert_seen(&run, &HOOKS, failed(&run), all);
    let mut missing = expected.clone();
    for finding in run.last_of(is_failure) {
        let at = missing.iter().position(|(cause, to, ..)| {
            let (netns, remote) = (server.inode(), *to);
            finding.cause == *cause && finding.subject == Subject::Peer { netns, remote }
        });
        let at = at.unwrap_or_else(|| panic!("{finding:#?}: {run:#?}"));
        let (.., count, told_by) = missing.swap_remove(at);
        // All of them together are exact.
        assert!(finding.count <= count, "{finding:#?}");
        let told = finding.evidence["told_by"].as_str().unwrap_or_default();
        // Where the message is not seen, and how often the SYN is to be retransmitted is not known, a route that is
        // missing looks alike.
        let is_alike = !sees_connect && told_by == "icmp" && told == "icmp_or_route";
        assert!(told == told_by || is_alike, "{finding:#?}");
        let owner = finding.owner.as_ref().expect("this process connected");
        assert_eq!(owner.pid, std::process::id());
    }
    // The kernel's count of what came of the network; not of what the application or connect() did.
    let counted: u64 = expected
        .iter()
        .filter(|(.., told_by)| matches!(*told_by, "rst" | "timer" | "icmp"))
        .map(|(_, _, count, _)| count)
        .sum();
    assert_eq!((after - before).attempt_fails, counted);
    assert_reconciled(&run, &server, &after);
    assert_certain(&run);
    assert_sound(&run, &server);
}

/// A program of the control group says no, before TCP is asked.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn what_a_control_group_forbids_is_denied(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let server = pair.server.clone();
    let path = format!("/ct-forbidden-{}-{family:?}", std::process::id());
    let group = match Cgroup::new(&path) {
        Ok(group) => group,
        Err(error) => {
            lacking(&format!("no control group can be made: {error:#}"));
            return;
        }
    };
    let forbidden = Forbidden::new(group, family).unwrap();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    if !tracer.has_hook("failure") {
        lacking("the failure hook is off: what connect() says at once is not seen");
        return;
    }
    let remote = SocketAddr::new(family.client(), REFUSED);
    // It is killed when the thread that made it ends.
    let pid = server
        .run(|| {
            let process = forbidden.connect(remote)?;
            let pid = process.pid();
            process.wait()?;
            Ok(pid)
        })
        .unwrap();
    let run = tell_all(&mut tracer, &HOOKS, 1, failed);

    assert_seen(&run, &HOOKS, failed(&run), 1);
    for found in run.last_of(is_failure) {
        assert_eq!(found.cause, "denied", "{found:#?}");
        assert_eq!(
            found.subject,
            Subject::Peer {
                netns: server.inode(),
                remote
            }
        );
        assert_eq!(found.evidence["error"], "EPERM", "{found:#?}");
        assert_eq!(found.evidence["told_by"], "connect", "{found:#?}");
        let owner = found.owner.as_ref().expect("the child connected");
        assert_eq!((owner.pid, owner.comm.as_str()), (pid, "ct-forbidden"));
    }
    assert_certain(&run);
    assert_sound(&run, &server);
}

/// What a missing hook could have told is doubted where it is missing; what came by another is not, but for losses.
#[track_caller]
fn assert_certain(run: &Run) {
    let is_degraded = run
        .start
        .plan
        .detectors
        .iter()
        .any(|plan| plan.detector == "connect_failure" && plan.coverage != Coverage::Exact);
    for finding in run.last_of(is_failure) {
        let told_by = finding.evidence["told_by"].as_str().unwrap_or_default();
        let is_seen = matches!(told_by, "rst" | "timer" | "application" | "exit" | "signal");
        let because = finding.because.as_deref().unwrap_or_default();
        if is_seen {
            assert!(
                because.is_empty() || because.contains("were lost"),
                "{finding:#?}"
            );
        } else if is_degraded {
            assert!(!because.is_empty(), "{finding:#?}");
        }
    }
}

fn is_failure(finding: &Finding) -> bool {
    finding.finding == "connect_failure"
}

/// Attempts that were told to have failed.
fn failed(run: &Run) -> u64 {
    run.last_of(is_failure)
        .iter()
        .map(|finding| finding.count)
        .sum()
}

/// What connect() says.
fn fail(
    netns: &conntracer_tests::netns::NetNs,
    family: Family,
    address: SocketAddr,
) -> Result<i32> {
    netns.run(|| {
        let socket: Socket = tcp(family)?;
        Ok(error_of(&socket, address))
    })
}

fn error_of(socket: &Socket, address: SocketAddr) -> i32 {
    let failed = socket.connect(&address.into()).err();
    failed
        .and_then(|error| error.raw_os_error())
        .unwrap_or_default()
}
