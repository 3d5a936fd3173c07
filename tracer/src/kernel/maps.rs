//! Takes maps out of the loaded object, reads them whole in batches, and removes what is idle.
//!
//! BPF_MAP_LOOKUP_BATCH (Linux 5.6) reads hundreds of entries a system call where a key-by-key walk
//! needs two calls an entry; aya does not offer it.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::{Map, MapData},
};

use super::error::CannotTrace;

/// A map of the object, by name.
pub(super) fn take<M: TryFrom<Map>>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, CannotTrace> {
    ebpf.take_map(name)
        .and_then(|map| M::try_from(map).ok())
        .ok_or(CannotTrace::Foreign(name))
}

/// A hash map, plain or LRU, to be read by the functions below.
pub(super) fn take_hash(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, CannotTrace> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(data) | Map::LruHashMap(data)) => Ok(data),
        _ => Err(CannotTrace::Foreign(name)),
    }
}

/// Of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
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
    command(BPF_MAP_LOOKUP_ELEM, map, &key.to_ne_bytes(), Some(value))
}

/// Removes one entry and reads what it held last into `value`, as [`lookup`] does; whether there was one.
///
/// Before 5.14 a hash map cannot do both at once: what is counted in the moment between is in neither.
pub(super) fn remove<const K: usize>(
    map: BorrowedFd<'_>,
    key: &[u8; K],
    value: &mut [u8],
) -> io::Result<bool> {
    /// Linux's own errno (include/linux/errno.h), which no libc has.
    const ENOTSUPP: i32 = 524;
    let taken = command(BPF_MAP_LOOKUP_AND_DELETE_ELEM, map, key, Some(value));
    if !taken.as_ref().is_err_and(|error| {
        matches!(
            error.raw_os_error(),
            Some(ENOTSUPP | libc::EOPNOTSUPP | libc::EINVAL)
        )
    }) {
        return taken;
    }
    let found = command(BPF_MAP_LOOKUP_ELEM, map, key, Some(value))?;
    delete(map, key)?;
    Ok(found)
}

/// Runs a command on one entry; whether there was one.
fn command<const K: usize>(
    command: libc::c_long,
    map: BorrowedFd<'_>,
    key: &[u8; K],
    value: Option<&mut [u8]>,
) -> io::Result<bool> {
    let mut attr = EntryAttr {
        map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
        key: key.as_ptr().addr() as u64,
        value: value.map_or(0, |value| value.as_mut_ptr().addr() as u64),
        ..EntryAttr::default()
    };
    // SAFETY: `attr` is the entry member of bpf_attr; its pointers name a live key and, where a value is
    // read, a buffer that the caller made as large as one.
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

/// Removes one entry; one that is gone already is no error.
fn delete<const K: usize>(map: BorrowedFd<'_>, key: &[u8; K]) -> io::Result<()> {
    command(BPF_MAP_DELETE_ELEM, map, key, None).map(drop)
}
