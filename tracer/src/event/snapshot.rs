//! Sockets as they are when userspace asks about them.

use conntracer_common::record;

use super::{
    owner::Owner,
    raw::{DecodeError, when},
    socket::Socket,
    tcp::Tcp,
};
use crate::time::Ktime;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub socket: Socket,
    pub owner: Option<Owner>,
    pub tcp: Tcp,
    /// When `socket.state` was entered, where that was seen.
    pub since: Option<Ktime>,
}

impl Snapshot {
    pub(super) fn decode(raw: &record::Snapshot) -> Result<Self, DecodeError> {
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            since: when(raw.since_ns),
        })
    }
}
