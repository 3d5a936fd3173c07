//! Attempts to connect that failed, cumulative by process, remote end and error: what `tcp_v4/v6_connect`
//! returns, in the context of the caller of connect(), and the way from SYN_SENT to CLOSE.
//!
//! EINPROGRESS and EAGAIN are no failures. A storm of failures costs no record each.

use aya_ebpf::{
    EbpfContext,
    helpers::bpf_get_current_pid_tgid,
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{
    filter::verdict,
    record::{Failure, Owner, PATIENCE_NS, Socket, failure_how, owner_source, role},
    socket::Failed,
    stats::hook,
    tcp::AF_INET,
};

use crate::{
    account::{Outcome, account},
    globals::global,
    maps::{CONNECTING, FAILURE_SAID, FAILURES, FAILURES_COUNTED, FAILURES_OVERFLOW, FailureKey},
    probes::{
        cumulative::{Counts, Cumulative, Tally},
        matching, reset, socket,
    },
    sock::{self, Anywhere, field},
    table::add,
};

/// include/uapi/asm-generic/errno.h.
const EAGAIN: u32 = 11;
const EADDRNOTAVAIL: u32 = 99;
const EALREADY: u32 = 114;
const EINPROGRESS: u32 = 115;

#[fexit(function = "tcp_v4_connect")]
pub(crate) fn failure_fexit_v4(ctx: FExitContext) -> i32 {
    account(
        hook::FAILURE,
        returned(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(3)),
    )
}

#[fexit(function = "tcp_v6_connect")]
pub(crate) fn failure_fexit_v6(ctx: FExitContext) -> i32 {
    let sockaddr: u64 = ctx.arg(1);
    // To a v4-mapped address `tcp_v4_connect` was called, and has told.
    let addr: [u32; 4] = sock::read(sockaddr, 8);
    if addr[0] | addr[1] == 0 && addr[2] == 0xffff_u32.to_be() {
        return 0;
    }
    account(
        hook::FAILURE,
        returned(&ctx, ctx.arg(0), sockaddr, ctx.arg(3)),
    )
}

/// What a cgroup's program denies (`BPF_CGROUP_INET4_CONNECT`) does not come as far as `tcp_v4_connect`.
#[fexit(function = "tcp_v4_pre_connect")]
pub(crate) fn failure_fexit_pre_v4(ctx: FExitContext) -> i32 {
    denied(&ctx)
}

#[fexit(function = "tcp_v6_pre_connect")]
pub(crate) fn failure_fexit_pre_v6(ctx: FExitContext) -> i32 {
    denied(&ctx)
}

/// It is no event of its own when it denies nothing: the call goes on.
#[inline(always)]
fn denied(ctx: &FExitContext) -> i32 {
    let result: i32 = ctx.arg(3);
    if result >= 0 {
        return 0;
    }
    account(hook::FAILURE, returned(ctx, ctx.arg(0), ctx.arg(1), result))
}

#[kprobe]
pub(crate) fn failure_kprobe(ctx: ProbeContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let call = [ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0)];
    if CONNECTING.insert(thread, &call) {
        0
    } else {
        account(hook::FAILURE, Outcome::Lost)
    }
}

/// `tcp_v6_connect` calls `tcp_v4_connect` for v4-mapped addresses: the inner exit tells, and the outer one
/// finds nothing.
#[kretprobe]
pub(crate) fn failure_kretprobe(ctx: RetProbeContext) -> i32 {
    let thread = bpf_get_current_pid_tgid();
    let Some([sk, sockaddr]) = CONNECTING.get(thread).copied() else {
        return 0;
    };
    if !CONNECTING.remove(thread) {
        return 0;
    }
    account(hook::FAILURE, returned(&ctx, sk, sockaddr, ctx.ret()))
}

/// connect() got so far in the kernel; what follows is the state hook's.
#[inline(always)]
fn returned<C: EbpfContext>(ctx: &C, sk: u64, sockaddr: u64, result: i32) -> Outcome {
    let error = result.unsigned_abs();
    if result >= 0 || error == EINPROGRESS || error == EAGAIN || error == EALREADY {
        return Outcome::Aggregated;
    }
    let mut socket = Socket::default();
    sock::fill_full::<Anywhere>(sk, &mut socket);
    (socket.remote_addr, socket.remote_port) = sock::destination(sockaddr);
    socket.role = role::ACTIVE;
    if !matching::socket(&socket) {
        return Outcome::Filtered;
    }
    let mut owner = Owner::default();
    sock::fill_current(&mut owner, owner_source::CONNECT);
    if matching::owner(&owner) == verdict::EXCLUDED {
        return Outcome::Filtered;
    }
    let failure = Attempt {
        socket: &socket,
        owner: &owner,
        error,
        how: failure_how::AT_ONCE,
        lasted_ns: 0,
        syns: 0,
        signal: 0,
    };
    count(ctx, &failure)
}

/// SYN_SENT → CLOSE: refused, timed out, told by ICMP, or given up.
#[inline(always)]
pub(crate) fn closed<C: EbpfContext>(ctx: &C, sk: u64) -> Outcome {
    let mut socket = Socket::default();
    let mut owner = Owner::default();
    if !socket::fill(sk, &mut socket, &mut owner) {
        return Outcome::Filtered;
    }
    let mut error = field!(sk, sk_err: u32);
    let mut how = 0;
    let mut signal = 0;
    let mut lasted_ns = 0;
    if socket.role == role::ACTIVE {
        lasted_ns = sock::now_ns() - socket.born_ns;
    }
    if reset::last_of(sk).received != 0 {
        how |= failure_how::RESET;
    }
    if error == 0 {
        // `inet_hash_connect` found no port: connect() is about to say so.
        if socket.local_port == 0 {
            if global!(OPTIONS.failure_by_state) == 0 {
                return Outcome::Aggregated;
            }
            error = EADDRNOTAVAIL;
            how |= failure_how::AT_ONCE | failure_how::CONCLUDED;
        } else if field!(sk, packets_out: u32) == 0 {
            // No SYN in flight: connect() is about to say why (or, with Fast Open, had not begun). How long it
            // lasted tells nothing: the birth that is known may be of the attempt before.
            return Outcome::Aggregated;
        } else if lasted_ns >= PATIENCE_NS {
            how |= failure_how::PATIENT;
            let exit_code = sock::exit_code_of_current();
            if exit_code != sock::RUNS {
                how |= failure_how::EXITING;
                // As wait() has it: the low bits are the signal's.
                signal = (exit_code & 0x7f) as u8;
            }
        }
    }
    let failure = Attempt {
        socket: &socket,
        owner: &owner,
        error,
        how,
        lasted_ns,
        syns: field!(sk, total_retrans: u32) + 1,
        signal,
    };
    count(ctx, &failure)
}

/// One attempt that failed.
struct Attempt<'a> {
    socket: &'a Socket,
    owner: &'a Owner,
    error: u32,
    how: u8,
    lasted_ns: u64,
    syns: u32,
    signal: u8,
}

/// Counts it, and says so when it is due.
#[inline(always)]
fn count<C: EbpfContext>(ctx: &C, attempt: &Attempt<'_>) -> Outcome {
    let key = FailureKey {
        addr: attempt.socket.remote_addr,
        netns: attempt.socket.netns,
        pid: attempt.owner.pid,
        port: attempt.socket.remote_port,
        error: attempt.error as u16,
        family: attempt.socket.family,
        how: attempt.how,
        pad: 0,
    };
    let outcome = COUNTS.count(
        ctx,
        key,
        |record| {
            if record.longest_ns < attempt.lasted_ns {
                record.longest_ns = attempt.lasted_ns;
            }
        },
        |record, key, _| {
            record.socket = *attempt.socket;
            record.owner = *attempt.owner;
            record.error = attempt.error;
            record.syns = attempt.syns;
            record.how = attempt.how;
            record.signal = attempt.signal;
            if key.port == 0 {
                record.socket.remote_addr = [0; 4];
                record.socket.remote_port = 0;
                // One entry of both families, and one key of the record.
                record.socket.family = key.family;
            }
        },
    );
    if let Some(counted) = FAILURES_COUNTED.edit(0) {
        add(counted, 1);
    }
    outcome
}

const COUNTS: Counts<Failed> = Counts {
    map: &FAILURES,
    overflow: &FAILURES_OVERFLOW,
    said: &FAILURE_SAID,
};

impl Cumulative for Failed {
    type Key = FailureKey;
    type Record = Failure;

    #[inline(always)]
    fn blur(key: &mut FailureKey) {
        key.addr = [0; 4];
        key.port = 0;
        key.family = AF_INET;
    }

    #[inline(always)]
    fn parts(&mut self) -> (&mut Failure, &mut u64) {
        (&mut self.failure, &mut self.emitted_ns)
    }

    #[inline(always)]
    fn tally(record: &mut Failure) -> Tally<'_> {
        Tally {
            header: &mut record.header,
            count: &mut record.count,
            first_ns: &mut record.first_ns,
            last_ns: &mut record.last_ns,
        }
    }
}
