//! Listeners: the kernel half's cumulative totals per socket, turned into what is new.
//!
//! An address can have many listening sockets (`SO_REUSEPORT`), and a restarted server a new one; the
//! totals of each start at zero when the kernel half first sees it.

use std::net::SocketAddr;

use conntracer_common::record::{SynTotals, syn_outcome};

use crate::{event::Socket, source::SocketId, table::Bounded};

/// Which listener, as people name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    pub netns: u32,
    pub local: SocketAddr,
}

impl ListenerKey {
    #[must_use]
    pub const fn of(socket: &Socket) -> Self {
        Self {
            netns: socket.netns,
            local: socket.local,
        }
    }
}

/// The last totals of every listening socket.
#[derive(Debug)]
pub struct ListenerTotals {
    table: Bounded<(SocketId, ListenerKey), SynTotals>,
}

impl ListenerTotals {
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            table: Bounded::new(limit),
        }
    }

    #[must_use]
    pub const fn evicted(&self) -> u64 {
        self.table.evicted()
    }

    /// What the totals gained since the last record of this socket.
    pub fn gained(&mut self, socket: &Socket, totals: &SynTotals) -> SynTotals {
        let key = (socket.id, ListenerKey::of(socket));
        let Some(before) = self.table.touch(&key) else {
            self.table.insert(key, *totals);
            return *totals;
        };
        let mut gained = [0; syn_outcome::COUNT];
        for ((gained, before), now) in gained.iter_mut().zip(before.iter_mut()).zip(totals) {
            *gained = now.saturating_sub(*before);
            // Records of two CPUs may arrive out of order: an older total takes nothing back.
            *before = (*before).max(*now);
        }
        gained
    }
}
