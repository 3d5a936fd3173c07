//! Why a full accept queue is not emptied: by the process that is to accept, and how it stands.

use std::{fs, os::fd::RawFd, path::Path, time::Duration};

use anyhow::Context as _;
use conntracer_tests::{
    cgroup::Cgroup,
    family::Family,
    forked::{self, Forked},
    line::Finding,
    scenario::accept_queue::AcceptQueueFull,
    served::accept,
    wait::{self, EVENTUALLY},
    watch::Watch,
};
use rstest::rstest;

use crate::support::{assert_sound, binary, is_syn_drop, lacking, watch};

/// As many descriptors as the process may have.
const DESCRIPTORS: libc::rlim_t = 16;

/// On a slow machine clients get as far as their third ACK before the queue is full.
fn of_a_full_queue(finding: &Finding) -> bool {
    is_syn_drop(finding) && matches!(&*finding.cause, "accept_queue_full" | "ack_overflow")
}

/// The listener is this process's; a worker that inherited it is the one that accepts.
fn opened() -> (AcceptQueueFull, RawFd) {
    let mut full = AcceptQueueFull::new(Family::V4).unwrap();
    full.open().unwrap();
    let fd = full.listener().unwrap();
    (full, fd)
}

/// The first line that tells what is asked for. Who holds a listener is searched for once a minute at least, and how they
/// stand is looked at while it turns clients away: they keep coming, as those of a real server do.
fn told(
    tracer: &mut Watch,
    full: &mut AcceptQueueFull,
    what: &str,
    is: impl Fn(&Finding) -> bool,
) -> Finding {
    const BETWEEN: Duration = Duration::from_secs(5);
    wait::until(what, EVENTUALLY, || {
        let told = tracer.wait_for(what, BETWEEN, |finding| {
            of_a_full_queue(finding) && is(finding)
        });
        if told.is_err() {
            full.overflow()?;
        }
        Ok(told.ok())
    })
    .unwrap()
}

fn told_of(tracer: &mut Watch, full: &mut AcceptQueueFull, worker: &Forked) -> Finding {
    let pid = format!("ct-worker {}", worker.pid());
    let names = |finding: &Finding| finding.summary.contains(&pid);
    told(tracer, full, "the worker to be told of", names)
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
    let finding = told_of(&mut tracer, &mut full, &worker);
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

/// It calls accept() twenty times a second, which fails, or not at all: nothing was accepted either way.
#[rstest]
#[case::and_tries(true)]
#[case::and_does_not(false)]
fn a_worker_without_a_descriptor_to_spare_cannot_accept(#[case] tries: bool) {
    let Some(binary) = binary() else { return };
    let (mut full, fd) = opened();
    let worker = Forked::run(c"ct-worker", &[fd], move || {
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
        if !tries {
            return forked::pause();
        }
        loop {
            if accept(fd, 0) >= 0 {
                return 1;
            }
            // SAFETY: a number.
            unsafe { libc::usleep(50_000) };
        }
    })
    .unwrap();
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    full.provoke().unwrap();
    let finding = told_of(&mut tracer, &mut full, &worker);
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

/// The control group of the worker is frozen, as by `docker pause`.
#[test]
fn a_worker_that_is_frozen_is_why_the_queue_is_full() {
    let Some(binary) = binary() else { return };
    let path = format!("/ct-frozen-{}", std::process::id());
    let group = match Cgroup::new(&path) {
        Ok(group) => group,
        Err(error) => {
            lacking(&format!("no control group can be made: {error:#}"));
            return;
        }
    };
    let (mut full, fd) = opened();
    let worker = Forked::run(c"ct-worker", &[fd], forked::pause).unwrap();
    group.take(worker.pid()).unwrap();
    let freeze = |value: &str| fs::write(group.directory().join("cgroup.freeze"), value);
    if let Err(error) = freeze("1") {
        lacking(&format!("this kernel freezes no control group: {error}"));
        return;
    }
    wait::until("the control group to be frozen", EVENTUALLY, || {
        let events = fs::read_to_string(group.directory().join("cgroup.events"))?;
        Ok(events.contains("frozen 1").then_some(()))
    })
    .unwrap();
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    full.provoke().unwrap();
    let finding = told_of(&mut tracer, &mut full, &worker);
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();
    freeze("0").unwrap();

    let said = "is frozen with its control group";
    assert!(finding.summary.contains(said), "{finding:#?}");
    assert_eq!(
        finding.evidence["acceptor_hindered_by"], "frozen",
        "{finding:#?}"
    );
    let advice = finding.advice.join("; ");
    assert!(
        finding.advice[0].contains("thaw") && !advice.contains("backlog"),
        "{finding:#?}"
    );
    assert_sound(&run, &full.netns);
    drop(worker);
}

/// A quota of a hundredth of a CPU, for a worker that wants all of it.
#[test]
fn a_worker_that_is_throttled_is_why_the_queue_is_full() {
    let Some(binary) = binary() else { return };
    let path = format!("/ct-throttled-{}", std::process::id());
    let quota = || -> anyhow::Result<Cgroup> {
        // Where the controller is not another hierarchy's.
        let control = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .into_iter()
            .map(|mount| Path::new(mount).join("cgroup.subtree_control"))
            .find(|control| control.exists())
            .context("control groups of version 2 are not mounted")?;
        fs::write(&control, "+cpu").context("asking for the controller of CPUs")?;
        let group = Cgroup::new(&path)?;
        fs::write(group.directory().join("cpu.max"), "1000 100000").context("setting a quota")?;
        Ok(group)
    };
    let group = match quota() {
        Ok(group) => group,
        Err(error) => {
            lacking(&format!("no quota of a CPU can be set: {error:#}"));
            return;
        }
    };
    let (mut full, fd) = opened();
    let worker = Forked::run(c"ct-worker", &[fd], || {
        loop {
            std::hint::spin_loop();
        }
    })
    .unwrap();
    group.take(worker.pid()).unwrap();
    let Some(mut tracer) = watch(&binary, &full.netns) else {
        return;
    };
    full.provoke().unwrap();
    // The share of a time is known by the second look.
    let throttled = |finding: &Finding| {
        finding.evidence.get("acceptor_hindered_by") == Some(&"throttled".into())
    };
    let finding = told(&mut tracer, &mut full, "the quota to be told of", throttled);
    full.quiet().unwrap();
    let run = tracer.checkpoint().unwrap();

    let said = "kept from running by a CPU quota";
    assert!(finding.summary.contains(said), "{finding:#?}");
    let advice = finding.advice.join("; ");
    assert!(
        finding.advice[0].contains("cpu.max") && !advice.contains("backlog"),
        "{finding:#?}"
    );
    assert_sound(&run, &full.netns);
    drop(worker);
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
