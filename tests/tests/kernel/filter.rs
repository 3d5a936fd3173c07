//! What a filter lets through: one of two processes, listeners, control groups, and nothing of the other. Each has
//! tracers of its own, for their filters.

use std::{
    ffi::CStr,
    io::Read as _,
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    process,
};

use anyhow::Context as _;
use conntracer_tests::{
    cgroup::Cgroup,
    family::Family,
    forked::Forked,
    line::Subject,
    netns::{COMM, NetNs},
    output::Run,
    scenario::two_servers::{CONNECTS, DROPPED, OTHER, SERVED, TwoServers},
    socket::{Connection, connect_without_waiting, listen, tcp},
    wait::SOON,
};
use serde_json::Value;
use socket2::SockAddr;

use crate::support::{
    assert_reconciled, assert_seen, assert_sound, binary, is_syn_drop, lacking, missed, tell_all,
    trace,
};

const EMIT: [&str; 2] = ["--emit", "connect,accept"];
/// What tells of SYNs.
const HOOKS: [&str; 1] = ["syn"];

/// Each filter lets through what is one process's, to the last event, and counts what is the other's. What it
/// hides is in the totals all the same.
#[test]
fn each_filter_lets_through_one_of_two_processes() {
    let Some(binary) = binary() else { return };
    let mut servers = TwoServers::new().unwrap();
    let groups = groups(&servers);
    let start = |filter: &[&str]| trace(&binary, &servers.netns, &[&EMIT[..], filter].concat());
    let (own, other_name) = (process::id().to_string(), name(OTHER));
    let Some(by_pid) = start(&["--pid", &own]) else {
        return;
    };
    let Some(by_comm) = start(&["--comm", "nobody", "--comm", other_name]) else {
        return;
    };
    let other = servers.other();
    let Some(by_listener) = start(&everything(&servers).each_ref().map(String::as_str)) else {
        return;
    };
    let by_group = groups.as_ref().map(|[_, outer]| {
        let filter = ["--cgroup", outer.path(), "--container", &CONTAINER[..12]];
        start(&filter).expect("the others started")
    });
    servers.provoke().unwrap();
    let mut all = vec![
        (by_pid, process::id(), true),
        (by_comm, other, true),
        (by_listener, other, false),
    ];
    all.extend(by_group.map(|tracer| (tracer, other, true)));
    for (tracer, ..) in &mut all {
        tell_all(tracer, &HOOKS, DROPPED, dropped);
    }
    servers.quiet().unwrap();
    let counters = servers.netns.counters().unwrap();
    for (tracer, pid, by_owner) in all {
        let run = tracer.stop().unwrap();
        assert_only(&run, pid, if by_owner { CONNECTS } else { 0 });
        assert_sound(&run, &servers.netns);
        if by_owner {
            assert_reconciled(&run, &servers.netns, &counters);
        }
        // All of it was decided in the kernel.
        for tally in ["records_filtered", "records_owner_unknown"] {
            assert_eq!(run.totals.tallies[tally], 0, "{tally}: {run:#?}");
        }
        // By the address alone a connection is not even looked at, where accept() shows in what it receives.
        let accepted = if by_owner { SERVED } else { 0 };
        for (hook, events) in [("connect", CONNECTS), ("accept", accepted)] {
            let account = &run.totals.hooks[hook];
            assert!(
                account.filtered + account.lost >= u64::try_from(events).unwrap(),
                "{hook}: {account:?}"
            );
        }
    }
}

/// A control group that comes after the tracer is as good as one that was there.
#[test]
fn a_control_group_is_waited_for() {
    let Some(binary) = binary() else { return };
    let mut servers = TwoServers::new().unwrap();
    let path = format!("/ct-late-{}", process::id());
    let Some(mut tracer) = trace(
        &binary,
        &servers.netns,
        &[&EMIT[..], &["--cgroup", &path]].concat(),
    ) else {
        return;
    };
    let group = match Cgroup::new(&path) {
        Ok(group) => group,
        Err(error) => return lacking(&format!("{error:#}")),
    };
    let other = servers.other();
    group.take(other).unwrap();
    servers.provoke().unwrap();
    tell_all(&mut tracer, &HOOKS, DROPPED, dropped);
    servers.quiet().unwrap();
    let run = tracer.stop().unwrap();
    assert_only(&run, other, CONNECTS);
    assert_sound(&run, &servers.netns);
    assert_eq!(run.totals.tallies["records_owner_unknown"], 0, "{run:#?}");
}

/// Sockets older than the tracer are filtered by the owner that is found for them.
#[test]
fn what_was_there_is_filtered_by_its_owner() {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    // All of it on one thread: the forked process makes its sockets where that is, and ends with it.
    netns
        .run(|| {
            let (mut told, teller) = UnixStream::pair()?;
            let fd = teller.as_raw_fd();
            let older_address = SockAddr::from(Family::V6.loopback_listener());
            let forked = Forked::run(c"ct-older", &[fd], || older(fd, &older_address))?;
            drop(teller);
            told.read_exact(&mut [0])
                .context("waiting for the other's sockets")?;
            let address = Family::V4.loopback_listener();
            let listener = listen(Family::V4, address, 1)?;
            let client = tcp(Family::V4)?;
            connect_without_waiting(&client, address)?;
            let own = Connection::accept(&listener, client)?;

            let pid = forked.pid().to_string();
            let arguments = ["--pid", &pid, "--emit", "seed"];
            let Some(mut tracer) = trace(&binary, &netns, &arguments) else {
                return Ok(());
            };
            tracer.wait_for_events(OLDER, SOON)?;
            let run = tracer.stop()?;
            own.abort()?;

            let seeds: Vec<&Value> = run.events().map(|(_, event)| event).collect();
            assert_eq!(seeds.len(), OLDER, "{seeds:#?}");
            for seed in seeds {
                assert_eq!(seed["process.pid"], forked.pid(), "{seed:#?}");
                assert_eq!(seed["network.local.address"], "::1", "{seed:#?}");
            }
            // As many of this process: whose they are is found by the walk, and then it is for user space to
            // leave them out.
            let left_out = run.totals.tallies["records_filtered"];
            assert_eq!(left_out, OLDER as u64, "{run:#?}");
            assert_sound(&run, &netns);
            Ok(())
        })
        .unwrap();
}

/// Sockets of [`older`]: a listener and both ends of a connection.
const OLDER: usize = 3;

/// Makes them, says so, and waits to be killed; by system calls alone.
fn older(tell: libc::c_int, address: &SockAddr) -> u8 {
    // SAFETY: an address that lives as long as the calls.
    unsafe {
        let [listener, client] =
            [(); 2].map(|()| libc::socket(libc::AF_INET6, libc::SOCK_STREAM, 0));
        let made = libc::bind(listener, address.as_ptr().cast(), address.len()) == 0
            && libc::listen(listener, 1) == 0
            && libc::connect(client, address.as_ptr().cast(), address.len()) == 0
            && libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut()) >= 0
            && libc::write(tell, [1_u8].as_ptr().cast(), 1) == 1;
        if made {
            libc::pause();
        }
    }
    1
}

/// The id of a container that is none, but for the name of its group.
const CONTAINER: &str = "c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00c0ffee00";

/// A control group as Docker names them, which holds the second process, and the one it is in; `None` where
/// no group can be made. Removed in this order.
fn groups(servers: &TwoServers) -> Option<[Cgroup; 2]> {
    let outer = format!("/ct-filter-{}", process::id());
    let inner = format!("{outer}/docker-{CONTAINER}.scope");
    let made = Cgroup::new(&outer).and_then(|outer| Ok([Cgroup::new(&inner)?, outer]));
    match made {
        Ok(groups) => {
            groups[0].take(servers.other()).unwrap();
            Some(groups)
        }
        Err(error) => {
            lacking(&format!("{error:#}"));
            None
        }
    }
}

/// SYNs that were told to be dropped, of the listener that is shown.
fn dropped(run: &Run) -> u64 {
    let findings = run.last_of(is_syn_drop);
    findings.iter().map(|finding| finding.count).sum()
}

/// The second process's listener by every flag that fits it, with as many values as each takes: what the
/// verifier has to walk at most.
fn everything(servers: &TwoServers) -> [String; 12] {
    let address = servers.addresses()[1];
    let (port, pid) = (address.port().to_string(), servers.other().to_string());
    let eighth = |filler: &str, last: &str| format!("{}{last}", format!("{filler},").repeat(7));
    [
        ("--listener", eighth("10.0.0.1:1", &address.to_string())),
        ("--addr", eighth("10.0.0.0/8", &address.ip().to_string())),
        ("--lport", eighth("1", &port)),
        ("--port", eighth("1", &port)),
        ("--pid", eighth("1", &pid)),
        ("--comm", eighth("nobody", name(OTHER))),
    ]
    .map(|(flag, values)| [flag.to_owned(), values])
    .concat()
    .try_into()
    .expect("six flags and their values")
}

fn name(comm: &CStr) -> &str {
    comm.to_str().expect("a name of ASCII")
}

/// What was shown is all of one process's, findings included, and nobody else's.
#[track_caller]
fn assert_only(run: &Run, pid: u32, connects: usize) {
    let name = if pid == process::id() {
        COMM
    } else {
        name(OTHER)
    };
    for finding in run.findings() {
        let Some(owner) = &finding.owner else {
            // On a slow machine the SYNs that are retransmitted meanwhile are a storm, which is its remote's.
            let is_remotes = matches!(finding.subject, Subject::Remote { .. });
            // What listens or connects while its program is under way is found by a search, and later.
            let lost = missed(run, &["state", "connect"]);
            assert!(is_remotes || lost > 0, "it is known: {finding:#?}");
            continue;
        };
        assert_eq!(
            (owner.pid, owner.comm.as_str()),
            (pid, name),
            "{finding:#?}"
        );
    }
    let mut causes: Vec<_> = run.last_of(is_syn_drop);
    causes.retain(|finding| finding.cause != "ack_overflow");
    assert_eq!(causes.len(), 1, "one listener, one cause: {run:#?}");
    let mut seen = [("connect", 0), ("accept", 0)];
    for (kind, event) in run.events() {
        assert_eq!(event["process.pid"], pid, "{event:#?}");
        for (of, count) in &mut seen {
            *count += u64::from(kind == *of);
        }
    }
    for ((kind, seen), expected) in seen.into_iter().zip([connects, SERVED]) {
        // By tracepoint a connect() is a change of state.
        assert_seen(run, &[kind, "state"], seen, expected as u64);
    }
}
