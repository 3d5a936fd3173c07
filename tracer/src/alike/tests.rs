//! Alike findings.

use std::{collections::BTreeSet, time::Duration};

use super::MAX_APART;
use crate::{
    detect::{
        Thresholds,
        claims::{Claim, EVERY, Records, Register, alone},
    },
    finding::{Finding, Status, Subject},
    testing::{Run, evidence, owner, socket},
};

/// A process fails once to reach each of so many remotes, `pid` 0 for the usual one.
fn fails(run: &mut Run, remotes: u32, pid: u32) {
    for remote in 0..remotes {
        let peer = format!("10.{}.{}.9:443", remote / 250, remote % 250);
        run.failure(socket("10.0.0.1:40000", &peer), 1, |failure| {
            failure.error = 110;
            failure.how = 0;
            if pid != 0 {
                failure.owner.pid = pid;
            }
        });
    }
}

fn few(run: &mut Run) {
    run.tick();
    fails(run, 16, 0);
}

fn of_two_processes(run: &mut Run) {
    run.tick();
    fails(run, 16, 0);
    fails(run, 16, 77);
}

fn one_more(run: &mut Run) {
    run.tick();
    fails(run, 17, 0);
}

fn many(run: &mut Run) {
    run.tick();
    fails(run, 100, 0);
    run.checkpoint();
}

fn many_and_over(run: &mut Run) {
    many(run);
    run.pass(Duration::from_mins(2));
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "alike",
    kind: EVERY,
    run: alone,
    claims: &[
        Claim {
            words: "is counted here and not told by itself",
            said: &[one_more],
            never: &[few, many, of_two_processes],
        },
        Claim {
            words: "are counted here and not told one by one",
            said: &[many],
            never: &[few, one_more],
        },
        Claim {
            words: "; 0 still open",
            said: &[many_and_over],
            never: &[many, one_more],
        },
        Claim {
            words: " still open",
            said: &[many, one_more],
            never: &[few, of_two_processes],
        },
        Claim {
            words: ": it is one of them",
            said: &[one_more, many],
            never: &[few, of_two_processes],
        },
    ],
};

fn folded(run: &Run) -> Vec<&Finding> {
    let last = run.last_words().into_iter();
    last.filter(|finding| finding.summary.contains("counted here"))
        .collect()
}

#[test]
fn a_process_that_fails_to_reach_many_is_told_of_a_few_and_of_the_rest_as_one() {
    let mut run = Run::new();
    many(&mut run);
    assert_eq!(run.last_words().len(), MAX_APART + 1);
    let rest = folded(&run);
    let [rest] = rest[..] else {
        panic!("{rest:#?}")
    };
    assert_eq!(rest.count, 84, "the others are told apart");
    assert!(
        matches!(&rest.subject, Subject::Process { pid, .. } if *pid == owner().pid),
        "{rest:#?}"
    );
    let last = evidence(rest, "last_about");
    assert_eq!(*last, crate::finding::Value::Text("10.0.99.9:443".into()));
    // No line has an id that no line opened.
    let opened: BTreeSet<u64> = run
        .findings
        .iter()
        .filter(|finding| finding.status == Status::Open)
        .map(|finding| finding.id)
        .collect();
    assert!(run.findings.iter().all(|of| opened.contains(&of.id)));
    run.pass(Duration::from_mins(2));
    assert!(
        run.last_words()
            .iter()
            .all(|of| of.status == Status::Resolved)
    );
    run.assert_replays(Thresholds::default());
}

/// Fifty thousand remotes fail one after the other: what is said of them is bounded, and their number is whole.
#[test]
fn fifty_thousand_failing_remotes_are_under_a_megabyte() {
    const REMOTES: u64 = 50_000;
    let mut run = Run::new();
    run.tick();
    for remote in 0..REMOTES {
        let peer = format!(
            "10.{}.{}.{}:443",
            1 + remote / 62_500,
            remote / 250 % 250,
            remote % 250
        );
        run.failure(socket("10.0.0.1:40000", &peer), 1, |failure| {
            failure.error = 110;
            failure.how = 0;
        });
        run.skip(Duration::from_millis(1));
        if remote % 250 == 0 {
            run.tick();
        }
    }
    run.pass(Duration::from_mins(2));
    let bytes: usize = run
        .findings
        .iter()
        .map(|finding| serde_json::to_string(finding).unwrap().len())
        .sum();
    assert!(bytes < 1_000_000, "{bytes} bytes");
    let told: u64 = run.last_words().iter().map(|finding| finding.count).sum();
    assert_eq!(told, REMOTES, "nothing is lost");
    assert!(
        run.last_words()
            .iter()
            .all(|of| of.status == Status::Resolved)
    );
}
