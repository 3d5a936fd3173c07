//! Three connections that one thing ended, with equal pauses before: none of it is somebody's idle timeout. Beside the
//! three is one that is used alike and wants for nothing.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use conntracer_tests::{
    family::Family,
    line::Finding,
    link::Pair,
    sock_diag,
    socket::{Connection, deafen, listen, transfer, wait_acknowledged, wait_readable},
    wait::EVENTUALLY,
};
use rstest::rstest;
use socket2::{Socket, TcpKeepalive};

use crate::{
    connection_drop::{HOOKS, death, died, is_drop},
    deaths::{all, assert_blames_nobody, both_ends, client, is, seconds},
    support::{assert_seen, assert_sound, binary, lacking, tell_all},
};

const EACH: u64 = 3;
/// Deaths closer together are one event.
const APART: Duration = Duration::from_millis(1100);
/// Longer than the shortest pause that can be a pattern.
const PAUSE: Duration = Duration::from_secs(11);

/// The timers of this kernel that end a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// That of data: six timeouts, for 12.6 s.
    Retransmission,
    /// That of keepalive: 8 s, and three probes.
    Keepalive,
}

/// Three of a server's, begun [`APART`], and one beside them.
struct Alike {
    listener: Socket,
    address: SocketAddr,
    pair: Pair,
}

impl Alike {
    fn of(pair: &Pair) -> Self {
        let address = Family::V4.veth_listener();
        let listener = pair.server.run(|| listen(Family::V4, address, 8)).unwrap();
        Self {
            listener,
            address,
            pair: pair.clone(),
        }
    }

    fn one(&self) -> Connection {
        let connected = client(&self.pair, self.address);
        Connection::accept(&self.listener, connected).unwrap()
    }

    fn three(&self, used: impl Fn(&Connection)) -> Vec<(Instant, Connection)> {
        (0..EACH)
            .map(|_| {
                let connection = self.one();
                used(&connection);
                let begun = Instant::now();
                // What is told apart is in time.
                thread::sleep(APART);
                (begun, connection)
            })
            .collect()
    }
}

/// A pause that is nobody's timer is told as none's.
#[track_caller]
fn assert_no_timeout_of_anybody(finding: &Finding) {
    assert_blames_nobody(finding);
    for text in finding.advice.iter().chain([&finding.summary]) {
        assert!(!text.contains("idle timeout"), "{finding:#?}");
    }
}

/// Peers that vanish, with data in flight or without: what ended the connections is this kernel's own timer.
#[rstest]
#[case::data(Timer::Retransmission)]
#[case::keepalive(Timer::Keepalive)]
fn what_this_kernels_timers_end_is_no_idle_timeout(#[case] timer: Timer) {
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, _)) = both_ends(&binary) else {
        return;
    };
    pair.server
        .set_sysctl("net/ipv4/tcp_retries2", "5")
        .unwrap();
    let alike = Alike::of(&pair);
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(8))
        .with_interval(Duration::from_secs(1))
        .with_retries(3);
    let ask = |connection: &Connection| {
        transfer(&connection.connected, &connection.accepted, 10).unwrap();
        wait_acknowledged(&connection.connected, EVENTUALLY).unwrap();
    };
    let answer = |connection: &Connection| match timer {
        Timer::Keepalive => connection.accepted.set_tcp_keepalive(&keepalive).unwrap(),
        Timer::Retransmission => (&connection.accepted).write_all(b"answer").unwrap(),
    };
    let healthy = alike.one();
    ask(&healthy);
    answer(&healthy);
    let three = alike.three(|connection| {
        ask(connection);
        deafen(&connection.connected).unwrap();
        answer(connection);
    });
    for (_, connection) in &three {
        assert_eq!(death(&connection.accepted), libc::ETIMEDOUT);
    }
    wait_acknowledged(&healthy.accepted, EVENTUALLY).unwrap();
    if timer == Timer::Retransmission {
        (&healthy.connected).read_exact(&mut [0; 6]).unwrap();
    }
    drop(healthy.connected);
    wait_readable(&healthy.accepted).unwrap();
    drop(healthy.accepted);
    let how = match timer {
        Timer::Retransmission => "data",
        Timer::Keepalive => "keepalive",
    };
    let counted = pair.server.counters().unwrap();
    let (run, timed_out) = all(&mut here, EACH, how);

    assert_eq!(counted.abort_on_timeout, EACH, "{counted:?}");
    if let Some(timed_out) = timed_out {
        assert_eq!(timed_out.symptom(), "timed_out", "{timed_out:#?}");
        assert_no_timeout_of_anybody(&timed_out);
        if timer == Timer::Retransmission {
            assert!(seconds(&timed_out, "idle_most_s") < 2.0, "{timed_out:#?}");
        }
    }
    assert_sound(&run, &pair.server);
}

/// Killed one after the other, each after the same pause: whoever did that is no timer.
#[test]
fn what_an_administrator_kills_is_no_idle_timeout() {
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let alike = Alike::of(&pair);
    let begin = |connection: &Connection| {
        transfer(&connection.connected, &connection.accepted, 10).unwrap();
    };
    let healthy = alike.one();
    begin(&healthy);
    let three = alike.three(begin);
    for (begun, connection) in &three {
        thread::sleep((*begun + PAUSE).saturating_duration_since(Instant::now()));
        let (local, remote) = connection.endpoints().unwrap();
        if !pair
            .server
            .run(|| sock_diag::destroy(local, remote))
            .unwrap()
        {
            lacking("this kernel cannot destroy sockets: CONFIG_INET_DIAG_DESTROY");
            return;
        }
        assert_eq!(death(&connection.connected), libc::ECONNRESET);
    }
    drop(healthy.connected);
    wait_readable(&healthy.accepted).unwrap();
    drop(healthy.accepted);
    let (run, killed) = all(&mut here, EACH, "killed");
    if let Some(killed) = killed {
        assert_eq!(killed.cause, "aborted", "{killed:#?}");
        assert_no_timeout_of_anybody(&killed);
    }
    assert_sound(&run, &pair.server);
    let run = tell_all(&mut there, &HOOKS, EACH, died);
    assert_seen(&run, &HOOKS, died(&run), EACH);
    for reset in run.last_of(is_drop) {
        assert_no_timeout_of_anybody(reset);
        let by = "the socket at the other end, on this host";
        assert!(is(reset, "reset_sent_by", by), "{reset:#?}");
        let said = "was killed by an administrator's command";
        assert!(reset.summary.contains(said), "{reset:#?}");
    }
}

/// Peers that end one by one, and what this side sends now and then finds each gone: the pause is how often it sends. That
/// something between forgot them looks alike, and so both are told.
#[test]
fn peers_that_end_one_by_one_are_a_candidate() {
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, _)) = both_ends(&binary) else {
        return;
    };
    let alike = Alike::of(&pair);
    let three = alike.three(|connection| {
        transfer(&connection.connected, &connection.accepted, 10).unwrap();
        let limit = Some(Duration::from_millis(600));
        connection.accepted.set_tcp_user_timeout(limit).unwrap();
        deafen(&connection.connected).unwrap();
    });
    for (begun, connection) in &three {
        thread::sleep((*begun + PAUSE).saturating_duration_since(Instant::now()));
        (&connection.accepted).write_all(b"still there?").unwrap();
    }
    for (_, connection) in &three {
        assert_eq!(death(&connection.accepted), libc::ETIMEDOUT);
    }
    let (run, gone) = all(&mut here, EACH, "user_timeout");
    if let Some(gone) = gone.filter(|gone| gone.count == EACH) {
        assert!(
            gone.summary
                .contains("the peers were gone by then, or were forgotten"),
            "{gone:#?}"
        );
        assert!(gone.advice[0].contains("is up"), "{gone:#?}");
    }
    assert_sound(&run, &pair.server);
}
