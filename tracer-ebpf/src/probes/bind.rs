//! bind() and listen() that fail, cumulative by process, address and error: what `inet_bind`, `inet6_bind` and
//! `inet_listen` return, and a security module before them, in the context of the caller. And on request who holds a port.
//!
//! connect() does not pass here. A call that succeeds is looked at once one has failed on this host, and told of where it is
//! of a process, or at a port, with a failure before: the former went on to another port, the latter got the port at last.

use aya_ebpf::{
    EbpfContext,
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use conntracer_common::{
    filter::verdict,
    layout::ABSENT,
    record::{Bind, Owner, Socket, bind_call, bind_flag, owner_source, role},
    socket::{BindFailed, PortHolder},
    stats::hook,
    tcp::{AF_INET, AF_INET6, IPPROTO_MPTCP, IPPROTO_TCP},
};

use crate::{
    account::{Outcome, account},
    emit::{self, Lane},
    globals::global,
    maps::{
        BIND_SAID, BIND_TROUBLED, BINDING, BINDS, BINDS_COUNTED, BINDS_OVERFLOW, BOUND_SAID,
        BindKey, PORTS_SOUGHT,
    },
    probes::{
        cumulative::{Counts, Cumulative, Tally},
        matching, seed, socket,
    },
    sock::{self, Anywhere, field},
    table::add,
};

/// A failure for so long is one that a success may belong to.
const TROUBLED_NS: u64 = 600_000_000_000;
/// Between two successes that one CPU tells of: a client that searches for a port again and again is none's trouble.
const BOUND_INTERVAL_NS: u64 = 1_000_000;

#[fexit(function = "inet_bind")]
pub(crate) fn bind_fexit_v4(ctx: FExitContext) -> i32 {
    returned(&ctx, ctx.arg(0), ctx.arg(1), bind_call::BIND, ctx.arg(3))
}

#[fexit(function = "inet6_bind")]
pub(crate) fn bind_fexit_v6(ctx: FExitContext) -> i32 {
    returned(&ctx, ctx.arg(0), ctx.arg(1), bind_call::BIND, ctx.arg(3))
}

#[fexit(function = "mptcp_bind")]
pub(crate) fn bind_fexit_mptcp(ctx: FExitContext) -> i32 {
    returned(&ctx, ctx.arg(0), ctx.arg(1), bind_call::BIND, ctx.arg(3))
}

#[fexit(function = "inet_listen")]
pub(crate) fn bind_fexit_listen(ctx: FExitContext) -> i32 {
    returned(&ctx, ctx.arg(0), 0, bind_call::LISTEN, ctx.arg(2))
}

#[fexit(function = "security_socket_bind")]
pub(crate) fn bind_fexit_security(ctx: FExitContext) -> i32 {
    refused(&ctx, ctx.arg(0), ctx.arg(1), ctx.arg(3))
}

#[kprobe]
pub(crate) fn bind_kprobe(ctx: ProbeContext) -> i32 {
    let call = [ctx.arg(0).unwrap_or(0), ctx.arg(1).unwrap_or(0)];
    if BINDING.insert(sock::current_thread(), &call) {
        0
    } else {
        account(hook::BIND, Outcome::Lost)
    }
}

#[kretprobe]
pub(crate) fn bind_kretprobe(ctx: RetProbeContext) -> i32 {
    let [socket, sockaddr] = entered();
    returned(&ctx, socket, sockaddr, bind_call::BIND, ctx.ret())
}

#[kretprobe]
pub(crate) fn bind_kretprobe_listen(ctx: RetProbeContext) -> i32 {
    let [socket, _] = entered();
    returned(&ctx, socket, 0, bind_call::LISTEN, ctx.ret())
}

#[kretprobe]
pub(crate) fn bind_kretprobe_security(ctx: RetProbeContext) -> i32 {
    let [socket, sockaddr] = entered();
    refused(&ctx, socket, sockaddr, ctx.ret())
}

/// With what this thread entered; nothing where that was missed.
#[inline(always)]
fn entered() -> [u64; 2] {
    let thread = sock::current_thread();
    let call = BINDING.get(thread).copied().unwrap_or_default();
    BINDING.remove(thread);
    call
}

/// A security module lets it pass, which says nothing, or refuses it.
#[inline(always)]
fn refused<C: EbpfContext>(ctx: &C, socket: u64, sockaddr: u64, result: i32) -> i32 {
    if result >= 0 {
        return 0;
    }
    returned(ctx, socket, sockaddr, bind_call::SECURITY, result)
}

#[inline(always)]
fn returned<C: EbpfContext>(ctx: &C, socket: u64, sockaddr: u64, call: u8, result: i32) -> i32 {
    let counted = BINDS_COUNTED.get(0).copied().unwrap_or_default();
    if socket == 0 || result >= 0 && counted == 0 {
        return 0;
    }
    let mut sk = field!(socket, socket_sk: u64);
    if field!(sk, sk_protocol: u16) == IPPROTO_MPTCP {
        // What its first TCP socket was refused; before Linux 6.6 `inet_bind` was called for that, and has told.
        if global!(FACTS.mptcp_binds_alone) == 0 && call == bind_call::BIND {
            return 0;
        }
        sk = field!(sk, mptcp_first: u64);
    }
    let inode =
        field!(field!(field!(socket, socket_file: u64), file_inode: u64), inode_number: u32);
    let family = field!(sk, skc_family: u16);
    let is_tcp = field!(sk, sk_protocol: u16) == IPPROTO_TCP;
    if !is_tcp || family != AF_INET && family != AF_INET6 {
        // Another protocol's socket is no event of this hook.
        return 0;
    }
    let mut socket = Socket::default();
    sock::fill_full::<Anywhere>(sk, &mut socket);
    if sockaddr != 0 && result < 0 {
        (socket.local_addr, socket.local_port) = sock::destination(sockaddr);
    }
    socket.role = role::LISTENER;
    if result < 0 {
        account(hook::BIND, failed(ctx, &socket, inode, call, result))
    } else {
        bound(ctx, &socket, inode, call)
    }
}

#[inline(always)]
fn failed<C: EbpfContext>(ctx: &C, socket: &Socket, inode: u32, call: u8, result: i32) -> Outcome {
    let mut owner = Owner::default();
    if !is_ours(socket, &mut owner) {
        return Outcome::Filtered;
    }
    let error = result.unsigned_abs();
    let key = BindKey {
        addr: socket.local_addr,
        netns: socket.netns,
        pid: owner.pid,
        what: u64::from(socket.local_port) | u64::from(error as u16) << 16 | u64::from(call) << 32,
    };
    let outcome = COUNTS.count(
        ctx,
        key,
        |_| (),
        |record, key, _| {
            fill(record, socket, &owner, call, error);
            record.inode = inode;
            if key.what == 0 {
                record.socket.local_addr = [0; 4];
                record.socket.local_port = 0;
                record.flags |= bind_flag::SEVERAL;
            }
        },
    );
    let now = sock::now_ns();
    BIND_TROUBLED.insert(u64::from(owner.pid), now);
    BIND_TROUBLED.insert(place(socket), now);
    if let Some(counted) = BINDS_COUNTED.edit(0) {
        add(counted, 1);
    }
    outcome
}

/// One that succeeded: an event of this hook where it is worth telling.
#[inline(always)]
fn bound<C: EbpfContext>(ctx: &C, socket: &Socket, inode: u32, call: u8) -> i32 {
    let now = sock::now_ns();
    let place = place(socket);
    let is_troubled = |key: u64| {
        BIND_TROUBLED
            .get(key)
            .is_some_and(|last| now - *last < TROUBLED_NS)
    };
    let of_port = is_troubled(place);
    if !of_port && !is_troubled(u64::from(sock::current_pid())) {
        return 0;
    }
    let mut owner = Owner::default();
    if !is_ours(socket, &mut owner) {
        return account(hook::BIND, Outcome::Filtered);
    }
    let Some(said) = BOUND_SAID.edit(0) else {
        return 0;
    };
    if !of_port && now - *said < BOUND_INTERVAL_NS {
        return account(hook::BIND, Outcome::Aggregated);
    }
    *said = now;
    let mut record = Bind::default();
    fill(&mut record, socket, &owner, call, 0);
    record.inode = inode;
    record.header = emit::header::<Bind>();
    (record.count, record.first_ns, record.last_ns) = (1, now, now);
    account(hook::BIND, emit::emit(ctx, Lane::Rare, &record))
}

#[inline(always)]
fn is_ours(socket: &Socket, owner: &mut Owner) -> bool {
    if !matching::socket(socket) {
        return false;
    }
    sock::fill_current(owner, owner_source::LISTENER);
    matching::owner(owner) != verdict::EXCLUDED
}

/// A key of `BIND_TROUBLED` that is no pid: a port of a namespace.
#[inline(always)]
fn place(socket: &Socket) -> u64 {
    1 << 63 | u64::from(socket.netns) << 16 | u64::from(socket.local_port)
}

#[inline(always)]
fn fill(record: &mut Bind, socket: &Socket, owner: &Owner, call: u8, error: u32) {
    record.socket = *socket;
    record.owner = *owner;
    record.call = call;
    record.error = error;
    record.flags = options(socket.sk) | capability();
    let net = sock::net_of(socket.sk);
    record.unprivileged_start = if global!(LAYOUT.net_unprivileged_start) == ABSENT {
        u16::MAX
    } else {
        field!(net, net_unprivileged_start: u32) as u16
    };
    let range = field!(net, net_port_range: [u32; 2]);
    // Until 6.8 two ints; since then the highest is above the lowest in one.
    record.range = if range[0] >> 16 == 0 {
        [range[0] as u16, range[1] as u16]
    } else {
        [range[0] as u16, (range[0] >> 16) as u16]
    };
}

/// [`bind_flag::CAPABLE`] of the running process.
#[inline(always)]
fn capability() -> u8 {
    const CAP_NET_BIND_SERVICE: u32 = 10;
    let credentials = field!(sock::current_task(), task_cred: u64);
    let bit = field!(credentials, cred_capabilities: u32) >> CAP_NET_BIND_SERVICE & 1;
    bit as u8 * bind_flag::CAPABLE
}

/// Bits of [`bind_flag`]. `skc_reuse` is the low half of the byte that has `skc_reuseport`.
#[inline(always)]
fn options(sk: u64) -> u8 {
    let bits = field!(sk, skc_reuseport: u8);
    let reuseport = bits >> (global!(FACTS.reuseport_bit) & 7) & 1;
    let v6_only = field!(sk, skc_ipv6only: u8) >> (global!(FACTS.ipv6only_bit) & 7) & 1;
    let reuse = if bits & 0xf == 0 {
        0
    } else {
        bind_flag::REUSEADDR
    };
    reuse | reuseport * bind_flag::REUSEPORT | v6_only * bind_flag::V6_ONLY
}

const COUNTS: Counts<BindFailed> = Counts {
    map: &BINDS,
    overflow: &BINDS_OVERFLOW,
    said: &BIND_SAID,
};

impl Cumulative for BindFailed {
    type Key = BindKey;
    type Record = Bind;

    #[inline(always)]
    fn blur(key: &mut BindKey) {
        key.addr = [0; 4];
        key.what = 0;
    }

    #[inline(always)]
    fn parts(&mut self) -> (&mut Bind, &mut u64) {
        (&mut self.bind, &mut self.emitted_ns)
    }

    #[inline(always)]
    fn tally(record: &mut Bind) -> Tally<'_> {
        Tally {
            header: &mut record.header,
            count: &mut record.count,
            first_ns: &mut record.first_ns,
            last_ns: &mut record.last_ns,
        }
    }
}

seed::iterator!(
    /// Writes a `PortHolder` for each process that holds a TCP socket bound to one of the ports in `PORTS_SOUGHT`, whatever
    /// its state.
    "iter/task_file", port_holders, seed::FileContext, show_holder
);

#[inline(always)]
fn show_holder(ctx: &seed::FileContext) {
    let &seed::FileContext {
        meta, task, file, ..
    } = ctx;
    let Some(sought) = PORTS_SOUGHT.get(0) else {
        return;
    };
    if task == 0 || file == 0 {
        return;
    }
    let sk = socket::behind(file);
    let port = field!(sk, skc_num: u16);
    if sk == 0 || port < sought.low || port > sought.high {
        return;
    }
    let family = field!(sk, skc_family: u16);
    let is_tcp = field!(sk, sk_protocol: u16) == IPPROTO_TCP;
    if !is_tcp
        || family != AF_INET && family != AF_INET6
        || sought.netns != 0 && sock::netns_of::<Anywhere>(sk) != sought.netns
    {
        return;
    }
    let mut holder = PortHolder {
        flags: options(sk),
        ..PortHolder::default()
    };
    sock::fill_common::<Anywhere>(sk, &mut holder.socket);
    sock::fill_task(&mut holder.owner, task, owner_source::SEEDED);
    // A full buffer shows the file again at the next read.
    emit::show(meta.seq, &holder);
}
