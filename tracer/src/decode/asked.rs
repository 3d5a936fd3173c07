//! What was asked for: snapshots, sockets older than the run, idle connections.

use std::time::Duration;

use conntracer_common::record::{self, idle_flag};

use super::{DecodeError, owner, socket, tcp, when};
use crate::event::{Idle, Seed, Snapshot};

pub(super) fn snapshot(raw: &record::Snapshot) -> Result<Snapshot, DecodeError> {
    Ok(Snapshot {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        since: when(raw.since_ns),
    })
}

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

pub(super) fn idle(raw: &record::Idle) -> Result<Idle, DecodeError> {
    Ok(Idle {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        idle: Duration::from_nanos(raw.idle_ns),
        without_timer: raw.flags & idle_flag::NO_TIMER != 0,
    })
}
