//! `connection_drop`.

use std::time::Duration;

use conntracer_common::{
    record::{Close, Socket, close_flag, owner_source, role, socket_flag},
    tcp::state,
};
use rstest::rstest;

use crate::{
    detect::{Thresholds, errno},
    finding::{Certainty, Status, Subject, Value},
    testing::{Run, evidence, socket},
};

pub(super) fn service() -> Socket {
    Socket {
        role: role::ACTIVE,
        ..socket("10.0.0.1:40000", "10.0.0.9:443")
    }
}

fn ended(error: u32, old_state: u8, flags: u8) -> impl Fn(&mut Close) {
    move |ending| {
        ending.error = error;
        ending.old_state = old_state;
        ending.flags = flags;
    }
}

const ORPHAN_WITH_RST: u8 = close_flag::ORPHAN | close_flag::RST_SENT;

#[rstest]
#[case(
    ended(errno::ECONNRESET, state::ESTABLISHED, close_flag::RST_RECEIVED),
    "reset_received",
    "reset_by_peer"
)]
#[case(
    ended(errno::EPIPE, state::CLOSE_WAIT, close_flag::RST_RECEIVED),
    "reset_received",
    "reset_by_peer"
)]
#[case(
    ended(0, state::ESTABLISHED, close_flag::NO_LINGER),
    "reset_sent",
    "closed_without_linger"
)]
#[case(
    ended(0, state::ESTABLISHED, close_flag::NOT_ACCEPTED),
    "reset_sent",
    "closed_before_accept"
)]
#[case(ended(0, state::ESTABLISHED, 0), "reset_sent", "disconnected")]
#[case(ended(errno::ETIMEDOUT, state::ESTABLISHED, 0), "timed_out", "timeout")]
#[case(
    ended(errno::ETIMEDOUT, state::FIN_WAIT1, close_flag::ORPHAN),
    "timed_out",
    "orphan_timeout"
)]
#[case(
    ended(errno::EHOSTUNREACH, state::ESTABLISHED, 0),
    "unreachable",
    "icmp_or_no_route"
)]
#[case(
    ended(errno::ECONNABORTED, state::ESTABLISHED, close_flag::RST_SENT),
    "aborted",
    "killed"
)]
#[case(ended(0, state::FIN_WAIT1, ORPHAN_WITH_RST), "aborted", "orphan")]
#[case(ended(22, state::ESTABLISHED, 0), "aborted", "error")]
fn the_fields_are_the_cause(
    #[case] change: impl Fn(&mut Close),
    #[case] cause: &str,
    #[case] how: &str,
) {
    let mut run = Run::new();
    run.close(service(), change);
    let finding = run.only();
    assert_eq!(finding.kind.name(), "connection_drop");
    assert_eq!((finding.cause.as_ref(), finding.count), (cause, 1));
    let how = Value::Text(how.to_owned().into());
    assert_eq!(*evidence(finding, "how"), how);
    run.assert_replays(Thresholds::default());
}

#[rstest]
#[case::unread(0, |ending: &mut Close| {
    // The RST follows the change of state.
    ending.flags = 0;
    ending.unread = 5;
}, "closed_with_unread_data")]
#[case::window(errno::ETIMEDOUT, |ending: &mut Close| {
    ending.tcp.probes_out = 3;
    ending.tcp.write_seq = 9;
}, "window_probe")]
#[case::keepalive(errno::ETIMEDOUT, |ending: &mut Close| ending.tcp.probes_out = 3, "keepalive")]
#[case::orphan(0, |ending: &mut Close| {
    ending.old_state = state::FIN_WAIT1;
    ending.flags = close_flag::ORPHAN;
    ending.tcp.write_seq = 1;
}, "orphan")]
#[case::linger(0, |ending: &mut Close| {
    // The application has closed its direction before; it holds the socket still.
    ending.old_state = state::FIN_WAIT1;
    ending.flags = close_flag::NO_LINGER;
    ending.tcp.write_seq = 1;
}, "closed_without_linger")]
#[case::user(errno::ETIMEDOUT, |ending: &mut Close| ending.tcp.user_timeout_ms = 3, "user_timeout")]
fn more_fields_tell_more(
    #[case] error: u32,
    #[case] change: impl Fn(&mut Close),
    #[case] how: &str,
) {
    let mut run = Run::new();
    run.close(service(), |ending| {
        ended(error, state::ESTABLISHED, close_flag::RST_SENT)(ending);
        change(ending);
    });
    let how = Value::Text(how.to_owned().into());
    assert_eq!(*evidence(run.only(), "how"), how);
}

/// A RST that a process sends by closing, and that it may not have sent itself.
#[test]
fn a_process_that_has_forked_is_named_with_its_descendants() {
    let mut run = Run::new();
    run.close(service(), |ending| {
        ended(0, state::ESTABLISHED, close_flag::NO_LINGER)(ending);
        ending.owner.source = owner_source::FORKED;
    });
    let said = "process 1234 or a descendant closed with SO_LINGER 0";
    assert!(run.only().summary.contains(said), "{:?}", run.only());
    run.assert_replays(Thresholds::default());
}

#[test]
fn a_connection_older_than_conntracer_has_no_age() {
    let told = |flags| {
        let mut run = Run::new();
        run.skip(Duration::from_secs(4));
        let socket = Socket { flags, ..service() };
        run.close(socket, |_| ());
        let evidence = &run.only().evidence;
        let age = evidence.iter().find(|fact| fact.name == "last_age_s");
        age.map(|fact| fact.value.clone())
    };
    assert_eq!(told(0), Some(Value::Number(4.0)));
    assert_eq!(told(socket_flag::OLDER), None);
}

/// Before 6.10 an application may read its error while the kernel has not changed the state yet.
#[rstest]
#[case(|ending: &mut Close| ending.tcp.retransmits = 3, "data")]
#[case(|ending: &mut Close| {
    ending.tcp.retransmits = 3;
    ending.tcp.total_retrans = 3;
    ending.soft_error = errno::ENETUNREACH;
    ending.routed = 1;
}, "icmp")]
#[case(|ending: &mut Close| {
    ending.tcp.probes_out = 1;
    ending.tcp.write_seq = 9;
}, "window_probe")]
#[case(|ending: &mut Close| {
    ending.tcp.probes_out = 1;
    ending.flags = close_flag::RST_SENT;
}, "keepalive")]
#[case(|ending: &mut Close| ending.flags = close_flag::RST_SENT, "killed")]
fn an_error_that_was_taken_first_is_concluded(
    #[case] change: impl Fn(&mut Close),
    #[case] how: &str,
) {
    let mut run = Run::new();
    run.close(service(), |ending| {
        ended(0, state::ESTABLISHED, 0)(ending);
        change(ending);
    });
    let finding = run.only();
    assert_eq!(
        *evidence(finding, "how"),
        Value::Text(how.to_owned().into())
    );
    assert_eq!(finding.certainty, Certainty::Inferred, "{finding:#?}");
}

/// What `--emit connection` brings beyond the deaths.
#[rstest]
#[case::we_closed_first(ended(0, state::FIN_WAIT2, close_flag::ORPHAN))]
#[case::the_peer_closed_first(ended(0, state::LAST_ACK, close_flag::ORPHAN))]
#[case::both_at_once(ended(0, state::CLOSING, 0))]
#[case::a_reset_for_the_last_fin(
    ended(errno::EPIPE, state::LAST_ACK, close_flag::ORPHAN | close_flag::RST_RECEIVED)
)]
fn an_orderly_end_is_no_finding(#[case] change: impl Fn(&mut Close)) {
    let mut run = Run::new();
    run.close(service(), change);
    run.pass(Duration::from_secs(2));
    assert!(run.findings.is_empty());
}

#[test]
fn deaths_after_the_same_idle_time_are_a_timeout() {
    let mut run = Run::new();
    for port in 0..41_u16 {
        let socket = Socket {
            local_port: 40_000 + port,
            ..service()
        };
        run.close(socket, |ending| {
            ending.idle_ns = 350_000_000_000 + u64::from(port) * 10_000_000;
        });
        run.pass(Duration::from_secs(100));
    }
    let finding = run.only();
    assert_eq!(finding.count, 41);
    assert_eq!(
        finding.summary,
        "41 connections to 10.0.0.9:443 ended by a RST from 10.0.0.9:443, each after a pause of 350.0 s: an \
         idle timeout, of the peer or of something between"
    );
    run.pass(Duration::from_mins(10));
    assert_eq!(run.only().status, Status::Resolved);
    run.assert_replays(Thresholds::default());
}

/// An older recording ends before what was added since, and says as much as it did.
#[test]
fn a_death_of_an_older_recording_is_read() {
    let mut run = Run::new();
    run.close(service(), |_| {});
    let mut bytes = run.fed[0].clone();
    let older = std::mem::offset_of!(Close, unanswered_ns);
    bytes.truncate(older);
    bytes[10..12].copy_from_slice(&u16::try_from(older).expect("it is small").to_ne_bytes());
    let mut older = Run::new();
    older.feed(&bytes);
    assert_eq!(older.only().count, 1);
    assert_eq!(older.pipeline.tallies().decode_errors, 0);
}

#[test]
fn clients_of_one_listener_are_one_finding() {
    let mut run = Run::new();
    for port in 0..9_u16 {
        let client = format!("10.0.1.{port}:5000");
        run.close(socket("10.0.0.1:80", &client), |_| {});
    }
    run.pass(Duration::from_secs(2));
    assert_eq!(run.only().count, 9);
    assert_eq!(
        run.only().subject,
        Subject::Listener {
            netns: 4026,
            local: "10.0.0.1:80".parse().expect("an address")
        }
    );
}
