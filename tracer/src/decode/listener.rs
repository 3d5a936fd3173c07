//! What comes in at a listener: SYNs, SYN-ACKs sent again, who sends them.

use conntracer_common::record::{self, listener_flag, syn_evidence, syn_outcome};

use super::{DecodeError, owner, socket, when};
use crate::{
    event::{Sources, Syn, SynAck},
    time::Ktime,
};

pub(super) fn syn_ack(raw: &record::SynAck) -> Result<SynAck, DecodeError> {
    Ok(SynAck {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        request: raw.request,
        ack_backlog: raw.ack_backlog,
        max_ack_backlog: raw.max_ack_backlog,
        syn_qlen: raw.syn_qlen,
        num_retrans: raw.num_retrans,
        num_timeout: raw.num_timeout,
        acked: raw.acked != 0,
    })
}

pub(super) fn syn(raw: &record::Syn) -> Result<Syn, DecodeError> {
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
    Ok(Syn {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
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
        abort_on_overflow: (raw.abort_on_overflow != u8::MAX).then_some(raw.abort_on_overflow != 0),
        v6_only: raw.flags & listener_flag::V6_ONLY != 0,
        reuseport: raw.flags & listener_flag::REUSEPORT != 0,
        most_repeats: raw.most_repeats,
    })
}

pub(super) fn sources(raw: &record::Sources) -> Sources {
    Sources {
        socket: socket(&raw.socket),
        since: Ktime(raw.since_ns),
        last: Ktime(raw.last_ns),
        syns: raw.syns,
        addresses: raw.addresses,
        prefixes: raw.prefixes,
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
