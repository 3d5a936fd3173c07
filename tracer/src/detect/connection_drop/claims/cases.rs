//! Ends as the look-alikes have them: each changes the end that [`crate::testing::Run::close`] makes, a RST that came
//! while the connection was in use.

use conntracer_common::{
    record::{Close, close_flag, close_hint, rst_sender},
    tcp::state,
};

use crate::detect::errno;

pub(super) fn by_process(ending: &mut Close) {
    ending.error = 0;
    ending.flags = 0;
}

pub(super) fn killed(ending: &mut Close) {
    by_process(ending);
    ending.unread = 5;
    ending.flags = close_flag::EXITING;
    ending.exit_code = 9;
}

pub(super) fn unread(ending: &mut Close) {
    by_process(ending);
    ending.unread = 5;
}

pub(super) fn linger(ending: &mut Close) {
    by_process(ending);
    ending.flags = close_flag::NO_LINGER;
}

pub(super) fn queued(ending: &mut Close) {
    by_process(ending);
    ending.flags = close_flag::NOT_ACCEPTED;
}

pub(super) fn gave_up(ending: &mut Close) {
    ending.flags |= close_flag::NOT_ACCEPTED;
}

pub(super) fn reset(_: &mut Close) {}

pub(super) fn own_reset(ending: &mut Close) {
    by_process(ending);
    ending.flags = close_flag::RST_SENT;
}

pub(super) fn of_mptcp(ending: &mut Close) {
    own_reset(ending);
    ending.flags |= close_flag::SUBFLOW;
}

pub(super) fn aborted(ending: &mut Close) {
    ending.error = errno::ECONNABORTED;
    ending.flags = close_flag::RST_SENT;
}

pub(super) fn timed_out(ending: &mut Close) {
    ending.error = errno::ETIMEDOUT;
    ending.flags = 0;
    ending.tcp.retransmits = 3;
    ending.tcp.total_retrans = 3;
    ending.tcp.write_seq = 9;
    ending.tcp.snd_nxt = 9;
}

pub(super) fn fin_timed_out(ending: &mut Close) {
    timed_out(ending);
    ending.old_state = state::FIN_WAIT1;
    ending.tcp.write_seq = 1;
    ending.tcp.snd_nxt = 1;
}

pub(super) fn orphan_timed_out(ending: &mut Close) {
    fin_timed_out(ending);
    ending.flags = close_flag::ORPHAN;
}

pub(super) fn keepalive(ending: &mut Close) {
    ending.error = errno::ETIMEDOUT;
    ending.flags = close_flag::RST_SENT;
    ending.tcp.probes_out = 3;
}

pub(super) fn window(ending: &mut Close) {
    keepalive(ending);
    ending.tcp.write_seq = 9;
}

pub(super) fn unreachable(ending: &mut Close) {
    timed_out(ending);
    ending.error = errno::EHOSTUNREACH;
}

pub(super) fn by_icmp(ending: &mut Close) {
    unreachable(ending);
    ending.routed = 1;
}

pub(super) fn without_route(ending: &mut Close) {
    unreachable(ending);
    ending.error = errno::ENETUNREACH;
    ending.routed = 2;
    // Some of what was to be sent again was not.
    ending.tcp.total_retrans = 1;
}

pub(super) fn forbidden(ending: &mut Close) {
    without_route(ending);
    ending.error = errno::EACCES;
}

pub(super) fn without_neighbour(ending: &mut Close) {
    unreachable(ending);
    ending.tcp.total_retrans = 1;
}

pub(super) fn rejected(ending: &mut Close) {
    timed_out(ending);
    ending.error = errno::ECONNREFUSED;
}

pub(super) fn without_source(ending: &mut Close) {
    timed_out(ending);
    ending.error = errno::EINVAL;
    ending.tcp.total_retrans = 1;
}

pub(super) fn unsent(ending: &mut Close) {
    window(ending);
    ending.tcp.snd_wnd = 64_000;
}

pub(super) fn after_pause(ending: &mut Close) {
    ending.idle_ns = 12_000_000_000;
    ending.unanswered_ns = 1_000_000;
    ending.tcp.snd_nxt = 4;
    ending.tcp.write_seq = 4;
}

pub(super) fn idle(ending: &mut Close) {
    ending.idle_ns = 12_000_000_000;
}

pub(super) fn after_fin(ending: &mut Close) {
    ending.error = errno::EPIPE;
    ending.old_state = state::CLOSE_WAIT;
    ending.flags |= close_flag::FIN_RECEIVED;
}

pub(super) fn after_probe(ending: &mut Close) {
    ending.tcp.probes_out = 1;
}

pub(super) fn unused(ending: &mut Close) {
    ending.bytes_received = 0;
}

pub(super) fn told(ending: &mut Close) {
    ending.hints = close_hint::SENDERS_TOLD;
}

pub(super) fn by(ending: &mut Close, sender: u8, state: u8) {
    ending.hints = close_hint::SENDERS_TOLD;
    ending.sender = sender;
    ending.sender_state = state;
    ending.sender_netns = 4027;
}

pub(super) fn by_no_socket(ending: &mut Close) {
    by(ending, rst_sender::NO_SOCKET, state::CLOSE);
}

pub(super) fn by_closed(ending: &mut Close) {
    by(ending, rst_sender::ANSWER, state::FIN_WAIT2);
}

pub(super) fn by_listener(ending: &mut Close) {
    by(ending, rst_sender::ANSWER, state::LISTEN);
}

pub(super) fn by_socket(ending: &mut Close) {
    by(ending, rst_sender::SOCKET, state::CLOSE);
}

pub(super) fn orphan(ending: &mut Close) {
    by_process(ending);
    ending.old_state = state::FIN_WAIT1;
    ending.flags = close_flag::ORPHAN;
    ending.tcp.write_seq = 1;
    ending.tcp.snd_nxt = 1;
}

pub(super) fn late_data(ending: &mut Close) {
    ending.old_state = state::FIN_WAIT1;
    ending.flags |= close_flag::ORPHAN;
    ending.tcp.shutdown = 3;
    ending.tcp.write_seq = 9;
    ending.tcp.snd_nxt = 9;
}

pub(super) fn terminated(ending: &mut Close) {
    killed(ending);
    ending.exit_code = 15;
}

pub(super) fn exited(ending: &mut Close) {
    killed(ending);
    ending.exit_code = 0;
}

pub(super) fn refused_by_kernel(ending: &mut Close) {
    own_reset(ending);
    ending.reason = 15;
}

pub(super) fn another_error(ending: &mut Close) {
    ending.error = errno::EPROTO;
    ending.flags = 0;
}

pub(super) fn nothing_waits(ending: &mut Close) {
    ending.error = errno::ETIMEDOUT;
    ending.flags = 0;
}

pub(super) fn held_back(ending: &mut Close) {
    timed_out(ending);
    ending.tcp.total_retrans = 1;
}

pub(super) fn by_refusing(ending: &mut Close) {
    by(ending, rst_sender::ANSWER, state::ESTABLISHED);
}
