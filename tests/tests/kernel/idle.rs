//! `--audit keepalive`: connections that would not notice that their peer is gone, listed exactly.

use std::time::Duration;

use conntracer_tests::{
    family::Family,
    line::{Finding, Status, Subject},
    link::Pair,
    socket::{Connection, connect_without_waiting, listen, tcp},
    wait::EVENTUALLY,
};
use socket2::{Socket, TcpKeepalive};

use crate::support::{assert_named, assert_said, assert_sound, binary, trace_by};

/// Two connections older than conntracer and two younger ones, of each of which one has keepalive.
#[test]
fn idle_connections_without_keepalive_are_listed_exactly() {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    // The default is 15 minutes.
    let config = "[detect.half_open]\nidle_after_s = 1\n";
    let (old_listener, old) = two(&pair, Family::V4);
    let arguments = ["--audit", "keepalive"];
    let Some(mut tracer) = trace_by(&binary, &pair.server, config, &arguments) else {
        return;
    };
    let (new_listener, new) = two(&pair, Family::V6);
    let all = tracer
        .wait_for(
            "both connections without keepalive",
            EVENTUALLY,
            |finding| is_idle(finding) && finding.count == 2,
        )
        .unwrap();
    set_keepalive(&old[1].accepted);
    let one = tracer
        .wait_for("the one that is left", EVENTUALLY, |finding| {
            // It may have opened with the older one alone.
            finding.status == Status::Update && finding.count == 1
        })
        .unwrap();
    set_keepalive(&new[1].accepted);
    let resolved = tracer
        .wait_for("the resolution", EVENTUALLY, |finding| {
            finding.id == all.id && finding.status == Status::Resolved
        })
        .unwrap();
    let run = tracer.stop().unwrap();
    let (local, remote) = new[1].endpoints().unwrap();
    drop((old_listener, new_listener));

    assert!(
        matches!(&all.subject, Subject::Process { netns, pid, .. }
            if *netns == pair.server.inode() && *pid == std::process::id()),
        "{all:#?}"
    );
    assert_named(all.owner.as_ref().expect("this process holds them"));
    assert_eq!(all.number("remotes"), 2, "{all:#?}");
    assert_eq!(one.evidence["oldest_local"], local.to_string(), "{one:#?}");
    assert_eq!(one.evidence["oldest_remote"], remote.to_string());
    let client = Family::V6.client().to_string();
    assert_eq!(one.evidence["most_frequent_remotes"], client, "{one:#?}");
    assert!(one.evidence["oldest_idle_s"].as_f64() >= Some(1.0));
    assert_eq!(resolved.count, 2, "{resolved:#?}");
    assert_eq!(run.last_of(is_idle).len(), 1, "{run:#?}");
    assert_said(&run, "half_open.idle");
    assert_sound(&run, &pair.server);
}

/// Two connections to a listener of the server, the first with keepalive on the server's side.
fn two(pair: &Pair, family: Family) -> (Socket, [Connection; 2]) {
    let address = family.veth_listener();
    let listener = pair.server.run(|| listen(family, address, 16)).unwrap();
    let connections: [Connection; 2] = std::array::from_fn(|_| {
        let client = pair.client.run(|| {
            let client = tcp(family)?;
            connect_without_waiting(&client, address)?;
            Ok(client)
        });
        Connection::accept(&listener, client.unwrap()).unwrap()
    });
    set_keepalive(&connections[0].accepted);
    (listener, connections)
}

/// Turns it on, with a first probe that no test waits for.
fn set_keepalive(socket: &Socket) {
    let keepalive = TcpKeepalive::new().with_time(Duration::from_hours(2));
    socket.set_tcp_keepalive(&keepalive).unwrap();
}

fn is_idle(finding: &Finding) -> bool {
    finding.finding == "half_open" && finding.cause == "idle_without_keepalive"
}
