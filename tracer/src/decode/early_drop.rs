//! Packets freed before they came to a socket.

use std::net::SocketAddr;

use conntracer_common::record::{self, early_drop_place, path};

use super::{DecodeError, address, owner, reason, socket};
use crate::{
    event::{Device, Drop, EarlyDrop, Path, Place},
    time::Ktime,
};

pub(super) fn drop(raw: &record::Drop) -> Result<Drop, DecodeError> {
    Ok(Drop {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        location: raw.location,
        seq: raw.seq,
        reason: reason(raw.reason),
        tcp_flags: raw.tcp_flags,
    })
}

pub(super) fn early_drop(raw: &record::EarlyDrop) -> Result<EarlyDrop, DecodeError> {
    let path = match raw.path {
        path::UNKNOWN => None,
        path::PREROUTING => Some(Path::Prerouting),
        path::INPUT => Some(Path::Input),
        path::FORWARD => Some(Path::Forward),
        value => {
            return Err(DecodeError::Value {
                field: "path of an early drop",
                value: value.into(),
            });
        }
    };
    let place = match raw.place {
        early_drop_place::UNKNOWN => None,
        early_drop_place::NETFILTER => Some(Place::Netfilter),
        early_drop_place::ROUTE => Some(Place::Route),
        early_drop_place::TCP => Some(Place::Tcp),
        value => {
            return Err(DecodeError::Value {
                field: "place of an early drop",
                value: value.into(),
            });
        }
    };
    let port = raw.socket.local_port;
    Ok(EarlyDrop {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        count: raw.count,
        first: Ktime(raw.first_ns),
        last: Ktime(raw.last_ns),
        location: raw.location,
        remotes: raw.remotes,
        listener: (raw.socket.sk != 0)
            .then(|| SocketAddr::new(address(&raw.listener_addr, raw.socket.family), port)),
        device: (raw.device[0] != 0).then_some(Device(raw.device)),
        ifindex: raw.ifindex,
        reason: reason(raw.reason),
        path,
        place,
        hints: raw.hints,
    })
}
