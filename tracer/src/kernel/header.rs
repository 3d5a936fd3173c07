//! The header of a record that userspace makes itself.

use conntracer_common::record::Header;

/// Of a `T` made at a time; no CPU made it.
pub(super) fn header<T>(kind: u16, ktime_ns: u64) -> Header {
    Header {
        ktime_ns,
        kind,
        size: u16::try_from(size_of::<T>()).unwrap_or(u16::MAX),
        cpu: u32::MAX,
    }
}
