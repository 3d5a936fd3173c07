//! Connections whose receive window is shut: every socket is asked, at a pace, and those that are told of at every poll.
//! A healthy connection has no part in it.

use std::{collections::HashSet, io, os::fd::AsFd as _, sync::Arc};

use aya::maps::MapData;
use conntracer_common::{filter::verdict, record::answer, socket::SocketState, tcp::state};
use foldhash::quality::RandomState;
use zerocopy::FromBytes as _;

use super::{Poll, pace::Pace};
use crate::{
    id::SocketId,
    kernel::{clock::cpu_ns, maps},
};

/// Share of the time that looks may take of a CPU, as a divisor, and how long one is apart from the next: 65,536 sockets
/// take 0.1 s.
const SHARE: u64 = 500;
const REST_NS: std::ops::RangeInclusive<u64> = 1_000_000_000..=60_000_000_000;

/// Without data for so long, a connection whose window is shut is worth a look: one that is in use has just received.
const QUIET_NS: u64 = 1_000_000_000;

/// See the module.
pub(crate) struct ReceiveLooks {
    sockets: Arc<MapData>,
    pace: Pace,
}

impl ReceiveLooks {
    pub(crate) fn new(sockets: Arc<MapData>) -> Self {
        Self {
            sockets,
            pace: Pace::new(SHARE, REST_NS),
        }
    }

    /// A `Receive` of each watched connection, and where it is time to look, of each whose window is shut.
    pub(crate) fn poll(&mut self, watched: &[SocketId], poll: &mut Poll<'_>) -> io::Result<()> {
        let mut lost = 0;
        let mut count = |answered| lost += u64::from(answered == answer::LOST);
        let mut asked = poll.ask("receive", watched, 0, &mut count);
        if asked.is_ok() && self.pace.is_due(poll.now_ns) {
            let spent_ns = cpu_ns();
            asked = self
                .others(watched)
                .and_then(|others| poll.ask("receive", &others, QUIET_NS, &mut count));
            self.pace
                .rest(cpu_ns().saturating_sub(spent_ns), poll.now_ns);
        }
        poll.accounts.answers_lost += lost;
        asked
    }

    /// The sockets that may receive and are not watched.
    fn others(&self, watched: &[SocketId]) -> io::Result<Vec<SocketId>> {
        let watched: HashSet<SocketId, RandomState> = watched.iter().copied().collect();
        let mut others = Vec::new();
        let sockets = self.sockets.fd().as_fd();
        maps::for_each(sockets, size_of::<SocketState>(), |sk, value| {
            if let Ok(known) = SocketState::read_from_bytes(value)
                && known.verdict != verdict::EXCLUDED
                && known.half_closed != state::CLOSE_WAIT
            {
                let id = SocketId::new(sk, known.born_ns);
                if !watched.contains(&id) {
                    others.push(id);
                }
            }
        })?;
        Ok(others)
    }
}
