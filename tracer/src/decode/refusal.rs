//! Packets freed before they came to a socket.

use std::net::SocketAddr;

use conntracer_common::record::{self, path, refusal_place};

use super::{DecodeError, address, owner, reason, socket};
use crate::{
    event::{Device, Drop, Path, Place, Refusal},
    finding::Ktime,
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

pub(super) fn refusal(raw: &record::Refusal) -> Result<Refusal, DecodeError> {
    let path = match raw.path {
        path::UNKNOWN => None,
        path::PREROUTING => Some(Path::Prerouting),
        path::INPUT => Some(Path::Input),
        path::FORWARD => Some(Path::Forward),
        value => {
            return Err(DecodeError::Value {
                field: "path of a refusal",
                value: value.into(),
            });
        }
    };
    let place = match raw.place {
        refusal_place::UNKNOWN => None,
        refusal_place::NETFILTER => Some(Place::Netfilter),
        refusal_place::ROUTE => Some(Place::Route),
        refusal_place::TCP => Some(Place::Tcp),
        value => {
            return Err(DecodeError::Value {
                field: "place of a refusal",
                value: value.into(),
            });
        }
    };
    let port = raw.socket.local_port;
    Ok(Refusal {
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
