//! The scenarios themselves: each moves the kernel counters it claims to move, with nobody tracing.

use conntracer_tests::{
    family::Family,
    scenario::{
        accept_queue::{self, AcceptQueueFull, AckOverflow},
        dead_peer::DeadPeer,
        ghost_syns::{self, Cookies, GhostSyns},
        half_closed::HalfClosed,
        healthy::{self, Healthy},
        lossy_path::LossyPath,
    },
};
use rstest::rstest;

use crate::support::is_root;

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn accept_queue_full_provokes_listen_overflows(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = AcceptQueueFull::new(family).unwrap();
    scenario.provoke().unwrap();
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    assert!(
        counted.listen_overflows >= accept_queue::CLIENTS - 2,
        "{counted:?}"
    );
    assert_eq!(counted.listen_overflows, counted.listen_drops);
    assert_eq!(
        counted,
        scenario.netns.counters().unwrap(),
        "quiet means quiet"
    );
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn ack_overflow_provokes_listen_overflows(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = AckOverflow::new(family).unwrap();
    scenario.provoke().unwrap();
    scenario.quiet().unwrap();
    let counted = scenario.netns.counters().unwrap();
    assert!(
        counted.listen_overflows >= accept_queue::HANDSHAKES - 2,
        "{counted:?}"
    );
    assert_eq!(counted.passive_opens, 2, "the queue takes two: {counted:?}");
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn flood_without_cookies_provokes_drops(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = GhostSyns::new(family, Cookies::Never).unwrap();
    scenario.flood().unwrap();
    let counted = scenario.counted().unwrap();
    assert!(
        counted.req_q_full_drop >= u64::from(ghost_syns::FLOOD) - 5,
        "{counted:?}"
    );
    assert_eq!(counted.req_q_full_drop, counted.listen_drops);
    assert_eq!(counted.req_q_full_do_cookies, 0);
    assert_eq!(counted.in_csum_errors, 0);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn flood_with_cookies_provokes_no_drop(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = GhostSyns::new(family, Cookies::WhenFull).unwrap();
    scenario.flood().unwrap();
    let counted = scenario.counted().unwrap();
    assert!(
        counted.req_q_full_do_cookies >= u64::from(ghost_syns::FLOOD) - 5,
        "{counted:?}"
    );
    assert_eq!((counted.req_q_full_drop, counted.listen_drops), (0, 0));
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn abandoned_handshakes_provoke_repeated_syn_acks(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = GhostSyns::new(family, Cookies::WhenFull).unwrap();
    scenario.abandon().unwrap();
    scenario.quiet();
    let counted = scenario.counted().unwrap();
    assert_eq!(counted.syn_retrans, counted.retrans_segs, "{counted:?}");
    assert_eq!((counted.listen_drops, counted.syncookies_sent), (0, 0));
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn dead_peer_provokes_timeouts_until_the_kernel_gives_up(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = DeadPeer::new(family).unwrap();
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    assert_eq!(scenario.wait_given_up().unwrap(), libc::ETIMEDOUT);
    let counted = scenario.counted().unwrap();
    assert!(counted.timeouts >= 4, "{counted:?}");
    assert!(counted.retrans_segs >= 4, "{counted:?}");
    assert_eq!(counted.abort_on_timeout, 1);
    scenario.quiet().unwrap();
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn a_peer_that_comes_back_gets_everything(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = DeadPeer::new(family).unwrap();
    scenario.connect().unwrap();
    scenario.vanish().unwrap();
    scenario.come_back().unwrap();
    scenario.quiet().unwrap();
    assert_eq!(scenario.pair.server.counters().unwrap().abort_on_timeout, 0);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn half_closed_sockets_pile_up(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = HalfClosed::new(family).unwrap();
    scenario.provoke().unwrap();
    scenario.mend();
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn lossy_path_provokes_retransmits(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = LossyPath::new(family).unwrap();
    scenario.provoke(200).unwrap();
    scenario.mend().unwrap();
    let counted = scenario.counted().unwrap();
    assert!(counted.retrans_segs >= 200, "{counted:?}");
    assert_eq!(counted.syn_retrans, 0);
}

#[rstest]
#[case::v4(Family::V4)]
#[case::v6(Family::V6)]
fn healthy_traffic_drops_and_overflows_nothing(#[case] family: Family) {
    if !is_root() {
        return;
    }
    let mut scenario = Healthy::new(family).unwrap();
    scenario.run().unwrap();
    let counted = scenario.pair.server.counters().unwrap();
    assert_eq!(
        counted.passive_opens,
        u64::from(healthy::CONNECTIONS) + u64::from(healthy::LISTENERS)
    );
    assert_eq!(counted.listen_drops, 0, "{counted:?}");
}
