//! What went wrong in each network namespace, cumulative; no programs.

use aya_ebpf::bindings::BPF_NOEXIST;
use conntracer_common::{
    filter::named,
    netns::{Counts, NetnsId, count},
};

use crate::{
    maps::{EMPTY_NETNS, NETNS, add, global},
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

/// The counts of a namespace that is asked for; of all that found no room when the map is full.
#[inline(always)]
fn entry(net: u64) -> Option<*mut Counts> {
    let id = NetnsId {
        inode: sock::net_inum(net),
        mix: field!(net, net_hash_mix: u32),
    };
    if !named(&global!(FILTER.netns), id.inode) {
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
