//! Cumulative records by key: their entries, and how seldom they are emitted; no programs. For `failure` and
//! `early_drop`.

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    maps::{Array, HashMap, PerCpuArray},
};
use conntracer_common::record::{EARLY_DROP_INTERVAL_NS, SYN_INTERVAL_NS};

use crate::emit::Lane;

/// What is counted together.
pub(crate) trait Key {
    /// Becomes the key of all that find the map full.
    fn blur(&mut self);
}

/// The entry of a key, and whether it is new; when there is no more room, the one that stands for all such, and
/// the key with it. Of two CPUs that meet a new key at once, the second does not clear what the first counted.
#[inline(always)]
pub(crate) fn entry<K: Key, V>(
    map: &HashMap<K, V>,
    overflow: &HashMap<K, V>,
    empty: &Array<V>,
    key: &mut K,
) -> Option<(*mut V, bool)> {
    if let Some(entry) = map.get_ptr_mut(&*key) {
        return Some((entry, false));
    }
    let empty = empty.get(0)?;
    let new = map.insert(&*key, empty, u64::from(BPF_NOEXIST)).is_ok();
    if let Some(entry) = map.get_ptr_mut(&*key) {
        return Some((entry, new));
    }
    key.blur();
    if let Some(entry) = overflow.get_ptr_mut(&*key) {
        return Some((entry, false));
    }
    let new = overflow
        .insert(&*key, empty, u64::from(BPF_NOEXIST))
        .is_ok();
    overflow.get_ptr_mut(&*key).map(|entry| (entry, new))
}

/// The lane by which a record leaves that has just counted one more; `None` where a later one, or a poll, will
/// tell. `said` is when this CPU last emitted any of them, `emitted_ns` when this one last was.
///
/// # Safety
/// `emitted_ns` points into a map value.
#[inline(always)]
pub(crate) unsafe fn lane(
    said: &PerCpuArray<u64>,
    emitted_ns: *mut u64,
    now_ns: u64,
    first: bool,
    asked: bool,
) -> Option<Lane> {
    let said = said.get_ptr_mut(0)?;
    // SAFETY: a live per-CPU map value, and the caller's.
    unsafe {
        let due = (first || now_ns - *emitted_ns >= SYN_INTERVAL_NS)
            && now_ns - *said >= EARLY_DROP_INTERVAL_NS;
        if !due {
            return if asked { Some(Lane::Bulk) } else { None };
        }
        *said = now_ns;
        *emitted_ns = now_ns;
    }
    Some(if first { Lane::Urgent } else { Lane::Rare })
}
