//! What is counted per network namespace, to be held against the kernel's own counters of it.
//!
//! Only what went wrong: a healthy connection counts nothing here. Written by the kernel half where a
//! listener's totals are, compared by the user half.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::record::syn_outcome;

/// Index into [`Counts`]. The first [`syn_outcome::OUTCOMES`] are those of [`syn_outcome`], of which the
/// healthy ones (`ADDED`, `COMPLETED`) stay 0.
pub mod count {
    use super::syn_outcome;

    /// SYNs that were to be answered with a cookie, and then dropped.
    pub const COOKIE_DROPPED: usize = syn_outcome::OUTCOMES;
    /// ACKs without a request that brought a valid cookie, and those that brought a wrong one.
    pub const COOKIE_VALID: usize = COOKIE_DROPPED + 1;
    pub const COOKIE_INVALID: usize = COOKIE_DROPPED + 2;
    /// SYN-ACKs repeated, by timer or for a repeated SYN.
    pub const SYN_ACK_REPEATED: usize = COOKIE_DROPPED + 3;
    /// SYNs of connect() repeated.
    pub const SYN_REPEATED: usize = COOKIE_DROPPED + 4;
    /// Segments of any kind sent again, SYNs included and SYN-ACKs not.
    pub const RETRANSMITTED: usize = COOKIE_DROPPED + 5;
    /// Resets sent, whatever for.
    pub const RESET_SENT: usize = COOKIE_DROPPED + 6;
    /// Requests ended by the peer's RST or SYN.
    pub const REQUEST_RESET: usize = COOKIE_DROPPED + 7;
    /// Requests ended by our RST, because the accept queue was full and `tcp_abort_on_overflow` is 1.
    pub const REQUEST_ABORTED: usize = COOKIE_DROPPED + 8;
    /// Requests given up by their timer.
    pub const REQUEST_EXPIRED: usize = COOKIE_DROPPED + 9;
    pub const COUNT: usize = COOKIE_DROPPED + 10;
}

/// Cumulative per namespace since the kernel half first counted anything there, indexed by [`count`].
pub type Counts = [u64; count::COUNT];

/// Which namespace: an inode alone is given to the next one as soon as its namespace is gone.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
)]
#[repr(C)]
pub struct NetnsId {
    /// `net.ns.inum`; 0 stands for all that found no room of their own.
    pub inode: u32,
    /// `net.hash_mix`: a random number drawn when the namespace was made.
    pub mix: u32,
}
