//! What was there before conntracer, in numbers.

use serde::Serialize;

use crate::{
    count::Grow,
    event::{Seed, Seeded, TcpState},
};

/// Counts of a run's `Seed` records, and what the walk said at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seeds {
    /// Sockets found, and of those: listeners, connections that are half-closed, requests, and all
    /// but the remains in TIME_WAIT whose owner is not known.
    pub seeds: u64,
    pub seed_listeners: u64,
    pub seed_half_closed: u64,
    pub seed_requests: u64,
    pub seed_unowned: u64,
    /// Sockets that found no room in the eBPF side's maps.
    pub seed_untracked: u64,
    /// Network namespaces walked, those that nothing leads into, and how long it all took.
    pub seed_namespaces: u64,
    pub seed_namespaces_not_entered: u64,
    pub seed_ms: u64,
}

impl Seeds {
    pub(crate) fn found(&mut self, seed: &Seed) {
        self.seeds.grow(1);
        let state = seed.socket.state;
        self.seed_listeners
            .grow(u64::from(state == TcpState::Listen));
        self.seed_half_closed.grow(u64::from(seed.since.is_some()));
        self.seed_requests
            .grow(u64::from(state == TcpState::NewSynRecv));
        self.seed_unowned.grow(u64::from(
            seed.owner.is_none() && state != TcpState::TimeWait,
        ));
    }

    pub(crate) fn over(&mut self, seeded: &Seeded) {
        self.seed_untracked = seeded.untracked;
        self.seed_namespaces = seeded.namespaces.into();
        self.seed_namespaces_not_entered = seeded.not_entered.into();
        self.seed_ms = u64::try_from(seeded.took.as_millis()).unwrap_or(u64::MAX);
    }
}
