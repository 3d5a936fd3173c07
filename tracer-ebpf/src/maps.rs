//! The maps, what their keys and values are where both sides do not share them, and how large they are unless
//! userspace loads them larger. `table` holds the ways to their values.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, PerfEventArray, RingBuf},
};
use conntracer_common::{
    early_drop::DropCounters,
    netns::{Counts, Look},
    record::{AcceptQueue, Beside, Dropped, Owner, Seed, Sources},
    socket::{
        BIND_KEY_BYTES, BindFailed, DROP_PLACES_MOST, DROP_REASONS, DROPPED_KEY_BYTES, DropPlace,
        EARLY_DROP_KEY_BYTES, EarlyDropEntry, FAILED_KEY_BYTES, FORK_PLACES, Failed, Heir,
        IcmpSaid, Listener, RETRANSMITTED_KEY_BYTES, Retransmitted, SocketState, SoughtPorts,
    },
    stats::{HookCounters, hook},
    syn::SynCounters,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::table::Table;

/// Records that must survive a flood of the others; user space is woken for them.
#[map]
pub(crate) static RARE: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Everything else; drained at the poll interval, never woken for.
#[map]
pub(crate) static BULK: RingBuf = RingBuf::with_byte_size(8 * 1024 * 1024, 0);
#[map]
pub(crate) static RARE_PERF: PerfEventArray<u8> = PerfEventArray::new(0);
#[map]
pub(crate) static BULK_PERF: PerfEventArray<u8> = PerfEventArray::new(0);

/// Connections by the address of their `struct sock`.
#[map]
pub(crate) static SOCKETS: Table<HashMap<u64, SocketState>> = Table::hash(65_536);

/// Which connection sends again: an address alone is another's a moment later.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct RetransmitKey {
    pub(crate) sk: u64,
    pub(crate) born_ns: u64,
}

const _: () = assert!(size_of::<RetransmitKey>() == RETRANSMITTED_KEY_BYTES);

/// What connections sent again. A plain hash, so that totals stay exact; userspace removes what is idle.
/// 5 MB: what finds it full is a record each, as if there were no map.
#[map]
pub(crate) static RETRANSMITS: Table<HashMap<RetransmitKey, Retransmitted>> = Table::hash(8192);

/// When processes last forked, by `conntracer_common::socket::fork_place`; the last place is userspace's:
/// see `FORKS_UNSEEN`. An array: a map that forgets would make a child's socket plainly its parent's.
#[map]
pub(crate) static FORKS: Table<Array<u64>> = Table::array(FORK_PLACES + 1);

/// Where `seed_list` makes its records.
#[map]
pub(crate) static SEEDING: Table<Array<Seed>> = Table::array(1);

/// The process that `heir` makes a socket's owner, and whom it follows.
#[map]
pub(crate) static HEIR: Table<Array<Heir>> = Table::array(1);

/// The address that `beside` looks for, and what it found so far.
#[map]
pub(crate) static BESIDE: Table<Array<Beside>> = Table::array(1);

/// What `accept_queue` found.
#[map]
pub(crate) static ACCEPT_QUEUE: Table<Array<AcceptQueue>> = Table::array(1);

/// Listeners by the address of their `struct sock`. A plain hash: an LRU would forget listeners under
/// pressure, and with them the attribution of every drop.
#[map]
pub(crate) static LISTENERS: Table<HashMap<u64, Listener>> = Table::hash(4096);

/// Who troubles listeners, by the address of the listener's `struct sock`. LRU: a listener forgotten
/// among 1,024 others in trouble starts anew.
#[map]
pub(crate) static SKETCHES: Table<LruHashMap<u64, Sources>> = Table::lru(1024);

/// Where a packet's listener is looked up: on the tracepoint hook type, and for a packet that was dropped on its
/// way to one.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct ListenKey {
    pub(crate) addr: [u32; 4],
    /// The inode of the namespace, and the port above it: in one word, as keys are best for the verifier (see
    /// `table`).
    pub(crate) place: u64,
}

#[map]
pub(crate) static LISTEN_PORTS: Table<HashMap<ListenKey, u64>> = Table::hash(4096);

/// Where dropped SYNs were to go, and why they were dropped. `port` 0 and no address: all that found
/// `EARLY_DROPS` full.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct EarlyDropKey {
    /// 0 where the kernel gives a reason.
    pub(crate) location: u64,
    pub(crate) addr: [u32; 4],
    pub(crate) netns: u32,
    pub(crate) reason: u32,
    pub(crate) port: u16,
    pub(crate) family: u16,
    pub(crate) path: u8,
    pub(crate) hints: u8,
    pub(crate) pad: u16,
}

const _: () = assert!(size_of::<EarlyDropKey>() == EARLY_DROP_KEY_BYTES);

/// SYNs dropped before a listener decided on them. A plain hash, so that totals stay exact; userspace
/// removes what is idle.
#[map]
pub(crate) static EARLY_DROPS: Table<HashMap<EarlyDropKey, EarlyDropEntry>> = Table::hash(4096);

/// Those that found `EARLY_DROPS` full, one entry a namespace and reason.
#[map]
pub(crate) static EARLY_DROPS_OVERFLOW: Table<HashMap<EarlyDropKey, EarlyDropEntry>> =
    Table::hash(256);

/// Which segments were dropped alike: between which ends, as their receiver sees it, and where.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct DroppedKey {
    pub(crate) local_addr: [u32; 4],
    pub(crate) remote_addr: [u32; 4],
    /// The namespace, and the local and the remote port above it; the reason, and layer, hook and rule above it: in
    /// words, as keys are best for the verifier (see `table`).
    pub(crate) place: u64,
    pub(crate) why: u64,
    /// The handle of the netfilter rule, and its chain; 0 where not known.
    pub(crate) rule_handle: u64,
    pub(crate) chain: u64,
}

const _: () = assert!(size_of::<DroppedKey>() == DROPPED_KEY_BYTES);

/// Segments of connections that were dropped on this host, looked at once a connection is in trouble: the drop comes
/// before the trouble. LRU, so that a flood leaves what goes on; `DROPPED_PACE` bounds what a flood may put in. 1 MB.
#[map]
pub(crate) static DROPPED: Table<LruHashMap<DroppedKey, Dropped>> = Table::lru(4096);

/// Segments counted in `DROPPED` so far, and those that were not because too many new ends came at once.
#[map]
pub(crate) static DROPPED_COUNTED: Table<PerCpuArray<[u64; 2]>> = Table::per_cpu(1);

/// Since when, and how many new entries this CPU made and how many rules it searched for since.
#[map]
pub(crate) static DROPPED_PACE: Table<PerCpuArray<[u64; 3]>> = Table::per_cpu(1);

/// Where a program keeps its context's address, to have it as a number, and what a search from there found: a chain, and
/// the handle of a rule.
#[map]
pub(crate) static CONTEXT: Table<PerCpuArray<[u64; 3]>> = Table::per_cpu(1);

/// Which part of the kernel drops for a reason, by `enum skb_drop_reason`: one of `drop_layer`, filled before load.
#[map]
pub(crate) static DROP_LAYERS: Table<Array<u64>> = Table::array(DROP_REASONS);

/// The same for kernels that give none, by the function that drops.
#[map]
pub(crate) static DROP_PLACES: Table<Array<[DropPlace; DROP_PLACES_MOST]>> = Table::array(1);

/// When this CPU last emitted an `EarlyDrop`.
#[map]
pub(crate) static EARLY_DROP_SAID: Table<PerCpuArray<u64>> = Table::per_cpu(1);

/// Which attempts to connect fail alike. `port` 0 and no address: all that found `FAILURES` full.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct FailureKey {
    pub(crate) addr: [u32; 4],
    pub(crate) netns: u32,
    pub(crate) pid: u32,
    pub(crate) port: u16,
    pub(crate) error: u16,
    pub(crate) family: u16,
    pub(crate) how: u8,
    pub(crate) pad: u8,
}

const _: () = assert!(size_of::<FailureKey>() == FAILED_KEY_BYTES);

/// Attempts to connect that failed. A plain hash, so that totals stay exact; userspace removes what is
/// idle.
#[map]
pub(crate) static FAILURES: Table<HashMap<FailureKey, Failed>> = Table::hash(4096);

/// The last ICMP message about a SYN, by [`icmp_key`], for userspace. LRU: most are about attempts that have ended.
#[map]
pub(crate) static ICMP_SAID: Table<LruHashMap<u64, IcmpSaid>> = Table::lru(1024);

/// When a socket that was connecting last answered a segment with a RST, for userspace.
#[map]
pub(crate) static ANSWERED: Table<LruHashMap<u64, u64>> = Table::lru(256);

/// Those that found `FAILURES` full, one entry a process and error.
#[map]
pub(crate) static FAILURES_OVERFLOW: Table<HashMap<FailureKey, Failed>> = Table::hash(256);

/// Failures counted so far, so that the maps are read only when there is something new: a walk keeps kprobe
/// programs of its CPU from running (`bpf_disable_instrumentation`).
#[map]
pub(crate) static FAILURES_COUNTED: Table<Array<u64>> = Table::array(1);

/// When this CPU last emitted a `Failure`.
#[map]
pub(crate) static FAILURE_SAID: Table<PerCpuArray<u64>> = Table::per_cpu(1);

/// `tcp_v4/v6_connect` under way, by thread: its socket and address (kprobe hook type). It may sleep, so that a
/// slot a CPU would not do. LRU: an exit that was missed leaves its entry behind.
#[map]
pub(crate) static CONNECTING: Table<LruHashMap<u64, [u64; 2]>> = Table::lru(1024);

/// Which calls of bind() and listen() fail alike. No address, port or call: all that found `BINDS` full.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct BindKey {
    pub(crate) addr: [u32; 4],
    pub(crate) netns: u32,
    pub(crate) pid: u32,
    /// Port, error and call: in one word, as keys are best for the verifier (see `table`).
    pub(crate) what: u64,
}

const _: () = assert!(size_of::<BindKey>() == BIND_KEY_BYTES);

/// Calls of bind() and listen() that failed. A plain hash, so that totals stay exact; userspace removes what is idle.
#[map]
pub(crate) static BINDS: Table<HashMap<BindKey, BindFailed>> = Table::hash(1024);

/// Those that found `BINDS` full, one entry a process.
#[map]
pub(crate) static BINDS_OVERFLOW: Table<HashMap<BindKey, BindFailed>> = Table::hash(256);

/// Failures counted so far: without any, a call that succeeds is not looked at, and the maps are not read.
#[map]
pub(crate) static BINDS_COUNTED: Table<Array<u64>> = Table::array(1);

/// When this CPU last emitted a `Bind`, of a failure and of a success.
#[map]
pub(crate) static BIND_SAID: Table<PerCpuArray<u64>> = Table::per_cpu(1);
#[map]
pub(crate) static BOUND_SAID: Table<PerCpuArray<u64>> = Table::per_cpu(1);

/// When a process, and a call at a port of a namespace, last failed. LRU: what is forgotten among 1,024 others is not seen
/// to succeed.
#[map]
pub(crate) static BIND_TROUBLED: Table<LruHashMap<u64, u64>> = Table::lru(1024);

/// Calls under way, by thread: their `struct socket` and address (kprobe hook type). LRU: as `CONNECTING`.
#[map]
pub(crate) static BINDING: Table<LruHashMap<u64, [u64; 2]>> = Table::lru(256);

/// The ports whose holders `port_holders` looks for.
#[map]
pub(crate) static PORTS_SOUGHT: Table<Array<SoughtPorts>> = Table::array(1);

/// An RST of a socket.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct Rst {
    /// 0 when there was none since.
    pub(crate) sk: u64,
    /// `enum sk_rst_reason`; `u32::MAX` when the kernel gives none.
    pub(crate) reason: u32,
    /// 1 received, 0 sent.
    pub(crate) received: u32,
}

/// The last RST on this CPU: the change of state that it leads to follows in the same call. Where none is looked at,
/// the address may be another connection's by the time one is.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct LastRst {
    pub(crate) rst: Rst,
    /// Of the connection; 0 where it is not known.
    pub(crate) born_ns: u64,
}

#[map]
pub(crate) static LAST_RST: Table<PerCpuArray<LastRst>> = Table::per_cpu(1);

/// A listener that a thread closed.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct ClosedListener {
    pub(crate) owner: Owner,
    pub(crate) netns: u32,
    pub(crate) local_port: u16,
    pub(crate) pad: u16,
}

/// The last one that each thread closed, by thread: what waits in its queue ends in the same call, and the listener is
/// forgotten by then. LRU: one forgotten among 256 others leaves those connections without an owner.
#[map]
pub(crate) static CLOSED_LISTENERS: Table<LruHashMap<u64, ClosedListener>> = Table::lru(256);

/// Between which ends a RST went, as its sender sees them. `remote_port` 0: whatever port of the remote end.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct SentRstKey {
    pub(crate) local_addr: [u32; 4],
    pub(crate) remote_addr: [u32; 4],
    /// The local port, and the remote one above it: in one word, as keys are best for the verifier (see `table`).
    pub(crate) ports: u64,
}

/// How one was sent.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct SentRst {
    pub(crate) at_ns: u64,
    pub(crate) reason: u32,
    pub(crate) netns: u32,
    /// One of `rst_sender`.
    pub(crate) how: u8,
    /// Of the sender's socket.
    pub(crate) state: u8,
    pub(crate) pad: [u8; 6],
}

/// The last RSTs that TCP sent on this host, for the end that is reset by one. LRU: one forgotten among 2,048 others is
/// not seen, and is not said to have come from elsewhere without the other candidates.
#[map]
pub(crate) static SENT_RSTS: Table<LruHashMap<SentRstKey, SentRst>> = Table::lru(2048);

/// A client whose third ACK was discarded.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct Client {
    pub(crate) local_addr: [u32; 4],
    pub(crate) remote_addr: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) netns: u32,
}

/// When each such client last had that: it retransmits its ACK, and is one victim all the same. LRU: one
/// forgotten among 16,384 others counts again.
#[map]
pub(crate) static VICTIMS: Table<LruHashMap<Client, u64>> = Table::lru(16_384);

/// What went wrong in each network namespace (`NetnsId`, as one word), to be held against the kernel's own counters. 8 kB of
/// keys and 240 kB of counts; what finds no room is counted under the key of all zeros.
#[map]
pub(crate) static NETNS: Table<HashMap<u64, Counts>> = Table::hash(1024);

/// Processes that match the filter, by pid. These and what follows hold nothing where it has no such condition.
#[map]
pub(crate) static FILTER_PIDS: Table<HashMap<u32, u8>> = Table::hash(1);

/// The same by name: `conntracer_common::filter::comm_words`.
#[map]
pub(crate) static FILTER_COMMS: Table<HashMap<[u64; 2], u8>> = Table::hash(1);

/// What the filter says of each control group, `conntracer_common::filter::verdict` by id: a group keeps its
/// path and its id is never another's. Of one that is new here userspace is asked; while there is no
/// room, it decides on the records.
#[map]
pub(crate) static GROUPS: Table<HashMap<u64, u8>> = Table::hash(1);

/// Groups met so far that nobody had decided on.
#[map]
pub(crate) static GROUPS_MET: Table<Array<u64>> = Table::array(1);

/// What `netns_look` found last.
#[map]
pub(crate) static NETNS_LOOK: Table<Array<Look>> = Table::array(1);

/// Every CPU's per-CPU offset, 0 where it is not known; copied there from `PERCPU_ANCHOR` by the user
/// half, because a program sees only its own CPU's.
#[map]
pub(crate) static PERCPU_OFFSETS: Table<Array<u64>> = Table::array(4096);

/// One hook's counters on this CPU, indexed by `stats::hook`.
#[map]
pub(crate) static COUNTERS: Table<PerCpuArray<HookCounters>> = Table::per_cpu(hook::COUNT);

/// Entry to exit of `tcp_conn_request` and `tcp_v4/v6_syn_recv_sock` on this CPU. Both run with
/// bottom halves off, so one slot a CPU is enough.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct Bracket {
    pub(crate) sk: u64,
    pub(crate) skb: u64,
    pub(crate) counters: SynCounters,
    /// See `percpu::no_routes`; of a SYN only.
    pub(crate) no_routes: u64,
    pub(crate) drops: u32,
    pub(crate) ack_backlog: u32,
    pub(crate) max_ack_backlog: u32,
    pub(crate) syn_qlen: u32,
    /// `tcp_v6_syn_recv_sock` calls `tcp_v4_syn_recv_sock` for v4-mapped peers.
    pub(crate) nested: u32,
    /// SYN-ACKs retransmitted for the request whose third ACK this is; 0 for a SYN.
    pub(crate) retransmitted: u8,
    /// 1 for a third ACK that brought a valid cookie.
    pub(crate) cookie: u8,
    pub(crate) pad: [u8; 2],
}

/// Entry to exit of `tcp_check_req` on this CPU (kprobe hook type).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct Checked {
    pub(crate) sk: u64,
    pub(crate) skb: u64,
    /// 0 when no call is under way.
    pub(crate) request: u64,
    pub(crate) stolen: u64,
}

#[map]
pub(crate) static CHECKED: Table<PerCpuArray<Checked>> = Table::per_cpu(1);

/// Entry to exit of `reqsk_timer_handler` on this CPU: timers of one CPU follow one another.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct Expiring {
    /// 0 when no call is under way.
    pub(crate) request: u64,
    /// 0 when the request is not the timer's to end: it was removed already, or its listener closed.
    pub(crate) listener: u64,
    pub(crate) timeouts: u64,
}

#[map]
pub(crate) static EXPIRING: Table<PerCpuArray<Expiring>> = Table::per_cpu(1);

/// Counters as they stood at the last look on this CPU. A program fills its own CPU's part of a new entry,
/// and the kernel zeroes the others' (kernel/bpf/hashtab.c, `pcpu_init_value`).
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct DropLook {
    /// 0 when this CPU has not looked yet.
    pub(crate) looks: u64,
    pub(crate) counters: DropCounters,
}

/// A namespace's such counters at its last dropped segment on this CPU (kernels without drop reasons).
#[map]
pub(crate) static LAST_DROP_LOOK: Table<LruPerCpuHashMap<u32, DropLook>> = Table::lru_per_cpu(1024);

/// What a namespace's SYNs are judged by (tracepoint hook type); as with [`DropLook`].
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct SynLook {
    pub(crate) looks: u64,
    pub(crate) counters: SynCounters,
    /// By family, IPv4 first; one more than was counted, 0 when no SYN of the family was looked at yet.
    pub(crate) no_routes: [u64; 2],
}

/// A namespace's such counters at the last look on this CPU. LRU: namespaces come and go, and a forgotten one
/// only starts anew.
#[map]
pub(crate) static LAST_SYN_LOOK: Table<LruPerCpuHashMap<u32, SynLook>> = Table::lru_per_cpu(1024);

#[map]
pub(crate) static SYN_BRACKET: Table<PerCpuArray<Bracket>> = Table::per_cpu(1);
#[map]
pub(crate) static ACK_BRACKET: Table<PerCpuArray<Bracket>> = Table::per_cpu(1);
/// Entry to exit of `cookie_v4/v6_check` on this CPU; `sk` is 0 outside.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub(crate) struct CookieBracket {
    pub(crate) sk: u64,
    pub(crate) valid: u64,
    pub(crate) invalid: u64,
}

#[map]
pub(crate) static COOKIE_BRACKET: Table<PerCpuArray<CookieBracket>> = Table::per_cpu(1);
/// Entry to exit of `tcp_send_loss_probe` on this CPU: the socket, if it may send one.
#[map]
pub(crate) static LOSS_PROBE_BRACKET: Table<PerCpuArray<u64>> = Table::per_cpu(1);
#[map]
pub(crate) static TCP_PROBE_BRACKET: Table<PerCpuArray<[u64; 2]>> = Table::per_cpu(1);

/// A per-CPU array whose per-CPU pointer can be read from its `struct bpf_array`: the difference
/// between that pointer and the address of this CPU's element is this CPU's per-CPU offset, and is
/// kept in the element. 0 until `percpu_base` ran on this CPU.
#[map]
pub(crate) static PERCPU_ANCHOR: Table<PerCpuArray<u64>> = Table::per_cpu(1);
/// Where `percpu_base` copies `struct bpf_array` to.
#[map]
pub(crate) static ARRAY_COPY: Table<Array<[u64; 64]>> = Table::array(1);
