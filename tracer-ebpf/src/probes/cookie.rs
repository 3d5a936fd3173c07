//! ACKs that find a listener and no request: `cookie_v4/v6_check` tells whether they bring a valid SYN
//! cookie, and only in the kernel's counters. Bracketed like a SYN, so that the difference is about this
//! one packet.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{netns::count, record::syn_outcome, stats::hook};

use crate::{
    account::{Outcome, account},
    maps::{COOKIE_BRACKET, CookieBracket, LISTENERS},
    probes::{netns, percpu, totals},
    sock,
};

#[fentry(function = "cookie_v4_check")]
pub(crate) fn cookie_fentry_v4(ctx: FEntryContext) -> i32 {
    enter(ctx.arg(0));
    0
}

#[fentry(function = "cookie_v6_check")]
pub(crate) fn cookie_fentry_v6(ctx: FEntryContext) -> i32 {
    enter(ctx.arg(0));
    0
}

#[fexit(function = "cookie_v4_check")]
pub(crate) fn cookie_fexit_v4(_ctx: FExitContext) -> i32 {
    account(hook::COOKIE, leave())
}

#[fexit(function = "cookie_v6_check")]
pub(crate) fn cookie_fexit_v6(_ctx: FExitContext) -> i32 {
    account(hook::COOKIE, leave())
}

#[kprobe]
pub(crate) fn cookie_kprobe(ctx: ProbeContext) -> i32 {
    enter(ctx.arg(0).unwrap_or(0));
    0
}

#[kretprobe]
pub(crate) fn cookie_kretprobe(_ctx: RetProbeContext) -> i32 {
    account(hook::COOKIE, leave())
}

#[inline(always)]
fn enter(sk: u64) {
    let [valid, invalid] = percpu::cookies(sock::net_of(sk));
    // Bottom halves are off from here to the exit.
    if let Some(bracket) = COOKIE_BRACKET.edit(0) {
        *bracket = CookieBracket { sk, valid, invalid };
    }
}

#[inline(always)]
fn leave() -> Outcome {
    let Some(before) = COOKIE_BRACKET.edit(0) else {
        return Outcome::NotOurs;
    };
    let sk = core::mem::replace(&mut before.sk, 0);
    if sk == 0 {
        return Outcome::NotOurs;
    }
    let net = sock::net_of(sk);
    let [valid, invalid] = percpu::cookies(net);
    if valid != before.valid {
        // The listener's own total is taken where the child is made (`ack`).
        netns::count(net, count::COOKIE_VALID);
    } else if invalid != before.invalid {
        netns::count(net, count::COOKIE_INVALID);
        if let Some(entry) = LISTENERS.edit(sk) {
            totals::count(entry, syn_outcome::COOKIE_INVALID);
        }
    } else {
        // No cookie was sent lately, or cookies are off: an ACK of nothing.
        return Outcome::Filtered;
    }
    Outcome::Aggregated
}
