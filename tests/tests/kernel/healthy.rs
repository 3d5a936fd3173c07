//! The control: traffic that wants for nothing gives no finding, and every event is accounted for.

use std::{
    io::{self, Read},
    net::{Shutdown, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use conntracer_tests::{
    family::Family,
    netns::NetNs,
    scenario::{
        healthy::{self, Healthy},
        load::Load,
    },
    socket::{self, Connection, listen, tcp},
    wait::SOON,
};
use rstest::rstest;

use crate::support::{assert_sound, binary, is_own_machine, trace};

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn healthy_traffic_gives_no_finding(
    #[case] family: Family,
    #[values("ringbuf", "perf")] transport: &str,
) {
    let Some(binary) = binary() else { return };
    let mut scenario = Healthy::new(family).unwrap();
    let Some(tracer) = trace(&binary, &scenario.pair.server, &["--transport", transport]) else {
        return;
    };
    scenario.run().unwrap();
    let run = tracer.stop().unwrap();

    assert_eq!(run.findings().count(), 0, "{run:#?}");
    assert_sound(&run, &scenario.pair.server);
    // Not for want of looking: each connection changes state several times.
    let seen = run.totals.hooks["state"].seen;
    assert!(seen > u64::from(healthy::CONNECTIONS), "{run:#?}");
}

/// What would have to wait says EAGAIN or EINPROGRESS, and is done later: nothing failed.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn what_would_block_is_no_failure(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = trace(&binary, &netns, &["--emit", "accept,connect"]) else {
        return;
    };
    let address = family.loopback_listener();
    netns.run(|| wait_for_nothing(family, address)).unwrap();
    tracer.wait_for_events(2, SOON).unwrap();
    let run = tracer.stop().unwrap();

    assert_eq!(run.findings().count(), 0, "{run:#?}");
    let mut kinds: Vec<&str> = run.events().map(|(kind, _)| kind).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["accept", "connect"], "{run:#?}");
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
        Duration::from_mins(4)
    };
    let Some(binary) = binary() else { return };
    let scenario = Load::new(Family::V4).unwrap();
    let Some(tracer) = trace(&binary, &scenario.pair.server, &[]) else {
        return;
    };
    let made = scenario.run(CONNECTIONS, limit).unwrap();
    let run = tracer.stop().unwrap();

    assert!(made == CONNECTIONS || is_own_machine(), "{made}");
    assert_eq!(run.findings().count(), 0, "after {made}: {run:#?}");
    assert_sound(&run, &scenario.pair.server);
    let seen = run.totals.hooks["state"].seen;
    assert!(seen > u64::from(made), "{made}: {run:#?}");
}
