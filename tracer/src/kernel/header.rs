//! The header of a record that userspace makes itself, and the kind of one that comes by.

use std::mem::offset_of;

use conntracer_common::record::Header;

/// Whether a record that comes by is of `kind`, at the cost of a look at two bytes of it.
pub(super) fn is_of(kind: u16, record: &[u8]) -> bool {
    const KIND: usize = offset_of!(Header, kind);
    record.get(KIND..KIND + size_of::<u16>()) == Some(kind.to_ne_bytes().as_slice())
}

/// Of a `T` made at a time; no CPU made it.
pub(super) fn header<T>(kind: u16, ktime_ns: u64) -> Header {
    Header {
        ktime_ns,
        kind,
        size: u16::try_from(size_of::<T>()).unwrap_or(u16::MAX),
        cpu: u32::MAX,
    }
}
