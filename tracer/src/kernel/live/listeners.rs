//! Listeners whose totals changed, and who troubled them.

use std::{io, os::fd::AsFd as _};

use conntracer_common::{
    filter::verdict,
    record::{Sources, Syn, SynTotals, kind, syn_outcome},
    socket::Listener,
    stats::{HookCounters, hook},
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::{Kernel, header};
use crate::{id::SocketId, kernel::maps, plan::HookType, time::Ktime};

/// Listeners whose queues are asked for anew at one poll: as many of a host's as may be in trouble at
/// once, at about 1 µs each. The others are told as they stood at their last SYN.
const MAX_REFRESHED: usize = 256;

impl Kernel {
    /// Listeners that are watched, or whose totals changed since the last poll, as they stand now.
    pub(super) fn poll_listeners(
        &mut self,
        watched: &[SocketId],
        now_ns: u64,
        feed: &mut dyn FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut events = HookCounters::default();
        let counting = [
            hook::SYN,
            hook::ACK,
            hook::ACCEPT,
            hook::SYNACK,
            hook::REQUEST,
            hook::COOKIE,
        ];
        // There it is the state that tells which handshakes were completed.
        let by_state = self.host.plan.hook_type("ack") == HookType::Tracepoint;
        for hook in counting.into_iter().chain(by_state.then_some(hook::STATE)) {
            events.add(&maps::counters(&self.counters, hook)?);
        }
        if events.seen == self.listener_events && watched.is_empty() {
            return Ok(());
        }
        self.listener_events = events.seen;
        let before = std::mem::take(&mut self.totals);
        let (totals, unowned) = (&mut self.totals, &mut self.unowned);
        let mut due = watched.to_vec();
        maps::for_each(
            self.listeners.fd().as_fd(),
            size_of::<Listener>(),
            |sk, value| {
                let Ok(Listener { syn, asked, .. }) = Listener::read_from_bytes(value) else {
                    return;
                };
                // Without its birth it is still being filled in.
                if syn.socket.born_ns == 0 || asked == verdict::REFUSED {
                    return;
                }
                totals.insert(sk, syn.totals);
                if before.get(&sk) != Some(&syn.totals) {
                    unowned.note(&syn.owner);
                    due.push(SocketId {
                        sk,
                        born: Ktime(syn.socket.born_ns),
                    });
                }
            },
        )?;
        self.search_owners(now_ns)?;
        due.sort_unstable();
        due.dedup();
        for id in due.iter().take(MAX_REFRESHED) {
            self.ask("refresh", *id)?;
        }
        let mut troubled = false;
        let mut value = [0; size_of::<Listener>()];
        for SocketId { sk, born } in due {
            // Gone meanwhile: its last totals are in the rare ring.
            if !maps::lookup(self.listeners.fd().as_fd(), sk, &mut value)? {
                continue;
            }
            let Ok(Listener { mut syn, .. }) = Listener::read_from_bytes(&value) else {
                continue;
            };
            if syn.socket.born_ns != born.0 {
                continue;
            }
            troubled |= before.get(&sk).map_or(0, trouble) != trouble(&syn.totals);
            self.totals.insert(sk, syn.totals);
            syn.header = header::<Syn>(kind::SYN, now_ns);
            syn.outcome = u8::MAX;
            feed(syn.as_bytes());
        }
        if troubled {
            self.poll_sources(now_ns, feed)?;
        }
        Ok(())
    }

    /// Who troubled listeners since the last poll.
    fn poll_sources(&mut self, now_ns: u64, feed: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let before = std::mem::take(&mut self.troubled);
        let troubled = &mut self.troubled;
        maps::for_each(
            self.sketches.fd().as_fd(),
            size_of::<Sources>(),
            |sk, value| {
                let Ok(mut sources) = Sources::read_from_bytes(value) else {
                    return;
                };
                troubled.insert(sk, sources.syns);
                if before.get(&sk) != Some(&sources.syns) {
                    sources.header = header::<Sources>(kind::SOURCES, now_ns);
                    feed(sources.as_bytes());
                }
            },
        )
    }
}

/// What of a listener's totals goes into a sketch of its sources.
pub(in crate::kernel) fn trouble(totals: &SynTotals) -> u64 {
    totals[syn_outcome::COOKIE..syn_outcome::SYNS]
        .iter()
        .fold(totals[syn_outcome::REPEATED], |sum, more| {
            sum.wrapping_add(*more)
        })
}
