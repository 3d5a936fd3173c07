//! Bytes to the struct of a record, and the numbers in it that stand for "not known".

use std::time::Duration;

use conntracer_common::record::Header;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::time::Ktime;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    #[error("record of {length} bytes is shorter than its header")]
    Short { length: usize },
    #[error("record says {size} bytes and {length} arrived")]
    Truncated { size: usize, length: usize },
    #[error("no record has kind {kind}")]
    Kind { kind: u16 },
    #[error("a record of kind {kind} has {expected} bytes, not {size}")]
    Size {
        kind: u16,
        size: usize,
        expected: usize,
    },
    #[error("{field} is {value}, which no record carries")]
    Value { field: &'static str, value: u64 },
}

/// The record, copied out: a perf ring or a file guarantees no alignment, and at most 544 bytes cost
/// less than a branch on it.
pub(super) fn read<T: FromBytes>(bytes: &[u8], header: &Header) -> Result<T, DecodeError> {
    T::read_from_bytes(bytes).map_err(|_| DecodeError::Size {
        kind: header.kind,
        size: bytes.len(),
        expected: size_of::<T>(),
    })
}

/// The same of a record that was shorter in recordings of an earlier conntracer: what it lacks is as in `unknown`.
pub(super) fn read_grown<T: FromBytes + IntoBytes + Immutable>(
    bytes: &[u8],
    older: usize,
    unknown: &T,
    header: &Header,
) -> Result<T, DecodeError> {
    match unknown.as_bytes().get(older..) {
        Some(missing) if bytes.len() == older => read(&[bytes, missing].concat(), header),
        _ => read(bytes, header),
    }
}

/// A time that may not be known.
pub(super) fn when(ns: u64) -> Option<Ktime> {
    (ns != 0).then_some(Ktime(ns))
}

/// How long ago something was, where that is known.
pub(super) fn ago(ns: u64) -> Option<Duration> {
    (ns != u64::MAX).then(|| Duration::from_nanos(ns))
}

/// When the kernel last set a stamp of its TCP clock, which counts milliseconds in 32 bits; `None` where it never did, and
/// of a day ago or more: it counts microseconds where the route asks for those.
pub(super) fn stamped(stamp_ms: u32, now_ns: u64) -> Option<Ktime> {
    const A_DAY_MS: u32 = 86_400_000;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it wraps like the kernel's"
    )]
    let clock_ms = now_ns.checked_div(1_000_000)? as u32;
    let ago_ms = clock_ms.wrapping_sub(stamp_ms);
    (stamp_ms != 0 && ago_ms < A_DAY_MS)
        .then(|| Ktime(now_ns.saturating_sub(u64::from(ago_ms).saturating_mul(1_000_000))))
}

/// A reason of the kernel's, which some kernels do not give.
pub(super) const fn reason(raw: u32) -> Option<u32> {
    if raw == u32::MAX { None } else { Some(raw) }
}
