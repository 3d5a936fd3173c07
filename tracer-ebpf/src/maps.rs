//! Maps and read-only globals, and the few ways programs touch them.
//!
//! Globals are filled by the user half before load and frozen: the verifier sees constants and prunes
//! the branches not taken. Sizes given here are overridden at load.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, PerCpuArray, PerfEventArray, RingBuf},
};
use conntracer_common::{
    filter::Filter,
    layout::{KernelFacts, KernelLayout},
    options::Options,
    record::Syn,
    socket::SocketState,
    stats::{HookCounters, hook},
};

#[unsafe(no_mangle)]
pub static LAYOUT: KernelLayout = KernelLayout::UNRESOLVED;
#[unsafe(no_mangle)]
pub static FACTS: KernelFacts = KernelFacts::UNRESOLVED;
#[unsafe(no_mangle)]
pub static FILTER: Filter = Filter {
    addr: [0; 4],
    mask: [0; 4],
    netns: 0,
    local_port: 0,
    remote_port: 0,
    port: 0,
    pad: 0,
};
#[unsafe(no_mangle)]
pub static OPTIONS: Options =
    Options { emit: 0, perf: 0, connect_by_state: 0, ack_by_skb: 0, syn_by_skb: 0 };

/// Reads one field of a global.
macro_rules! global {
    ($global:ident $(. $field:ident)?) => {
        $crate::maps::injected(&$crate::maps::$global $(. $field)?)
    };
}
pub(crate) use global;

/// Volatile, or LLVM would fold the compiled-in value.
#[inline(always)]
pub fn injected<T: Copy>(value: &'static T) -> T {
    // SAFETY: a read of a static that only the loader writes, before the program runs.
    unsafe { core::ptr::read_volatile(value) }
}

/// Records that must survive a flood of the others; user space is woken for them.
#[map]
pub static RARE: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);
/// Everything else; drained at the poll interval, never woken for.
#[map]
pub static BULK: RingBuf = RingBuf::with_byte_size(8 * 1024 * 1024, 0);
#[map]
pub static RARE_PERF: PerfEventArray<u8> = PerfEventArray::new(0);
#[map]
pub static BULK_PERF: PerfEventArray<u8> = PerfEventArray::new(0);

/// Connections by the address of their `struct sock`.
#[map]
pub static SOCKETS: HashMap<u64, SocketState> = HashMap::with_max_entries(65_536, 0);

/// What is kept per listener: its cumulative record, and bookkeeping that never leaves the kernel.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Listener {
    pub syn: Syn,
    /// When each kind of bad outcome was last emitted: all in one, to the millisecond of need.
    pub emitted_ns: u64,
    /// Bits of the outcomes emitted at least once.
    pub emitted: u32,
    /// `sk_drops` when first seen, and how many since are explained (tracepoint rung only).
    pub drops_base: u32,
    pub drops_explained: u64,
    /// SYN queue length at the last SYN (tracepoint rung only).
    pub last_qlen: u32,
    pub pad: u32,
}

/// Listeners by the address of their `struct sock`. A plain hash: an LRU would forget listeners under
/// pressure, and with them the attribution of every drop.
#[map]
pub static LISTENERS: HashMap<u64, Listener> = HashMap::with_max_entries(4096, 0);

/// Where a packet's listener is looked up on the tracepoint rung.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ListenKey {
    pub addr: [u32; 4],
    pub netns: u32,
    pub port: u16,
    pub pad: u16,
}

#[map]
pub static LISTEN_PORTS: HashMap<ListenKey, u64> = HashMap::with_max_entries(4096, 0);

/// One hook's counters on this CPU, indexed by `stats::hook`.
#[map]
pub static COUNTERS: PerCpuArray<HookCounters> = PerCpuArray::with_max_entries(hook::COUNT, 0);

/// Entry to exit of `tcp_conn_request` and `tcp_v4/v6_syn_recv_sock` on this CPU. Both run with
/// bottom halves off, so one slot a CPU is enough.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Bracket {
    pub sk: u64,
    pub skb: u64,
    pub mib: Mib,
    pub drops: u32,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub syn_qlen: u32,
    /// `tcp_v6_syn_recv_sock` calls `tcp_v4_syn_recv_sock` for v4-mapped peers.
    pub nested: u32,
    pub pad: u32,
}

/// The four counters of this CPU that tell why a SYN was dropped.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mib {
    pub overflows: u64,
    pub drops: u64,
    pub full_drop: u64,
    pub full_cookies: u64,
}

#[map]
pub static SYN_BRACKET: PerCpuArray<Bracket> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static ACK_BRACKET: PerCpuArray<Bracket> = PerCpuArray::with_max_entries(1, 0);
#[map]
pub static PROBE_BRACKET: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// A per-CPU array whose per-CPU pointer can be read from its `struct bpf_array`: the difference
/// between that pointer and the address of this CPU's element is this CPU's per-CPU offset, and is
/// kept in the element. 0 until `percpu_base` ran on this CPU.
#[map]
pub static PERCPU_ANCHOR: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// Where `percpu_base` copies `struct bpf_array` to.
#[map]
pub static SCRATCH: Array<[u64; 64]> = Array::with_max_entries(1, 0);

/// What became of one event: which of its hook's counters it goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
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
pub unsafe fn add(counter: *mut u64, by: u64) {
    // SAFETY: the caller's; relaxed with an unused result is BPF's plain atomic add, which 5.10 has.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            counter, by,
        );
    }
}

/// Counts one event of `hook`.
#[inline(always)]
pub fn account(hook: u32, outcome: Outcome) -> i32 {
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
pub fn asked_for(kind: u16) -> bool {
    global!(OPTIONS.emit) & conntracer_common::filter::emit_bit(kind) != 0
}
