//! The eBPF side's count of one connection, for tests.

use conntracer_common::record::{self, kind};
use zerocopy::IntoBytes;

use super::tests::LOCAL;
use crate::testing::{Run, socket};

/// What the eBPF side keeps of one connection's repeats.
#[derive(Clone, Copy, Default)]
pub(super) struct Counted(pub(super) record::Retransmits);

impl Counted {
    pub(super) fn event(
        &mut self,
        run: &Run,
        remote: &str,
        change: impl FnOnce(&mut record::Retransmit),
    ) {
        let mut event = run.repeated(socket(LOCAL, remote));
        change(&mut event);
        let Self(record::Retransmits { last, totals, .. }) = self;
        let before = (totals.events > 0).then_some(last.tcp);
        totals.count(&event, before.as_ref());
        *last = event;
        totals.min_rtt_us = if totals.events == 1 { 19_000 } else { 18_500 };
        last.header.kind = kind::RETRANSMITS;
        last.header.size = u16::try_from(size_of::<record::Retransmits>()).unwrap();
    }

    pub(super) fn tell(&self, run: &mut Run) {
        run.feed(self.0.as_bytes());
    }

    pub(super) fn answer(mut self, run: &mut Run) {
        self.0.totals.polled = 1;
        self.tell(run);
    }
}
