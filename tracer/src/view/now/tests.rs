use std::{sync::Arc, time::Duration};

use conntracer_common::{record, tcp::state};

use super::{Conntrack, Now};
use crate::{
    decode::decode,
    finding::{Severity, Status},
    sink::{
        Line,
        moment::{Moment, Store},
    },
    testing::{self, Run, listener, socket},
    time::Ktime,
};

const NETNS: u32 = 4026;

fn host() -> crate::host::Host {
    let mut host = testing::host();
    host.netns = Some(NETNS);
    host.sysctls.insert(
        "net.ipv4.ip_local_port_range".to_owned(),
        "40000\t40009".to_owned(),
    );
    host
}

fn now(records: impl FnOnce(&mut Run)) -> Now {
    let mut run = Run::new();
    records(&mut run);
    let mut now = Now::new(Arc::new(host()));
    for record in &run.fed {
        now.add(Line::Event(decode(record).unwrap()));
    }
    now
}

fn told(now: Now, conntrack: Option<Conntrack>) -> (Moment, Vec<Line>) {
    let mut lines = now.lines(Ktime(1), Duration::from_secs(2), conntrack);
    let Line::Now { moment, .. } = lines.remove(0) else {
        panic!("{lines:?}");
    };
    (*moment, lines)
}

fn seeded(run: &mut Run, socket: record::Socket, change: impl FnOnce(&mut record::Seed)) {
    run.seed(socket, change);
}

#[test]
fn a_host_without_trouble_is_well_and_what_was_looked_at_is_counted() {
    let now = now(|run| {
        seeded(run, listener("10.0.0.1:80", "0.0.0.0:0"), |_| ());
        seeded(run, socket("10.0.0.1:80", "10.0.0.2:4000"), |_| ());
        seeded(run, socket("10.0.0.1:80", "10.0.0.2:4001"), |_| ());
        let mut request = socket("10.0.0.1:80", "10.0.0.2:4002");
        request.state = state::NEW_SYN_RECV;
        seeded(run, request, |_| ());
    });
    let (moment, findings) = told(
        now,
        Some(Conntrack {
            entries: 89,
            most: 100,
        }),
    );
    assert!(moment.is_well(), "{moment:?}");
    assert!(findings.is_empty());
    assert_eq!(
        (moment.namespaces, moment.listeners, moment.connections),
        (1, 1, 2)
    );
    assert!(moment.filling.is_empty());
}

#[test]
fn a_queue_is_filling_from_its_half_on() {
    let queue = |waiting, limit| {
        let now = now(|run| {
            seeded(run, listener("10.0.0.1:80", "0.0.0.0:0"), |seed| {
                (seed.ack_backlog, seed.max_ack_backlog) = (waiting, limit);
            });
        });
        told(now, None).0
    };
    assert!(queue(63, 127).filling.is_empty());
    let moment = queue(64, 127);
    assert_eq!(
        (moment.filling[0].waiting, moment.filling[0].most),
        (64, 128)
    );
    assert!(moment.is_well(), "a queue that is used is no fault");
    assert!(
        queue(1, 0).filling.is_empty(),
        "one is none that waits for others"
    );
}

/// Nine of ten ports to one remote end; as many to several are none.
#[test]
fn ports_are_counted_by_remote_end() {
    let ports = |remote: fn(u16) -> String| {
        let now = now(|run| {
            for port in 40_000..40_009_u16 {
                let mut used = socket(&format!("10.0.0.1:{port}"), &remote(port));
                (used.netns, used.role) = (NETNS, record::role::ACTIVE);
                seeded(run, used, |_| ());
            }
            let mut outside = socket("10.0.0.1:39999", "10.0.0.2:443");
            (outside.netns, outside.role) = (NETNS, record::role::ACTIVE);
            seeded(run, outside, |_| ());
        });
        told(now, None).0
    };
    let moment = ports(|_| "10.0.0.2:443".to_owned());
    let [tight] = moment.tight.as_slice() else {
        panic!("{moment:?}");
    };
    assert_eq!(
        (tight.what, tight.used, tight.limit),
        (Store::LocalPorts, 9, 10)
    );
    assert!(!moment.is_well());
    assert!(ports(|port| format!("10.0.0.2:{port}")).is_well());
}

#[test]
fn conntrack_is_tight_from_nine_tenths_on() {
    let conntrack = |entries| {
        let conntrack = Conntrack {
            entries,
            most: 1000,
        };
        told(now(|_| ()), Some(conntrack)).0
    };
    assert!(conntrack(899).is_well());
    assert_eq!(conntrack(900).tight[0].what, Store::Conntrack);
}

#[test]
fn the_worst_incident_comes_first_and_its_cause_before_what_it_explains() {
    let mut run = Run::new();
    run.accept_queue(listener("10.0.0.1:80", "10.0.0.2:4000"), |_| ());
    run.finish();
    let one = run.only().clone();
    let mut now = now(|_| ());
    for (id, incident, severity, explained_by) in [
        (1, 1, Severity::Warning, None),
        (2, 2, Severity::Warning, Some(3)),
        (3, 2, Severity::Critical, None),
    ] {
        let mut finding = one.clone();
        (finding.id, finding.incident, finding.severity) = (id, incident, severity);
        finding.explained_by = explained_by;
        finding.status = Status::Update;
        now.add(Line::Finding(Box::new(finding)));
    }
    let (moment, lines) = told(now, None);
    assert_eq!((moment.findings, moment.incidents), (3, 2));
    let ids: Vec<u64> = lines
        .iter()
        .map(|line| match line {
            Line::Finding(finding) => {
                assert_eq!(finding.status, Status::Open);
                finding.id
            }
            _ => panic!("{line:?}"),
        })
        .collect();
    assert_eq!(ids, [3, 2, 1]);
}
