//! What was there before the hooks: every socket of a network namespace, and the processes that hold
//! them. BPF iterators, which userspace reads once each after the hooks are attached.
//!
//! `seed` takes sockets in and writes nothing, so that one read walks a whole namespace under the
//! kernel's own bucket locks; `seed_owners` walks every open file; `seed_list` writes a `Seed` of each
//! socket that is older than the tracer. A socket whose birth a hook saw is left alone by all three.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use conntracer_common::{
    record::{Owner, Seed, Socket, Tcp, owner_source, role},
    socket::{Holder, NOBODYS, SocketState},
    stats::hook,
    tcp::state,
};

use crate::{
    account::{Outcome, account},
    emit,
    globals::global,
    maps::{HEIR, LISTENERS, SEEDING, SOCKETS},
    probes::{
        fork, idle, listener, matching,
        ownership::{self, Ownership},
        socket,
    },
    sock::{self, Anywhere, field, field_into},
};

/// `struct bpf_iter_meta`.
#[repr(C)]
pub(crate) struct Meta {
    pub(super) seq: u64,
    session: u64,
    number: u64,
}

/// `struct bpf_iter__tcp`; the socket is NULL at the end.
#[repr(C)]
pub(crate) struct TcpContext {
    meta: &'static Meta,
    sk: u64,
}

/// `struct bpf_iter__task_file`; task and file are NULL at the end.
#[repr(C)]
pub(crate) struct FileContext {
    pub(super) meta: &'static Meta,
    pub(super) task: u64,
    descriptor: u64,
    pub(super) file: u64,
}

/// An iterator's program, which aya has no attribute for.
macro_rules! iterator {
    ($(#[$doc:meta])* $section:literal, $name:ident, $context:ty, $body:expr) => {
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[unsafe(link_section = $section)]
        pub(crate) extern "C" fn $name(ctx: &$context) -> i32 {
            $body(ctx);
            0
        }
    };
}
pub(super) use iterator;

iterator!(
    /// Takes a socket in. Full sockets and listeners have entries; requests and sockets in TIME_WAIT have
    /// none, here or anywhere.
    "iter/tcp", seed, TcpContext, take_in
);
iterator!(
    /// Finds out who holds a socket, and writes a `Holder` for each process. They come in the order of their
    /// pids; the first, or its parent, is the owner of what has none, and whatever a hook learned stands.
    "iter/task_file", seed_owners, FileContext, find_owner
);
iterator!(
    /// Writes a `Seed` of a socket that is older than the tracer, or of one that the maps have no room for.
    "iter/tcp", seed_list, TcpContext, list
);

#[inline(always)]
fn take_in(ctx: &TcpContext) {
    let sk = ctx.sk;
    if sk == 0 {
        return;
    }
    match field!(sk, skc_state: u8) {
        state::TIME_WAIT | state::NEW_SYN_RECV => {}
        state::LISTEN => {
            account(hook::SEED, listener::seeded(sk));
        }
        state => {
            account(hook::SEED, seeded(sk, state));
        }
    }
}

#[inline(always)]
fn seeded(sk: u64, state: u8) -> Outcome {
    let mut socket = Socket::default();
    sock::fill_full::<Anywhere>(sk, &mut socket);
    let listener = listener::by_port(socket.netns, socket.local_port, socket.local_addr);
    let role = match state {
        state::SYN_SENT => role::ACTIVE,
        // Which side opened a connection is not kept; a listener at its address tells.
        _ if listener != 0 => role::PASSIVE,
        _ => role::UNKNOWN,
    };
    socket.role = role;
    if !matching::socket(&socket) || SOCKETS.has(sk) {
        return Outcome::Filtered;
    }
    let half_closed = if is_half_closed(state) { state } else { 0 };
    let troubled = field!(sk, icsk_retransmits: u8) | field!(sk, icsk_probes_out: u8) != 0;
    let entry = SocketState {
        born_ns: global!(OPTIONS.began_ns),
        since_ns: if half_closed == 0 { 0 } else { active_ns(sk) },
        listener: if role != role::PASSIVE {
            0
        } else if sock::is_orphan::<Anywhere>(sk) {
            NOBODYS
        } else {
            listener
        },
        half_closed,
        role,
        troubled: u8::from(troubled),
        older: 1,
        ..SocketState::default()
    };
    if SOCKETS.insert_new(sk, &entry) {
        Outcome::Aggregated
    } else if SOCKETS.has(sk) {
        // A hook adopted it meanwhile.
        Outcome::Filtered
    } else {
        Outcome::Lost
    }
}

#[inline(always)]
const fn is_half_closed(state: u8) -> bool {
    matches!(state, state::CLOSE_WAIT | state::FIN_WAIT2)
}

/// When TCP last did anything with a socket: a state was entered then or earlier, because the segment
/// that changes it sets the time (`tcp_mstamp_refresh`).
#[inline(always)]
fn active_ns(sk: u64) -> u64 {
    field!(sk, tcp_mstamp: u64).wrapping_mul(1000)
}

#[inline(always)]
fn find_owner(ctx: &FileContext) {
    let &FileContext {
        meta, task, file, ..
    } = ctx;
    if task == 0 || file == 0 {
        return;
    }
    let sk = socket::behind(file);
    ownership::edit(sk, |ownership| hold(sk, ownership, task, meta));
}

#[inline(always)]
fn hold(sk: u64, mut ownership: Ownership<'_>, task: u64, meta: &Meta) {
    let search = meta.session as u32;
    let pid = field!(task, task_tgid: u32);
    let held = &mut *ownership.held;
    if held.search != search {
        held.search = search;
        held.holders = 0;
        held.pid = 0;
    }
    if held.pid == pid {
        return;
    }
    // Pids wrap: a parent may come after the child that inherited its descriptor.
    let is_parent = ownership.owner.source == owner_source::SEEDED && held.parent == pid;
    if ownership.owner.source == owner_source::UNKNOWN || is_parent {
        held.parent = field!(field!(task, task_parent: u64), task_tgid: u32);
        sock::fill_task(ownership.owner, task, owner_source::SEEDED);
        // It may have forked long before.
        ownership.changed(0);
    }
    fork::mark(ownership.owner, *ownership.owned_ns);
    let mut holder = Holder {
        sk,
        born_ns: ownership.born_ns,
        owner_pid: ownership.owner.pid,
        owner_started_ms: ownership.owner.started_ms,
        owner_source: ownership.owner.source,
        ..Holder::default()
    };
    sock::fill_task(&mut holder.owner, task, owner_source::SEEDED);
    // A full buffer shows the file again at the next read.
    if emit::show(meta.seq, &holder) {
        let held = ownership.held;
        held.pid = pid;
        held.holders += 1;
        ownership.owner.holders = if held.holders < u8::MAX as u32 {
            held.holders as u8
        } else {
            u8::MAX
        };
    }
}

/// Makes the socket of this address and birth belong to the process in `HEIR`, as of the third argument.
#[raw_tracepoint]
pub(crate) fn heir(ctx: RawTracePointContext) -> i32 {
    let (sk, born_ns, owned_ns): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let Some(heir) = HEIR.get(0) else {
        return 0;
    };
    ownership::edit(sk, |mut ownership| {
        if ownership.born_ns == born_ns && ownership.owner.pid == heir.before_pid {
            *ownership.owner = heir.owner;
            ownership.changed(owned_ns);
        }
    });
    0
}

#[inline(always)]
fn list(ctx: &TcpContext) {
    let (sk, seq) = (ctx.sk, ctx.meta.seq);
    // One writer: iterators are read by one thread.
    if let Some(record) = SEEDING.edit(0)
        && sk != 0
        && listed(sk, record)
    {
        // A full buffer shows the socket again at the next read.
        emit::show(seq, record);
    }
}

/// Fills in the record; false when there is nothing to say of the socket.
#[inline(always)]
fn listed(sk: u64, record: &mut Seed) -> bool {
    let state = field!(sk, skc_state: u8);
    record.header = emit::header::<Seed>();
    record.socket = Socket::default();
    record.owner = Owner::default();
    clear(record);
    match state {
        state::TIME_WAIT | state::NEW_SYN_RECV => embryo_or_remains(sk, state, record),
        state::LISTEN => listener(sk, record),
        _ => connection(sk, state, record),
    }
}

/// What only full sockets have.
#[inline(always)]
fn clear(record: &mut Seed) {
    record.bytes_received = 0;
    record.active_ns = 0;
    record.since_ns = 0;
    record.ack_backlog = 0;
    record.max_ack_backlog = 0;
    record.holders = 0;
    record.num_retrans = 0;
    record.heard_idle_ns = u64::MAX;
    record.retrans_stamp = 0;
}

/// A request, or what is left of a connection: neither is a full socket.
#[inline(always)]
fn embryo_or_remains(sk: u64, state: u8, record: &mut Seed) -> bool {
    sock::fill_common::<Anywhere>(sk, &mut record.socket);
    record.tcp = Tcp::default();
    if state == state::NEW_SYN_RECV {
        record.socket.role = role::PASSIVE;
        record.num_retrans = field!(sk, req_num_retrans: u8);
        socket::inherit(field!(sk, skc_listener: u64), u64::MAX, &mut record.owner);
    } else {
        let stage = field!(sk, tw_substate: u8);
        if stage != 0 {
            record.socket.state = stage;
        }
    }
    matching::socket(&record.socket)
}

#[inline(always)]
fn listener(sk: u64, record: &mut Seed) -> bool {
    sock::fill_full::<Anywhere>(sk, &mut record.socket);
    record.socket.role = role::LISTENER;
    record.tcp = Tcp::default();
    record.ack_backlog = field!(sk, sk_ack_backlog: u32);
    record.max_ack_backlog = field!(sk, sk_max_ack_backlog: u32);
    if let Some(entry) = LISTENERS.edit(sk) {
        fork::mark(&mut entry.syn.owner, entry.owned_ns);
        record.socket.born_ns = entry.syn.socket.born_ns;
        record.socket.flags = entry.syn.socket.flags;
        record.owner = entry.syn.owner;
        record.holders = entry.held.holders;
        return record.socket.flags != 0;
    }
    matching::socket(&record.socket)
}

#[inline(always)]
fn connection(sk: u64, state: u8, record: &mut Seed) -> bool {
    // Those of other owners, too: userspace counts what it leaves out, and owners are known only now.
    let known = socket::fill_known(sk, &mut record.socket, &mut record.owner);
    if !matching::socket(&record.socket) {
        return false;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    field_into!(sk, bytes_received, &mut record.bytes_received);
    record.active_ns = active_ns(sk);
    record.heard_idle_ns = idle::heard_idle_ns(sk);
    field_into!(sk, retrans_stamp, &mut record.retrans_stamp);
    let Some(entry) = known else {
        return true;
    };
    record.holders = entry.held.holders;
    if is_half_closed(state) {
        record.since_ns = entry.since_ns;
    }
    entry.older != 0
}
