use std::time::Duration;

use conntracer_common::{
    record::{
        AcceptQueue, Acceptor, Owner, Socket, acceptor_flag, owner_source, socket_flag, syn_outcome,
    },
    tcp::state,
};
use rstest::rstest;

use crate::{
    detect::Thresholds,
    finding::{Status, Value},
    plan::{HookPlan, HookType},
    testing::{self, Run, evidence, listener, only_of, owner},
};

pub(super) const LOCAL: &str = "10.0.0.1:80";
pub(super) const CLIENT: &str = "10.0.0.2:4000";

/// Member `number` of the group that listens at the address.
pub(super) fn member(number: u64) -> Socket {
    Socket {
        sk: 0xffff_8880_1111_0000 + number,
        ..listener(LOCAL, CLIENT)
    }
}

/// With calls of accept() seen, or not.
pub(super) fn on(accept: HookType) -> Run {
    let mut host = testing::host();
    host.plan.hooks = [("accept", accept), ("ack", accept)]
        .map(|(hook, hook_type)| HookPlan {
            hook: hook.to_owned(),
            hook_type,
            attached: Vec::new(),
            refused: Vec::new(),
            blind_to: None,
        })
        .into();
    Run::on(Thresholds::default(), host)
}

pub(super) fn seen() -> Run {
    on(HookType::Fentry)
}

/// Looks, half a second apart: three wait, and the oldest waits on; `look` and `process` say what else is seen.
pub(super) fn waiting(
    run: &mut Run,
    looks: u64,
    look: impl Fn(u64, &mut AcceptQueue),
    process: impl Fn(u64, &mut Acceptor),
) {
    for step in 0..looks {
        run.acceptor(member(0), |record| process(step, record));
        run.accept_queue(member(0), |record| {
            record.oldest_ns = 1_200_000_000 + 500_000_000 * step;
            (record.ack_backlog, record.waiting) = (3, 3);
            record.completed = 3;
            look(step, record);
        });
        run.pass(Duration::from_millis(500));
    }
}

/// The same at a listener that has served clients before.
pub(super) fn served(
    run: &mut Run,
    looks: u64,
    look: impl Fn(u64, &mut AcceptQueue),
    process: impl Fn(u64, &mut Acceptor),
) {
    let last_ns = run.ktime_ns();
    waiting(
        run,
        looks,
        |step, record| {
            (record.accepted, record.completed) = (100, 103);
            record.last_accept_ns = last_ns;
            look(step, record);
        },
        process,
    );
}

fn status(run: &Run) -> Status {
    only_of(run, "accept_delay").status
}

#[rstest]
#[case::stopped(|worker: &mut Acceptor| (worker.state, worker.stopped) = (b'T', 1), "stopped", "kill -CONT 1234")]
#[case::traced(|worker: &mut Acceptor| (worker.state, worker.stopped) = (b't', 1), "stopped", "TracerPid")]
#[case::frozen(|worker: &mut Acceptor| worker.flags |= acceptor_flag::FROZEN, "stopped", "thaw")]
#[case::no_descriptors(
    |worker: &mut Acceptor| (worker.descriptors, worker.descriptor_limit) = (32, 32),
    "no_descriptors", "ls -l /proc/1234/fd"
)]
#[case::running(|_: &mut Acceptor| (), "slow", "why nobody accepts is not known")]
fn what_hinders_is_the_cause(
    #[case] hinder: fn(&mut Acceptor),
    #[case] cause: &str,
    #[case] advice: &str,
) {
    for accept in [HookType::Fentry, HookType::Tracepoint] {
        let mut run = on(accept);
        served(&mut run, 6, |_, _| (), |_, process| hinder(process));
        let finding = only_of(&run, "accept_delay");
        assert_eq!(finding.cause, cause, "{finding:#?}");
        assert!(finding.advice[0].contains(advice), "{finding:#?}");
        assert_eq!(evidence(finding, "waiting"), &Value::Count(3));
        assert_eq!(finding.count, 3);
        run.assert_replays(Thresholds::default());
    }
}

#[test]
fn a_quota_is_known_by_the_second_look() {
    let mut run = seen();
    let throttled = |step: u64, process: &mut Acceptor| {
        (process.throttled, process.throttled_us) = (step, 400_000 * step);
    };
    served(&mut run, 4, |_, _| (), throttled);
    let finding = only_of(&run, "accept_delay");
    assert_eq!(finding.cause, "stopped");
    assert!(finding.advice[0].contains("cpu.max"), "{finding:#?}");
    let causes: Vec<_> = run.findings.iter().map(|said| said.cause.clone()).collect();
    assert_eq!(&causes[..2], ["slow", "stopped"], "the cause changed");
}

#[test]
fn a_queue_that_moves_is_a_busy_servers() {
    let mut run = seen();
    for step in 0..20 {
        run.accept_queue(member(0), |record| {
            record.oldest_ns = 900_000_000;
            (record.ack_backlog, record.accepted) = (100, 1000 * step);
        });
        run.pass(Duration::from_millis(500));
    }
    assert!(run.findings.is_empty(), "{:#?}", run.findings);
}

#[test]
fn it_resolves_when_nobody_waits_for_long_and_keeps_its_cause() {
    let mut run = seen();
    served(
        &mut run,
        6,
        |_, _| (),
        |_, process| (process.state, process.stopped) = (b'T', 1),
    );
    assert_ne!(status(&run), Status::Resolved);
    for _ in 0..8 {
        run.acceptor(member(0), |_| ());
        run.accept_queue(member(0), |record| {
            (record.oldest_ns, record.ack_backlog, record.waiting) = (0, 0, 0);
        });
        run.pass(Duration::from_millis(500));
    }
    let finding = only_of(&run, "accept_delay");
    assert_eq!(
        (finding.status, &*finding.cause),
        (Status::Resolved, "stopped")
    );
    assert!(
        finding
            .summary
            .starts_with("3 connections waited for accept() at 10.0.0.1:80, for up to 3.7 s: "),
        "{}",
        finding.summary
    );
}

#[test]
fn what_clients_did_meanwhile_is_counted_from_the_first_look_on() {
    let mut run = seen();
    let ended = |step: u64, record: &mut AcceptQueue| {
        // Two of the eight before were there at the first look.
        (record.fins, record.fins_now) = (8 + step.min(1), 2);
        (record.resets, record.resets_now) = (5 + step.min(2), 0);
    };
    served(&mut run, 6, ended, |_, _| ());
    let finding = only_of(&run, "accept_delay");
    assert_eq!(evidence(finding, "clients_closed"), &Value::Count(3));
    assert_eq!(evidence(finding, "clients_reset"), &Value::Count(2));
    assert!(
        finding.summary.ends_with(
            "; 3 clients closed their side and 2 clients gave up with a RST while they waited"
        ),
        "{}",
        finding.summary
    );
}

#[test]
fn a_listener_that_closes_has_no_queue() {
    let mut run = seen();
    served(&mut run, 2, |_, _| (), |_, _| ());
    run.syn(member(0), |syn| syn.socket.state = state::CLOSE);
    assert_eq!(status(&run), Status::Resolved);
}

#[test]
fn one_of_two_says_why_a_queue_is_full() {
    let full = |run: &mut Run, dropped: u64| {
        run.syn(member(0), |syn| {
            syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = dropped;
        });
    };
    // Nobody waits for long yet when the first SYN is dropped.
    let mut run = seen();
    full(&mut run, 1);
    served(&mut run, 4, |_, _| (), |_, _| ());
    assert_eq!(only_of(&run, "syn_drop").id, 1);
    assert_eq!(run.last_words().len(), 1, "{:#?}", run.last_words());
    // It is over, and they wait still.
    run.pass(Duration::from_secs(10));
    served(&mut run, 1, |_, _| (), |_, _| ());
    assert_eq!(status(&run), Status::Open);

    let mut run = seen();
    served(&mut run, 2, |_, _| (), |_, _| ());
    full(&mut run, 1);
    let drop = only_of(&run, "syn_drop");
    assert!(
        drop.summary
            .ends_with("finding 1 says why nobody takes them"),
        "{}",
        drop.summary
    );
    assert_eq!(drop.explained_by, Some(1), "{drop:#?}");
    let pointer = ["begin with finding 1: accept_delay slow explains this one"];
    assert_eq!(drop.advice, pointer, "{drop:#?}");
}

/// The process that called listen() holds it no longer.
pub(super) fn inherited(run: &mut Run, looks: u64, accepted: u64, older: bool) {
    let opener = |record: &mut AcceptQueue| {
        record.owner.source = owner_source::LISTENER;
    };
    let heir = |record: &mut AcceptQueue| {
        record.owner = Owner {
            pid: 300,
            source: owner_source::SEEDED,
            ..owner()
        };
    };
    waiting(
        run,
        looks,
        |step, record| {
            if step == 0 {
                opener(record);
            } else {
                heir(record);
            }
            record.accepted = accepted;
            record.completed = 3 + accepted;
            if older {
                record.socket.flags = socket_flag::OLDER;
            }
        },
        |step, process| {
            if step == 0 {
                process.flags = acceptor_flag::LAST;
            } else {
                (process.pid, process.owner_pid) = (300, 300);
                process.comm = *b"sleep\0\0\0\0\0\0\0\0\0\0\0";
            }
        },
    );
}

#[rstest]
#[case::by_a_child(|run: &mut Run| inherited(run, 6, 0, false), "never_accepts")]
#[case::by_one_that_served(|run: &mut Run| inherited(run, 6, 9, false), "slow")]
#[case::before_the_start(|run: &mut Run| inherited(run, 6, 0, true), "slow")]
#[case::forgotten(|run: &mut Run| waiting(run, 70, |_, _| (), |_, _| ()), "never_accepts")]
#[case::just_begun(|run: &mut Run| waiting(run, 10, |_, _| (), |_, _| ()), "slow")]
fn a_listener_that_nobody_has_ever_accepted_from(#[case] feed: fn(&mut Run), #[case] cause: &str) {
    for accept in [HookType::Fentry, HookType::Tracepoint] {
        let mut run = on(accept);
        feed(&mut run);
        let finding = only_of(&run, "accept_delay");
        assert_eq!(finding.cause, cause, "{finding:#?}");
    }
}

#[test]
fn a_group_is_told_by_the_socket_that_waits_the_longest() {
    let mut run = seen();
    for step in 0..4 {
        for (number, oldest_ns) in [(0, 200_000_000), (1, 1_500_000_000 + 500_000_000 * step)] {
            run.acceptor(member(number), |process| {
                process.pid = 1234 + u32::try_from(number).unwrap();
                if number == 1 {
                    (process.state, process.stopped) = (b'T', 1);
                }
            });
            run.accept_queue(member(number), |record| {
                record.oldest_ns = oldest_ns;
                record.owner.pid = 1234 + u32::try_from(number).unwrap();
            });
            run.syn(member(number), |_| ());
        }
        run.pass(Duration::from_millis(500));
    }
    let finding = only_of(&run, "accept_delay");
    assert_eq!(
        (finding.owner.as_ref().unwrap().pid, &*finding.cause),
        (1235, "stopped")
    );
    assert_eq!(evidence(finding, "members"), &Value::Count(2));
    assert_eq!(evidence(finding, "members_waiting"), &Value::Count(1));
}
