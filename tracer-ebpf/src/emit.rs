//! The only file that writes to the rings, and to what an iterator's reader reads.

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_F_CURRENT_CPU, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    helpers::generated::{bpf_perf_event_output, bpf_ringbuf_output, bpf_seq_write},
};
use conntracer_common::record::{Header, Record};

use crate::{
    account::Outcome,
    globals::global,
    maps::{BULK, BULK_PERF, RARE, RARE_PERF},
    sock,
    table::Plain,
};

/// Which ring, and whether user space is woken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Must survive a flood, and be seen at once.
    Urgent,
    /// Must survive a flood, can wait for the next poll.
    Rare,
    Bulk,
}

/// The header of a `T` made now.
#[inline(always)]
pub(crate) fn header<T: Record>() -> Header {
    Header::of::<T>(sock::now_ns(), sock::cpu())
}

/// Copies a record to its ring.
///
/// From the stack (or a map value) rather than into reserved ring memory: one code path serves both
/// transports, and a program cannot leave a reservation behind. The copy of 240 bytes costs ~10 ns.
#[inline(always)]
pub(crate) fn emit<C: EbpfContext, T: Record>(ctx: &C, lane: Lane, record: &T) -> Outcome {
    let data = core::ptr::from_ref(record).cast_mut().cast();
    let size = size_of::<T>() as u64;
    let failed = if global!(OPTIONS.perf) != 0 {
        let array = if lane == Lane::Bulk {
            &raw const BULK_PERF
        } else {
            &raw const RARE_PERF
        };
        // SAFETY: `array` is a map, `data` is `size` initialised bytes.
        unsafe {
            bpf_perf_event_output(
                ctx.as_ptr(),
                array.cast_mut().cast(),
                u64::from(BPF_F_CURRENT_CPU as u32),
                data,
                size,
            )
        }
    } else {
        let ring = if lane == Lane::Bulk {
            &raw const BULK
        } else {
            &raw const RARE
        };
        let flags = if lane == Lane::Urgent {
            BPF_RB_FORCE_WAKEUP
        } else {
            BPF_RB_NO_WAKEUP
        };
        // SAFETY: as above.
        unsafe { bpf_ringbuf_output(ring.cast_mut().cast(), data, size, u64::from(flags)) }
    };
    if failed == 0 {
        Outcome::Emitted
    } else {
        Outcome::Lost
    }
}

/// Shows a value to the reader of an iterator, whose `seq_file` is `seq`; false where its buffer is full: then the
/// next read comes here again.
#[inline(always)]
pub(crate) fn show<T: Plain>(seq: u64, value: &T) -> bool {
    let data = core::ptr::from_ref(value).cast_mut().cast();
    // SAFETY: initialised bytes; that `seq` is a `seq_file` the verifier checks.
    unsafe { bpf_seq_write(seq as *mut _, data, size_of::<T>() as u32) == 0 }
}
