//! The safe words by which programs touch what lies in maps: the only file that follows a pointer there.
//!
//! Why they are safe to call:
//! - A value is live. A program runs within an RCU read section, and the kernel keeps a map's memory for longer.
//!   An entry that is removed meanwhile can still be read and written, though it may be another key's already.
//! - Any bytes are a value ([`Plain`]). What other CPUs and userspace write meanwhile makes a mix of values, never
//!   an invalid one. Exact is what [`add`] counts, in order what [`write_once`] writes.
//! - A reference is the run's own: of one value none is taken while another is in use. This no type holds; what
//!   breaking it could cost is a wrong figure, for the kernel's verifier proves of the machine code that every
//!   access stays within its value.

use core::borrow::Borrow;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::generated::bpf_map_lookup_elem,
    macros::map,
    maps::{Array, HashMap, LruHashMap, LruPerCpuHashMap, PerCpuArray},
};
use conntracer_common::{
    netns::Counts,
    record::Sources,
    socket::{Listener, Retransmitted},
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What maps hold: any bytes are a value, and every byte of one is initialised.
pub(crate) trait Plain: Copy + FromBytes + IntoBytes + Immutable + 'static {}

impl<T: Copy + FromBytes + IntoBytes + Immutable + 'static> Plain for T {}

/// The map types that programs look values up in.
pub(crate) trait Lookup {
    type Key: Plain;
    type Value: Plain;

    fn address(&self, key: &Self::Key) -> Option<*mut Self::Value>;
}

/// Those whose entries come and go.
pub(crate) trait Change: Lookup {
    fn update(&self, key: &Self::Key, value: &Self::Value, flags: u64) -> bool;
    fn delete(&self, key: &Self::Key) -> bool;
}

macro_rules! hashes {
    ($($map:ident $new:ident)*) => {
        $(
            impl<K, V> Table<$map<K, V>> {
                pub(crate) const fn $new(max_entries: u32) -> Self {
                    Self($map::with_max_entries(max_entries, 0))
                }
            }

            impl<K: Plain, V: Plain> Lookup for $map<K, V> {
                type Key = K;
                type Value = V;

                #[inline(always)]
                fn address(&self, key: &K) -> Option<*mut V> {
                    self.get_ptr_mut(key)
                }
            }

            impl<K: Plain, V: Plain> Change for $map<K, V> {
                #[inline(always)]
                fn update(&self, key: &K, value: &V, flags: u64) -> bool {
                    self.insert(key, value, flags).is_ok()
                }

                #[inline(always)]
                fn delete(&self, key: &K) -> bool {
                    self.remove(key).is_ok()
                }
            }
        )*
    };
}
hashes!(HashMap hash LruHashMap lru LruPerCpuHashMap lru_per_cpu);

macro_rules! arrays {
    ($($map:ident $new:ident)*) => {
        $(
            impl<V> Table<$map<V>> {
                pub(crate) const fn $new(max_entries: u32) -> Self {
                    Self($map::with_max_entries(max_entries, 0))
                }
            }

            impl<V: Plain> Lookup for $map<V> {
                type Key = u32;
                type Value = V;

                // An index in a whole word of the stack, of which the helper reads the lower half (little endian).
                // Half a word would leave what the other half held to be told apart by the verifier, which then walks
                // all that follows once for each.
                #[inline(always)]
                fn address(&self, key: &u32) -> Option<*mut V> {
                    let index = u64::from(*key);
                    let map = core::ptr::from_ref(self).cast_mut().cast();
                    // SAFETY: a map, and a key of its type.
                    let value: *mut V =
                        unsafe { bpf_map_lookup_elem(map, (&raw const index).cast()) }.cast();
                    (!value.is_null()).then_some(value)
                }
            }
        )*
    };
}
arrays!(Array array PerCpuArray per_cpu);

/// A map. Of a per-CPU one a program sees its own CPU's values.
#[repr(transparent)]
pub(crate) struct Table<M>(M);

impl<M: Lookup> Table<M> {
    #[inline(always)]
    pub(crate) fn has(&self, key: impl Borrow<M::Key>) -> bool {
        self.0.address(key.borrow()).is_some()
    }

    /// The value, to look at.
    #[inline(always)]
    pub(crate) fn get(&self, key: impl Borrow<M::Key>) -> Option<&M::Value> {
        // SAFETY: live, plain and alone: see above.
        self.0.address(key.borrow()).map(|value| unsafe { &*value })
    }

    /// The value, to change in place.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "the map is the kernel's, and the value not part of it here"
    )]
    pub(crate) fn edit(&self, key: impl Borrow<M::Key>) -> Option<&mut M::Value> {
        // SAFETY: as above.
        self.0
            .address(key.borrow())
            .map(|value| unsafe { &mut *value })
    }
}

impl<M: Change> Table<M> {
    /// Puts a value in, in place of the one that is there; false where there is no room.
    #[inline(always)]
    pub(crate) fn insert(&self, key: impl Borrow<M::Key>, value: impl Borrow<M::Value>) -> bool {
        self.0.update(key.borrow(), value.borrow(), 0)
    }

    /// The same where there is none yet; false where there is, too.
    #[inline(always)]
    pub(crate) fn insert_new(
        &self,
        key: impl Borrow<M::Key>,
        value: impl Borrow<M::Value>,
    ) -> bool {
        self.0
            .update(key.borrow(), value.borrow(), u64::from(BPF_NOEXIST))
    }

    /// Whether there was one.
    #[inline(always)]
    pub(crate) fn remove(&self, key: impl Borrow<M::Key>) -> bool {
        self.0.delete(key.borrow())
    }
}

/// As large as the largest value that begins as zeros.
#[expect(dead_code, reason = "for its size")]
union Largest {
    counts: Counts,
    listener: Listener,
    retransmitted: Retransmitted,
    sources: Sources,
}

const MOST_ZEROS: usize = size_of::<Largest>();

/// What new entries are copied from: zero for ever.
#[map]
static ZEROS: Table<Array<[u64; MOST_ZEROS / size_of::<u64>()]>> = Table::array(1);

/// Zeros to begin a value with that has no room on the stack.
#[inline(always)]
pub(crate) fn zeros<V: Plain>() -> Option<&'static V> {
    const { assert!(size_of::<V>() <= MOST_ZEROS && align_of::<V>() <= align_of::<u64>()) };
    // SAFETY: a live value that nobody writes, large enough for a `V`, which any bytes are.
    ZEROS
        .get(0)
        .map(|zeros| unsafe { &*core::ptr::from_ref(zeros).cast() })
}

/// Adds to a counter that other CPUs, or what this program interrupts, may be adding to.
#[inline(always)]
pub(crate) fn add(counter: &mut u64, by: u64) {
    // SAFETY: a reference; relaxed with an unused result is BPF's plain atomic add, which 5.10 has.
    unsafe {
        core::intrinsics::atomic_xadd::<u64, u64, { core::intrinsics::AtomicOrdering::Relaxed }>(
            counter, by,
        );
    }
}

/// Reads what the compiler may not take from an earlier read or write, or join with another.
#[inline(always)]
pub(crate) fn read_once<T: Copy>(place: &T) -> T {
    // SAFETY: a read through a reference.
    unsafe { core::ptr::read_volatile(place) }
}

/// Writes where the compiler may move the write past no other of the kind, nor join it with one.
#[inline(always)]
pub(crate) fn write_once<T: Copy>(place: &mut T, value: T) {
    // SAFETY: a write through a reference.
    unsafe { core::ptr::write_volatile(place, value) }
}
