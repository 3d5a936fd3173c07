//! Requests that end without a connection: reset by their peer (`tcp_check_req`), or given up by their
//! timer (`reqsk_timer_handler`).
//!
//! `tcp_check_req` runs for every third ACK and returns the child; only where it returns NULL is there
//! more to ask. A request that it ended itself is in no hash table any more (`inet_csk_reqsk_queue_drop`),
//! and was not taken away by another CPU meanwhile (`*req_stolen`): what `TcpExt EmbryonicRsts` counts.
//! `Tcp AttemptFails` counts both.

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{netns::count, record::syn_outcome, stats::hook, tcp::state};

use crate::{
    account::{Outcome, account},
    globals::global,
    maps::{CHECKED, Checked, EXPIRING, Expiring},
    probes::{listener, netns, totals},
    sock::{self, field},
};

/// The return value's slot is the number of parameters, 5 or 6: BTF chooses the program.
#[fexit(function = "tcp_check_req")]
pub(crate) fn request_fexit_5(ctx: FExitContext) -> i32 {
    let child: u64 = ctx.arg(5);
    if child != 0 {
        return 0;
    }
    checked_fexit(&ctx)
}

#[fexit(function = "tcp_check_req")]
pub(crate) fn request_fexit_6(ctx: FExitContext) -> i32 {
    let child: u64 = ctx.arg(6);
    if child != 0 {
        return 0;
    }
    checked_fexit(&ctx)
}

#[inline(always)]
fn checked_fexit(ctx: &FExitContext) -> i32 {
    if is_fast_open(ctx.arg(3)) {
        return 0;
    }
    let checked = Checked {
        sk: ctx.arg(0),
        skb: ctx.arg(1),
        request: ctx.arg(2),
        stolen: ctx.arg(4),
    };
    account(hook::REQUEST, ended(ctx, &checked))
}

/// A Fast Open request is its child's, which a RST closes like any connection.
#[inline(always)]
fn is_fast_open(argument: u64) -> bool {
    argument as u8 != 0
}

#[kprobe]
pub(crate) fn request_kprobe(ctx: ProbeContext) -> i32 {
    if is_fast_open(ctx.arg(3).unwrap_or(0)) {
        return 0;
    }
    // `tcp_v4/v6_rcv` call with bottom halves off.
    if let Some(checked) = CHECKED.edit(0) {
        checked.sk = ctx.arg(0).unwrap_or(0);
        checked.skb = ctx.arg(1).unwrap_or(0);
        checked.request = ctx.arg(2).unwrap_or(0);
        checked.stolen = ctx.arg(4).unwrap_or(0);
    }
    0
}

#[kretprobe]
pub(crate) fn request_kretprobe(ctx: RetProbeContext) -> i32 {
    let Some(bracket) = CHECKED.edit(0) else {
        return 0;
    };
    let checked = *bracket;
    bracket.request = 0;
    let child: u64 = ctx.ret();
    if child != 0 || checked.request == 0 {
        return 0;
    }
    account(hook::REQUEST, ended(&ctx, &checked))
}

/// Whether the peer ended the request; every other packet that makes no connection is not our event.
#[inline(always)]
fn ended<C: EbpfContext>(ctx: &C, checked: &Checked) -> Outcome {
    if field!(checked.request, skc_pprev: u64) != 0 {
        return Outcome::NotOurs;
    }
    // Our own RST, for a full accept queue, answers an ACK.
    if !sock::ends_request(checked.skb, field!(checked.request, treq_rcv_isn: u32)) {
        return Outcome::NotOurs;
    }
    let stolen = sock::read::<u8>(checked.stolen, 0) != 0;
    let total = if stolen {
        count::REQUEST_STOLEN
    } else {
        count::REQUEST_RESET
    };
    netns::count(sock::net_of(checked.request), total);
    if stolen {
        return Outcome::NotOurs;
    }
    count_at(ctx, checked.sk, syn_outcome::RESET)
}

#[fentry(function = "reqsk_timer_handler")]
pub(crate) fn request_timer_fentry(ctx: FEntryContext) -> i32 {
    timer_fires(ctx.arg(0))
}

#[fexit(function = "reqsk_timer_handler")]
pub(crate) fn request_timer_fexit(ctx: FExitContext) -> i32 {
    timer_done(&ctx)
}

#[kprobe]
pub(crate) fn request_timer_kprobe(ctx: ProbeContext) -> i32 {
    timer_fires(ctx.arg(0).unwrap_or(0))
}

#[kretprobe]
pub(crate) fn request_timer_kretprobe(ctx: RetProbeContext) -> i32 {
    timer_done(&ctx)
}

#[inline(always)]
fn timer_fires(timer: u64) -> i32 {
    let request = timer.wrapping_sub(u64::from(global!(LAYOUT.req_timer)));
    let listener = field!(request, skc_listener: u64);
    let listening = is_listening(listener);
    if listening {
        netns::count(sock::net_of(listener), count::REQUEST_TIMEOUT);
    }
    let ours = field!(request, skc_pprev: u64) != 0 && listening;
    // Nothing else runs timers on this CPU before the exit.
    if let Some(expiring) = EXPIRING.edit(0) {
        *expiring = Expiring {
            request,
            listener: if ours { listener } else { 0 },
            timeouts: timeouts(request),
        };
    }
    0
}

/// A request that goes on has counted this timeout; one that was dropped has not, and what is in its
/// memory by now cannot have: a new request begins at 0.
#[inline(always)]
fn timer_done<C: EbpfContext>(ctx: &C) -> i32 {
    let Some(bracket) = EXPIRING.edit(0) else {
        return 0;
    };
    let expiring = *bracket;
    bracket.request = 0;
    if expiring.request == 0
        || expiring.listener == 0
        || timeouts(expiring.request) == (expiring.timeouts + 1) & 0x7f
    {
        return 0;
    }
    netns::count(sock::net_of(expiring.listener), count::REQUEST_EXPIRED);
    let outcome = count_at(ctx, expiring.listener, syn_outcome::EXPIRED);
    account(hook::REQUEST, outcome)
}

/// `num_timeout`, 7 bits above `syncookie`.
#[inline(always)]
fn timeouts(request: u64) -> u64 {
    u64::from(field!(request, req_num_timeout: u8) >> 1)
}

#[inline(always)]
fn is_listening(sk: u64) -> bool {
    field!(sk, skc_state: u8) == state::LISTEN
}

#[inline(always)]
fn count_at<C: EbpfContext>(ctx: &C, sk: u64, total: usize) -> Outcome {
    match listener::entry(ctx, sk) {
        Ok(entry) => {
            totals::count_aside(entry, total, sock::now_ns());
            if listener::is_excluded(entry) {
                Outcome::Filtered
            } else {
                Outcome::Aggregated
            }
        }
        Err(without) => without,
    }
}
