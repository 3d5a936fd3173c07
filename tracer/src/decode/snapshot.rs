//! Sockets as they are when userspace asks about them.

use conntracer_common::record;

use super::{DecodeError, owner, socket, tcp, when};
use crate::event::Snapshot;

pub(super) fn snapshot(raw: &record::Snapshot) -> Result<Snapshot, DecodeError> {
    Ok(Snapshot {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        since: when(raw.since_ns),
    })
}
