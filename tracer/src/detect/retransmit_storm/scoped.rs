//! One scope that retransmits: a connection, or many.

use conntracer_common::retransmit::advanced;

use super::{
    activity::Activity, costly::Costly, course::Course, segments::Segments, spurious::Spurious,
};
use crate::{
    event::{Owner, Retransmit},
    table::connection::Connection,
    time::Ktime,
};

#[derive(Debug)]
pub(super) struct Scoped {
    pub(super) activity: Activity,
    /// Where all of it is one's.
    pub(super) owner: Option<Owner>,
    /// Of the scope of one.
    pub(super) connection: Option<Box<OfConnection>>,
}

impl Scoped {
    pub(super) fn new(now: Ktime) -> Self {
        Self {
            activity: Activity::new(now),
            owner: None,
            connection: None,
        }
    }
}

#[derive(Debug)]
pub(super) struct OfConnection {
    /// As of its last retransmission: other records tell of it meanwhile, a timeout's before each of these.
    pub(super) connection: Connection,
    pub(super) course: Course,
    pub(super) costly: Costly,
    pub(super) spurious: Spurious,
}

impl OfConnection {
    /// What became of it between its last record and `body`. What is told of an event alone is compared with
    /// what the socket counted.
    pub(super) fn since_last(&mut self, body: &Retransmit, segments: &mut Segments) {
        let (before, now) = (&self.connection.tcp, &body.tcp);
        segments.sent = now
            .data_segs_out
            .saturating_sub(before.data_segs_out)
            .into();
        segments.spurious = self.spurious.doubled(body.duplicates);
        if body.is_cumulative {
            return;
        }
        segments.progress = advanced(before.snd_una, now.snd_una).into();
        segments.peer_spoke = advanced(before.rcv_nxt, now.rcv_nxt).into();
        let counted = now.total_retrans.wrapping_sub(before.total_retrans);
        // Of two records the newer may come first, when they are of two CPUs.
        let counted = if counted < 1 << 31 { counted } else { 0 };
        let unseen = counted.saturating_sub(body.counted());
        segments.unseen(unseen.into(), body.failures_traced);
    }
}
