//! `half_open`: one end believes in a connection that the other does not have, or not any more.

pub(crate) mod dead_peer;
pub(crate) mod half_closed;
pub(crate) mod handshake;
pub(crate) mod idle;
mod thresholds;

pub(super) use self::thresholds::Thresholds;
use crate::finding::FindingKind;

/// All four rooms' findings are of one kind.
const KIND: FindingKind = FindingKind::new(2, "half_open");
