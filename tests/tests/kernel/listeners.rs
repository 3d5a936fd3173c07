//! One listener as people name it: its address, with all the sockets that share it, whoever may reach it;
//! and what its acceptor does.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::Result;
use conntracer_tests::{
    counters::Counters,
    family::{Family, SERVER_PORT},
    line::{Finding, Subject},
    netns::NetNs,
    output::Run,
    socket::{Connection, abort_on_close, connect_without_waiting, listen_on, tcp, tcp_info},
    wait::{self, SOON},
    watch::Watch,
};
use rstest::rstest;
use serde_json::Value;
use socket2::Socket;

use crate::support::{assert_said, assert_sound, binary, missed_of, watch};

/// What one socket of a group, or the only one, is asked to queue: one less than it takes.
const SMALL: i32 = 1;
/// More than these tests ever connect.
const LARGE: i32 = 1024;
/// Overflows that prove the point.
const OVERFLOWS: u64 = 6;

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// A namespace, and clients that want in.
struct Clients {
    netns: NetNs,
    family: Family,
    waiting: Vec<Socket>,
}

impl Clients {
    fn new(family: Family) -> Self {
        Self {
            netns: NetNs::new().unwrap(),
            family,
            waiting: Vec::new(),
        }
    }

    fn connect(&mut self, clients: usize) {
        let family = self.family;
        let more = self
            .netns
            .run(|| {
                (0..clients)
                    .map(|_| {
                        let client = tcp(family)?;
                        connect_without_waiting(&client, family.loopback_listener())?;
                        Ok(client)
                    })
                    .collect::<Result<Vec<_>>>()
            })
            .unwrap();
        self.waiting.extend(more);
    }

    /// Connects until so many more SYNs or third ACKs met a full accept queue.
    fn overflow(&mut self, overflows: u64) {
        let goal = self.counters().listen_overflows + overflows;
        wait::until("the accept queue to overflow", SOON, || {
            if self.counters().listen_overflows >= goal {
                return Ok(Some(()));
            }
            // A large queue beside a small one takes most of them.
            if self.waiting.len() < LARGE as usize / 2 {
                self.connect(4);
            }
            Ok(None)
        })
        .unwrap();
    }

    /// Ends all clients, so that nothing is repeated any more.
    fn quiet(&mut self) {
        for client in self.waiting.drain(..) {
            abort_on_close(&client).unwrap();
        }
    }

    fn counters(&self) -> Counters {
        self.netns.counters().unwrap()
    }

    /// A listener of this namespace, made as `change` wants it.
    fn listen(&self, family: Family, ip: IpAddr, backlog: i32, change: Change) -> Socket {
        self.netns
            .run(|| {
                let socket = tcp(family)?;
                change(&socket)?;
                listen_on(socket, SocketAddr::new(ip, SERVER_PORT), backlog)
            })
            .unwrap()
    }
}

type Change = fn(&Socket) -> Result<()>;

const PLAIN: Change = |_| Ok(());

fn shared(socket: &Socket) -> Result<()> {
    Ok(socket.set_reuse_port(true)?)
}

fn dual_stack(socket: &Socket) -> Result<()> {
    Ok(socket.set_only_v6(false)?)
}

fn v6_only(socket: &Socket) -> Result<()> {
    Ok(socket.set_only_v6(true)?)
}

/// Four sockets share an address, and one of them is short: the finding is the address's, its queue that
/// of the short one, and the count the kernel's.
#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn one_short_queue_of_a_group_is_one_finding(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut clients = Clients::new(family);
    let Some(mut tracer) = watch(&binary, &clients.netns) else {
        return;
    };
    let _group: Vec<Socket> = [LARGE, SMALL, LARGE, LARGE]
        .into_iter()
        .map(|backlog| clients.listen(family, family.loopback(), backlog, shared))
        .collect();
    clients.overflow(OVERFLOWS);
    // The others are known from the first poll on.
    let told = wait_for(
        &mut tracer,
        "a finding that counts its members",
        |finding| number(finding, "members") == Some(4),
    );
    clients.quiet();
    let counted = clients.counters();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(told.number("max_ack_backlog"), SMALL as u64, "{told:#?}");
    assert!(told.number("peak_ack_backlog") > SMALL as u64, "{told:#?}");
    assert!(told.summary.contains("the worst of 4 sockets"), "{told:#?}");
    for finding in run.last_of(is_accept_queue) {
        assert_eq!(number(finding, "members_dropping"), Some(1), "{finding:#?}");
        assert_eq!(number(finding, "worst_member_drops"), Some(finding.count));
    }
    let address = family.loopback_listener();
    assert_overflows(&run, &clients.netns, address, &counted);
    assert_said(&run, "syn_drop");
    assert_sound(&run, &clients.netns);
}

/// The short socket closes, and the one that stays overflows, too: nothing is lost, and it is the same
/// finding still.
#[rstest]
#[case::first(0)]
#[case::last(1)]
fn a_member_that_closes_loses_no_counts(#[case] short: usize) {
    let Some(binary) = binary() else { return };
    let family = Family::V4;
    let mut clients = Clients::new(family);
    let Some(mut tracer) = watch(&binary, &clients.netns) else {
        return;
    };
    let mut group: Vec<Socket> = (0..2)
        .map(|at| {
            let backlog = if at == short { SMALL } else { LARGE };
            clients.listen(family, family.loopback(), backlog, shared)
        })
        .collect();
    clients.overflow(OVERFLOWS);
    wait_for(&mut tracer, "a finding of both", |finding| {
        number(finding, "members") == Some(2)
    });
    drop(group.remove(short));
    let stays = &group[0];
    clients.netns.run(|| Ok(stays.listen(SMALL)?)).unwrap();
    clients.overflow(OVERFLOWS);
    let told = wait_for(&mut tracer, "a finding of what stays", |finding| {
        number(finding, "members") == Some(1) && number(finding, "members_dropping") == Some(2)
    });
    clients.quiet();
    let counted = clients.counters();
    let run = tracer.checkpoint().unwrap();

    let split = told.evidence["drops_by_member"].as_str().unwrap();
    let shares: Vec<u64> = split
        .split(", ")
        .map(|share| share.parse().unwrap())
        .collect();
    assert_eq!(shares.iter().sum::<u64>(), told.count, "{told:#?}");
    let address = family.loopback_listener();
    assert_overflows(&run, &clients.netns, address, &counted);
    assert_sound(&run, &clients.netns);
}

/// Clients of either family, and the listener that the kernel gives them to.
#[rstest]
#[case::dual_stack_from_v4(
    Family::V6,
    ANY_V6,
    dual_stack,
    Family::V4,
    "[::]:8080",
    Some("IPv6 and IPv4")
)]
#[case::dual_stack_from_v6(
    Family::V6,
    ANY_V6,
    dual_stack,
    Family::V6,
    "[::]:8080",
    Some("IPv6 and IPv4")
)]
#[case::v6_only(Family::V6, ANY_V6, v6_only, Family::V6, "[::]:8080", Some("IPv6"))]
#[case::any_v4(Family::V4, ANY_V4, PLAIN, Family::V4, "0.0.0.0:8080", None)]
#[case::v4_mapped(
    Family::V6,
    IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
    dual_stack,
    Family::V4,
    "127.0.0.1:8080",
    None
)]
fn a_listener_is_named_by_its_address(
    #[case] family: Family,
    #[case] ip: IpAddr,
    #[case] change: Change,
    #[case] from: Family,
    #[case] name: SocketAddr,
    #[case] takes: Option<&str>,
) {
    let Some(binary) = binary() else { return };
    let mut clients = Clients::new(from);
    let Some(mut tracer) = watch(&binary, &clients.netns) else {
        return;
    };
    let _listener = clients.listen(family, ip, SMALL, change);
    clients.overflow(OVERFLOWS);
    let told = wait_for(&mut tracer, "a finding", |_| true);
    clients.quiet();
    let counted = clients.counters();
    let run = tracer.checkpoint().unwrap();

    assert_eq!(told.evidence.get("takes").and_then(Value::as_str), takes);
    assert_overflows(&run, &clients.netns, name, &counted);
    assert_sound(&run, &clients.netns);
}

/// A port that is listened on once for IPv4 and once for IPv6, as many servers do: each has its own.
#[rstest]
#[case::v4(Family::V4, "0.0.0.0:8080")]
#[case::v6(Family::V6, "[::]:8080")]
fn listeners_of_two_families_do_not_mix(#[case] from: Family, #[case] name: SocketAddr) {
    let Some(binary) = binary() else { return };
    let mut clients = Clients::new(from);
    let Some(mut tracer) = watch(&binary, &clients.netns) else {
        return;
    };
    let _listeners = [
        clients.listen(Family::V4, ANY_V4, SMALL, PLAIN),
        clients.listen(Family::V6, ANY_V6, SMALL, v6_only),
    ];
    clients.overflow(OVERFLOWS);
    wait_for(&mut tracer, "a finding", |_| true);
    clients.quiet();
    let counted = clients.counters();
    let run = tracer.checkpoint().unwrap();

    assert_overflows(&run, &clients.netns, name, &counted);
    assert_sound(&run, &clients.netns);
}

/// Connections accepted before the acceptor stalls.
const ACCEPTED: u64 = 3;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_stalled_acceptor_is_told_by_how_long_it_took_nothing(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let mut clients = Clients::new(family);
    let Some(mut tracer) = watch(&binary, &clients.netns) else {
        return;
    };
    let listener = clients.listen(family, family.loopback(), SMALL, PLAIN);
    for _ in 0..ACCEPTED {
        clients.connect(1);
        let client = clients.waiting.pop().unwrap();
        Connection::accept(&listener, client)
            .unwrap()
            .abort()
            .unwrap();
    }
    clients.overflow(OVERFLOWS);
    // Clients repeat their SYNs, and the finding grows, until the last accept() is long ago.
    let told = wait_for(&mut tracer, "a finding of the stall", |finding| {
        finding.summary.contains("nothing was accepted for")
    });
    clients.quiet();
    let counted = clients.counters();
    let hook_type = hook_type(&tracer, "accept");
    let run = tracer.checkpoint().unwrap();

    assert_eq!(told.number("accepted"), ACCEPTED, "{told:#?}");
    let idle = told.evidence["since_last_accept_s"].as_f64().unwrap();
    assert!(idle >= 1.0, "{told:#?}");
    assert_eq!(
        told.evidence.contains_key("accepts_known_by"),
        hook_type != "fentry",
        "what is not seen is said to be concluded: {told:#?}"
    );
    assert!(
        told.advice[0].contains("why nobody accepts is not known"),
        "{told:#?}"
    );
    let address = family.loopback_listener();
    assert_overflows(&run, &clients.netns, address, &counted);
    assert_said(&run, "syn_drop");
    assert_sound(&run, &clients.netns);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_slow_acceptor_is_told_by_its_rate(#[case] family: Family) {
    let Some(binary) = binary() else { return };
    let clients = Clients::new(family);
    let Some(mut tracer) = watch(&binary, &clients.netns) else {
        return;
    };
    let listener = clients.listen(family, family.loopback(), SMALL, PLAIN);
    let over = AtomicBool::new(false);
    let told = thread::scope(|scope| {
        let load = scope.spawn(|| accept_one_at_a_time(clients, &listener, &over));
        let told = tracer.wait_for("a finding with a rate", SOON, |finding| {
            is_accept_queue(finding)
                && finding
                    .evidence
                    .get("accepts_per_s")
                    .and_then(Value::as_f64)
                    .is_some_and(|rate| rate > 0.0)
        });
        over.store(true, Ordering::Relaxed);
        let (clients, accepted) = load.join().unwrap();
        told.map(|told| (told, clients, accepted))
    });
    let (told, clients, accepted) = told.unwrap();
    let counted = clients.counters();
    let run = tracer.checkpoint().unwrap();

    assert!(told.number("accepted") > 0, "{told:#?}");
    assert!(told.number("accepted") <= accepted, "{told:#?}");
    let address = family.loopback_listener();
    assert_overflows(&run, &clients.netns, address, &counted);
    assert_sound(&run, &clients.netns);
}

/// Keeps the queue of `listener` full and takes one connection after the other from it, until `over`;
/// how many those were.
fn accept_one_at_a_time(
    mut clients: Clients,
    listener: &Socket,
    over: &AtomicBool,
) -> (Clients, u64) {
    /// Older ones are ended: most of them were accepted, or never will be.
    const AT_A_TIME: usize = 16;
    let mut accepted = 0;
    let mut earlier = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        clients.connect(4);
        wait::until("the accept queue to be full", SOON, || {
            // Of a listener this is the length of its accept queue (`tcp_get_info`).
            Ok((tcp_info(listener)?.tcpi_unacked > SMALL as u32).then_some(()))
        })
        .unwrap();
        let (connection, _) = listener.accept().unwrap();
        abort_on_close(&connection).unwrap();
        accepted += 1;
        earlier.extend(clients.waiting.drain(..));
        while earlier.len() > AT_A_TIME {
            abort_on_close(&earlier.pop_front().unwrap()).unwrap();
        }
    }
    clients.waiting.extend(earlier);
    clients.quiet();
    (clients, accepted)
}

/// Both stages at which a full accept queue refuses.
fn is_accept_queue(finding: &Finding) -> bool {
    finding.finding == "syn_drop" && matches!(&*finding.cause, "accept_queue_full" | "ack_overflow")
}

fn number(finding: &Finding, name: &str) -> Option<u64> {
    finding.evidence.get(name).and_then(Value::as_u64)
}

fn wait_for(tracer: &mut Watch, what: &str, matches: impl Fn(&Finding) -> bool) -> Finding {
    tracer
        .wait_for(what, SOON, |finding| {
            finding.cause == "accept_queue_full" && matches(finding)
        })
        .unwrap()
}

fn hook_type(tracer: &Watch, hook: &str) -> String {
    let hooks = &tracer.plan().plan.hooks;
    let hook = hooks.iter().find(|plan| plan.hook == hook);
    hook.expect("the plan names every hook").hook_type.clone()
}

/// One finding for each stage, of `address` alone, and together they are ListenOverflows, but for what the kernel skipped
/// (see `assert_sound`).
#[track_caller]
fn assert_overflows(run: &Run, netns: &NetNs, address: SocketAddr, counted: &Counters) {
    let findings = run.last_of(|finding| finding.finding == "syn_drop");
    for finding in &findings {
        assert!(is_accept_queue(finding), "{finding:#?}");
        assert_eq!(
            finding.subject,
            Subject::Listener {
                netns: netns.inode(),
                local: address
            }
        );
    }
    for cause in ["accept_queue_full", "ack_overflow"] {
        let of_cause = findings.iter().filter(|finding| finding.cause == cause);
        assert!(of_cause.count() <= 1, "one listener, one finding: {run:#?}");
    }
    let overflows: u64 = findings
        .iter()
        .map(|finding| number(finding, "third_acks_refused").unwrap_or(finding.count))
        .sum();
    let lost = missed_of(run, "ListenOverflows");
    let counted = counted.listen_overflows;
    assert!(
        (overflows..=overflows + lost).contains(&counted),
        "{counted}, {lost} lost: {run:#?}"
    );
}
