//! What of netfilter dropped a SYN: conntrack, which finds no port to translate to, is told from a rule. (A full table is
//! the whole machine's: see `alone`.)

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::Certainty,
    netfilter,
    scenario::early_drop::{Obstacle, Refused, SYNS},
    wait::{self, EVENTUALLY, SOON},
};

use crate::{
    early_drop::{HOOKS, dropped, only},
    support::{assert_seen, assert_sound, binary, is_syn_drop, lacking, tell_all, watch},
};

/// Every client of one address is translated to one port: there is room for one of them.
#[test]
fn no_free_port_is_told_from_a_rule() {
    const SHARED: u16 = 30_000;
    let Some(binary) = binary() else { return };
    let mut scenario = Refused::new(Family::V4, Obstacle::None).unwrap();
    let server = scenario.pair.server.clone();
    let shares = || netfilter::share_a_source_port(SERVER_PORT, SHARED);
    if let Err(error) = server.run(shares) {
        lacking(&format!("this kernel has no nft nat: {error:#}"));
        return;
    }
    let _inhabitant = server.inhabit().unwrap();
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.listen().unwrap();
    scenario.send().unwrap();
    // More of them, until a look at the namespace's figures has shown that they grow with the drops.
    let mut number = SYNS;
    let told = wait::until("conntrack to be told of", EVENTUALLY, || {
        scenario.send_one(number, SERVER_PORT)?;
        number += 1;
        let run = tracer.checkpoint()?;
        let last = run.last_of(|finding| {
            is_syn_drop(finding) && finding.evidence["filtered_by"] == "conntrack_insert_failed"
        });
        Ok(last.first().copied().cloned())
    })
    .unwrap();
    assert_eq!(told.cause, "filtered", "{told:#?}");
    assert!(told.summary.contains("has no free port"), "{told:#?}");
    assert!(!told.summary.contains("by a netfilter rule"), "{told:#?}");
    assert_eq!(told.certainty, Certainty::Inferred, "{told:#?}");
    assert!(told.advice[0].contains("conntrack -L"), "{told:#?}");
    let happened = u64::from(number) - 1;
    let run = tell_all(&mut tracer, &HOOKS, happened, dropped);
    let last = only(&run);
    assert_seen(&run, &HOOKS, last.count, happened);
    assert_sound(&run, &server);
}

/// The same translation, and one client.
#[test]
fn a_free_port_is_nothing() {
    let Some(binary) = binary() else { return };
    let mut scenario = Refused::new(Family::V4, Obstacle::None).unwrap();
    let server = scenario.pair.server.clone();
    let shares = || netfilter::share_a_source_port(SERVER_PORT, 30_000);
    if let Err(error) = server.run(shares) {
        lacking(&format!("this kernel has no nft nat: {error:#}"));
        return;
    }
    let Some(mut tracer) = watch(&binary, &server) else {
        return;
    };
    scenario.listen().unwrap();
    scenario.send_one(0, SERVER_PORT).unwrap();
    wait::until("the SYN to arrive", SOON, || {
        Ok((scenario.counted()?.in_segs >= 1).then_some(()))
    })
    .unwrap();
    let run = tracer.checkpoint().unwrap();
    assert!(run.last_of(is_syn_drop).is_empty(), "{run:#?}");
    assert_sound(&run, &server);
}
