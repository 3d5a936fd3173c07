//! Incidents.

use std::time::Duration;

use conntracer_common::record::{Acceptor, Socket, failure_how, syn_outcome};
use rstest::rstest;

use super::Incidents;
use crate::{
    detect::{
        Thresholds,
        claims::{Claim, EVERY, Records, Register, alone},
    },
    finding::{Finding, Severity, Status},
    testing::{Run, listener, only_of, socket},
};

const SERVER: &str = "10.9.0.1:8080";
const CLIENT: &str = "10.9.0.2:40000";
const ETIMEDOUT: u32 = 110;

/// A SYN that the server's listener drops.
fn dropped(run: &mut Run, server: &str, client: &str) {
    dropped_of(run, server, client, 1);
}

/// The last of so many.
fn dropped_of(run: &mut Run, server: &str, client: &str, total: u64) {
    run.syn(listener(server, client), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = total;
    });
}

fn at(netns: u32, socket: Socket) -> Socket {
    Socket { netns, ..socket }
}

/// The client of another namespace gives up.
fn gives_up(run: &mut Run, client: &str, server: &str) {
    run.failure(at(5000, socket(client, server)), 1, |failure| {
        failure.error = ETIMEDOUT;
        failure.how = 0;
    });
}

fn incident(finding: &Finding) -> (u64, Option<u64>, Vec<u64>) {
    (
        finding.incident,
        finding.explained_by,
        finding.related.clone(),
    )
}

fn pointers(finding: &Finding) -> usize {
    let mut advice = finding.advice.iter();
    usize::from(advice.any(|advice| advice.starts_with("begin with finding")))
}

fn dropped_after(run: &mut Run) {
    run.tick();
    gives_up(run, CLIENT, SERVER);
    dropped(run, SERVER, CLIENT);
}

fn another_dropped_after(run: &mut Run) {
    run.tick();
    gives_up(run, CLIENT, SERVER);
    dropped(run, SERVER, "10.9.0.2:40001");
}

fn refused_before(run: &mut Run) {
    run.tick();
    run.failure(at(5000, socket(CLIENT, SERVER)), 1, |failure| {
        failure.error = 111;
        failure.how = failure_how::RESET;
    });
    dropped(run, SERVER, CLIENT);
}

/// Both ends of a connection, of which one closes with data unread.
fn both_ends(run: &mut Run, pause: Duration, other: &str, error: u32) {
    run.skip(Duration::from_secs(4));
    run.close(socket(SERVER, CLIENT), |ending| {
        (ending.error, ending.flags, ending.unread) = (error, 0, 5);
    });
    run.skip(pause);
    run.close(at(5000, socket(other, SERVER)), |_| ());
}

fn reset_by_the_other_end(run: &mut Run) {
    both_ends(run, Duration::ZERO, CLIENT, 0);
}

fn reset_later(run: &mut Run) {
    both_ends(run, Duration::from_secs(2), CLIENT, 0);
}

fn another_reset(run: &mut Run) {
    both_ends(run, Duration::ZERO, "10.9.0.2:40001", 0);
}

/// By an administrator's command.
fn aborted_at_the_other_end(run: &mut Run) {
    both_ends(run, Duration::ZERO, CLIENT, 103);
}

/// It gave the connection up, and the peer, which had been cut off, hears of that.
fn given_up_at_the_other_end(run: &mut Run) {
    both_ends(run, Duration::ZERO, CLIENT, ETIMEDOUT);
}

/// Connections to a port where nothing listens, or a rule drops SYNs.
fn early(run: &mut Run, reason: &str, error: u32, how: u8) {
    run.tick();
    run.failure(at(5000, socket(CLIENT, SERVER)), 1, |failure| {
        failure.error = error;
        failure.how = how;
    });
    run.early_drop(socket(SERVER, CLIENT), 5, reason, |_| ());
    run.pass(Duration::from_secs(12));
}

fn nobody_listens(run: &mut Run) {
    early(run, "NO_SOCKET", 111, failure_how::RESET);
}

/// A server that does not get its port, and SYNs to one of its addresses that find nobody.
fn not_bound(run: &mut Run, wanted: &str, before: bool) {
    run.tick();
    let fails = |run: &mut Run| {
        run.bind(wanted, |bind| bind.error = 13);
        run.pass(Duration::from_secs(3));
    };
    if before {
        fails(run);
    }
    run.early_drop(socket(SERVER, CLIENT), 5, "NO_SOCKET", |_| ());
    run.pass(Duration::from_secs(12));
    if !before {
        fails(run);
    }
    run.early_drop(socket(SERVER, CLIENT), 6, "NO_SOCKET", |_| ());
    run.pass(Duration::from_secs(2));
}

fn port_not_got(run: &mut Run) {
    not_bound(run, SERVER, true);
}

fn any_not_got(run: &mut Run) {
    not_bound(run, "0.0.0.0:8080", true);
}

fn any_of_both_not_got(run: &mut Run) {
    not_bound(run, "[::]:8080", true);
}

fn another_port_not_got(run: &mut Run) {
    not_bound(run, "0.0.0.0:8081", true);
}

fn another_address_not_got(run: &mut Run) {
    not_bound(run, "10.9.0.3:8080", true);
}

/// Nobody had listened there before, either.
fn port_not_got_later(run: &mut Run) {
    not_bound(run, SERVER, false);
}

/// What answers with a RST does not make a client wait.
fn nobody_listens_and_a_timeout(run: &mut Run) {
    early(run, "NO_SOCKET", ETIMEDOUT, 0);
}

fn filtered(run: &mut Run) {
    early(run, "NETFILTER_DROP", ETIMEDOUT, 0);
}

fn filtered_and_no_port(run: &mut Run) {
    early(run, "NETFILTER_DROP", 99, failure_how::AT_ONCE);
}

/// A connection that is silent, and the end of `ended`.
fn silent(run: &mut Run, ended: &str) {
    for number in 1..=3 {
        run.pass(Duration::from_millis(200 << (number - 1)));
        run.retransmit(socket(SERVER, CLIENT), |retransmit| {
            retransmit.tcp.retransmits = number;
        });
    }
    run.close(socket(SERVER, ended), |ending| {
        (ending.error, ending.flags) = (ETIMEDOUT, 0);
        ending.tcp.retransmits = 3;
        ending.tcp.total_retrans = 3;
        (ending.tcp.write_seq, ending.tcp.snd_nxt) = (9, 9);
    });
}

/// Requests to the listener, of one client or of a flood, and SYNs that its SYN queue had no room for.
fn requests(run: &mut Run, clients: u32) {
    let address = |client: u32| [0x0a00_0000 + client * 997, 0, 0, 0];
    for round in 1..=3 {
        run.syn(listener(SERVER, CLIENT), |syn| {
            syn.totals[syn_outcome::ADDED] = u64::from(clients);
            syn.totals[syn_outcome::SYN_QUEUE_FULL] = 10 * round;
        });
        run.sources(listener(SERVER, "0.0.0.0:0"), (0..clients).map(address));
        run.syn_ack(listener(SERVER, CLIENT), 1, false);
        run.pass(Duration::from_secs(1));
    }
}

fn flooded(run: &mut Run) {
    requests(run, 5000);
}

fn one_request(run: &mut Run) {
    requests(run, 1);
}

/// A SYN-ACK is retransmitted after a third ACK came to a full queue: that client's, or another's.
fn discarded(run: &mut Run, client: &str) {
    run.syn(listener(SERVER, CLIENT), |syn| {
        syn.totals[syn_outcome::ACK_OVERFLOW] = 1;
        syn.totals[syn_outcome::VICTIMS] = 1;
    });
    for repeats in 0..3 {
        run.syn_ack(listener(SERVER, client), repeats, client == CLIENT);
    }
}

fn third_ack_discarded(run: &mut Run) {
    discarded(run, CLIENT);
}

fn another_third_ack_discarded(run: &mut Run) {
    discarded(run, "10.9.0.3:50000");
}

/// Connections wait for accept() by a process as it is `change`d, at a listener that turns one away then, or beside it.
fn waits(run: &mut Run, looks: u32, beside: &str, change: fn(&mut Acceptor)) {
    let waits = listener(beside, CLIENT);
    for _ in 0..looks {
        run.acceptor(waits, change);
        run.accept_queue(waits, |queue| queue.completed = 1);
        run.pass(Duration::from_millis(500));
    }
    run.syn(listener(SERVER, CLIENT), |syn| {
        syn.totals[syn_outcome::ACCEPT_QUEUE_FULL] = 1;
    });
}

fn waits_for_a_process(run: &mut Run) {
    waits(run, 2, SERVER, |_| ());
}

fn waits_beside(run: &mut Run) {
    waits(run, 2, "10.9.0.1:9090", |_| ());
}

fn waits_for_one_that_is_stopped(run: &mut Run) {
    waits(run, 2, SERVER, |process| {
        (process.state, process.stopped) = (b'T', 1);
    });
}

fn waits_for_one_without_descriptors(run: &mut Run) {
    waits(run, 2, SERVER, |process| {
        (process.descriptors, process.descriptor_limit) = (32, 32);
    });
}

fn waits_for_one_that_never_accepts(run: &mut Run) {
    waits(run, 80, SERVER, |_| ());
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "incident",
    kind: EVERY,
    run: alone,
    claims: &[
        Claim {
            words: ": syn_drop accept_queue_full explains this one",
            said: &[dropped_after],
            never: &[another_dropped_after, refused_before],
        },
        Claim {
            words: ": connection_drop reset_sent explains this one",
            said: &[reset_by_the_other_end],
            never: &[reset_later, another_reset],
        },
        Claim {
            words: ": connection_drop aborted explains this one",
            said: &[aborted_at_the_other_end],
            never: &[reset_by_the_other_end, another_reset],
        },
        Claim {
            words: ": connection_drop timed_out explains this one",
            said: &[given_up_at_the_other_end],
            never: &[reset_by_the_other_end, another_reset],
        },
        Claim {
            words: ": syn_drop no_listener explains this one",
            said: &[nobody_listens],
            never: &[nobody_listens_and_a_timeout, filtered],
        },
        Claim {
            words: ": bind_failure denied explains this one",
            said: &[port_not_got, any_not_got, any_of_both_not_got],
            never: &[
                another_port_not_got,
                another_address_not_got,
                port_not_got_later,
            ],
        },
        Claim {
            words: ": syn_drop filtered explains this one",
            said: &[filtered],
            never: &[filtered_and_no_port, nobody_listens],
        },
        Claim {
            words: ": half_open handshake explains this one",
            said: &[flooded],
            never: &[one_request],
        },
        Claim {
            words: ": syn_drop ack_overflow explains this one",
            said: &[third_ack_discarded],
            never: &[another_third_ack_discarded],
        },
        Claim {
            words: ": accept_delay slow explains this one",
            said: &[waits_for_a_process],
            never: &[waits_beside, waits_for_one_that_is_stopped],
        },
        Claim {
            words: ": accept_delay stopped explains this one",
            said: &[waits_for_one_that_is_stopped],
            never: &[waits_beside, waits_for_a_process],
        },
        Claim {
            words: ": accept_delay no_descriptors explains this one",
            said: &[waits_for_one_without_descriptors],
            never: &[waits_beside, waits_for_a_process],
        },
        Claim {
            words: ": accept_delay never_accepts explains this one",
            said: &[waits_for_one_that_never_accepts],
            never: &[waits_beside, waits_for_a_process],
        },
    ],
};

#[test]
fn a_client_of_this_host_is_explained_by_the_listener_that_dropped_its_syn() {
    let mut run = Run::new();
    run.tick();
    dropped(&mut run, SERVER, CLIENT);
    gives_up(&mut run, CLIENT, SERVER);
    let cause = only_of(&run, "syn_drop");
    let symptom = only_of(&run, "connect_failure");
    assert_eq!(incident(symptom), (1, Some(1), vec![1]));
    assert_eq!((cause.id, cause.incident, cause.explained_by), (1, 1, None));
    assert_eq!(cause.severity, Severity::Critical);
    assert_eq!(symptom.severity, Severity::Warning);
    run.checkpoint();
    assert_eq!(incident(only_of(&run, "syn_drop")), (1, None, vec![2]));
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_symptom_that_came_first_is_said_again_when_its_cause_is_known() {
    let mut run = Run::new();
    run.tick();
    gives_up(&mut run, CLIENT, SERVER);
    assert_eq!(incident(run.only()), (1, None, vec![]));
    assert_eq!(pointers(run.only()), 0);
    dropped(&mut run, SERVER, CLIENT);
    let symptom = only_of(&run, "connect_failure");
    assert_eq!(symptom.status, Status::Update);
    assert_eq!(incident(symptom), (1, Some(2), vec![2]));
    assert_eq!(pointers(symptom), 1, "{:?}", symptom.advice);
    assert_eq!(incident(only_of(&run, "syn_drop")), (1, None, vec![1]));
    run.assert_replays(Thresholds::default());
}

/// Findings of one moment, as of a checkpoint: each is said once, and knows of the other.
#[test]
fn what_is_said_together_is_said_once() {
    let mut run = Run::new();
    dropped(&mut run, SERVER, CLIENT);
    let one = run.only().clone();
    let mut other = one.clone();
    other.id = one.id + 1;
    let (mut together, mut apart) = (Vec::new(), Vec::new());
    Incidents::default().pass_all(vec![other.clone(), one.clone()], &mut |finding| {
        together.push((finding.id, finding.incident));
    });
    assert_eq!(together, [(other.id, one.id), (one.id, one.id)]);
    // One after the other, the first is said again with its incident.
    let mut incidents = Incidents::default();
    for finding in [&other, &one] {
        incidents.pass(finding.clone(), &mut |finding| {
            apart.push((finding.id, finding.incident));
        });
    }
    assert_eq!(
        apart,
        [(other.id, other.id), (one.id, one.id), (other.id, one.id)]
    );
}

/// Nothing but time, an address or a port in common.
#[rstest]
#[case::another_port_of_the_client("10.9.0.2:40001", SERVER)]
#[case::another_client("10.9.0.3:40000", SERVER)]
#[case::another_service(CLIENT, "10.9.0.1:8081")]
#[case::another_server(CLIENT, "10.9.0.4:8080")]
fn what_fails_at_the_same_time_is_another_incident(#[case] client: &str, #[case] server: &str) {
    let mut run = Run::new();
    run.tick();
    dropped(&mut run, SERVER, CLIENT);
    gives_up(&mut run, client, server);
    run.checkpoint();
    for finding in run.last_words() {
        assert_eq!(incident(finding), (finding.id, None, vec![]));
        assert_eq!(pointers(finding), 0);
    }
}

#[test]
fn loopback_addresses_of_two_namespaces_are_not_the_same() {
    let (server, client) = ("127.0.0.1:8080", "127.0.0.1:40000");
    let mut run = Run::new();
    run.tick();
    dropped(&mut run, server, client);
    gives_up(&mut run, client, server);
    run.checkpoint();
    let alone = |finding: &&Finding| finding.incident == finding.id;
    assert!(run.last_words().iter().all(alone));
    // In one namespace they are.
    let mut run = Run::new();
    run.tick();
    dropped(&mut run, server, client);
    run.failure(socket(client, server), 1, |failure| {
        failure.error = ETIMEDOUT;
        failure.how = 0;
    });
    assert_eq!(only_of(&run, "connect_failure").explained_by, Some(1));
}

#[test]
fn the_same_end_in_two_namespaces_is_two_connections() {
    let mut run = Run::new();
    run.tick();
    for netns in [5000, 5001] {
        run.failure(at(netns, socket(CLIENT, SERVER)), 1, |failure| {
            failure.error = ETIMEDOUT;
            failure.how = 0;
        });
    }
    run.checkpoint();
    let incidents: Vec<u64> = run.last_words().iter().map(|of| of.incident).collect();
    assert_eq!(incidents, [1, 2]);
}

/// A RST is no consequence of a queue that dropped another SYN of the same connection: it came from a listener that
/// answered.
#[test]
fn what_the_cause_cannot_make_is_not_explained_by_it() {
    let mut run = Run::new();
    run.tick();
    dropped(&mut run, SERVER, CLIENT);
    run.failure(at(5000, socket(CLIENT, SERVER)), 1, |failure| {
        failure.error = 111;
        failure.how = failure_how::RESET;
    });
    run.pass(Duration::from_secs(12));
    let symptom = only_of(&run, "connect_failure");
    assert_eq!(
        (symptom.cause.as_ref(), symptom.explained_by),
        ("refused", None)
    );
    assert_eq!(symptom.incident, symptom.id);
}

#[test]
fn a_drop_of_long_ago_explains_nothing() {
    let mut run = Run::new();
    run.tick();
    dropped(&mut run, SERVER, CLIENT);
    run.pass(Duration::from_mins(2));
    assert_eq!(run.only().status, Status::Resolved);
    gives_up(&mut run, CLIENT, SERVER);
    let late = only_of(&run, "connect_failure");
    assert_eq!(incident(late), (2, None, vec![]));
}

#[test]
fn two_incidents_become_one_by_what_both_have_in_common() {
    let mut run = Run::new();
    run.tick();
    // Two clients fail, each for itself, and then the listener drops a SYN of each.
    gives_up(&mut run, CLIENT, SERVER);
    run.failure(at(5001, socket("10.9.0.3:50000", SERVER)), 1, |failure| {
        failure.error = ETIMEDOUT;
        failure.how = 0;
    });
    dropped(&mut run, SERVER, CLIENT);
    dropped_of(&mut run, SERVER, "10.9.0.3:50000", 2);
    run.checkpoint();
    let told: Vec<_> = run.last_words().into_iter().map(incident).collect();
    assert_eq!(
        told,
        [
            (1, Some(3), vec![3, 2]),
            (1, Some(3), vec![3, 1]),
            (1, None, vec![1, 2])
        ]
    );
    run.assert_replays(Thresholds::default());
}

/// A silence and the end that it comes to are one story, and neither explains the other: both have candidates.
#[rstest]
#[case::of_one_connection(CLIENT, 1)]
#[case::of_two("10.9.0.3:50000", 2)]
fn a_silent_connection_and_its_end_are_one_incident(#[case] ended: &str, #[case] incidents: u64) {
    let mut run = Run::new();
    silent(&mut run, ended);
    let end = only_of(&run, "connection_drop");
    assert_eq!(
        (end.id, end.incident, end.explained_by),
        (2, incidents, None)
    );
    assert_eq!(pointers(end), 0);
}

/// The clients of a proxy's front, of which so many give up.
fn clients_give_up(run: &mut Run, clients: u16) {
    for client in 0..clients {
        let front = Socket {
            sk: 0xffff_8881_0000_0000 + u64::from(client),
            ..socket("10.9.1.1:80", &format!("10.9.1.2:{}", 41_000 + client))
        };
        run.close(front, |_| ());
    }
}

/// The proxy's server does not answer.
fn server_fails(run: &mut Run, server: &str) {
    let now_ns = run.ktime_ns();
    run.failure(socket("10.9.0.9:42000", server), 1, |failure| {
        failure.error = ETIMEDOUT;
        failure.how = 0;
        failure.first_ns = now_ns;
    });
}

#[test]
fn both_legs_of_a_proxy_are_one_incident() {
    let mut run = Run::new();
    run.tick();
    server_fails(&mut run, SERVER);
    run.pass(Duration::from_secs(1));
    clients_give_up(&mut run, 5);
    run.pass(Duration::from_secs(1));
    run.checkpoint();
    let told: Vec<_> = run.last_words().into_iter().map(incident).collect();
    assert_eq!(told, [(1, None, vec![2]), (1, None, vec![1])]);
    run.assert_replays(Thresholds::default());
}

/// Nothing of this is the server's doing.
#[rstest]
#[case::one_client_gave_up(|run: &mut Run| {
    server_fails(run, SERVER);
    clients_give_up(run, 1);
})]
#[case::they_gave_up_before(|run: &mut Run| {
    clients_give_up(run, 5);
    run.pass(Duration::from_secs(1));
    server_fails(run, SERVER);
})]
#[case::long_after(|run: &mut Run| {
    server_fails(run, SERVER);
    run.pass(Duration::from_secs(20));
    clients_give_up(run, 5);
})]
#[case::of_two_servers_either_may_be_the_reason(|run: &mut Run| {
    server_fails(run, SERVER);
    server_fails(run, "10.9.0.4:8080");
    run.pass(Duration::from_secs(1));
    clients_give_up(run, 5);
})]
fn what_a_server_has_not_made_is_not_its_incident(#[case] records: fn(&mut Run)) {
    let mut run = Run::new();
    run.tick();
    records(&mut run);
    run.checkpoint();
    for finding in run.last_words() {
        assert_eq!(
            incident(finding),
            (finding.id, None, vec![]),
            "{finding:#?}"
        );
    }
}
