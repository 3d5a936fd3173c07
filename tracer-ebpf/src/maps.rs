//! Maps and read-only globals, and the few ways programs touch them.
//!
//! Globals are filled by the user half before load and frozen: the verifier sees constants and prunes
//! the branches not taken. Sizes given here are overridden at load.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray, PerfEventArray, RingBuf},
};
use conntracer_common::{
    filter::{Filter, MAX_NETNS},
    layout::{KernelFacts, KernelLayout},
    options::Options,
    record::Sources,
    socket::{Listener, SocketState},
    stats::{HookCounters, hook},
};

#[unsafe(no_mangle)]
pub(crate) static LAYOUT: KernelLayout = KernelLayout::UNRESOLVED;
#[unsafe(no_mangle)]
pub(crate) static FACTS: KernelFacts = KernelFacts::UNRESOLVED;
#[unsafe(no_mangle)]
pub(crate) static FILTER: Filter = Filter {
    addr: [0; 4],
    mask: [0; 4],
    netns: [0; MAX_NETNS],
    local_port: 0,
    remote_port: 0,
    port: 0,
    pad: 0,
};
#[unsafe(no_mangle)]
pub(crate) static OPTIONS: Options = Options {
    emit: 0,
    perf: 0,
    connect_by_state: 0,
    ack_by_skb: 0,
    syn_by_skb: 0,
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

/// Where a packet's listener is looked up on the tracepoint rung.
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

/// Entry to exit of `tcp_check_req` on this CPU (kprobe rung).
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
    /// Of the family of the packet's link-layer protocol.
    pub(crate) no_routes: u64,
}

/// A namespace's counters at the last look on this CPU (tracepoint rung). LRU: namespaces come and go,
/// and a forgotten one only starts anew.
#[map]
pub(crate) static LAST_MIB: LruPerCpuHashMap<u32, Mib> =
    LruPerCpuHashMap::with_max_entries(1024, 0);

#[map]
pub(crate) static SYN_BRACKET: PerCpuArray<Bracket> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub(crate) static ACK_BRACKET: PerCpuArray<Bracket> = PerCpuArray::with_max_entries(1, 0);
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
