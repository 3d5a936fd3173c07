//! Failed attempts to connect, counted by process, remote end and error.

use aya::Ebpf;
use conntracer_common::{
    record::{Failure, Header},
    socket::{FAILED_KEY_BYTES, Failed},
};

use super::cumulative::{Entry, Tallied, Tally};
use crate::kernel::error::CannotTrace;

/// More than a client waits before it tries again.
const IDLE_NS: u64 = 300_000_000_000;

pub(crate) type Failures = Tallied<Failed, FAILED_KEY_BYTES>;

impl Failures {
    pub(crate) fn new(ebpf: &mut Ebpf) -> Result<Self, CannotTrace> {
        Self::of_maps(
            ebpf,
            &["FAILURES", "FAILURES_OVERFLOW"],
            "FAILURES_COUNTED",
            IDLE_NS,
        )
    }
}

impl Entry for Failed {
    type Record = Failure;

    fn parts(&mut self) -> (&mut Failure, Tally) {
        let Failure {
            first_ns,
            last_ns,
            count,
            ..
        } = self.failure;
        let tally = Tally {
            first_ns,
            last_ns,
            count,
        };
        (&mut self.failure, tally)
    }

    fn header(record: &mut Failure) -> &mut Header {
        &mut record.header
    }
}
