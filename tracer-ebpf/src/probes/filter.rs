//! Which owners are asked for; no programs.
//!
//! The answer is kept beside the owner it is about, so that an event of a known socket costs one look at a
//! flag, and is made anew whenever the owner changes. What it cannot be told of yet passes: userspace
//! decides on the record.

use aya_ebpf::bindings::BPF_NOEXIST;
use conntracer_common::{
    filter::{comm_words, owner_condition, verdict},
    record::{Owner, owner_source},
};

use crate::maps::{ASKED_COMMS, ASKED_PIDS, GROUPS, GROUPS_MET, add, global};

/// Whether the filter asks for owners at all; a constant to the verifier.
#[inline(always)]
pub(crate) fn by_owner() -> bool {
    global!(FILTER.owner) != 0
}

/// What the filter says of an owner.
#[inline(always)]
pub(crate) fn of(owner: &Owner) -> u8 {
    if !by_owner() {
        return verdict::ASKED;
    }
    if owner.source == owner_source::UNKNOWN {
        return verdict::OPEN;
    }
    let asked = global!(FILTER.owner);
    // SAFETY: nothing is read of what the maps hold.
    let refused = asked & owner_condition::PID != 0
        && unsafe { ASKED_PIDS.get(owner.pid) }.is_none()
        || asked & owner_condition::COMM != 0
            && unsafe { ASKED_COMMS.get(comm_words(&owner.comm)) }.is_none();
    if refused {
        verdict::REFUSED
    } else if asked & owner_condition::GROUP != 0 {
        of_group(owner.cgroup_id)
    } else {
        verdict::ASKED
    }
}

#[inline(always)]
fn of_group(id: u64) -> u8 {
    // SAFETY: plain data.
    if let Some(decided) = unsafe { GROUPS.get(id) } {
        return *decided;
    }
    // Another CPU may have been first, or there is no room: it stays open either way.
    if GROUPS
        .insert(id, verdict::OPEN, u64::from(BPF_NOEXIST))
        .is_ok()
        && let Some(met) = GROUPS_MET.get_ptr_mut(0)
    {
        // SAFETY: a live map value.
        unsafe { add(met, 1) };
    }
    verdict::OPEN
}

/// Whether an owner is not asked for. `kept` is where the answer is, or will be, kept.
///
/// # Safety
/// `kept` points into a map value.
#[inline(always)]
pub(crate) unsafe fn refuses(kept: *mut u8, owner: &Owner) -> bool {
    if !by_owner() {
        return false;
    }
    // SAFETY: the caller's.
    unsafe {
        if *kept == verdict::OPEN {
            *kept = of(owner);
        }
        *kept == verdict::REFUSED
    }
}
