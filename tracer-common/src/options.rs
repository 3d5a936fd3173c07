//! How the eBPF side is to behave, chosen at load: which hook type stands for which hook, and what to
//! write to the rings. One read-only global; the verifier prunes the branches not taken.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// All zero means: every hook on its best hook type, ring buffer, nothing beyond what findings need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Options {
    /// When the tracer began: before any hook was attached, so that whatever is older than that has not
    /// been seen. The birth of what is found at start.
    pub began_ns: u64,
    /// Bits of [`crate::filter::emit_bit`]: kinds of records that somebody asked for.
    pub emit: u32,
    /// 1: records travel through the perf arrays.
    pub perf: u8,
    /// 1: the state hook stands in for `tcp_connect`.
    pub connect_by_state: u8,
    /// 1: the state hook stands in for `tcp_v4/v6_syn_recv_sock` at the birth of a child, and
    /// `kfree_skb` for early drops.
    pub ack_by_skb: u8,
    /// 1: `consume_skb` stands in for `tcp_conn_request`.
    pub syn_by_skb: u8,
    /// 1: what connect() returns is not seen, and the state hook concludes what it can.
    pub failure_by_state: u8,
    pub pad: [u8; 3],
    /// Nanoseconds of a jiffy.
    pub tick_ns: u32,
}

impl Options {
    /// What is compiled into the object.
    pub const NONE: Self = Self {
        began_ns: 0,
        emit: 0,
        perf: 0,
        connect_by_state: 0,
        ack_by_skb: 0,
        syn_by_skb: 0,
        failure_by_state: 0,
        pad: [0; 3],
        tick_ns: 0,
    };
}
