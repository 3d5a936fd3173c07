//! Who troubles a listener: a sketch of the sources of the SYNs it answered with cookies, dropped, or had
//! to retransmit its SYN-ACK for; no programs. A healthy listener has none and pays nothing.

use conntracer_common::{
    record::SOURCES_QUIET_NS,
    sketch::{self, ADDRESSES, PREFIXES},
    socket::Listener,
};

use crate::{
    maps::SKETCHES,
    sock,
    table::{add, zeros},
};

/// Notes the source of one troubled SYN. CPUs may undo each other's registers: the next SYN of the same
/// source sets them again.
#[inline(always)]
pub(crate) fn troubled(listener: u64, entry: &Listener, source: &[u32; 4]) {
    let now = sock::now_ns();
    let known = SKETCHES
        .edit(listener)
        .filter(|sketch| now.wrapping_sub(sketch.last_ns) < SOURCES_QUIET_NS);
    let sketch = match known {
        Some(sketch) => sketch,
        None => {
            // An LRU map has room for whatever is new; should it not, there is no sketch to fill.
            let Some(zeros) = zeros() else {
                return;
            };
            SKETCHES.insert(listener, zeros);
            let Some(sketch) = SKETCHES.edit(listener) else {
                return;
            };
            sketch.socket = entry.syn.socket;
            sketch.since_ns = now;
            sketch
        }
    };
    sketch.last_ns = now;
    add(&mut sketch.syns, 1);
    // One seed for all listeners of a namespace; an address of kernel memory, which clients do not know.
    let seed = sock::net_of(listener);
    let address = sketch::hash(source, seed);
    raise(
        &mut sketch.addresses[address as usize & (ADDRESSES - 1)],
        sketch::rank(address, ADDRESSES),
    );
    let prefix = sketch::hash(&sketch::prefix(source), seed);
    raise(
        &mut sketch.prefixes[prefix as usize & (PREFIXES - 1)],
        sketch::rank(prefix, PREFIXES),
    );
}

/// Forgets a listener that closed.
#[inline(always)]
pub(crate) fn forget(listener: u64) {
    // Absent for nearly every listener.
    SKETCHES.remove(listener);
}

#[inline(always)]
fn raise(register: &mut u8, rank: u8) {
    if *register < rank {
        *register = rank;
    }
}
