//! Sockets as they are when userspace asks about them.

use std::{mem::offset_of, time::Duration};

use conntracer_common::record::{self, Header, snapshot_flag};

use super::{
    owner::Owner,
    raw::{DecodeError, ago, read_grown, stamped, when},
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
    /// What only the socket itself knows; `None` in recordings of an earlier conntracer.
    pub about: Option<SocketNow>,
}

/// A socket as it is now: what it last sent and received, and what waits in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketNow {
    /// How long ago data last came, and was last sent (again, too); `None` when never, or not known.
    pub received_idle: Option<Duration>,
    pub sent_idle: Option<Duration>,
    /// How long ago the peer last acknowledged or sent anything.
    pub heard_idle: Option<Duration>,
    pub unread_bytes: u32,
    /// When what is not acknowledged was first sent again.
    pub retransmits_since: Option<Ktime>,
    /// No application has accepted it yet.
    pub not_accepted: bool,
    /// The peer's FIN came, and the application has not read up to it.
    pub end_unread: bool,
}

impl Snapshot {
    pub(super) fn decode(bytes: &[u8], header: &Header) -> Result<Self, DecodeError> {
        const OLDER: usize = offset_of!(record::Snapshot, received_idle_ns);
        let raw: record::Snapshot = read_grown(bytes, OLDER, &record::Snapshot::default(), header)?;
        let about = (bytes.len() != OLDER).then(|| SocketNow {
            received_idle: ago(raw.received_idle_ns),
            sent_idle: ago(raw.sent_idle_ns),
            heard_idle: ago(raw.heard_idle_ns),
            unread_bytes: raw.unread,
            retransmits_since: stamped(raw.retrans_stamp, raw.header.ktime_ns),
            not_accepted: raw.flags & snapshot_flag::NOT_ACCEPTED != 0,
            end_unread: raw.flags & snapshot_flag::END_UNREAD != 0,
        });
        Ok(Self {
            socket: Socket::decode(&raw.socket),
            owner: Owner::decode(&raw.owner)?,
            tcp: Tcp::decode(&raw.tcp),
            since: when(raw.since_ns),
            about,
        })
    }
}
