//! What went wrong in each network namespace, cumulative, and what the kernel counted there itself.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::bpf_get_current_task, macros::raw_tracepoint,
    programs::RawTracePointContext,
};
use conntracer_common::netns::{CPUS_AT_ONCE, Counts, Look, NetnsId, count, kernel};

use crate::{
    maps::{EMPTY_NETNS, FACTS, FILTER, Injected, NETNS, NETNS_LOOK, PERCPU_OFFSETS, add, global},
    sock::{self, field},
};

/// Counts one of `conntracer_common::netns::count` in the namespace of a `struct net`.
#[inline(always)]
pub(crate) fn count(net: u64, index: usize) {
    count_many(net, index, 1);
}

#[inline(always)]
pub(crate) fn count_many(net: u64, index: usize, by: u64) {
    if index >= count::COUNT {
        return;
    }
    if let Some(counts) = entry(net) {
        // SAFETY: a live map value, within its counts.
        unsafe { add(counts.cast::<u64>().add(index), by) };
    }
}

/// Whether the namespace of a `struct net` is asked for.
#[inline(always)]
pub(crate) fn wanted(net: u64) -> bool {
    FILTER.wants_netns::<Injected>(sock::net_inum(net))
}

/// The counts of a namespace that is asked for; of all that found no room when the map is full.
#[inline(always)]
fn entry(net: u64) -> Option<*mut Counts> {
    let id = NetnsId {
        inode: sock::net_inum(net),
        mix: field!(net, net_hash_mix: u32),
    };
    if !FILTER.wants_netns::<Injected>(id.inode) {
        return None;
    }
    if let Some(counts) = NETNS.get_ptr_mut(id) {
        return Some(counts);
    }
    // Another CPU may have been first, or the map is full: the look-ups below tell.
    let _refused = NETNS.insert(id, EMPTY_NETNS.get(0)?, u64::from(BPF_NOEXIST));
    NETNS
        .get_ptr_mut(id)
        .or_else(|| NETNS.get_ptr_mut(NetnsId { inode: 0, mix: 0 }))
}

/// Shows one network namespace and where the next one is: the kernel's own counters of it, those that
/// /proc/net/snmp and /proc/net/netstat show there. Attached to nothing; userspace runs it with
/// BPF_PROG_TEST_RUN, because a namespace need have no process whose /proc could be read, and no
/// capability to enter it is kept.
///
/// Arguments: the address of a `struct net`, 0 for that of the running task; and the first of
/// `CPUS_AT_ONCE` CPUs whose counters are added to what the map holds.
#[raw_tracepoint]
pub(crate) fn netns_look(ctx: RawTracePointContext) -> i32 {
    let Some(look) = NETNS_LOOK.get_ptr_mut(0) else {
        return 0;
    };
    let mut net: u64 = ctx.arg(0);
    let first = ctx.arg::<u64>(1) as u32;
    // SAFETY: the map's only value, with one writer: this program is run by one thread.
    let look = unsafe { &mut *look };
    if net == 0 {
        // SAFETY: helper without preconditions.
        let task = unsafe { bpf_get_current_task() };
        net = field!(field!(task, task_nsproxy: u64), nsproxy_net: u64);
    }
    if first == 0 {
        look.net = net;
        let list = global!(LAYOUT.net_list);
        look.next = sock::read::<u64>(net, list).wrapping_sub(u64::from(list));
        look.ops = field!(net, net_ops: u64);
        look.id = NetnsId {
            inode: sock::net_inum(net),
            mix: field!(net, net_hash_mix: u32),
        };
        let mut index = 0;
        while index < kernel::COUNT {
            // SAFETY: within the array; volatile, or it would become a call of memset.
            unsafe { core::ptr::write_volatile(look.kernel.as_mut_ptr().add(index), 0) };
            index += 1;
        }
    }
    let of_linux = field!(net, net_statistics: u64);
    let of_tcp = field!(net, net_tcp_statistics: u64);
    let mut cpu = 0;
    while cpu < CPUS_AT_ONCE {
        let Some(offset) = PERCPU_OFFSETS.get(first + cpu) else {
            break;
        };
        cpu += 1;
        if *offset != 0 {
            add_counters(
                look,
                of_linux.wrapping_add(*offset),
                of_tcp.wrapping_add(*offset),
            );
        }
    }
    let list = global!(LAYOUT.net_list);
    look.previous = sock::read(net, list.wrapping_add(8));
    1
}

#[inline(always)]
fn add_counters(look: &mut Look, of_linux: u64, of_tcp: u64) {
    let mut index = 0;
    while index < kernel::COUNT {
        // SAFETY: within the arrays.
        unsafe {
            let at = core::ptr::read_volatile((&raw const FACTS.mib_compared[0]).add(index));
            let of = if kernel::is_of_tcp(index) {
                of_tcp
            } else {
                of_linux
            };
            let count = if at == 0 {
                0
            } else {
                sock::read::<u64>(of, at * 8)
            };
            let sum = look.kernel.as_mut_ptr().add(index);
            core::ptr::write_volatile(sum, core::ptr::read_volatile(sum).wrapping_add(count));
        }
        index += 1;
    }
}
