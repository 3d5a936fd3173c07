//! Reads the eBPF side's maps: the counters, and whole maps in batches; removes what is idle.
//!
//! BPF_MAP_LOOKUP_BATCH (Linux 5.6) reads hundreds of entries a system call where a key-by-key walk
//! needs two calls an entry; aya does not offer it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::maps::{MapData, PerCpuArray};
use conntracer_common::stats::HookCounters;
use zerocopy::transmute;

/// The counters as aya sees them: `HookCounters` is not ours to mark as plain data there.
pub(super) type Counters = PerCpuArray<MapData, [u64; 5]>;

/// One hook's counters, summed over CPUs.
pub(super) fn counters(map: &Counters, hook: u32) -> io::Result<HookCounters> {
    let per_cpu = map.get(&hook, 0).map_err(io::Error::other)?;
    let mut sum = HookCounters::default();
    for cpu in per_cpu.iter() {
        sum.add(&transmute!(*cpu));
    }
    Ok(sum)
}

/// Of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries asked for at once: 64 KiB of the largest values, and more than any one hash bucket holds.
const BATCH: usize = 256;

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The member of `union bpf_attr` for one entry.
#[repr(C)]
#[derive(Default)]
struct EntryAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Reads one entry of a hash map with 8-byte keys into `value`, which is as large as the map's values;
/// whether there is one.
pub(super) fn lookup(map: BorrowedFd<'_>, key: u64, value: &mut [u8]) -> io::Result<bool> {
    read_entry(BPF_MAP_LOOKUP_ELEM, map, &key.to_ne_bytes(), value)
}

/// Removes one entry and reads what it held last into `value`, as [`lookup`] does; whether there was one.
///
/// Before 5.14 a hash map cannot do both at once: what is counted in the moment between is in neither.
pub(super) fn take<const K: usize>(
    map: BorrowedFd<'_>,
    key: &[u8; K],
    value: &mut [u8],
) -> io::Result<bool> {
    /// Linux's own errno (include/linux/errno.h), which no libc has.
    const ENOTSUPP: i32 = 524;
    let taken = read_entry(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, value);
    if !taken.as_ref().is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)
        )
    }) {
        return taken;
    }
    let found = read_entry(BPF_MAP_LOOKUP_ELEM, map, key, value)?;
    remove(map, key)?;
    Ok(found)
}

fn read_entry<const K: usize>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &[u8; K],
    value: &mut [u8],
) -> io::Result<bool> {
    let mut attr = EntryAttr {
        map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
        key: key.as_ptr().addr() as u64,
        value: value.as_mut_ptr().addr() as u64,
        ..EntryAttr::default()
    };
    // SAFETY: `attr` is the entry member of bpf_attr; its pointers name a live key and a buffer that the
    // caller made as large as a value.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            (&raw mut attr).cast::<libc::c_void>(),
            size_of::<EntryAttr>(),
        )
    };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        _ => Err(error),
    }
}

/// [`for_each_entry`] of a map whose keys are addresses.
pub(super) fn for_each(
    map: BorrowedFd<'_>,
    value_size: usize,
    mut see: impl FnMut(u64, &[u8]),
) -> io::Result<()> {
    for_each_entry(map, value_size, |key, value| {
        see(u64::from_ne_bytes(*key), value);
    })
}

/// Shows every entry of a hash map with keys of `K` bytes. Entries that come or go meanwhile may be missed
/// or seen, as with any walk of a live map.
pub(super) fn for_each_entry<const K: usize>(
    map: BorrowedFd<'_>,
    value_size: usize,
    mut see: impl FnMut(&[u8; K], &[u8]),
) -> io::Result<()> {
    let mut keys = [[0_u8; K]; BATCH];
    let mut values = vec![0_u8; value_size * BATCH];
    let mut cursor = [0_u64; 2];
    let mut first = true;
    loop {
        let mut attr = BatchAttr {
            in_batch: if first {
                0
            } else {
                (&raw const cursor).addr() as u64
            },
            out_batch: (&raw mut cursor).addr() as u64,
            keys: keys.as_mut_ptr().addr() as u64,
            values: values.as_mut_ptr().addr() as u64,
            count: u32::try_from(BATCH).unwrap_or(u32::MAX),
            map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
            ..BatchAttr::default()
        };
        // SAFETY: `attr` is the batch member of bpf_attr; its pointers name live buffers of `count`
        // keys and values, and a cursor of at least the 4 bytes a hash map's batch uses.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_LOOKUP_BATCH,
                (&raw mut attr).cast::<libc::c_void>(),
                size_of::<BatchAttr>(),
            )
        };
        let error = io::Error::last_os_error();
        // ENOENT: the end of the map, with `count` entries in this last batch.
        if result != 0 && error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
        let count = (attr.count as usize).min(BATCH);
        for (key, value) in keys.iter().zip(values.chunks_exact(value_size)).take(count) {
            see(key, value);
        }
        if result != 0 {
            return Ok(());
        }
        first = false;
    }
}

/// `BPF_MAP_DELETE_ELEM` of `enum bpf_cmd`.
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// The members of `union bpf_attr` that name one element.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Removes one entry; one that is gone already is no error.
fn remove<const K: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<()> {
    let attr = ElementAttr {
        map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
        key: key.as_ptr().addr() as u64,
        ..ElementAttr::default()
    };
    // SAFETY: `attr` names a map and a live key of its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_DELETE_ELEM,
            (&raw const attr).cast::<libc::c_void>(),
            size_of::<ElementAttr>(),
        )
    };
    let error = io::Error::last_os_error();
    if result == 0 || error.raw_os_error() == Some(libc::ENOENT) {
        Ok(())
    } else {
        Err(error)
    }
}
