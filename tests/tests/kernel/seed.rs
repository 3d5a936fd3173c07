//! What was there before conntracer: found once each, as the kernel's own list has it, with its owner.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    time::Duration,
};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    forked::{self, Forked},
    line::Finding,
    netns::NetNs,
    output::Run,
    proc_net::{self, Socket},
    scenario::old::{CLOSE_WAITS, Old, TIME_WAIT},
    socket::{self, Waiting, connect_without_waiting, listen, tcp},
    ss::{self, Listed},
    wait::{EVENTUALLY, SOON},
};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    HALF_CLOSED_1_S, assert_said, assert_sound, assert_source, binary, is_ours, is_own_machine,
    lacking, trace, trace_all, trace_by,
};

/// Connections within one namespace, at least and at most: three of them have ten thousand where no CPU is
/// emulated.
const CONNECTIONS: (usize, usize) = (100, 3_334);

/// Sockets in every lasting state, in three namespaces, are found once each: state, addresses and owner as
/// /proc/net/tcp and /proc/*/fd have them. A leak that began before is a finding with its owner.
#[test]
fn what_was_there_is_found_once_as_the_kernel_lists_it() {
    let Some(binary) = binary() else { return };
    let (least, most) = CONNECTIONS;
    let (least, time) = if is_own_machine() {
        (least, Duration::from_millis(500))
    } else {
        (most, Duration::ZERO)
    };
    let mut old = [Family::V4, Family::V6, Family::V4]
        .map(|family| Old::new(family, least, most, time).unwrap());
    let inodes = old.each_ref().map(|old| old.netns.inode());
    let others = inodes.map(|inode| inode.to_string());
    old.iter_mut().try_for_each(Old::end_some).unwrap();
    let listed = old
        .each_ref()
        .map(|old| old.netns.run(proc_net::sockets).unwrap());
    let mut holders: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    let clients = old.each_ref().map(|old| old.clients.pid());
    for pid in clients.into_iter().chain([std::process::id()]) {
        for inode in proc_net::held(pid).unwrap() {
            holders.entry(inode).or_default().push(pid);
        }
    }
    let arguments = [
        "--emit", "seed", "--netns", &others[1], "--netns", &others[2],
    ];
    let Some(mut tracer) = trace_by(&binary, &old[0].netns, HALF_CLOSED_1_S, &arguments) else {
        return;
    };
    for inode in inodes {
        let leak = tracer
            .wait_for("the leak of each namespace", EVENTUALLY, |finding| {
                is_leak(finding) && finding.subject.netns() == Some(inode)
            })
            .unwrap();
        assert_eq!(leak.count, CLOSE_WAITS as u64, "{leak:#?}");
        let owner = leak.owner.as_ref().expect("this process holds them");
        assert_eq!(owner.pid, std::process::id(), "{leak:#?}");
        assert_source(Some(&owner.source), "seeded");
        assert!(leak.summary.contains("at least"), "{leak:#?}");
    }
    let after = old
        .each_ref()
        .map(|old| old.netns.run(proc_net::sockets).unwrap());
    old.iter_mut().for_each(Old::mend);
    let run = tracer.stop().unwrap();

    let mut sockets = 0;
    for ((inode, listed), after) in inodes.into_iter().zip(&listed).zip(after) {
        let found = found(&run, inode);
        sockets += found.len();
        let mut ends: Vec<_> = found.iter().map(|(socket, _)| *socket).collect();
        ends.sort_unstable();
        let mut expected = listed.clone();
        expected.retain(|socket| !is_forgotten(socket, &after) || ends.contains(socket));
        expected.sort_unstable();
        let without_inodes: Vec<_> = expected
            .iter()
            .map(|socket| Socket {
                inode: 0,
                ..*socket
            })
            .collect();
        assert_eq!(ends, without_inodes);
        let events: BTreeMap<_, _> = found.into_iter().collect();
        for socket in expected {
            let event = events[&Socket { inode: 0, ..socket }];
            if socket.inode != 0 {
                let [holder] = holders[&socket.inode][..] else {
                    panic!("{socket:?} is held by {:?}", holders[&socket.inode]);
                };
                assert_eq!(event["process.pid"], holder, "{event}");
                assert_source(event["owner_source"].as_str(), "seeded");
                // Or more, for a moment: a copy of this process that has not closed it yet.
                assert!(
                    event["holders"] == 1 || event["owner_source"] == "forked",
                    "{event}"
                );
            } else if socket.local.port() == SERVER_PORT && event["role"] == "passive" {
                // Not accepted yet: its listener's.
                assert_eq!(event["process.pid"], std::process::id(), "{event}");
                assert_source(event["owner_source"].as_str(), "listener");
            }
        }
    }
    assert!(
        is_own_machine() || sockets > 2 * 3 * CONNECTIONS.1,
        "{sockets}: this process may have too few descriptors (ulimit -Hn)"
    );
    let tallies = &run.totals.tallies;
    assert_eq!(tallies["seeds"], sockets as u64, "{tallies:?}");
    assert_eq!(tallies["seed_namespaces"], 3, "{tallies:?}");
    assert_eq!(tallies["seed_namespaces_not_entered"], 0, "{tallies:?}");
    assert_eq!(tallies["seed_untracked"], 0, "{tallies:?}");
    assert_said(&run, "half_open.half_closed");
    for (hook, account) in &run.totals.hooks {
        assert!(account.balances(), "{hook}: {account:?}");
    }
}

/// The same as `ss -tanp` has it: state, addresses, and a process that holds the socket, where one does; one of another
/// process's, too.
#[test]
fn the_list_of_connections_agrees_with_ss() {
    const FEW: usize = 16;
    let Some(binary) = binary() else { return };
    let Some(ss) = ss::program() else {
        return lacking("CONNTRACER_SS does not name an ss (iproute2)");
    };
    let mut old =
        [Family::V4, Family::V6].map(|family| Old::new(family, FEW, FEW, Duration::ZERO).unwrap());
    let others: Vec<Forked> = [Family::V4, Family::V6]
        .iter()
        .zip(&old)
        .map(|(family, old)| {
            let client = old.netns.run(|| {
                let client = tcp(*family)?;
                connect_without_waiting(&client, family.loopback_listener())?;
                Ok(client)
            });
            Forked::run(c"ct-other", &[client.unwrap().as_raw_fd()], forked::pause).unwrap()
        })
        .collect();
    old.iter_mut().try_for_each(Old::end_some).unwrap();
    let listed = old.each_ref().map(|old| ss::list(&ss, &old.netns).unwrap());
    let second = old[1].netns.inode().to_string();
    let arguments = ["--emit", "seed", "--netns", &second];
    let Some(tracer) = trace(&binary, &old[0].netns, &arguments) else {
        return;
    };
    let run = tracer.stop_with(Signal::TERM).unwrap();
    assert_eq!(run.totals.reason, "signal");

    for ((old, other), listed) in old.iter().zip(&others).zip(listed) {
        let after = old.netns.run(proc_net::sockets).unwrap();
        let states: BTreeSet<u8> = listed.iter().map(|line| line.socket.state).collect();
        // ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT2, TIME_WAIT, CLOSE_WAIT, LISTEN.
        assert_eq!(
            states,
            BTreeSet::from([1, 2, 3, 5, 6, 8, 10]),
            "{listed:#?}"
        );
        let pids: BTreeSet<u32> = listed.iter().flat_map(|line| line.pids.clone()).collect();
        assert!(pids.contains(&other.pid()) && pids.contains(&std::process::id()));
        let mut found: BTreeMap<_, _> = found(&run, old.netns.inode()).into_iter().collect();
        for Listed { socket, pids } in listed {
            let Some(event) = found.remove(&socket) else {
                assert!(
                    is_forgotten(&socket, &after),
                    "{socket:?} is not in {run:#?}"
                );
                continue;
            };
            let owner = event["process.pid"].as_u64();
            let is_waiting = event["role"] == "passive" && socket.state <= 3;
            if pids.is_empty() && !is_waiting {
                assert_eq!(owner, None, "{event}");
            } else if pids.is_empty() {
                // Not accepted yet: ss names nobody, and conntracer its listener's process.
                assert_source(event["owner_source"].as_str(), "listener");
            } else {
                let owner = owner.and_then(|pid| u32::try_from(pid).ok());
                assert!(
                    owner.is_some_and(|pid| pids.contains(&pid)),
                    "{pids:?}: {event}"
                );
            }
        }
        assert!(found.is_empty(), "ss does not list {found:#?}");
    }
    for (hook, account) in &run.totals.hooks {
        assert!(account.balances(), "{hook}: {account:?}");
    }
}

fn is_leak(finding: &Finding) -> bool {
    finding.cause == "half_closed" && finding.evidence["state"] == "CLOSE_WAIT"
}

/// Whether the kernel has forgotten what it listed before conntracer looked: what is in TIME_WAIT, after a minute. It may
/// have been found until then.
fn is_forgotten(listed: &Socket, after: &[Socket]) -> bool {
    listed.state == TIME_WAIT && !after.contains(listed)
}

/// The seeds of a namespace, as /proc/net/tcp would list them.
fn found(run: &Run, netns: u32) -> Vec<(Socket, &Value)> {
    run.events()
        .filter(|(kind, event)| *kind == "seed" && event["netns"] == netns)
        .map(|(_, event)| {
            let address = |which: &str| {
                let ip = event[&format!("network.{which}.address")].as_str()?;
                let port = event[&format!("network.{which}.port")].as_u64()?;
                Some(SocketAddr::new(
                    ip.parse::<IpAddr>().ok()?,
                    u16::try_from(port).ok()?,
                ))
            };
            let local = address("local").unwrap_or_else(|| panic!("no address: {event}"));
            let unspecified = if local.is_ipv4() {
                "0.0.0.0:0"
            } else {
                "[::]:0"
            };
            let socket = Socket {
                local,
                remote: address("peer").unwrap_or_else(|| unspecified.parse().unwrap()),
                state: number_of(event["network.connection.state"].as_str().unwrap_or("")),
                inode: 0,
            };
            (socket, event)
        })
        .collect()
}

/// include/net/tcp_states.h.
fn number_of(state: &str) -> u8 {
    match state {
        "established" => 1,
        "syn_sent" => 2,
        // A request is listed as SYN_RECV.
        "syn_received" | "new_syn_recv" => 3,
        "fin_wait_1" => 4,
        "fin_wait_2" => 5,
        "time_wait" => 6,
        "close_wait" => 8,
        "last_ack" => 9,
        "listen" => 10,
        "closing" => 11,
        _ => panic!("no state of a listed socket: {state}"),
    }
}

/// A server that waits in accept() when conntracer starts: what it accepts is its own all the same, though
/// no hook sees that accept() return.
#[test]
fn accept_that_waited_before_the_start_has_its_owner() {
    let Some(binary) = binary() else { return };
    let servers = [Family::V4, Family::V6].map(|family| {
        let netns = NetNs::new().unwrap();
        let address = family.loopback_listener();
        let listener = netns.run(|| listen(family, address, 16)).unwrap();
        (family, address, netns, listener)
    });
    let namespaces = servers.each_ref().map(|(_, _, netns, _)| netns);
    let run = std::thread::scope(|scope| {
        let waiting = servers.each_ref().map(|(_, _, _, listener)| {
            let serving = scope.spawn(|| -> std::io::Result<()> {
                let (mut accepted, _) = listener.accept()?;
                accepted.read_exact(&mut [0; 1])
            });
            (serving, Waiting(listener))
        });
        let mut tracer = trace_all(&binary, &namespaces, &["--emit", "state,seed"])?;
        for ((family, address, netns, _), (serving, waiting)) in servers.iter().zip(waiting) {
            let is_servers = |event: &Value| {
                event["netns"] == netns.inode() && event["network.local.port"] == SERVER_PORT
            };
            // From here on it is known whose the listener is.
            tracer
                .wait_for_event("the listener's owner", SOON, "seed", |event| {
                    is_servers(event) && is_ours(event)
                })
                .unwrap();
            netns.run(|| client(*family, *address)).unwrap();
            serving.join().unwrap().unwrap();
            drop(waiting);
            tracer
                .wait_for_event(
                    "the end of the server's connection",
                    SOON,
                    "state",
                    |event| is_servers(event) && event["new_state"] == "closed",
                )
                .unwrap();
        }
        Some(tracer.stop().unwrap())
    });
    let Some(run) = run else { return };
    for netns in namespaces {
        assert_accepted(&run.within(netns), netns);
    }
}

#[track_caller]
fn assert_accepted(run: &Run, netns: &NetNs) {
    let mut ends = 0;
    for (_, event) in run.events() {
        if event["network.local.port"] == SERVER_PORT && event["role"] == "passive" {
            assert!(is_ours(event), "{event}");
            ends += u32::from(event["new_state"] == "closed");
        }
    }
    assert_eq!(ends, 1, "{run:#?}");
    assert_sound(run, netns);
}

/// Connects, says one byte, and is gone.
fn client(family: Family, address: SocketAddr) -> anyhow::Result<()> {
    let mut client = tcp(family)?;
    client.connect(&address.into())?;
    client.write_all(b"x")?;
    Ok(())
}

/// A socket that two processes hold is the older one's, and said to be shared; an MPTCP listener is its
/// process's though the kernel lists the TCP one below.
#[test]
fn what_several_processes_hold_is_said_to_be_shared() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let address = Family::V4.loopback_listener();
    let (listener, mptcp, client) = netns
        .run(|| {
            let listener = listen(Family::V4, address, 16)?;
            let mptcp = socket::mptcp(Family::V6)?
                .map(|socket| socket::listen_on(socket, Family::V6.loopback_listener(), 16))
                .transpose()?;
            let client = tcp(Family::V4)?;
            connect_without_waiting(&client, address)?;
            Ok((listener, mptcp, client))
        })
        .unwrap();
    let mptcp_fd = mptcp.as_ref().map(AsRawFd::as_raw_fd);
    let kept: Vec<RawFd> = [listener.as_raw_fd(), client.as_raw_fd()]
        .into_iter()
        .chain(mptcp_fd)
        .collect();
    // Not this process, which forks for other tests: whatever it holds has more holders for a moment.
    let holder = Forked::run(c"ct-holder", &kept, forked::pause).unwrap();
    let sharer = Forked::run(c"ct-sharer", &[client.as_raw_fd()], forked::pause).unwrap();
    let has_mptcp = mptcp.is_some();
    drop((listener, mptcp, client));
    let Some(tracer) = trace(&binary, &netns, &["--emit", "seed", "--duration", "1s"]) else {
        return;
    };
    let run = tracer.finish().unwrap();
    assert_eq!(run.totals.reason, "duration");
    assert_eq!(run.unbalanced(), []);

    let mut ends = 0;
    for (_, event) in run.events() {
        if event["role"] == "listener" {
            assert_eq!(event["process.pid"], holder.pid(), "{event}");
            assert_eq!(event["holders"], 1, "{event}");
        } else if event["network.peer.port"] == SERVER_PORT {
            assert_eq!(event["process.pid"], holder.pid(), "{event}");
            assert_eq!(event["holders"], 2, "{event}");
            ends += 1;
        }
    }
    assert_eq!(ends, 1, "{run:#?}");
    let listeners = run.totals.tallies["seed_listeners"];
    assert_eq!(listeners, 1 + u64::from(has_mptcp), "{run:#?}");
    assert_sound(&run, &netns);
    drop((holder, sharer));
}
