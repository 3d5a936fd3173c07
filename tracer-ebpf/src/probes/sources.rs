//! Who troubles a listener: a sketch of the sources of the SYNs it answered with cookies, dropped, or had
//! to repeat its SYN-ACK for; no programs. A healthy listener has none and pays nothing.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use conntracer_common::{
    record::SOURCES_QUIET_NS,
    sketch::{self, ADDRESSES, PREFIXES},
    socket::Listener,
};

use crate::{
    maps::{EMPTY_SKETCH, SKETCHES, add},
    sock,
};

/// Notes the source of one troubled SYN. CPUs may undo each other's registers: the next SYN of the same
/// source sets them again.
#[inline(always)]
pub(crate) fn troubled(listener: u64, entry: *mut Listener, source: &[u32; 4]) {
    // SAFETY: helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let known = SKETCHES.get_ptr_mut(listener).is_some_and(|sketch| {
        // SAFETY: a live map value of plain data.
        now.wrapping_sub(unsafe { (*sketch).last_ns }) < SOURCES_QUIET_NS
    });
    if !known {
        let Some(empty) = EMPTY_SKETCH.get(0) else {
            return;
        };
        // An LRU map has room for whatever is new; should it not, there is no sketch to fill below.
        let _no_room = SKETCHES.insert(listener, empty, 0);
    }
    let Some(sketch) = SKETCHES.get_ptr_mut(listener) else {
        return;
    };
    // One seed for all listeners of a namespace; an address of kernel memory, which clients do not know.
    let seed = sock::net_of(listener);
    let address = sketch::hash(source, seed);
    let prefix = sketch::hash(&sketch::prefix(source), seed);
    // SAFETY: live map values of plain data; the masks keep the registers within theirs.
    unsafe {
        if !known {
            (*sketch).socket = (*entry).syn.socket;
            (*sketch).since_ns = now;
        }
        (*sketch).last_ns = now;
        add(&raw mut (*sketch).syns, 1);
        raise(
            (&raw mut (*sketch).addresses)
                .cast::<u8>()
                .add(address as usize & (ADDRESSES - 1)),
            sketch::rank(address, ADDRESSES),
        );
        raise(
            (&raw mut (*sketch).prefixes)
                .cast::<u8>()
                .add(prefix as usize & (PREFIXES - 1)),
            sketch::rank(prefix, PREFIXES),
        );
    }
}

/// Forgets a listener that closed.
#[inline(always)]
pub(crate) fn forget(listener: u64) {
    // Absent for nearly every listener.
    let _absent = SKETCHES.remove(listener);
}

/// # Safety
/// `register` lies within a map value.
#[inline(always)]
unsafe fn raise(register: *mut u8, rank: u8) {
    // SAFETY: the caller's.
    unsafe {
        if *register < rank {
            *register = rank;
        }
    }
}
