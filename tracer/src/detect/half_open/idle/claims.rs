//! What is said of idle connections, and of what it must not be.

use std::time::Duration;

use conntracer_common::record::idle_flag;

use crate::{
    detect::claims::{Claim, Records, Register, alone},
    testing::{Run, socket},
};

fn audit(run: &mut Run, idle: Duration, flags: u32) {
    run.idle(socket("10.0.0.1:80", "10.0.0.7:5001"), idle, |record| {
        record.flags = flags;
        if flags & idle_flag::NO_TIMER != 0 {
            record.tcp.write_seq = 100;
        }
    });
    run.idle_totals(0);
}

fn without_keepalive(run: &mut Run) {
    audit(run, Duration::from_hours(1), idle_flag::KEEPALIVE_OFF);
}

fn without_timer(run: &mut Run) {
    audit(run, Duration::from_hours(1), idle_flag::NO_TIMER);
}

/// Less than the limit.
fn a_minute(run: &mut Run) {
    let mut thresholds = crate::detect::Thresholds::default();
    thresholds.half_open.idle_after_s = 3601;
    *run = Run::with(thresholds);
    audit(run, Duration::from_mins(1), idle_flag::KEEPALIVE_OFF);
}

pub(crate) static REGISTER: Register<Records> = Register {
    room: "half_open, idle",
    kind: "half_open",
    run: alone,
    claims: &[
        Claim {
            words: "or longer, the oldest for 3600.0 s, without keepalive",
            said: &[without_keepalive],
            never: &[without_timer, a_minute],
        },
        Claim {
            words: ", without keepalive",
            said: &[without_keepalive],
            never: &[without_timer, a_minute],
        },
        Claim {
            words: "should the peer be gone, this host's kernel will not notice",
            said: &[without_keepalive],
            never: &[without_timer, a_minute],
        },
        Claim {
            words: "set SO_KEEPALIVE on them, and TCP_KEEPIDLE",
            said: &[without_keepalive],
            never: &[without_timer, a_minute],
        },
        Claim {
            words: "close what it does not use, or ask its peers for a sign of life",
            said: &[without_keepalive],
            never: &[without_timer, a_minute],
        },
        Claim {
            words: "with data to deliver and no timer that will try",
            said: &[without_timer],
            never: &[without_keepalive, a_minute],
        },
        Claim {
            words: "the kernel sends nothing more by itself",
            said: &[without_timer],
            never: &[without_keepalive],
        },
        Claim {
            words: "close them: what it wrote last was not delivered",
            said: &[without_timer],
            never: &[without_keepalive],
        },
        Claim {
            words: "a kernel that forgets a timer has a bug",
            said: &[without_timer],
            never: &[without_keepalive],
        },
    ],
};
