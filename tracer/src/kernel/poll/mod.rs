//! What the kernel's maps tell when they are asked: one struct a poll, which owns its maps and what it last told.
//!
//! Each has one entry point, `poll`. In which order they are asked is `kernel::live`'s.

pub(crate) mod accept_queue;
pub(crate) mod acceptor;
pub(crate) mod beside;
pub(crate) mod bind;
pub(crate) mod cumulative;
pub(crate) mod dropped;
pub(crate) mod early_drop;
pub(crate) mod failure;
pub(crate) mod half_closed;
pub(crate) mod holder;
pub(crate) mod idle;
pub(crate) mod listener;
pub(crate) mod loss;
pub(crate) mod netns;
pub(crate) mod netns_facts;
mod pace;
pub(crate) mod port;
pub(crate) mod receive;
pub(crate) mod retransmit;
pub(crate) mod seed;

use std::io;

use aya::Ebpf;
use conntracer_common::record::answer;

use super::{accounts::Accounts, on_demand, owners::OwnerSearch, ring::Rings};
use crate::id::SocketId;

/// Sockets asked about before the rings are read: their records fill a quarter of one CPU's perf buffer, the
/// smallest of rings, and every answer is written by this CPU.
const AT_ONCE: usize = 512;

/// Where records go.
pub(super) type Feed<'a> = &'a mut dyn FnMut(&[u8]);

/// One poll, and what it may use besides what is its own.
pub(super) struct Poll<'a> {
    pub(super) now_ns: u64,
    pub(super) ebpf: &'a mut Ebpf,
    pub(super) rings: &'a mut Rings,
    pub(super) accounts: &'a mut Accounts,
    pub(super) owners: &'a mut OwnerSearch,
    pub(super) feed: Feed<'a>,
}

impl Poll<'_> {
    /// Runs a program on one socket after the other, and reads the rings before the answers fill one.
    pub(super) fn ask(
        &mut self,
        program: &str,
        ids: &[SocketId],
        argument: u64,
        mut answered: impl FnMut(u32),
    ) -> io::Result<()> {
        for some in ids.chunks(AT_ONCE) {
            for SocketId { sk, born } in some {
                answered(on_demand::run(self.ebpf, program, [*sk, born.0, argument])?);
            }
            self.rings.drain(self.feed);
        }
        Ok(())
    }

    /// A `Snapshot` of each socket.
    pub(super) fn snapshots(&mut self, ids: &[SocketId]) -> io::Result<()> {
        let mut lost = 0;
        let asked = self.ask("snapshot", ids, 0, |answered| {
            lost += u64::from(answered == answer::LOST);
        });
        self.accounts.answers_lost += lost;
        asked
    }

    /// Looks for owners that are not known, where it is time to.
    pub(super) fn search_owners(&mut self) -> io::Result<()> {
        self.owners.search_when_due(self.ebpf, self.now_ns)
    }
}
