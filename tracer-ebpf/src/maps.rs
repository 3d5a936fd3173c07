//! Maps and read-only globals, and the few ways programs touch them.
//!
//! Globals are filled by userspace before load and frozen: the verifier sees constants and prunes
//! the branches not taken. Sizes given here are overridden at load.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, PerfEventArray, RingBuf},
};
use conntracer_common::{
    filter::{Filter, Read},
    layout::{KernelFacts, KernelLayout},
    netns::{Counts, Look, NetnsId},
    options::Options,
    record::{Close, Drop, Retransmit, Seed, Sources},
    socket::{
        EARLY_DROP_KEY_BYTES, EarlyDropEntry, FAILED_KEY_BYTES, FORK_PLACES, Failed, Heir,
        Listener, RETRANSMITTED_KEY_BYTES, Retransmitted, SocketState,
    },
    stats::{HookCounters, hook},
};

#[unsafe(no_mangle)]
pub(crate) static LAYOUT: KernelLayout = KernelLayout::UNRESOLVED;
#[unsafe(no_mangle)]
pub(crate) static FACTS: KernelFacts = KernelFacts::UNRESOLVED;
#[unsafe(no_mangle)]
pub(crate) static FILTER: Filter = Filter::NONE;
#[unsafe(no_mangle)]
pub(crate) static OPTIONS: Options = Options {
    began_ns: 0,
    emit: 0,
    perf: 0,
    connect_by_state: 0,
    ack_by_skb: 0,
    syn_by_skb: 0,
    failure_by_state: 0,
    pad: [0; 3],
    tick_ns: 0,
};

/// Reads one field of a global.
macro_rules! global {
    ($global:ident $(. $field:ident)?) => {
        $crate::maps::injected(&$crate::maps::$global $(. $field)?)
    };
}
pub(crate) use global;

/// Volatile, or LLVM would fold the compiled-in value.
#[inline(always)]
pub(crate) fn injected<T: Copy>(value: &'static T) -> T {
    // SAFETY: a read of a static that only the loader writes, before the program runs.
    unsafe { core::ptr::read_volatile(value) }
}

/// How the parts of a global are read one by one: a copy of the whole would not fit on the stack.
pub(crate) struct Injected;

impl Read for Injected {
    #[inline(always)]
    fn read<T: Copy>(place: &T) -> T {
        // SAFETY: as in `injected`.
        unsafe { core::ptr::read_volatile(place) }
    }
}

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
pub(crate) static SOCKETS: HashMap<u64, SocketState> = HashMap::with_max_entries(65_536, 0);

/// What an adopted connection's entry is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_SOCKET: Array<SocketState> = Array::with_max_entries(1, 0);

/// Which connection sends again: an address alone is another's a moment later.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct RetransmitKey {
    pub(crate) sk: u64,
    pub(crate) born_ns: u64,
}

const _: () = assert!(size_of::<RetransmitKey>() == RETRANSMITTED_KEY_BYTES);

/// What connections sent again. A plain hash, so that totals stay exact; userspace removes what is idle.
/// 5 MB: what finds it full is a record each, as if there were no map.
#[map]
pub(crate) static RETRANSMITS: HashMap<RetransmitKey, Retransmitted> =
    HashMap::with_max_entries(8192, 0);

/// What a new entry is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_RETRANSMITS: Array<Retransmitted> = Array::with_max_entries(1, 0);

/// When processes last forked, by `conntracer_common::socket::fork_place`; the last place is userspace's:
/// see `FORKS_UNSEEN`. An array: a map that forgets would make a child's socket plainly its parent's.
#[map]
pub(crate) static FORKS: Array<u64> = Array::with_max_entries(FORK_PLACES + 1, 0);

/// Where `seed_list` makes its records.
#[map]
pub(crate) static SEEDING: Array<Seed> = Array::with_max_entries(1, 0);

/// The process that `heir` makes a socket's owner, and whom it follows.
#[map]
pub(crate) static HEIR: Array<Heir> = Array::with_max_entries(1, 0);

/// Listeners by the address of their `struct sock`. A plain hash: an LRU would forget listeners under
/// pressure, and with them the attribution of every drop.
#[map]
pub(crate) static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(4096, 0);

/// What a new listener's entry is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_LISTENER: Array<Listener> = Array::with_max_entries(1, 0);

/// Who troubles listeners, by the address of the listener's `struct sock`. LRU: a listener forgotten
/// among 1,024 others in trouble starts anew.
#[map]
pub(crate) static SKETCHES: LruHashMap<u64, Sources> = LruHashMap::with_max_entries(1024, 0);

/// What a new sketch is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_SKETCH: Array<Sources> = Array::with_max_entries(1, 0);

/// Where a packet's listener is looked up: on the tracepoint hook type, and for a packet that was dropped on its
/// way to one.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct ListenKey {
    pub(crate) addr: [u32; 4],
    pub(crate) netns: u32,
    pub(crate) port: u16,
    pub(crate) pad: u16,
}

#[map]
pub(crate) static LISTEN_PORTS: HashMap<ListenKey, u64> = HashMap::with_max_entries(4096, 0);

/// Where dropped SYNs were to go, and why they were dropped. `port` 0 and no address: all that found
/// `EARLY_DROPS` full.
#[repr(C)]
#[derive(Clone, Copy)]
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
pub(crate) static EARLY_DROPS: HashMap<EarlyDropKey, EarlyDropEntry> =
    HashMap::with_max_entries(4096, 0);

/// Those that found `EARLY_DROPS` full, one entry a namespace and reason.
#[map]
pub(crate) static EARLY_DROPS_OVERFLOW: HashMap<EarlyDropKey, EarlyDropEntry> =
    HashMap::with_max_entries(256, 0);

/// What a new entry of the two is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_EARLY_DROP: Array<EarlyDropEntry> = Array::with_max_entries(1, 0);

/// When this CPU last emitted an `EarlyDrop`.
#[map]
pub(crate) static EARLY_DROP_SAID: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// Which attempts to connect fail alike. `port` 0 and no address: all that found `FAILURES` full.
#[repr(C)]
#[derive(Clone, Copy)]
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
pub(crate) static FAILURES: HashMap<FailureKey, Failed> = HashMap::with_max_entries(4096, 0);

/// Those that found `FAILURES` full, one entry a process and error.
#[map]
pub(crate) static FAILURES_OVERFLOW: HashMap<FailureKey, Failed> =
    HashMap::with_max_entries(256, 0);

/// What a new entry of the two is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_FAILED: Array<Failed> = Array::with_max_entries(1, 0);

/// Failures counted so far, so that the maps are read only when there is something new: a walk keeps kprobe
/// programs of its CPU from running (`bpf_disable_instrumentation`).
#[map]
pub(crate) static FAILURES_COUNTED: Array<u64> = Array::with_max_entries(1, 0);

/// When this CPU last emitted a `Failure`.
#[map]
pub(crate) static FAILURE_SAID: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// `tcp_v4/v6_connect` under way, by thread: its socket and address (kprobe hook type). It may sleep, so that a
/// slot a CPU would not do. LRU: an exit that was missed leaves its entry behind.
#[map]
pub(crate) static CONNECTING: LruHashMap<u64, [u64; 2]> = LruHashMap::with_max_entries(1024, 0);

/// An RST of a socket.
#[repr(C)]
#[derive(Clone, Copy)]
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
#[derive(Clone, Copy)]
pub(crate) struct LastRst {
    pub(crate) rst: Rst,
    /// Of the connection; 0 where it is not known.
    pub(crate) born_ns: u64,
}

#[map]
pub(crate) static LAST_RST: PerCpuArray<LastRst> = PerCpuArray::with_max_entries(1, 0);

/// A client whose third ACK was refused.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Client {
    pub(crate) local_addr: [u32; 4],
    pub(crate) remote_addr: [u32; 4],
    pub(crate) local_port: u16,
    pub(crate) remote_port: u16,
    pub(crate) netns: u32,
}

/// When each such client was last refused: it repeats its ACK, and is one victim all the same. LRU: one
/// forgotten among 16,384 others counts again.
#[map]
pub(crate) static VICTIMS: LruHashMap<Client, u64> = LruHashMap::with_max_entries(16_384, 0);

/// What went wrong in each network namespace, to be held against the kernel's own counters. 8 kB of
/// keys and 240 kB of counts; what finds no room is counted under the key of all zeros.
#[map]
pub(crate) static NETNS: HashMap<NetnsId, Counts> = HashMap::with_max_entries(1024, 0);

/// What a new namespace's entry is copied from: zero for ever.
#[map]
pub(crate) static EMPTY_NETNS: Array<Counts> = Array::with_max_entries(1, 0);

/// Processes asked for, by pid. These and what follows hold nothing where the filter does not ask.
#[map]
pub(crate) static ASKED_PIDS: HashMap<u32, u8> = HashMap::with_max_entries(1, 0);

/// The same by name: `conntracer_common::filter::comm_words`.
#[map]
pub(crate) static ASKED_COMMS: HashMap<[u64; 2], u8> = HashMap::with_max_entries(1, 0);

/// What the filter says of each control group, `conntracer_common::filter::verdict` by id: a group keeps its
/// path and its id is never another's. Of one that is new here userspace is asked; while there is no
/// room, it decides on the records.
#[map]
pub(crate) static GROUPS: HashMap<u64, u8> = HashMap::with_max_entries(1, 0);

/// Groups met so far that nobody had decided on.
#[map]
pub(crate) static GROUPS_MET: Array<u64> = Array::with_max_entries(1, 0);

/// What `netns_look` found last.
#[map]
pub(crate) static NETNS_LOOK: Array<Look> = Array::with_max_entries(1, 0);

/// Every CPU's per-CPU offset, 0 where it is not known; copied there from `PERCPU_ANCHOR` by the user
/// half, because a program sees only its own CPU's.
#[map]
pub(crate) static PERCPU_OFFSETS: Array<u64> = Array::with_max_entries(4096, 0);

/// One hook's counters on this CPU, indexed by `stats::hook`.
#[map]
pub(crate) static COUNTERS: PerCpuArray<HookCounters> =
    PerCpuArray::with_max_entries(hook::COUNT, 0);

/// Entry to exit of `tcp_conn_request` and `tcp_v4/v6_syn_recv_sock` on this CPU. Both run with
/// bottom halves off, so one slot a CPU is enough.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Bracket {
    pub(crate) sk: u64,
    pub(crate) skb: u64,
    pub(crate) mib: Mib,
    /// See `percpu::no_routes`; of a SYN only.
    pub(crate) no_routes: u64,
    pub(crate) drops: u32,
    pub(crate) ack_backlog: u32,
    pub(crate) max_ack_backlog: u32,
    pub(crate) syn_qlen: u32,
    /// `tcp_v6_syn_recv_sock` calls `tcp_v4_syn_recv_sock` for v4-mapped peers.
    pub(crate) nested: u32,
    /// SYN-ACKs repeated for the request whose third ACK this is; 0 for a SYN.
    pub(crate) repeats: u8,
    /// 1 for a third ACK that brought a valid cookie.
    pub(crate) cookie: u8,
    pub(crate) pad: [u8; 2],
}

/// Entry to exit of `tcp_check_req` on this CPU (kprobe hook type).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Checked {
    pub(crate) sk: u64,
    pub(crate) skb: u64,
    /// 0 when no call is under way.
    pub(crate) request: u64,
    pub(crate) stolen: u64,
}

#[map]
pub(crate) static CHECKED: PerCpuArray<Checked> = PerCpuArray::with_max_entries(1, 0);

/// Entry to exit of `reqsk_timer_handler` on this CPU: timers of one CPU follow one another.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Expiring {
    /// 0 when no call is under way.
    pub(crate) request: u64,
    /// 0 when the request is not the timer's to end: it was removed already, or its listener closed.
    pub(crate) listener: u64,
    pub(crate) timeouts: u64,
}

#[map]
pub(crate) static EXPIRING: PerCpuArray<Expiring> = PerCpuArray::with_max_entries(1, 0);

/// The counters of this CPU that tell why a SYN was dropped.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mib {
    pub(crate) overflows: u64,
    pub(crate) drops: u64,
    pub(crate) full_drop: u64,
    pub(crate) full_cookies: u64,
}

/// The counters of this CPU that tell why a segment was dropped before it reached a socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DropMib {
    pub(crate) csum_errors: u64,
    pub(crate) out_rsts: u64,
    pub(crate) reverse_path: u64,
    /// Not found, unexpected and wrong, together.
    pub(crate) md5: u64,
}

/// Counters as they stood at the last look on this CPU. A program fills its own CPU's part of a new entry,
/// and the kernel zeroes the others' (kernel/bpf/hashtab.c, `pcpu_init_value`).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Looked<T> {
    /// 0 when this CPU has not looked yet.
    pub(crate) looks: u64,
    pub(crate) counters: T,
}

/// A namespace's such counters at its last dropped segment on this CPU (kernels without drop reasons).
#[map]
pub(crate) static LAST_DROP_MIB: LruPerCpuHashMap<u32, Looked<DropMib>> =
    LruPerCpuHashMap::with_max_entries(1024, 0);

/// What a namespace's SYNs are judged by (tracepoint hook type).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SynMib {
    pub(crate) mib: Mib,
    /// By family, IPv4 first; one more than was counted, 0 when no SYN of the family was looked at yet.
    pub(crate) no_routes: [u64; 2],
}

/// A namespace's such counters at the last look on this CPU. LRU: namespaces come and go, and a forgotten one
/// only starts anew.
#[map]
pub(crate) static LAST_MIB: LruPerCpuHashMap<u32, Looked<SynMib>> =
    LruPerCpuHashMap::with_max_entries(1024, 0);

/// How often a program can be under way on a CPU: a task, the softirq that interrupts it, and an interrupt. From 6.1 on
/// the kernel enters none that is (`bpf_trace_run`), before it does.
const ENTRIES: u32 = 3;

/// How often each is, by the index of its records' place.
#[map]
static ENTERED: PerCpuArray<u32> = PerCpuArray::with_max_entries(3, 0);

/// Where a program makes a record that has no room on the stack.
pub(crate) struct Place<T: 'static> {
    records: &'static PerCpuArray<T>,
    index: u32,
}

pub(crate) const DROPPED_PLACE: Place<Drop> = Place {
    records: &DROPPED,
    index: 0,
};
pub(crate) const ENDED_PLACE: Place<Close> = Place {
    records: &ENDED,
    index: 1,
};
pub(crate) const REPEATED_PLACE: Place<Retransmit> = Place {
    records: &REPEATED,
    index: 2,
};

impl<T> Place<T> {
    /// Makes a record there, which holds what the one before left; `Lost` where none of them is free.
    #[inline(always)]
    pub(crate) fn make(&self, make: impl FnOnce(&mut T) -> Outcome) -> Outcome {
        let Some(entered) = ENTERED.get_ptr_mut(self.index) else {
            return Outcome::Lost;
        };
        // SAFETY: a live per-CPU map value; what interrupts this program leaves it as it was. Volatile, so that it
        // is stored before the record is begun, and not after it is done.
        let at = unsafe {
            let at = core::ptr::read_volatile(entered);
            core::ptr::write_volatile(entered, at + 1);
            at
        };
        let outcome = match self.records.get_ptr_mut(at) {
            // SAFETY: a live per-CPU map value of plain data, that no other run of the program has.
            Some(record) => make(unsafe { &mut *record }),
            None => Outcome::Lost,
        };
        // Looked up again: a pointer kept meanwhile would take stack.
        if let Some(entered) = ENTERED.get_ptr_mut(self.index) {
            // SAFETY: as above.
            unsafe { core::ptr::write_volatile(entered, core::ptr::read_volatile(entered) - 1) };
        }
        outcome
    }
}

/// The segment that `kfree_skb` freed on this CPU: its record has no room on the stack beside what is
/// asked about it.
#[map]
static DROPPED: PerCpuArray<Drop> = PerCpuArray::with_max_entries(ENTRIES, 0);

/// The connection that ended on this CPU: as with `DROPPED`.
#[map]
static ENDED: PerCpuArray<Close> = PerCpuArray::with_max_entries(ENTRIES, 0);

/// The segment that is sent again on this CPU: as with `DROPPED`.
#[map]
static REPEATED: PerCpuArray<Retransmit> = PerCpuArray::with_max_entries(ENTRIES, 0);

#[map]
pub(crate) static SYN_BRACKET: PerCpuArray<Bracket> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static ACK_BRACKET: PerCpuArray<Bracket> = PerCpuArray::with_max_entries(1, 0);
/// Entry to exit of `cookie_v4/v6_check` on this CPU; `sk` is 0 outside.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CookieBracket {
    pub(crate) sk: u64,
    pub(crate) valid: u64,
    pub(crate) invalid: u64,
}

#[map]
pub(crate) static COOKIE_BRACKET: PerCpuArray<CookieBracket> = PerCpuArray::with_max_entries(1, 0);
/// Entry to exit of `tcp_send_loss_probe` on this CPU: the socket, if it may send one.
#[map]
pub(crate) static LOSS_PROBE_BRACKET: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static PROBE_BRACKET: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// A per-CPU array whose per-CPU pointer can be read from its `struct bpf_array`: the difference
/// between that pointer and the address of this CPU's element is this CPU's per-CPU offset, and is
/// kept in the element. 0 until `percpu_base` ran on this CPU.
#[map]
pub(crate) static PERCPU_ANCHOR: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Where `percpu_base` copies `struct bpf_array` to.
#[map]
pub(crate) static SCRATCH: Array<[u64; 64]> = Array::with_max_entries(1, 0);

/// What became of one event: which of its hook's counters it goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Emitted,
    Aggregated,
    Filtered,
    Lost,
    /// Not an event of this hook at all (half of a bracket, an attach in flight): not counted.
    NotOurs,
}

/// Adds to a counter that another context on this CPU may be adding to.
///
/// # Safety
/// `counter` points into a map value.
#[inline(always)]
pub(crate) unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's; relaxed with an unused result is BPF's plain atomic add, which 5.10 has.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            counter, by,
        );
    }
}

/// Counts one event of `hook`.
#[inline(always)]
pub(crate) fn account(hook: u32, outcome: Outcome) -> i32 {
    if outcome == Outcome::NotOurs {
        return 0;
    }
    if let Some(counters) = COUNTERS.get_ptr_mut(hook) {
        // SAFETY: a live per-CPU map value.
        unsafe {
            add(&raw mut (*counters).seen, 1);
            let counter = match outcome {
                Outcome::Emitted => &raw mut (*counters).emitted,
                Outcome::Aggregated => &raw mut (*counters).aggregated,
                Outcome::Filtered => &raw mut (*counters).filtered,
                Outcome::Lost | Outcome::NotOurs => &raw mut (*counters).lost,
            };
            add(counter, 1);
        }
    }
    0
}

/// Whether somebody asked for every record of `kind`.
#[inline(always)]
pub(crate) fn asked_for(kind: u16) -> bool {
    global!(OPTIONS.emit) & conntracer_common::filter::emit_bit(kind) != 0
}
