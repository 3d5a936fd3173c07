//! Connections that this host itself turns away: a security module refuses the SYN, or there is no memory for
//! the socket that the third ACK is to make.

use anyhow::Result;
use conntracer_tests::{
    counters::Counters,
    family::Family,
    line::Finding,
    link::Pair,
    netns::NetNs,
    output::Run,
    packet::send_syn,
    security,
    socket::{abort_on_close, connect_without_waiting, listen, tcp},
    wait::{self, SOON},
};
use rstest::rstest;

use crate::support::{
    assert_listener, assert_reconciled, assert_said, assert_seen, assert_sound, binary,
    is_syn_drop, lacking, tell_all, watch,
};

/// Connections asked for.
const CLIENTS: u16 = 4;
/// Room for all of them.
const BACKLOG: i32 = 64;
/// What tells of SYNs and third ACKs.
const HOOKS: [&str; 2] = ["syn", "ack"];
const NO_PROGRAMS: &str = "this kernel attaches no BPF program to functions";

/// The ports are those of no other test: what refuses knows the listener by its port alone.
#[rstest]
#[case::v4(Family::V4, 18_081)]
#[case::v6(Family::V6, 18_082)]
fn syns_that_a_security_module_refuses_equal_listen_drops(
    #[case] family: Family,
    #[case] port: u16,
) {
    let Some(binary) = binary() else { return };
    let pair = Pair::new().unwrap();
    let before = pair.server.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &pair.server) else {
        return;
    };
    let address = family.veth_listener_on(port);
    let _listener = pair
        .server
        .run(|| listen(family, address, BACKLOG))
        .unwrap();
    let Some(_refusing) = security::refuse_requests(port).unwrap() else {
        return lacking(NO_PROGRAMS);
    };
    pair.client
        .run(|| {
            (0..CLIENTS).try_for_each(|number| {
                send_syn(family, (family.ghost(), 20_000 + number).into(), address)
            })
        })
        .unwrap();
    wait_dropped(&pair.server, &before);
    let counted = pair.server.counters().unwrap();
    let run = tell_all(&mut tracer, &HOOKS, CLIENTS.into(), dropped);

    let finding = only(&run);
    assert_eq!(finding.cause, "other", "{finding:#?}");
    assert_eq!((counted - before).listen_drops, u64::from(CLIENTS));
    assert_seen(&run, &HOOKS, finding.count, CLIENTS.into());
    assert!(
        finding.summary.contains("a security module"),
        "{finding:#?}"
    );
    assert_listener(finding, &pair.server, address);
    assert_reconciled(&run, &pair.server, &counted);
    assert_said(&run, "syn_drop");
    assert_sound(&run, &pair.server);
}

#[rstest]
#[case::v4(Family::V4, 18_083)]
#[case::v6(Family::V6, 18_084)]
fn third_acks_without_memory_for_a_socket_equal_listen_drops(
    #[case] family: Family,
    #[case] port: u16,
) {
    let Some(binary) = binary() else { return };
    let netns = NetNs::new().unwrap();
    let before = netns.counters().unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    let address = (family.loopback(), port).into();
    let _listener = netns.run(|| listen(family, address, BACKLOG)).unwrap();
    let Some(_refusing) = security::refuse_children(port, CLIENTS.into()).unwrap() else {
        return lacking(NO_PROGRAMS);
    };
    let clients = netns
        .run(|| {
            (0..CLIENTS)
                .map(|_| {
                    let client = tcp(family)?;
                    connect_without_waiting(&client, address)?;
                    Ok(client)
                })
                .collect::<Result<Vec<_>>>()
        })
        .unwrap();
    wait_dropped(&netns, &before);
    // Their RSTs end the requests before these are tried again.
    for client in clients {
        abort_on_close(&client).unwrap();
    }
    let counted = netns.counters().unwrap();
    let run = tell_all(&mut tracer, &HOOKS, CLIENTS.into(), dropped);

    let finding = only(&run);
    assert_eq!(finding.cause, "no_memory", "{finding:#?}");
    assert_eq!((counted - before).listen_drops, u64::from(CLIENTS));
    assert_seen(&run, &HOOKS, finding.count, CLIENTS.into());
    assert_eq!((counted - before).listen_overflows, 0);
    assert!(finding.because.is_some(), "{finding:#?}");
    assert_listener(finding, &netns, address);
    assert_reconciled(&run, &netns, &counted);
    assert_sound(&run, &netns);
}

#[track_caller]
fn wait_dropped(netns: &NetNs, before: &Counters) {
    wait::until("the kernel to refuse all of them", SOON, || {
        let dropped = (netns.counters()? - *before).listen_drops;
        Ok((dropped >= u64::from(CLIENTS)).then_some(()))
    })
    .unwrap();
}

fn dropped(run: &Run) -> u64 {
    let findings = run.last_of(is_syn_drop);
    findings.iter().map(|finding| finding.count).sum()
}

#[track_caller]
fn only(run: &Run) -> &Finding {
    match run.last_of(is_syn_drop).as_slice() {
        [only] => only,
        all => panic!("expected one finding, got {all:#?}: {run:#?}"),
    }
}
