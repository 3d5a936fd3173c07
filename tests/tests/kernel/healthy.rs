//! The control: traffic that wants for nothing gives no finding, and every event is accounted for.

use std::{
    io::{self, Read},
    net::{Shutdown, SocketAddr},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Result, ensure};
use conntracer_tests::{
    family::Family,
    netns::NetNs,
    output::Run,
    scenario::{
        healthy::{self, Healthy},
        load::Load,
    },
    socket::{self, Connection, listen, tcp},
};
use rstest::rstest;

use crate::support::{
    assert_seen, assert_sound, binary, is_own_machine, streaming, tell_all, watch, watch_events,
};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn healthy_traffic_gives_no_finding(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut scenario = Healthy::new(family).unwrap();
    let Some(mut tracer) = watch(&binary, &scenario.pair.server) else {
        return;
    };
    let before = seen(&tracer.checkpoint().unwrap());
    scenario.run().unwrap();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &scenario.pair.server);
    // Not for want of looking: each connection changes state several times, and others only add to that.
    let changes = seen(&run) - before;
    assert!(changes > u64::from(healthy::CONNECTIONS), "{run:#?}");
}

/// Changes of state, in all namespaces.
pub(crate) fn seen(run: &Run) -> u64 {
    run.totals.hooks["state"].seen
}

/// The two ends of one connection.
const KINDS: [&str; 2] = ["accept", "connect"];

/// What would have to wait says EAGAIN or EINPROGRESS, and is done later: nothing failed.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn what_would_block_is_no_failure(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &KINDS) else {
        return;
    };
    let address = family.loopback_listener();
    netns.run(|| wait_for_nothing(family, address)).unwrap();
    let told = |run: &Run| run.events().count() as u64;
    let run = tell_all(&mut tracer, &["accept", "connect", "state"], 2, told);

    assert_eq!(run.findings().count(), 0, "{run:#?}");
    for kind in KINDS {
        let of = run.events().filter(|(of, _)| *of == kind);
        // By tracepoint a connect() is a change of state.
        assert_seen(&run, &[kind, "state"], of.count() as u64, 1);
    }
    assert_sound(&run, &netns);
}

/// One connection, each step of which is tried too early.
fn wait_for_nothing(family: Family, address: SocketAddr) -> Result<()> {
    const PATIENCE: Option<Duration> = Some(Duration::from_millis(20));
    let listener = listen(family, address, 1)?;
    listener.set_read_timeout(PATIENCE)?;
    assert_eq!(errno(listener.accept()), Some(libc::EAGAIN));
    listener.set_nonblocking(true)?;
    assert_eq!(errno(listener.accept()), Some(libc::EAGAIN));
    let client = tcp(family)?;
    client.set_nonblocking(true)?;
    let connected = client.connect(&address.into());
    assert_eq!(errno(connected), Some(libc::EINPROGRESS));
    let Connection {
        accepted,
        connected,
    } = Connection::accept(&listener, client)?;
    accepted.set_read_timeout(PATIENCE)?;
    assert_eq!(errno((&accepted).read(&mut [0])), Some(libc::EAGAIN));
    // Until EAGAIN.
    let written = socket::fill(&connected)?;
    accepted.set_read_timeout(None)?;
    connected.shutdown(Shutdown::Write)?;
    let read = io::copy(&mut { &accepted }, &mut io::sink())?;
    ensure!(read == written, "wrote {written} bytes and read {read}");
    Ok(())
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err()?.raw_os_error()
}

/// A busy host. Emulated, it gets as far as a run of all tests can spare the time.
#[test]
fn fifty_thousand_short_connections_and_a_bulk_transfer_give_no_finding() {
    const CONNECTIONS: u32 = 50_000;
    let limit = if is_own_machine() {
        Duration::from_secs(10)
    } else {
        Duration::from_mins(10)
    };
    let Some(binary) = binary() else { return };
    let scenario = Load::new(Family::V4).unwrap();
    let Some(mut tracer) = watch(&binary, &scenario.pair.server) else {
        return;
    };
    let before = seen(&tracer.checkpoint().unwrap());
    let others = Mutex::new(streaming(&binary, &scenario.pair.server));
    let rest = || others.lock().expect("no client panicked").catch_up();
    let made = scenario.run(CONNECTIONS, limit, &rest).unwrap();
    let run = tracer.checkpoint().unwrap();

    assert!(made == CONNECTIONS || is_own_machine(), "{made}");
    assert_eq!(run.findings().count(), 0, "after {made}: {run:#?}");
    assert_sound(&run, &scenario.pair.server);
    let changes = seen(&run) - before;
    assert!(changes > u64::from(made), "{made}: {run:#?}");
}
