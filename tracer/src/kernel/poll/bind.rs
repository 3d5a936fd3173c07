//! Calls of bind() and listen() that failed, counted by process, address and error.

use std::io;

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::{Bind, kind},
    socket::{BIND_KEY_BYTES, BindFailed},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Poll,
    cumulative::{Cumulative, Tally},
};
use crate::kernel::{error::CannotTrace, header::header, maps};

/// As long as kubelet waits at most before it starts a container again.
const IDLE_NS: u64 = 300_000_000_000;

pub(crate) struct Binds {
    entries: Cumulative<BIND_KEY_BYTES>,
    counted: Array<MapData, u64>,
    /// What had been counted at the last walk.
    walked: u64,
}

impl Binds {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        let maps = ["BINDS", "BINDS_OVERFLOW"];
        Ok(Self {
            entries: Cumulative::new::<BindFailed>(ebpf, &maps, IDLE_NS)?,
            counted: maps::take(ebpf, "BINDS_COUNTED")?,
            walked: 0,
        })
    }

    /// A `Bind` of each entry that counted any since the last poll.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let counted = self.counted.get(&0, 0).map_err(io::Error::other)?;
        if counted == self.walked {
            return Ok(());
        }
        self.walked = counted;
        self.entries.walk(poll.now_ns, |value, is_news| {
            let BindFailed { mut bind, .. } = BindFailed::read_from_bytes(value).ok()?;
            let tally = Tally {
                first_ns: bind.first_ns,
                last_ns: bind.last_ns,
                count: bind.count,
            };
            if is_news(&tally) {
                bind.header = header::<Bind>(kind::BIND, poll.now_ns);
                (poll.feed)(bind.as_bytes());
            }
            Some(tally)
        })
    }
}
