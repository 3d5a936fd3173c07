//! What became of a listener's SYNs and third ACKs.

use conntracer_common::{
    record::{self, SynTotals, listener_flag, syn_evidence, syn_outcome},
    sketch,
};

use super::{
    owner::Owner,
    raw::{DecodeError, when},
    socket::Socket,
};
use crate::time::Ktime;

/// A retransmitted SYN-ACK. `socket` is the listener with the request's remote end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynAck {
    pub socket: Socket,
    pub owner: Option<Owner>,
    /// Kernel address of the request.
    pub request: u64,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub syn_qlen: u32,
    /// SYN-ACKs retransmitted before this one.
    pub num_retrans: u8,
    pub num_timeout: u8,
    /// The third ACK did arrive and was discarded.
    pub acked: bool,
}

impl SynAck {
    pub(super) fn decode(raw: &record::SynAck) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            request: raw.request,
            ack_backlog: raw.ack_backlog,
            max_ack_backlog: raw.max_ack_backlog,
            syn_qlen: raw.syn_qlen,
            num_retrans: raw.num_retrans,
            num_timeout: raw.num_timeout,
            acked: raw.acked != 0,
        })
    }
}

/// A listener's cumulative totals and queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub totals: SynTotals,
    pub last_accept: Option<Ktime>,
    /// When the last outcome was.
    pub last: Option<Ktime>,
    pub ack_backlog: u32,
    pub max_ack_backlog: u32,
    pub syn_qlen: u32,
    pub max_syn_backlog: u32,
    pub peak_ack_backlog: u32,
    pub peak_syn_qlen: u32,
    /// Index into [`conntracer_common::record::syn_outcome`]; `None` in a poll.
    pub outcome: Option<usize>,
    /// Whether the kernel's own counters named the cause, not the listener's fields.
    pub by_counters: bool,
    /// `net.core.somaxconn`, `net.ipv4.tcp_syncookies` and `net.ipv4.tcp_abort_on_overflow` of the
    /// listener's namespace, where they are known.
    pub somaxconn: Option<u32>,
    pub syncookies: Option<u8>,
    pub abort_on_overflow: Option<bool>,
    /// An any-address that takes no IPv4.
    pub v6_only: bool,
    /// One of possibly many listeners of its address (`SO_REUSEPORT`).
    pub reuseport: bool,
    /// Most SYN-ACKs retransmitted for one request so far.
    pub most_repeats: u8,
    /// Index of the device that it is bound to, as of the last poll that showed it.
    pub bound_ifindex: Option<u32>,
}

impl Syn {
    pub(super) fn decode(raw: &record::Syn) -> Result<Self, DecodeError> {
        let outcome = match raw.outcome {
            u8::MAX => None,
            value if usize::from(value) < syn_outcome::OUTCOMES => Some(value.into()),
            value => {
                return Err(DecodeError::Value {
                    field: "SYN outcome",
                    value: value.into(),
                });
            }
        };
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            totals: raw.totals,
            last_accept: when(raw.last_accept_ns),
            last: when(raw.last_ns),
            ack_backlog: raw.ack_backlog,
            max_ack_backlog: raw.max_ack_backlog,
            syn_qlen: raw.syn_qlen,
            max_syn_backlog: raw.max_syn_backlog,
            peak_ack_backlog: raw.peak_ack_backlog,
            peak_syn_qlen: raw.peak_syn_qlen,
            outcome,
            by_counters: raw.evidence == syn_evidence::COUNTERS,
            somaxconn: (raw.somaxconn != 0).then_some(raw.somaxconn),
            syncookies: (raw.syncookies != u8::MAX).then_some(raw.syncookies),
            abort_on_overflow: (raw.abort_on_overflow != u8::MAX)
                .then_some(raw.abort_on_overflow != 0),
            v6_only: raw.flags & listener_flag::V6_ONLY != 0,
            reuseport: raw.flags & listener_flag::REUSEPORT != 0,
            most_repeats: raw.most_repeats,
            bound_ifindex: (raw.bound_ifindex != 0).then_some(raw.bound_ifindex),
        })
    }
}

/// Who sent the SYNs a listener had trouble with: the registers of [`conntracer_common::sketch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources {
    /// The listener.
    pub socket: Socket,
    /// The first and the last of these SYNs.
    pub since: Ktime,
    pub last: Ktime,
    pub syns: u64,
    pub addresses: [u8; sketch::ADDRESSES],
    pub prefixes: [u8; sketch::PREFIXES],
}

impl Sources {
    pub(super) fn decode(raw: &record::Sources) -> Self {
        Self {
            socket: Socket::decode(&raw.socket),
            since: Ktime(raw.since_ns),
            last: Ktime(raw.last_ns),
            syns: raw.syns,
            addresses: raw.addresses,
            prefixes: raw.prefixes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        decode::decode,
        testing::{Run, listener},
    };

    #[test]
    fn an_outcome_that_does_not_exist_is_refused() {
        let mut run = Run::new();
        run.syn(listener("10.0.0.1:80", "10.0.0.2:4000"), |syn| {
            syn.outcome = 10;
        });
        assert_eq!(run.pipeline.tallies().decode_errors, 1);
        let error = DecodeError::Value {
            field: "SYN outcome",
            value: 10,
        };
        assert_eq!(decode(&run.fed[0]), Err(error));
    }
}
