//! Sockets that were there before the tracer.

use conntracer_common::record;

use super::{DecodeError, owner, socket, tcp, when};
use crate::event::Seed;

pub(super) fn seed(raw: &record::Seed) -> Result<Seed, DecodeError> {
    Ok(Seed {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        bytes_received: raw.bytes_received,
        active: when(raw.active_ns),
        since: when(raw.since_ns),
        ack_backlog: raw.ack_backlog,
        max_ack_backlog: raw.max_ack_backlog,
        holders: raw.holders,
        num_retrans: raw.num_retrans,
    })
}
