//! A connection's life: opened, changed, reset, failed, ended, probed.

use std::time::Duration;

use conntracer_common::record;

use super::{DecodeError, owner, reason, socket, tcp};
use crate::{
    event::{Close, Failure, Opened, Probe, Reset, Role, State},
    time::Ktime,
};

pub(super) fn connect(raw: &record::Connect) -> Result<Opened, DecodeError> {
    Ok(Opened {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
    })
}

pub(super) fn accept(raw: &record::Accept) -> Result<Opened, DecodeError> {
    Ok(Opened {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
    })
}

pub(super) fn state(raw: &record::State) -> Result<State, DecodeError> {
    Ok(State {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        old: raw.old_state.into(),
        new: raw.new_state.into(),
        errno: raw.error,
        retransmits: raw.retransmits,
        probes_out: raw.probes_out,
    })
}

pub(super) fn reset(raw: &record::Reset) -> Result<Reset, DecodeError> {
    Ok(Reset {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        reason: reason(raw.reason),
        received: raw.received != 0,
        retransmits: raw.retransmits,
    })
}

pub(super) fn failure(raw: &record::Failure) -> Result<Failure, DecodeError> {
    Ok(Failure {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        count: raw.count,
        first: Ktime(raw.first_ns),
        last: Ktime(raw.last_ns),
        longest: Duration::from_nanos(raw.longest_ns),
        errno: raw.error,
        syns: raw.syns,
        how: raw.how,
    })
}

pub(super) fn close(raw: &record::Close) -> Result<Close, DecodeError> {
    let socket = socket(&raw.socket);
    let is_whole = socket.id.born != Ktime(0) && !socket.older && socket.role != Role::Unknown;
    Ok(Close {
        socket,
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        octets_received: raw.bytes_received,
        age: is_whole.then(|| Ktime(raw.header.ktime_ns).since(socket.id.born)),
        idle: (raw.idle_ns != u64::MAX).then(|| Duration::from_nanos(raw.idle_ns)),
        errno: raw.error,
        soft_errno: raw.soft_error,
        reason: reason(raw.reason),
        unread_bytes: raw.unread,
        old: raw.old_state.into(),
        flags: raw.flags,
    })
}

pub(super) fn probe(raw: &record::Probe) -> Result<Probe, DecodeError> {
    Ok(Probe {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        result: raw.result,
        keepalive: raw.keepalive != 0,
    })
}
