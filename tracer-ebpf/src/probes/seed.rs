//! What was there before the hooks: every socket of a network namespace, and the processes that hold
//! them. BPF iterators, which userspace reads once each after the hooks are attached.
//!
//! `seed` takes sockets in and writes nothing, so that one read walks a whole namespace under the
//! kernel's own bucket locks; `seed_owners` walks every open file; `seed_list` writes a `Seed` of each
//! socket that is older than the tracer. A socket whose birth a hook saw is left alone by all three.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_seq_write},
    macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use conntracer_common::{
    record::{Header, Owner, Seed, Socket, Tcp, kind, owner_source, role},
    socket::{Held, Holder, Listener, SocketState},
    stats::hook,
    tcp::state,
};

use crate::{
    maps::{HEIR, LISTENERS, Outcome, SEEDING, SOCKETS, account, global},
    probes::{filter, fork, listener, socket},
    sock::{self, Anywhere, field, field_into},
};

/// `struct bpf_iter_meta`.
#[repr(C)]
pub(crate) struct Meta {
    seq: u64,
    session: u64,
    number: u64,
}

/// `struct bpf_iter__tcp`.
#[repr(C)]
pub(crate) struct TcpContext {
    meta: *const Meta,
    sk: u64,
}

/// `struct bpf_iter__task_file`.
#[repr(C)]
pub(crate) struct FileContext {
    meta: *const Meta,
    task: u64,
    descriptor: u64,
    file: u64,
}

/// Takes a socket in. Full sockets and listeners have entries; requests and sockets in TIME_WAIT have
/// none, here or anywhere.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub(crate) extern "C" fn seed(ctx: *const TcpContext) -> i32 {
    // SAFETY: the kernel's context; the socket is NULL at the end.
    let sk = unsafe { (*ctx).sk };
    if sk == 0 {
        return 0;
    }
    match field!(sk, skc_state: u8) {
        state::TIME_WAIT | state::NEW_SYN_RECV => 0,
        state::LISTEN => account(hook::SEED, listener::seeded(sk)),
        state => account(hook::SEED, seeded(sk, state)),
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
    if !socket::wanted(&socket) || SOCKETS.get_ptr_mut(sk).is_some() {
        return Outcome::Filtered;
    }
    let half_closed = if is_half_closed(state) { state } else { 0 };
    let troubled = field!(sk, icsk_retransmits: u8) | field!(sk, icsk_probes_out: u8) != 0;
    let entry = SocketState {
        born_ns: global!(OPTIONS.began_ns),
        since_ns: if half_closed == 0 { 0 } else { active_ns(sk) },
        listener: if role == role::PASSIVE { listener } else { 0 },
        half_closed,
        role,
        troubled: u8::from(troubled),
        older: 1,
        ..SocketState::default()
    };
    match SOCKETS.insert(sk, &entry, u64::from(BPF_NOEXIST)) {
        Ok(()) => Outcome::Aggregated,
        // A hook adopted it meanwhile, or there is no room.
        Err(_) if SOCKETS.get_ptr_mut(sk).is_some() => Outcome::Filtered,
        Err(_) => Outcome::Lost,
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

/// Finds out who holds a socket, and writes a `Holder` for each process. They come in the order of their
/// pids; the first, or its parent, is the owner of what has none, and whatever a hook learned stands.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
pub(crate) extern "C" fn seed_owners(ctx: *const FileContext) -> i32 {
    // SAFETY: the kernel's context; task and file are NULL at the end.
    let (task, file, meta) = unsafe { ((*ctx).task, (*ctx).file, (*ctx).meta) };
    if task == 0 || file == 0 {
        return 0;
    }
    let sk = socket::behind(file);
    // SAFETY: live map values of plain data.
    if let Some(entry) = SOCKETS.get_ptr_mut(sk) {
        let entry = unsafe { &mut *entry };
        let kept = Kept {
            born_ns: entry.born_ns,
            held: &mut entry.held,
            owner: &mut entry.owner,
            owned_ns: &mut entry.owned_ns,
            asked: &mut entry.asked,
        };
        hold(sk, kept, task, meta);
    } else if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        let Listener {
            syn,
            owned_ns,
            held,
            asked,
            ..
        } = unsafe { &mut *entry };
        let kept = Kept {
            born_ns: syn.socket.born_ns,
            held,
            owner: &mut syn.owner,
            owned_ns,
            asked,
        };
        hold(sk, kept, task, meta);
    }
    0
}

/// What the maps keep of a socket that a process holds.
struct Kept<'entry> {
    born_ns: u64,
    held: &'entry mut Held,
    owner: &'entry mut Owner,
    owned_ns: &'entry mut u64,
    asked: &'entry mut u8,
}

#[inline(always)]
fn hold(sk: u64, kept: Kept<'_>, task: u64, meta: *const Meta) {
    let Kept {
        born_ns,
        held,
        owner,
        owned_ns,
        asked,
    } = kept;
    // SAFETY: neither the context's `meta` nor its `seq` is ever NULL.
    let (seq, search) = unsafe { ((*meta).seq, (*meta).session as u32) };
    let pid = field!(task, task_tgid: u32);
    if held.search != search {
        held.search = search;
        held.holders = 0;
        held.pid = 0;
    }
    if held.pid == pid {
        return;
    }
    // Pids wrap: a parent may come after the child that inherited its descriptor.
    let is_parent = owner.source == owner_source::SEEDED && held.parent == pid;
    if owner.source == owner_source::UNKNOWN || is_parent {
        held.parent = field!(field!(task, task_parent: u64), task_tgid: u32);
        sock::fill_task(owner, task, owner_source::SEEDED);
        // It may have forked long before.
        *owned_ns = 0;
        *asked = filter::of(owner);
    }
    fork::mark(owner, *owned_ns);
    let mut holder = Holder {
        sk,
        born_ns,
        owner_pid: owner.pid,
        owner_started_ms: owner.started_ms,
        owner_source: owner.source,
        ..Holder::default()
    };
    sock::fill_task(&mut holder.owner, task, owner_source::SEEDED);
    // SAFETY: initialised stack. A full buffer shows the file again at the next read.
    let written = unsafe {
        bpf_seq_write(
            seq as *mut _,
            core::ptr::from_ref(&holder).cast(),
            size_of::<Holder>() as u32,
        )
    };
    if written == 0 {
        held.pid = pid;
        held.holders += 1;
        owner.holders = if held.holders < u8::MAX as u32 {
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
    // SAFETY: live map values of plain data.
    let (born, owner, kept_ns, asked) = if let Some(entry) = SOCKETS.get_ptr_mut(sk) {
        let entry = unsafe { &mut *entry };
        (
            entry.born_ns,
            &mut entry.owner,
            &mut entry.owned_ns,
            &mut entry.asked,
        )
    } else if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        let Listener {
            syn,
            owned_ns,
            asked,
            ..
        } = unsafe { &mut *entry };
        (syn.socket.born_ns, &mut syn.owner, owned_ns, asked)
    } else {
        return 0;
    };
    if born == born_ns && owner.pid == heir.before_pid {
        *owner = heir.owner;
        *kept_ns = owned_ns;
        *asked = filter::of(owner);
    }
    0
}

/// Writes a `Seed` of a socket that is older than the tracer, or of one that the maps have no room for.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub(crate) extern "C" fn seed_list(ctx: *const TcpContext) -> i32 {
    // SAFETY: as in `seed`; `meta` and its `seq` are never NULL.
    let (sk, seq) = unsafe { ((*ctx).sk, (*(*ctx).meta).seq) };
    let Some(record) = SEEDING.get_ptr_mut(0) else {
        return 0;
    };
    if sk == 0 {
        return 0;
    }
    // SAFETY: the map's only value, with one writer: iterators are read by one thread.
    let record = unsafe { &mut *record };
    if listed(sk, record) {
        // SAFETY: an initialised map value. A full buffer shows the socket again at the next read.
        unsafe {
            bpf_seq_write(
                seq as *mut _,
                core::ptr::from_ref(record).cast(),
                size_of::<Seed>() as u32,
            );
        }
    }
    0
}

/// Fills in the record; false when there is nothing to say of the socket.
#[inline(always)]
fn listed(sk: u64, record: &mut Seed) -> bool {
    let state = field!(sk, skc_state: u8);
    // SAFETY: helpers without preconditions.
    record.header = unsafe {
        Header {
            ktime_ns: bpf_ktime_get_ns(),
            kind: kind::SEED,
            size: size_of::<Seed>() as u16,
            cpu: bpf_get_smp_processor_id(),
        }
    };
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
    socket::wanted(&record.socket)
}

#[inline(always)]
fn listener(sk: u64, record: &mut Seed) -> bool {
    sock::fill_full::<Anywhere>(sk, &mut record.socket);
    record.socket.role = role::LISTENER;
    record.tcp = Tcp::default();
    record.ack_backlog = field!(sk, sk_ack_backlog: u32);
    record.max_ack_backlog = field!(sk, sk_max_ack_backlog: u32);
    if let Some(entry) = LISTENERS.get_ptr_mut(sk) {
        // SAFETY: a live map value of plain data.
        let entry = unsafe { &mut *entry };
        fork::mark(&mut entry.syn.owner, entry.owned_ns);
        record.socket.born_ns = entry.syn.socket.born_ns;
        record.socket.flags = entry.syn.socket.flags;
        record.owner = entry.syn.owner;
        record.holders = entry.held.holders;
        return record.socket.flags != 0;
    }
    socket::wanted(&record.socket)
}

#[inline(always)]
fn connection(sk: u64, state: u8, record: &mut Seed) -> bool {
    // Those of other owners, too: userspace counts what it leaves out, and owners are known only now.
    let known = socket::fill_known(sk, &mut record.socket, &mut record.owner);
    if !socket::wanted(&record.socket) {
        return false;
    }
    sock::fill_tcp(sk, &mut record.tcp);
    field_into!(sk, bytes_received, &mut record.bytes_received);
    record.active_ns = active_ns(sk);
    if let Some(entry) = known {
        // SAFETY: a live map value of plain data.
        let entry = unsafe { &*entry };
        record.holders = entry.held.holders;
        if is_half_closed(state) {
            record.since_ns = entry.since_ns;
        }
        return entry.older != 0;
    }
    true
}
