//! `bind_failure`: who holds the port that a process does not get, and what else keeps it from an address. Each case is in a
//! namespace of its own; those that are healthy are told nothing of.
//!
//! bind() and listen() are seen where functions of the kernel can be traced. Where they cannot (tracepoints alone), the plan
//! says so, and the tests hold that.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
};

use anyhow::{Context as _, Result, ensure};
use conntracer_tests::{
    family::{Family, SERVER_PORT},
    forked::{Forked, pause},
    line::{Coverage, Finding, Status, Subject},
    netns::NetNs,
    socket::{listen, mptcp, tcp},
    wait::SOON,
    watch::Watch,
};
use rstest::rstest;
use socket2::Socket;

use crate::support::{assert_said, assert_sound, binary, lacking, watch_quick};

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), SERVER_PORT);
const ANY_V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), SERVER_PORT);

fn is_bind(finding: &Finding) -> bool {
    finding.finding == "bind_failure"
}

/// A watch on a namespace, where bind() is seen; otherwise the plan says that it is not.
fn watched(netns: &NetNs) -> Option<Watch> {
    let binary = binary()?;
    let tracer = watch_quick(&binary, netns, &[])?;
    if tracer.has_hook("bind") {
        return Some(tracer);
    }
    let plan = tracer.coverage("bind_failure").unwrap();
    assert_eq!(plan.coverage, Coverage::Off, "{plan:?}");
    let because = plan.because.as_deref().unwrap_or_default();
    assert!(
        because.contains("bind() and listen() that fail"),
        "{plan:?}"
    );
    lacking(because);
    None
}

/// What bind() of a new socket to `address` says.
fn bind(address: SocketAddr, prepare: impl FnOnce(&Socket) -> io::Result<()>) -> Result<Socket> {
    let socket = tcp(Family::of(address.ip()))?;
    prepare(&socket)?;
    socket
        .bind(&address.into())
        .with_context(|| format!("binding {address}"))?;
    Ok(socket)
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "as the others that prepare a socket"
)]
fn plainly(_: &Socket) -> io::Result<()> {
    Ok(())
}

fn reuse(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)
}

fn share(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// The same, which must fail.
fn refused(
    netns: &NetNs,
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()> + Send,
) {
    netns
        .run(|| {
            ensure!(bind(address, prepare).is_err(), "{address} is free");
            Ok(())
        })
        .unwrap();
}

/// A process that holds a socket, which this one holds no longer. A child ends with the thread that made it: with the
/// test's.
fn held(socket: Socket) -> Forked {
    let holder = Forked::run(c"ct-holder", &[socket.as_raw_fd()], pause).unwrap();
    drop(socket);
    holder
}

fn told(tracer: &mut Watch, netns: &NetNs, cause: &str, local: SocketAddr) -> Finding {
    let told = tracer.wait_for("a finding", SOON, is_bind).unwrap();
    assert_eq!(told.cause, cause, "{told:#?}");
    assert!(
        matches!(&told.subject, Subject::Listener { netns: of, local: at }
            if *of == netns.inode() && *at == local),
        "{told:#?}"
    );
    let owner = told.owner.as_ref().map(|owner| owner.pid);
    assert_eq!(owner, Some(std::process::id()), "{told:#?}");
    told
}

fn assert_silent(tracer: &mut Watch, netns: &NetNs) {
    // What this program gets after a failure is told of nobody; a failure of its own shows that all before it was judged.
    let at = SocketAddr::new(Ipv4Addr::new(192, 0, 2, 1).into(), 7);
    refused(netns, at, plainly);
    tracer
        .wait_for("the end of the others' time", SOON, |finding| {
            is_bind(finding) && finding.cause == "not_local"
        })
        .unwrap();
    let run = tracer.checkpoint().unwrap();
    let others = run.last_of(|finding| is_bind(finding) && finding.cause != "not_local");
    assert!(others.is_empty(), "{others:#?}");
    assert_sound(&run, netns);
}

#[test]
fn a_listener_of_another_process_is_named_until_it_is_gone() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let holder = held(netns.run(|| listen(Family::V4, ANY, 8)).unwrap());
    refused(&netns, ANY, reuse);
    let told = told(&mut tracer, &netns, "in_use", ANY);
    assert_eq!(
        told.number("holder_pid"),
        u64::from(holder.pid()),
        "{told:#?}"
    );
    let by = format!("process {} (ct-holder), which listens on", holder.pid());
    assert!(told.summary.contains(&by), "{told:#?}");
    holder.kill().unwrap();
    netns.run(|| bind(ANY, reuse)).unwrap();
    let ended = tracer
        .wait_for("its end", SOON, |finding| {
            finding.id == told.id && finding.status == Status::Resolved
        })
        .unwrap();
    assert_eq!(ended.stage.as_deref(), Some("bound"), "{ended:#?}");
    let run = tracer.checkpoint().unwrap();
    assert_said(&run, "bind_failure");
    assert_sound(&run, &netns);
}

/// As Go's servers have them by default: told once, of whatever kernel.
#[test]
fn an_mptcp_socket_is_told_of_like_any_other() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let Some(socket) = netns.run(|| mptcp(Family::V4)).unwrap() else {
        lacking("this kernel has no MPTCP");
        return;
    };
    let holder = held(netns.run(|| listen(Family::V4, ANY, 8)).unwrap());
    assert!(socket.bind(&ANY.into()).is_err(), "{ANY} is free");
    let told = told(&mut tracer, &netns, "in_use", ANY);
    assert_eq!(told.count, 1, "{told:#?}");
    assert_eq!(
        told.number("holder_pid"),
        u64::from(holder.pid()),
        "{told:#?}"
    );
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// `[::]` takes IPv4, too, unless told otherwise.
#[test]
fn a_listener_for_ipv4_is_in_the_way_of_one_for_both() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let _holder = held(netns.run(|| listen(Family::V4, ANY, 8)).unwrap());
    refused(&netns, ANY_V6, |socket| socket.set_only_v6(false));
    let told = told(&mut tracer, &netns, "in_use", ANY_V6);
    assert!(told.summary.contains("no IPV6_V6ONLY"), "{told:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

#[test]
fn each_family_on_its_own_is_no_finding() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let _both = netns
        .run(|| {
            let v4 = listen(Family::V4, ANY, 8)?;
            let v6 = bind(ANY_V6, |socket| socket.set_only_v6(true))?;
            v6.listen(8)?;
            Ok([v4, v6])
        })
        .unwrap();
    assert_silent(&mut tracer, &netns);
}

/// Who binds to both and asks for IPv6 first serves both by one socket.
#[test]
fn a_process_that_serves_both_families_already_is_no_finding() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let _both = netns
        .run(|| {
            let both = bind(ANY_V6, |socket| socket.set_only_v6(false))?;
            both.listen(8)?;
            Ok(both)
        })
        .unwrap();
    refused(&netns, ANY, plainly);
    assert_silent(&mut tracer, &netns);
}

/// A connection whose local port is that of the server.
#[test]
fn a_connection_that_has_the_port_is_named() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let (_server, client, connection) = netns
        .run(|| {
            let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SERVER_PORT + 1);
            let server = listen(Family::V4, at, 8)?;
            let client = tcp(Family::V4)?;
            client.bind(&SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SERVER_PORT).into())?;
            client.connect(&at.into())?;
            let accepted = server.accept()?.0;
            Ok(([server, accepted], client, at))
        })
        .unwrap();
    let holder = held(client);
    refused(&netns, ANY, reuse);
    let told = told(&mut tracer, &netns, "in_use", ANY);
    assert_eq!(
        told.number("holder_pid"),
        u64::from(holder.pid()),
        "{told:#?}"
    );
    let by = format!(
        "a connection of process {} (ct-holder), from 127.0.0.1:{SERVER_PORT} to {connection}",
        holder.pid()
    );
    assert!(told.summary.contains(&by), "{told:#?}");
    assert!(
        told.summary.contains("the socket has SO_REUSEADDR"),
        "{told:#?}"
    );
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// A client that asks again and again for a server which is not there: its own port is the server's at last.
#[test]
fn a_socket_that_is_connected_to_itself_is_named() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SERVER_PORT);
    let client = netns
        .run(|| {
            let client = bind(at, plainly)?;
            client.connect(&at.into())?;
            Ok(client)
        })
        .unwrap();
    let holder = held(client);
    refused(&netns, ANY, reuse);
    let told = told(&mut tracer, &netns, "in_use", ANY);
    let by = format!(
        "process {} (ct-holder), whose socket is connected to itself",
        holder.pid()
    );
    assert!(told.summary.contains(&by), "{told:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// Its twin: the ends have one port, and are two sockets.
#[test]
fn two_sockets_that_are_connected_to_each_other_are_not_one() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let ends =
        [1, 2].map(|host| SocketAddr::new(Ipv4Addr::new(127, 0, 0, host).into(), SERVER_PORT));
    let _both = netns
        .run(|| {
            let [first, second] = [bind(ends[0], plainly)?, bind(ends[1], plainly)?];
            second.listen(8)?;
            first.connect(&ends[1].into())?;
            Ok([first, second])
        })
        .unwrap();
    refused(&netns, ends[0], reuse);
    let told = told(&mut tracer, &netns, "in_use", ends[0]);
    assert!(!told.summary.contains("connected to itself"), "{told:#?}");
    assert!(
        told.summary.contains("127.0.0.1:8080 to 127.0.0.2:8080"),
        "{told:#?}"
    );
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

#[test]
fn a_socket_that_is_bound_and_no_more_is_named() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let holder = held(netns.run(|| bind(ANY, plainly)).unwrap());
    refused(&netns, ANY, reuse);
    let told = told(&mut tracer, &netns, "in_use", ANY);
    assert_eq!(
        told.number("holder_pid"),
        u64::from(holder.pid()),
        "{told:#?}"
    );
    assert!(told.summary.contains("does not listen there"), "{told:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// A server that closed its connection first, and left.
fn leave_in_time_wait() -> Result<()> {
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SERVER_PORT);
    let server = bind(at, plainly)?;
    server.listen(8)?;
    let client = tcp(Family::V4)?;
    client.connect(&at.into())?;
    drop(server.accept()?.0);
    let mut byte = [0];
    ensure!(io::Read::read(&mut &client, &mut byte)? == 0, "not closed");
    Ok(())
}

#[rstest]
#[case::without_reuse_address(plainly, "no SO_REUSEADDR")]
#[case::after_one_that_had_none(
    reuse,
    "the socket has SO_REUSEADDR, and what holds the port has not"
)]
fn connections_in_time_wait_are_in_the_way(
    #[case] prepare: fn(&Socket) -> io::Result<()>,
    #[case] words: &str,
) {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    // /proc shows what no process holds, where one is in the namespace.
    let _inhabitant = netns.inhabit().unwrap();
    netns.run(leave_in_time_wait).unwrap();
    refused(&netns, ANY, prepare);
    let told = told(&mut tracer, &netns, "in_use", ANY);
    assert_eq!(told.number("held_by_time_wait"), 1, "{told:#?}");
    assert!(
        told.summary.contains("1 connection in TIME_WAIT"),
        "{told:#?}"
    );
    assert!(told.summary.contains(words), "{told:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// The same server with SO_REUSEADDR, each time that it starts.
#[test]
fn a_restart_with_reuse_address_is_no_finding() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    netns
        .run(|| {
            let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), SERVER_PORT);
            for _ in 0..3 {
                let server = bind(at, reuse)?;
                server.listen(8)?;
                let client = tcp(Family::V4)?;
                client.connect(&at.into())?;
                drop(server.accept()?.0);
                let mut byte = [0];
                ensure!(io::Read::read(&mut &client, &mut byte)? == 0, "not closed");
            }
            Ok(())
        })
        .unwrap();
    assert_silent(&mut tracer, &netns);
}

#[test]
fn workers_that_share_a_port_are_no_finding() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let _workers = netns
        .run(|| {
            let worker = || {
                let worker = bind(ANY, share)?;
                worker.listen(8)?;
                Ok(worker)
            };
            (0..4).map(|_| worker()).collect::<Result<Vec<_>>>()
        })
        .unwrap();
    assert_silent(&mut tracer, &netns);
}

#[test]
fn a_search_for_a_free_port_that_finds_one_is_no_finding() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let _all = netns
        .run(|| {
            let ports = SERVER_PORT..SERVER_PORT + 5;
            let at = |port| SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            let taken = ports.map(|port| listen(Family::V4, at(port), 8));
            let mut all = taken.collect::<Result<Vec<_>>>()?;
            let mut ports = SERVER_PORT..SERVER_PORT + 10;
            let found = ports.find_map(|port| bind(at(port), plainly).ok());
            all.push(found.context("no port is free")?);
            Ok(all)
        })
        .unwrap();
    assert_silent(&mut tracer, &netns);
}

#[test]
fn a_range_that_is_exhausted_is_told_with_who_holds_it() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    netns
        .set_sysctl("net/ipv4/ip_local_port_range", "40000 40009")
        .unwrap();
    let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
    let all = |count| {
        let bind = || {
            (0..count)
                .map(|_| bind(any, plainly))
                .collect::<Result<Vec<_>>>()
        };
        netns.run(bind).unwrap()
    };
    let (_own, others) = (all(3), all(7));
    let fds: Vec<_> = others.iter().map(AsRawFd::as_raw_fd).collect();
    let holder = Forked::run(c"ct-holder", &fds, pause).unwrap();
    drop(others);
    refused(&netns, any, plainly);
    let told = told(&mut tracer, &netns, "no_port", any);
    let by = format!(
        "no port of the range 40000 to 40009 is free; process {} (ct-holder) holds 7 of the 10 that are taken",
        holder.pid()
    );
    assert!(told.summary.contains(&by), "{told:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

#[rstest]
#[case::v4(Ipv4Addr::new(192, 0, 2, 1).into())]
#[case::v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into())]
fn an_address_of_another_host_is_told(#[case] ip: IpAddr) {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let at = SocketAddr::new(ip, SERVER_PORT);
    refused(&netns, at, plainly);
    let told = told(&mut tracer, &netns, "not_local", at);
    assert!(
        told.summary.contains("is no address of this namespace"),
        "{told:#?}"
    );
    // An address that comes later mends it.
    let name = if ip.is_ipv4() {
        "net/ipv4/ip_nonlocal_bind"
    } else {
        "net/ipv6/ip_nonlocal_bind"
    };
    netns.set_sysctl(name, "1").unwrap();
    netns.run(|| bind(at, plainly)).unwrap();
    let ended = tracer
        .wait_for("its end", SOON, |finding| {
            finding.id == told.id && finding.status == Status::Resolved
        })
        .unwrap();
    assert_eq!(ended.stage.as_deref(), Some("bound"), "{ended:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// Of a process without privileges.
#[test]
fn a_port_that_takes_a_privilege_is_told() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let at = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 80);
    netns
        .run(|| {
            let socket = tcp(Family::V4)?;
            let fd = socket.as_raw_fd();
            let address: socket2::SockAddr = at.into();
            let tries = move || {
                // SAFETY: a descriptor that is kept, and an address of its own length.
                let denied = unsafe {
                    libc::setresuid(65_534, 65_534, 65_534) == 0
                        && libc::bind(fd, address.as_ptr().cast(), address.len()) != 0
                };
                u8::from(!denied)
            };
            Forked::run(c"ct-plain", &[fd], tries)?.wait()
        })
        .unwrap();
    let told = tracer.wait_for("a finding", SOON, is_bind).unwrap();
    assert_eq!(told.cause, "denied", "{told:#?}");
    let words = "a port below 1024 takes CAP_NET_BIND_SERVICE, which the process does not have";
    assert!(told.summary.contains(words), "{told:#?}");
    let owner = told.owner.as_ref().map(|owner| owner.comm.as_str());
    assert_eq!(owner, Some("ct-plain"), "{told:#?}");
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}

/// Both are bound, and one alone can listen.
#[test]
fn a_listen_that_fails_is_told() {
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watched(&netns) else {
        return;
    };
    let (first, second) = netns
        .run(|| {
            let (first, second) = (bind(ANY, reuse)?, bind(ANY, reuse)?);
            first.listen(8)?;
            Ok((first, second))
        })
        .unwrap();
    let holder = held(first);
    assert!(second.listen(8).is_err(), "both listen");
    let told = told(&mut tracer, &netns, "in_use", ANY);
    assert!(told.summary.starts_with("listen() of process"), "{told:#?}");
    assert_eq!(
        told.number("holder_pid"),
        u64::from(holder.pid()),
        "{told:#?}"
    );
    assert_sound(&tracer.checkpoint().unwrap(), &netns);
}
