//! Bytes to the struct of a record, and the numbers in it that stand for "not known".

use conntracer_common::record::Header;
use thiserror::Error;
use zerocopy::FromBytes;

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

/// The record, copied out: a perf ring or a file guarantees no alignment, and at most 232 bytes cost
/// less than a branch on it.
pub(super) fn read<T: FromBytes>(bytes: &[u8], header: &Header) -> Result<T, DecodeError> {
    T::read_from_bytes(bytes).map_err(|_| DecodeError::Size {
        kind: header.kind,
        size: bytes.len(),
        expected: size_of::<T>(),
    })
}

/// A time that may not be known.
pub(super) fn when(ns: u64) -> Option<Ktime> {
    (ns != 0).then_some(Ktime(ns))
}

/// A reason of the kernel's, which some kernels do not give.
pub(super) fn reason(raw: u32) -> Option<u32> {
    (raw != u32::MAX).then_some(raw)
}
