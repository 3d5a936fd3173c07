//! How long connections took and waited, against the application's own clock.

use std::{
    collections::BTreeMap,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use conntracer_tests::{
    family::Family,
    netns::NetNs,
    output::Run,
    socket::{listen, wait_readable},
};
use serde_json::Value;

use crate::support::{assert_sound, binary, tell_all, watch_events};

/// By which a time of the kernel's may be off that is told in microseconds.
const ROUNDED: Duration = Duration::from_micros(1);

/// Times of the kernel, by the client's port, in milliseconds.
fn times(run: &Run, kind: &str, key: &str, port: &str) -> BTreeMap<u64, Duration> {
    let events = run.events().filter(|(of, _)| *of == kind);
    let time = |event: &Value| {
        let took = event.get(key)?.as_f64()?;
        Some((event[port].as_u64()?, Duration::from_secs_f64(took / 1e3)))
    };
    events.filter_map(|(_, event)| time(event)).collect()
}

/// A server that accepts after known pauses. What the kernel saw lies between what the application did before and after:
/// a connection is established within connect(), and taken within accept().
#[test]
fn waits_and_connects_are_what_the_application_measures() {
    const CONNECTIONS: u32 = 200;
    const KINDS: [&str; 2] = ["state", "accept"];
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let Some(mut tracer) = watch_events(&binary, &netns, &KINDS) else {
        return;
    };
    let hooks = &tracer.plan().plan.hooks;
    let is_seen = hooks
        .iter()
        .any(|plan| plan.hook == "accept" && plan.hook_type == "fentry");
    let address = Family::V4.loopback_listener();
    let listener = netns.run(|| listen(Family::V4, address, 16)).unwrap();
    let mut expected: BTreeMap<u64, [(Duration, Duration); 2]> = BTreeMap::new();
    netns
        .run(|| {
            for number in 0..CONNECTIONS {
                let begins = Instant::now();
                let mut client = TcpStream::connect(address)?;
                let connected = Instant::now();
                // The third ACK is on its way when connect() returns: on a busy CPU it waits for its turn.
                wait_readable(&listener)?;
                let queued = Instant::now();
                thread::sleep(Duration::from_millis(u64::from(number % 8)));
                let accepts = Instant::now();
                let (accepted, _) = listener.accept()?;
                let taken = Instant::now();
                // By tracepoint it is the first receive that tells of it.
                std::io::Write::write_all(&mut client, b"x")?;
                std::io::Read::read_exact(&mut &accepted, &mut [0])?;
                let port = client.local_addr()?.port();
                let times = [
                    (Duration::ZERO, connected - begins),
                    (accepts - queued, taken - begins),
                ];
                expected.insert(port.into(), times);
            }
            Ok(())
        })
        .unwrap();
    let told = |run: &Run| {
        let accepted = run.events().filter(|(kind, _)| *kind == "accept").count();
        accepted as u64
    };
    let run = tell_all(&mut tracer, &["accept"], CONNECTIONS.into(), told);

    let waited = times(&run, "accept", "waited_ms", "network.peer.port");
    let connects = times(&run, "state", "connect_ms", "network.local.port");
    assert_eq!(waited.is_empty(), !is_seen, "{waited:?}");
    assert!(!connects.is_empty());
    for (port, [connect, wait]) in &expected {
        for (told, (least, most)) in [(&connects, connect), (&waited, wait)] {
            let Some(told) = told.get(port) else { continue };
            let range = least.saturating_sub(ROUNDED)..=*most + ROUNDED;
            assert!(range.contains(told), "{port}: {told:?} of {range:?}");
        }
    }
    if is_seen {
        let missing = expected.len() - waited.len();
        assert!(
            missing as u64 <= run.missed("accept"),
            "{missing} missing: {run:#?}"
        );
    }
    assert_sound(&run, &netns);
}
