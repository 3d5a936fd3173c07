//! Who sent the RST: the kernel for a segment that conntrack did not translate, a rule of netfilter, the kernel in answer
//! to a challenge ACK or to a late ACK of a full queue. None of them crashed. The twin of each is the same connection
//! before.

use std::{io::Write as _, net::SocketAddr};

use conntracer_tests::{
    family::{Family, SERVER_PORT},
    line::Finding,
    netfilter::{self, Hook},
    packet::{self, Segment, flag},
    scenario::accept_queue::{AckOverflow, VICTIMS},
    socket::{
        Connection, connect_without_waiting, listen, sequence_numbers, tcp, transfer, vanish,
        wait_acknowledged,
    },
    wait::EVENTUALLY,
    watch::Watch,
};
use socket2::Socket;

use crate::{
    connection_drop::{HOOKS, death, died, is_drop},
    deaths::{all, assert_blames_nobody, assert_nothing, both_ends, client, is, tells_of_resets},
    support::{assert_seen, assert_sound, binary, lacking, tell_all, watch},
};

/// Where clients believe to connect to, and where what they send is redirected to.
const REDIRECTED: u16 = SERVER_PORT + 1;

/// The kernel of a namespace answered for no socket: said where it tells of such RSTs.
#[track_caller]
fn assert_by_no_socket(reset: &Finding, lost: u64, tracer: &Watch, netns: u32) {
    let told = is(
        reset,
        "reset_sent_by",
        "the kernel of this host, for no socket",
    );
    assert!(lost > 0 || told == tells_of_resets(tracer), "{reset:#?}");
    if told {
        assert_eq!(
            reset.number("reset_sent_in_netns"),
            u64::from(netns),
            "{reset:#?}"
        );
        assert!(
            reset
                .summary
                .contains("which has no socket for what was sent"),
            "{reset:#?}"
        );
    } else {
        assert!(
            reset.advice[0].starts_with("candidates for who sent the RST are this host"),
            "{reset:#?}"
        );
    }
}

/// A segment out of the window is invalid to conntrack and is not translated: the kernel has no socket at the port that
/// it is for, and says so. Then the other end is told the same.
#[test]
fn a_segment_that_is_not_redirected_meets_no_socket() {
    const FAR: u32 = 1 << 30;
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let redirects = || netfilter::redirect(SERVER_PORT, REDIRECTED);
    if let Err(error) = pair.server.run(redirects) {
        lacking(&format!("this kernel has no nft redirect: {error:#}"));
        return;
    }
    let at = Family::V4.veth_listener_on(REDIRECTED);
    let listener = pair.server.run(|| listen(Family::V4, at, 8)).unwrap();
    let asked = Family::V4.veth_listener();
    let Connection {
        accepted,
        connected,
    } = Connection::accept(&listener, client(&pair, asked)).unwrap();
    transfer(&connected, &accepted, 10).unwrap();
    transfer(&accepted, &connected, 10).unwrap();
    wait_acknowledged(&connected, EVENTUALLY).unwrap();
    assert_nothing(&mut here);
    assert_nothing(&mut there);

    let (next, expected) = sequence_numbers(&connected).unwrap();
    let stray = Segment {
        source: address_of(&connected),
        destination: asked,
        flags: flag::ACK,
        seq: next.wrapping_add(FAR),
        ack: expected,
        bytes: 0,
        timestamp: None,
    };
    pair.client
        .run(|| packet::send_segment(Family::V4, &stray, &[]))
        .unwrap();
    assert_eq!(death(&connected), libc::ECONNRESET);
    (&accepted).write_all(b"late").unwrap();
    assert_eq!(death(&accepted), libc::ECONNRESET);
    let (run, reset) = all(&mut there, 1, "reset_by_peer");
    if let Some(reset) = reset {
        let lost = run.missed("reset_sent");
        assert_by_no_socket(&reset, lost, &there, pair.server.inode());
        assert!(
            !tells_of_resets(&there) || lost > 0 || reset.advice.join("; ").contains("REDIRECT"),
            "{reset:#?}"
        );
    }
    let (run, reset) = all(&mut here, 1, "reset_by_peer");
    if let Some(reset) = reset {
        let lost = run.missed("reset_sent");
        assert_by_no_socket(&reset, lost, &here, pair.client.inode());
    }
    assert_sound(&run, &pair.server);
}

/// A rule answers by a RST in the name of the server, whose socket knows of nothing.
#[test]
fn a_rule_that_resets_is_no_peer() {
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    transfer(&connection.connected, &connection.accepted, 10).unwrap();
    assert_nothing(&mut there);
    let resets = || netfilter::reset_at(Hook::Input);
    if let Err(error) = pair.server.run(resets) {
        lacking(&format!("this kernel has no nft reject: {error:#}"));
        return;
    }
    (&connection.connected).write_all(b"another").unwrap();
    assert_eq!(death(&connection.connected), libc::ECONNRESET);
    let counted = pair.server.counters().unwrap();
    let (run, reset) = all(&mut there, 1, "reset_by_peer");
    // No TCP of either sent it.
    assert_eq!(counted.out_rsts, 0, "{counted:?}");
    if let Some(reset) = reset {
        let unseen = is(&reset, "reset_sent_by", "no TCP socket of this host");
        let lost = run.missed("reset_sent");
        assert!(lost > 0 || unseen == tells_of_resets(&there), "{reset:#?}");
        let said = reset.advice[0].contains("reject with tcp reset");
        assert!(said, "this host's filter is named first: {reset:#?}");
        assert!(!reset.summary.contains("socket"), "{reset:#?}");
    }
    assert_nothing(&mut here);
    assert_sound(&run, &pair.client);
}

/// A RST that does not fit is asked back for by a challenge ACK, and the kernel that has no socket for that answers by
/// one that fits.
#[test]
fn a_reset_that_answers_a_challenge_is_the_kernels() {
    let Some(binary) = binary() else { return };
    let Some((pair, _here, mut there)) = both_ends(&binary) else {
        return;
    };
    let connection = pair.connect(Family::V4).unwrap();
    transfer(&connection.connected, &connection.accepted, 10).unwrap();
    transfer(&connection.accepted, &connection.connected, 10).unwrap();
    assert_nothing(&mut there);
    let (_, expected) = sequence_numbers(&connection.connected).unwrap();
    vanish(connection.accepted).unwrap();
    let inexact = Segment {
        source: Family::V4.veth_listener(),
        destination: address_of(&connection.connected),
        flags: flag::RST,
        seq: expected.wrapping_add(100),
        ack: 0,
        bytes: 0,
        timestamp: None,
    };
    pair.server
        .run(|| packet::send_segment(Family::V4, &inexact, &[]))
        .unwrap();
    assert_eq!(death(&connection.connected), libc::ECONNRESET);
    let counted = pair.server.counters().unwrap();
    let (run, reset) = all(&mut there, 1, "reset_by_peer");
    assert_eq!(counted.out_rsts, 1, "the answer: {counted:?}");
    if let Some(reset) = reset {
        let lost = run.missed("reset_sent");
        assert_by_no_socket(&reset, lost, &there, pair.server.inode());
    }
    assert_sound(&run, &pair.client);
}

/// A client that lost its socket connects again from the same port: the old connection's answer does not fit, and the RST
/// for that ends it. Nobody has crashed, and the client, which then gets through, has failed at nothing.
#[test]
fn a_client_that_comes_again_ends_what_was_left() {
    const PORT: u16 = 40_123;
    let Some(binary) = binary() else { return };
    let Some((pair, mut here, mut there)) = both_ends(&binary) else {
        return;
    };
    let address = Family::V4.veth_listener();
    let listener = pair.server.run(|| listen(Family::V4, address, 8)).unwrap();
    let from = SocketAddr::new(Family::V4.client(), PORT);
    let connect = || {
        pair.client
            .run(|| {
                let client = tcp(Family::V4)?;
                client.set_reuse_address(true)?;
                client.bind(&from.into())?;
                connect_without_waiting(&client, address)?;
                Ok(client)
            })
            .unwrap()
    };
    let left = Connection::accept(&listener, connect()).unwrap();
    transfer(&left.connected, &left.accepted, 10).unwrap();
    assert_nothing(&mut here);
    vanish(left.connected).unwrap();
    let again = connect();
    assert_eq!(death(&left.accepted), libc::ECONNRESET);
    let again = Connection::accept(&listener, again).unwrap();
    transfer(&again.connected, &again.accepted, 10).unwrap();
    let (run, reset) = all(&mut here, 1, "reset_by_peer");
    if let Some(reset) = reset {
        // The client's kernel, for its new socket, which sent a SYN.
        let told = is(
            &reset,
            "reset_sent_by",
            "the kernel at the other end, on this host",
        );
        let lost = run.missed("reset_sent");
        assert!(lost > 0 || told || !tells_of_resets(&here), "{reset:#?}");
        assert!(!reset.summary.contains("had closed"), "{reset:#?}");
    }
    assert_sound(&run, &pair.server);
    let run = there.checkpoint().unwrap();
    assert!(run.last_of(|_| true).is_empty(), "{run:#?}");
}

/// With `tcp_abort_on_overflow` the listener's kernel resets clients that believe to be connected: it listens, and
/// accepted nobody.
#[test]
fn a_listener_that_aborts_clients_is_told_as_that() {
    let Some(binary) = binary() else { return };
    let mut full = AckOverflow::new(Family::V4).unwrap();
    let netns = full.netns.clone();
    netns
        .set_sysctl("net/ipv4/tcp_abort_on_overflow", "1")
        .unwrap();
    let Some(mut tracer) = watch(&binary, &netns) else {
        return;
    };
    full.provoke().unwrap();
    let run = tell_all(&mut tracer, &HOOKS, VICTIMS, died);
    assert_seen(&run, &HOOKS, died(&run), VICTIMS);
    for reset in run.last_of(is_drop) {
        assert_blames_nobody(reset);
        assert!(is(reset, "reset_met", "an unused connection"), "{reset:#?}");
        let advice = reset.advice.join("; ");
        assert!(advice.contains("tcp_abort_on_overflow"), "{reset:#?}");
        assert!(!reset.summary.contains("had closed"), "{reset:#?}");
    }
    assert_sound(&run, &netns);
}

fn address_of(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}
