//! Which records tell of a socket in trouble, whose holders are then worth a search.

use conntracer_common::record::{
    AcceptQueue, Header, Owner, Receive, Socket, Syn, SynTotals, accept_queue_flag, kind,
    receive_flag, syn_outcome,
};
use zerocopy::FromBytes;

/// Kinds of records that tell of a socket in trouble.
const TROUBLE: [u16; 7] = [
    kind::RETRANSMIT,
    kind::RETRANSMITS,
    kind::PROBE,
    kind::SNAPSHOT,
    kind::RESET,
    kind::CLOSE,
    kind::SYNACK,
];

/// The time of a record that tells of trouble, its socket and the owner.
pub(super) fn troubled(record: &[u8]) -> Option<(u64, Socket, Owner)> {
    let (header, rest) = Header::read_from_prefix(record).ok()?;
    let in_trouble = TROUBLE.contains(&header.kind)
        || header.kind == kind::SYN
            && Syn::read_from_bytes(record).is_ok_and(|syn| troubled_syns(&syn.totals) > 0)
        || header.kind == kind::ACCEPT_QUEUE
            && AcceptQueue::read_from_bytes(record)
                .is_ok_and(|queue| queue.flags & accept_queue_flag::LATE != 0)
        || header.kind == kind::RECEIVE
            && Receive::read_from_bytes(record)
                .is_ok_and(|receive| receive.flags & receive_flag::SHUT != 0);
    if !in_trouble {
        return None;
    }
    let (socket, rest) = Socket::read_from_prefix(rest).ok()?;
    let (owner, _) = Owner::read_from_prefix(rest).ok()?;
    (socket.born_ns != 0).then_some((header.ktime_ns, socket, owner))
}

/// What of a listener's totals goes into a sketch of its sources.
pub(super) fn troubled_syns(totals: &SynTotals) -> u64 {
    totals[syn_outcome::COOKIE..syn_outcome::SYNS]
        .iter()
        .fold(totals[syn_outcome::REPEATED], |sum, more| {
            sum.wrapping_add(*more)
        })
}
