//! What `retransmit_storm` says, and of what it must not.

use std::time::Duration;

use conntracer_common::tcp::{ca, flag, pending, state};

use super::{
    counted::Counted,
    tests::{LOCAL, REMOTE, lossy, stuck, undone},
};
use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, socket},
};

/// Fast retransmissions, and the peer acknowledges.
fn loss(run: &mut Run) {
    lossy(run, REMOTE, 40, 2, 10);
}

/// What this host's own rule dropped of it.
fn loss_with(run: &mut Run, count: u64, remote: &str) {
    run.skip(Duration::from_secs(2));
    run.dropped(socket(LOCAL, remote), |dropped| dropped.count = count);
    loss(run);
}

fn loss_by_rule(run: &mut Run) {
    loss_with(run, 80, REMOTE);
}

/// A rule drops what has nothing to do with it.
fn loss_of_others(run: &mut Run) {
    loss_with(run, 80, "10.0.0.77:7");
}

/// A few of many are dropped here.
fn loss_mostly_elsewhere(run: &mut Run) {
    loss_with(run, 8, REMOTE);
}

/// The same at 2 % of a long path, where data waits and the peer would take more.
fn costly_loss(run: &mut Run) {
    held_down(run, 9, 64);
}

/// The peer would take no more.
fn small_receiver(run: &mut Run) {
    held_down(run, 9, 10);
}

fn held_down(run: &mut Run, flight: u32, window: u32) {
    let mut counted = Counted::default();
    for event in 0..200 {
        run.skip(Duration::from_millis(28));
        counted.event(run, REMOTE, |retransmit| {
            let tcp = &mut retransmit.tcp;
            tcp.ca_state = ca::RECOVERY;
            tcp.retransmits = 0;
            tcp.snd_una = 1000 + event * 40_000;
            tcp.snd_nxt = tcp.snd_una + flight * 1448;
            tcp.write_seq = tcp.snd_una + 500 * 1448;
            tcp.snd_wnd = window * 1448;
            tcp.packets_out = flight;
            tcp.bytes_acked = u64::from(event) * 40_000;
            tcp.srtt_us = 20_000;
            tcp.data_segs_out = 100 + event * 25;
            retransmit.seq = tcp.snd_una;
            retransmit.end_seq = retransmit.seq + 1448;
        });
        counted.tell(run);
    }
    run.finish();
}

/// SYNs to one address, round after round.
fn connects(run: &mut Run, in_syn_sent: bool, window: u32) {
    for round in 0..4 {
        for port in 0..20 {
            let mut connecting = socket(LOCAL, &format!("10.0.0.2:{}", 4000 + port));
            if in_syn_sent {
                connecting.state = state::SYN_SENT;
            }
            run.retransmit(connecting, |retransmit| {
                retransmit.tcp_flags = if in_syn_sent { flag::SYN } else { flag::ACK };
                retransmit.tcp.retransmits = round + 1;
                retransmit.tcp.snd_wnd = window;
            });
        }
        run.skip(Duration::from_secs(1));
    }
    run.finish();
}

fn syns(run: &mut Run) {
    connects(run, true, 0);
}

/// SYNs, and some data that is not acknowledged either.
fn syns_and_data(run: &mut Run) {
    run.retransmit(socket(LOCAL, "10.0.0.2:5000"), |_| {});
    connects(run, true, 0);
}

fn silence(run: &mut Run) {
    stuck(run, |_, _| {});
}

fn shut(run: &mut Run) {
    stuck(run, |_, retransmit| retransmit.tcp.snd_wnd = 0);
}

/// Full-sized ones fail, and the peer sends.
fn narrow(run: &mut Run) {
    stuck(run, |event, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448;
        retransmit.tcp.rcv_nxt = event;
    });
}

/// So do small ones.
fn small_fail_too(run: &mut Run) {
    stuck(run, |event, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448 * (event % 2) + 100;
        retransmit.tcp.rcv_nxt = event;
    });
}

/// Full-sized ones fail, and nothing is heard.
fn full_sized_silence(run: &mut Run) {
    stuck(run, |_, retransmit| {
        retransmit.end_seq = retransmit.seq + 1448;
    });
}

fn failed_here(run: &mut Run) {
    stuck(run, |_, retransmit| retransmit.error = 1);
}

/// A third of them left.
fn mostly_failed_here(run: &mut Run) {
    stuck(run, |event, retransmit| {
        retransmit.error = u32::from(event % 3 > 0);
    });
}

fn some_failed_here(run: &mut Run) {
    stuck(run, |event, retransmit| {
        retransmit.error = u32::from(event % 4 == 0);
    });
}

fn twice(run: &mut Run) {
    stuck(run, |event, retransmit| {
        retransmit.tcp.ca_state = ca::RECOVERY;
        retransmit.tcp.snd_una = 1000 + event;
        retransmit.dsack_dups = 7 + event;
    });
}

fn few_twice(run: &mut Run) {
    stuck(run, |event, retransmit| {
        retransmit.tcp.ca_state = ca::RECOVERY;
        retransmit.tcp.snd_una = 1000 + event;
        retransmit.dsack_dups = 7 + event / 4;
    });
}

fn taken_back(run: &mut Run) {
    undone(run, 40, |_| 0);
    run.finish();
}

/// Nothing but tail loss probes.
fn probes(run: &mut Run) {
    stuck(run, |_, retransmit| {
        retransmit.tcp.ca_state = ca::OPEN;
        retransmit.tcp.pending = pending::LOSS_PROBE;
        retransmit.tcp.retransmits = 0;
    });
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "retransmit_storm",
    kind: "retransmit_storm",
    run: alone,
    claims: &[
        Claim {
            words: "dropped on this host",
            said: &[loss_by_rule],
            never: &[loss, loss_of_others, loss_mostly_elsewhere],
        },
        Claim {
            words: "mend rule 5 of the chain",
            said: &[loss_by_rule],
            never: &[loss, loss_of_others, loss_mostly_elsewhere],
        },
        Claim {
            words: "SYNs retransmitted to",
            said: &[syns],
            never: &[syns_and_data, silence, loss],
        },
        Claim {
            words: "segments retransmitted to",
            said: &[loss, silence, syns_and_data, narrow],
            never: &[syns, failed_here],
        },
        Claim {
            words: "each for one that no SYN-ACK answered in time; candidates are a filter, here or on the way, that drops",
            said: &[syns],
            never: &[syns_and_data, silence, shut, loss],
        },
        Claim {
            words: "most are SYNs that no SYN-ACK answered in time, and nothing of the rest is acknowledged; candidates",
            said: &[syns_and_data],
            never: &[syns, silence, loss, twice],
        },
        Claim {
            words: "see what leaves this host and what comes back",
            said: &[syns, syns_and_data],
            never: &[silence, failed_here, loss],
        },
        Claim {
            words: "'nstat -az TcpExtListenDrops' rises where its listener drops them",
            said: &[syns, syns_and_data],
            never: &[silence, loss],
        },
        Claim {
            words: "timeouts, and nothing is acknowledged; candidates are a filter, here or on the way, a path",
            said: &[silence, full_sized_silence],
            never: &[loss, syns, shut, narrow, failed_here, probes],
        },
        Claim {
            words: "check that the peer is up and that no firewall, this host's own among them, drops",
            said: &[silence],
            never: &[loss, shut, failed_here, narrow],
        },
        Claim {
            words: "the peer acknowledges the rest: packets are lost on the way, from this host's queues to the peer's",
            said: &[loss, few_twice],
            never: &[silence, shut, failed_here, twice, taken_back, narrow],
        },
        Claim {
            words: "look for drops here first (ip -s link",
            said: &[loss],
            never: &[silence, failed_here, twice, shut],
        },
        Claim {
            words: ", which holds it down to about",
            said: &[costly_loss],
            never: &[loss, small_receiver, silence],
        },
        Claim {
            words: "segments in flight, where the peer would take",
            said: &[costly_loss],
            never: &[loss, small_receiver],
        },
        Claim {
            words: "only full-sized segments fail while the peer still talks: they are too large for the path",
            said: &[narrow],
            never: &[small_fail_too, full_sized_silence, loss, failed_here],
        },
        Claim {
            words: "did not leave this host",
            said: &[failed_here, mostly_failed_here],
            never: &[some_failed_here, silence, loss, shut],
        },
        Claim {
            words: " others did, at most",
            said: &[mostly_failed_here],
            never: &[failed_here, some_failed_here],
        },
        Claim {
            words: "this host drops them itself, or has no way for them",
            said: &[failed_here, mostly_failed_here],
            never: &[some_failed_here, silence, loss, shut],
        },
        Claim {
            words: "look at this host's output firewall",
            said: &[failed_here],
            never: &[some_failed_here, silence, loss],
        },
        Claim {
            words: "the peer's window is shut: its application does not read, or its kernel has no memory for what comes",
            said: &[shut],
            never: &[syns, silence, loss, narrow],
        },
        Claim {
            words: "look at what the peer's process does instead of reading",
            said: &[shut],
            never: &[syns, silence, loss],
        },
        Claim {
            words: "where Recv-Q is small, memory is short there",
            said: &[shut],
            never: &[syns, silence, loss],
        },
        Claim {
            words: "the peer reports that it received most of them twice (DSACK): they were late or out of order, not lost; or",
            said: &[twice],
            never: &[few_twice, taken_back, loss],
        },
        Claim {
            words: "as their acknowledgements say: the segments or the acknowledgements were late, not lost",
            said: &[taken_back],
            never: &[twice, few_twice, loss],
        },
        Claim {
            words: "look for several paths to one place",
            said: &[twice, taken_back],
            never: &[few_twice, loss, silence],
        },
        Claim {
            words: "their types do not tell why",
            said: &[probes],
            never: &[loss, silence, syns],
        },
        Claim {
            words: "compare TcpExt counters",
            said: &[probes],
            never: &[loss, silence],
        },
        // What ICMP has to do with it, and what mends a path that carries less, is told in `path_mtu`, for several rooms.
        Claim {
            words: "let ICMP \"fragmentation needed\" and \"packet too big\" through",
            said: &[narrow],
            never: &[small_fail_too, full_sized_silence, loss],
        },
        Claim {
            words: "or set net.ipv4.tcp_mtu_probing",
            said: &[narrow],
            never: &[small_fail_too, full_sized_silence, loss],
        },
        Claim {
            words: "the kernel does not follow the ICMP message",
            said: &[icmp_ignored],
            never: &[narrow, icmp_of_more],
        },
        Claim {
            words: ", even after what ICMP said of it",
            said: &[icmp_ignored, icmp_of_more],
            never: &[narrow, black_hole],
        },
        Claim {
            words: ", and no ICMP message says so",
            said: &[black_hole],
            never: &[narrow, icmp_ignored],
        },
    ],
};

/// Of a path that is too narrow, the eBPF side tells what ICMP said.
fn icmp(run: &mut Run, tells: u8, mtu: u16) {
    let mut counted = Counted::default();
    for event in 0..40 {
        run.skip(Duration::from_millis(50));
        counted.event(run, REMOTE, |retransmit| {
            retransmit.end_seq = retransmit.seq + 1448;
            retransmit.tcp.rcv_nxt = event;
        });
        counted.0.totals.pmtu = 1500;
        counted.0.totals.tells_icmp = tells;
        counted.0.totals.icmp_mtu = mtu;
        counted.tell(run);
    }
    run.finish();
}

fn icmp_ignored(run: &mut Run) {
    icmp(run, 1, 1300);
}

fn icmp_of_more(run: &mut Run) {
    icmp(run, 1, 1490);
}

fn black_hole(run: &mut Run) {
    icmp(run, 1, 0);
}
