//! Connections that nothing has passed on for long.

use std::time::Duration;

use conntracer_common::record::{self, idle_flag};

use super::{DecodeError, owner, socket, tcp};
use crate::event::Idle;

pub(super) fn idle(raw: &record::Idle) -> Result<Idle, DecodeError> {
    Ok(Idle {
        socket: socket(&raw.socket),
        owner: owner(&raw.owner)?,
        tcp: tcp(&raw.tcp),
        idle: Duration::from_nanos(raw.idle_ns),
        without_timer: raw.flags & idle_flag::NO_TIMER != 0,
    })
}
