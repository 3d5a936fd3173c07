//! Calls of bind() and listen() that failed, counted by process, address and error.

use aya::Ebpf;
use conntracer_common::{
    record::{Bind, Header},
    socket::{BIND_KEY_BYTES, BindFailed},
};

use super::cumulative::{Entry, Tallied, Tally};
use crate::kernel::error::CannotTrace;

/// As long as kubelet waits at most before it starts a container again.
const IDLE_NS: u64 = 300_000_000_000;

pub(crate) type Binds = Tallied<BindFailed, BIND_KEY_BYTES>;

impl Binds {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Self::of_maps(ebpf, &["BINDS", "BINDS_OVERFLOW"], "BINDS_COUNTED", IDLE_NS)
    }
}

impl Entry for BindFailed {
    type Record = Bind;

    fn parts(&mut self) -> (&mut Bind, Tally) {
        let Bind {
            first_ns,
            last_ns,
            count,
            ..
        } = self.bind;
        let tally = Tally {
            first_ns,
            last_ns,
            count,
        };
        (&mut self.bind, tally)
    }

    fn header(record: &mut Bind) -> &mut Header {
        &mut record.header
    }
}
