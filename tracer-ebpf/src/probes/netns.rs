//! What went wrong in each network namespace, cumulative, and what the kernel counted there itself.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use conntracer_common::netns::{CPUS_AT_ONCE, Counts, Look, NetnsId, count, kernel};

use crate::{
    globals::{FACTS, FILTER, Injected, global},
    maps::{NETNS, NETNS_LOOK, PERCPU_OFFSETS},
    sock::{self, field},
    table::{add, read_once, write_once, zeros},
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
    if let Some(counts) = entry(net)
        && let Some(count) = counts.get_mut(index)
    {
        add(count, by);
    }
}

/// The counts of a namespace that matches; of all that found no room when the map is full.
#[inline(always)]
fn entry(net: u64) -> Option<&'static mut Counts> {
    let inode = sock::net_inum(net);
    if !FILTER.matches_netns::<Injected>(inode) {
        return None;
    }
    // A `NetnsId` in one word: see `table`.
    let id = u64::from(inode) | u64::from(field!(net, net_hash_mix: u32)) << 32;
    if let Some(counts) = NETNS.edit(&id) {
        return Some(counts);
    }
    // Another CPU may have been first, or the map is full: the look-ups below tell.
    NETNS.insert_new(&id, zeros()?);
    NETNS.edit(&id).or_else(|| NETNS.edit(0))
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
    let (net, first) = (ctx.arg(0), ctx.arg::<u64>(1) as u32);
    if let Some(look) = NETNS_LOOK.edit(0) {
        look_at(net, first, look);
    }
    1
}

#[inline(always)]
fn look_at(mut net: u64, first: u32, look: &mut Look) {
    if net == 0 {
        net = field!(field!(sock::current_task(), task_nsproxy: u64), nsproxy_net: u64);
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
        for sum in &mut look.kernel {
            // One by one, or it would become a call of memset.
            write_once(sum, 0);
        }
    }
    let of_linux = field!(net, net_statistics: u64);
    let of_tcp = field!(net, net_tcp_statistics: u64);
    let mut cpu = 0;
    while cpu < CPUS_AT_ONCE {
        let Some(offset) = PERCPU_OFFSETS.get(first + cpu).copied() else {
            break;
        };
        cpu += 1;
        if offset != 0 {
            add_counters(
                look,
                of_linux.wrapping_add(offset),
                of_tcp.wrapping_add(offset),
            );
        }
    }
    let list = global!(LAYOUT.net_list);
    look.previous = sock::read(net, list.wrapping_add(8));
}

#[inline(always)]
fn add_counters(look: &mut Look, of_linux: u64, of_tcp: u64) {
    let mut index = 0;
    while index < kernel::COUNT {
        let at = read_once(&FACTS.mib_compared[index]);
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
        let sum = read_once(&look.kernel[index]).wrapping_add(count);
        write_once(&mut look.kernel[index], sum);
        index += 1;
    }
}
