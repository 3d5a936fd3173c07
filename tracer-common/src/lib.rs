//! What conntracer's eBPF side and userspace share: the records that cross the ring, the layout and filter that
//! user space injects at load, the counters, and the pure functions over them.
//!
//! No I/O and no allocation: everything here compiles for the BPF target and is unit-tested on the
//! host.
#![no_std]

pub mod early_drop;
pub mod filter;
pub mod layout;
pub mod netns;
pub mod options;
pub mod record;
pub mod retransmit;
pub mod sketch;
pub mod socket;
pub mod stats;
pub mod syn;
pub mod tcp;
pub mod transition;
pub mod undo;
