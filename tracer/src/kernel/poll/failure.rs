//! Failed attempts to connect, counted by process, remote end and error.

use std::io;

use aya::{
    Ebpf,
    maps::{Array, MapData},
};
use conntracer_common::{
    record::{Failure, kind},
    socket::{FAILED_KEY_BYTES, Failed},
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Poll,
    cumulative::{Cumulative, Tally},
};
use crate::kernel::{error::CannotTrace, header::header, maps};

/// More than a client waits before it tries again.
const IDLE_NS: u64 = 300_000_000_000;

pub(crate) struct Failures {
    entries: Cumulative<FAILED_KEY_BYTES>,
    counted: Array<MapData, u64>,
    /// What had been counted at the last walk.
    walked: u64,
}

impl Failures {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        let maps = ["FAILURES", "FAILURES_OVERFLOW"];
        Ok(Self {
            entries: Cumulative::new::<Failed>(ebpf, &maps, IDLE_NS)?,
            counted: maps::take(ebpf, "FAILURES_COUNTED")?,
            walked: 0,
        })
    }

    /// A `Failure` of each entry that counted any since the last poll.
    pub(crate) fn poll(&mut self, poll: &mut Poll<'_>) -> io::Result<()> {
        let counted = self.counted.get(&0, 0).map_err(io::Error::other)?;
        if counted == self.walked {
            return Ok(());
        }
        self.walked = counted;
        self.entries.walk(poll.now_ns, |value, is_news| {
            let Failed { mut failure, .. } = Failed::read_from_bytes(value).ok()?;
            let tally = Tally {
                first_ns: failure.first_ns,
                last_ns: failure.last_ns,
                count: failure.count,
            };
            if is_news(&tally) {
                failure.header = header::<Failure>(kind::FAILURE, poll.now_ns);
                (poll.feed)(failure.as_bytes());
            }
            Some(tally)
        })
    }
}
