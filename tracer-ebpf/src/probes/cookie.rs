//! ACKs that find a listener and no request: `cookie_v4/v6_check` tells whether they bring a valid SYN
//! cookie, and only in the kernel's counters. Bracketed like a SYN, so that the difference is about this
//! one packet.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{netns::count, record::syn_outcome, stats::hook};

use crate::{
    maps::{COOKIE_BRACKET, CookieBracket, LISTENERS, Outcome, account},
    probes::{listener, netns, percpu},
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
    let Some(bracket) = COOKIE_BRACKET.get_ptr_mut(0) else {
        return;
    };
    let [valid, invalid] = percpu::cookies(sock::net_of(sk));
    // SAFETY: a live per-CPU map value; bottom halves are off from here to the exit.
    unsafe { *bracket = CookieBracket { sk, valid, invalid } };
}

#[inline(always)]
fn leave() -> Outcome {
    let Some(bracket) = COOKIE_BRACKET.get_ptr_mut(0) else {
        return Outcome::NotOurs;
    };
    // SAFETY: as in `enter`.
    let before = unsafe { core::ptr::replace(&raw mut (*bracket).sk, 0) };
    if before == 0 {
        return Outcome::NotOurs;
    }
    let net = sock::net_of(before);
    let [valid, invalid] = percpu::cookies(net);
    // SAFETY: as in `enter`.
    let (was_valid, was_invalid) = unsafe { ((*bracket).valid, (*bracket).invalid) };
    if valid != was_valid {
        // The listener's own total is taken where the child is made (`ack`).
        netns::count(net, count::COOKIE_VALID);
    } else if invalid != was_invalid {
        netns::count(net, count::COOKIE_INVALID);
        if let Some(entry) = LISTENERS.get_ptr_mut(before) {
            listener::count(entry, syn_outcome::COOKIE_INVALID);
        }
    } else {
        // No cookie was sent lately, or cookies are off: an ACK of nothing.
        return Outcome::Filtered;
    }
    Outcome::Aggregated
}
