//! Why a full accept queue is not emptied: by the process that is to accept, and how it stands.

use std::os::fd::RawFd;

use conntracer_tests::{
    family::Family,
    forked::{self, Forked},
    line::Finding,
    scenario::accept_queue::AcceptQueueFull,
    wait::EVENTUALLY,
    watch::Watch,
};

use crate::support::{assert_sound, binary, is_syn_drop, watch};

/// As many descriptors as the process may have.
const DESCRIPTORS: libc::rlim_t = 16;

fn of_a_full_queue(finding: &Finding) -> bool {
    is_syn_drop(finding) && finding.cause == "accept_queue_full"
}

/// The listener is this process's; a worker that inherited it is the one that accepts.
fn opened() -> (AcceptQueueFull, RawFd) {
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    full.open().unwrap();
    let fd = full.listener().unwrap();
    (full, fd)
}

/// The first line that tells of the worker; the search for holders may be a second away.
fn told_of(tracer: &mut Watch, worker: &Forked) -> Finding {
    let pid = format!("ct-worker {}", worker.pid());
    tracer
        .wait_for("the worker to be told of", EVENTUALLY, |finding| {
            of_a_full_queue(finding) && finding.summary.contains(&pid)
        })
        .unwrap()
}

#[test]
fn a_worker_that_is_stopped_is_why_the_queue_is_full() {
    let Some(binary) = binary() else { return };
    let (mut full, fd) = opened();
    let worker = Forked::run(c"ct-worker", &[fd], forked::pause).unwrap();
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    worker.stop().unwrap();
    full.provoke().unwrap();
    let finding = told_of(&mut tracer, &worker);
    worker.go_on().unwrap();
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    let pid = worker.pid();
    // Its master has other children in other tests, until the holders are found.
    let stopped = "stopped (state T)";
    assert!(finding.summary.contains(stopped), "{finding:#?}");
    assert_eq!(
        finding.evidence["acceptor_hindered_by"], "stopped",
        "{finding:#?}"
    );
    assert!(
        finding.advice[0].contains("kill -CONT") && finding.advice[0].contains(&pid.to_string()),
        "{finding:#?}"
    );
    let all = finding.advice.join("; ");
    assert!(
        !all.contains("backlog") && !all.contains("accept faster"),
        "{finding:#?}"
    );
    // It was let go, and what held while SYNs were dropped stays.
    let last = run.last_of(of_a_full_queue);
    assert!(
        last.iter().all(|last| last.summary.contains(stopped)),
        "{last:#?}"
    );
    assert_sound(&run, &full.netns);
}

#[test]
fn a_worker_without_a_descriptor_to_spare_cannot_accept() {
    let Some(binary) = binary() else { return };
    let (mut full, fd) = opened();
    let worker = Forked::run(c"ct-worker", &[fd], || {
        let limit = libc::rlimit {
            rlim_cur: DESCRIPTORS,
            rlim_max: DESCRIPTORS,
        };
        // SAFETY: a valid limit; duplicates of a descriptor that is open, until there is no room.
        unsafe {
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0 {
                return 1;
            }
            while libc::dup(0) >= 0 {}
        }
        forked::pause()
    })
    .unwrap();
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    full.provoke().unwrap();
    let finding = told_of(&mut tracer, &worker);
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    let said = format!("accept() fails, {DESCRIPTORS} of {DESCRIPTORS} descriptors are in use");
    assert!(finding.summary.contains(&said), "{finding:#?}");
    assert_eq!(
        finding.evidence["acceptor_hindered_by"], "no_descriptors",
        "{finding:#?}"
    );
    assert!(
        !finding.advice.join("; ").contains("backlog"),
        "{finding:#?}"
    );
    assert_sound(&run, &full.netns);
}

/// The same set-up, and nobody is turned away.
#[test]
fn workers_whose_queue_has_room_are_no_finding() {
    let Some(binary) = binary() else { return };
    let (mut full, fd) = opened();
    let workers = [0; 2].map(|_| Forked::run(c"ct-worker", &[fd], forked::pause).unwrap());
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    workers[0].stop().unwrap();
    full.join().unwrap();
    let run = tracer.checkpoint().unwrap();
    assert!(run.last_of(is_syn_drop).is_empty(), "{run:#?}");
    full.quiet().unwrap();
    assert_sound(&run, &full.netns);
}
